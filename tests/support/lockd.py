"""lockd for tests: a real process on a socket of its own, or an engine in this process on streams.

`lockd_process` for what needs a kernel (pidfds, signals, two processes); `memory_lockd` for all
else: the real engine, machine and client, a LUN in memory, peers whose processes are made up and
die when the test says so. In both, whatever was started is gone when the block is left.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from trio.testing import memory_stream_pair

from lockd.client import HostIdentity, LockClient, Observer, connect_stream, observe_stream
from lockd.client.session import Event
from lockd.link import StreamLink
from lockd.machine import LunSearch, LunSearched, ProcessExited
from lockd.protocol.messages import Good, Miscompare
from lockd.server.engine import Engine
from lockd.server.lun import first_difference
from lockd.server.sessions import Sessions
from lockd.state import NO_PROCESS, Moment, ProcessId, State, Timing
from lockd.store import MemoryStore, Store

READY_SECONDS = 20.0
END_SECONDS = 10.0
WALL = 1_700_000_000.0


# --- a real process -------------------------------------------------------------------------------


@dataclass
class LockdProcess:
    """A running lockd. `restart` starts another with the same arguments."""

    arguments: list[str]
    socket: Path
    state: Path
    log_path: Path
    process: subprocess.Popen[str] = field(init=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Start it, and wait for its ready line.

        Raises:
            RuntimeError: it ended instead, or said nothing in time; with what it logged.
        """
        with self.log_path.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from lockd.cli.lockd import main; main()", *self.arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("lockd: ready"):
            self.end()
            raise RuntimeError(f"lockd did not start: {self.log()}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.end()

    def end(self) -> int:
        """SIGTERM (SIGKILL if it does not listen), and wait. Returns the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start()

    def log(self) -> str:
        """What it logged, over all its starts."""
        return self.log_path.read_text(encoding="utf-8")


@contextmanager
def lockd_process(luns: Mapping[str, Path], *options: str) -> Iterator[LockdProcess]:
    """Run a real lockd; its socket and state live in a short temporary directory."""
    directory = Path(tempfile.mkdtemp(prefix="lockd-"))
    socket, state = directory / "run" / "socket", directory / "state"
    arguments = [f"--lun={name}={path}" for name, path in luns.items()]
    arguments += [f"--socket={socket}", f"--state={state}", *options]
    lockd = LockdProcess(arguments, socket, state, directory / "log")
    try:
        lockd.start()
        yield lockd
        lockd.end()
    finally:
        if hasattr(lockd, "process") and lockd.process.poll() is None:
            lockd.kill()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def host_process(socket: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `tests.support.lockd_host`; killed at the end. Wait for its lines with `readline`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lockd_host", str(socket), name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


# --- in this process ------------------------------------------------------------------------------


def identity(name: str, *, nonce: int = 1) -> HostIdentity:
    """A host whose uuid follows from its name."""
    return HostIdentity(host_uuid=name.encode().ljust(16, b"."), name=name, nonce=nonce)


class MemoryBlocks:
    """A LUN in memory, all zero at first. Counts its flushes; fails when told to."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.sync_count = 0
        self.error = ""
        self.sync_error = ""

    @property
    def size(self) -> int:
        return len(self.data)

    def compare_and_write(self, lba: int, expected: bytes, new: bytes) -> Good | Miscompare | str:
        if self.error:
            return self.error
        current = bytes(self.data[lba * 512 : lba * 512 + 512])
        if current != expected:
            return Miscompare(offset=first_difference(current, expected), current=current)
        self.data[lba * 512 : lba * 512 + 512] = new
        return Good()

    def sync(self) -> str | None:
        self.sync_count += 1
        return self.sync_error or None

    def block(self, lba: int) -> bytes:
        return bytes(self.data[lba * 512 : lba * 512 + 512])


class CheckedEngine(Engine):
    """The engine; after every batch the invariants of its state are checked."""

    def process(self) -> None:
        super().process()
        self.state.check_invariants()


class MemorySessions(Sessions):
    """Sessions whose peers are made up: killing one makes it exit, unless it is in `unkillable`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery, {})
        self.unkillable: set[ProcessId] = set()
        self.killed: list[ProcessId] = []
        self.links: dict[ProcessId, list[StreamLink]] = {}
        self.strangers: tuple[str, ...] = ()
        self.memory_engine: Engine | None = None

    def kill(self, process: ProcessId) -> str:
        self.killed.append(process)
        if process not in self.unkillable:
            self.exit(process)
        return ""

    def exit(self, process: ProcessId) -> None:
        """The process is gone: its sockets close, and its pidfd becomes readable."""
        assert self.memory_engine is not None
        for link in self.links.pop(process, []):
            link.close()
        how = f"the exit of pid {process.pid} was seen"
        self.memory_engine.submit(ProcessExited(process, how))

    def search(self, search: LunSearch) -> None:
        assert self.memory_engine is not None
        self.memory_engine.submit(LunSearched(search.lun, self.strangers, complete=True))


@dataclass
class MemoryLockd:
    """A lockd in this process. Time is trio's, so that MockClock can be used."""

    engine: Engine
    sessions: MemorySessions
    nursery: trio.Nursery
    store: Store
    blocks: dict[str, MemoryBlocks]
    last_pid: int = 100

    def process(self) -> ProcessId:
        """A made-up process."""
        self.last_pid += 1
        return ProcessId(self.last_pid, 0, "test")

    def stream(self, process: ProcessId = NO_PROCESS) -> trio.abc.Stream:
        """A new connection; returns its other end."""
        ours, theirs = memory_stream_pair()
        link = StreamLink(ours)
        self.sessions.links.setdefault(process, []).append(link)
        self.nursery.start_soon(self.sessions.serve, link, process)
        return theirs

    def connect(
        self,
        name: str,
        *,
        lun: str = "ds1",
        nonce: int = 1,
        process: ProcessId | None = None,
        events: list[Event] | None = None,
    ) -> contextlib.AbstractAsyncContextManager[LockClient]:
        """A nexus of a host, in a process of its own unless one is given."""
        seen: list[Event] = [] if events is None else events
        stream = self.stream(self.process() if process is None else process)
        return connect_stream(stream, identity(name, nonce=nonce), lun, seen.append)

    def observe(
        self, events: list[Event] | None = None
    ) -> contextlib.AbstractAsyncContextManager[Observer]:
        """A connection without a nexus."""
        seen: list[Event] = [] if events is None else events
        return observe_stream(self.stream(), seen.append)

    @property
    def state(self) -> State:
        return self.engine.state


@asynccontextmanager
async def memory_lockd(
    *,
    luns: Mapping[str, int] | None = None,
    store: Store | None = None,
    blocks: dict[str, MemoryBlocks] | None = None,
    timing: Timing | None = None,
) -> AsyncIterator[MemoryLockd]:
    """Run lockd's engine in this process. Give `store` and `blocks` again to play a restart."""
    sizes = {"ds1": 1 << 20} if luns is None else luns
    held = {name: MemoryBlocks(size) for name, size in sizes.items()} if blocks is None else blocks
    kept = MemoryStore() if store is None else store
    served = tuple((name, f"memory:{name}", b.size) for name, b in held.items())
    state = State.load(kept.start(), luns=served, timing=timing or Timing(), now=_now())
    async with trio.open_nursery() as nursery:
        sessions = MemorySessions(nursery)
        engine = CheckedEngine(state, kept, held, sessions, _now)
        sessions.memory_engine = engine
        sessions.attach(engine, None)
        nursery.start_soon(engine.run)
        yield MemoryLockd(engine, sessions, nursery, kept, held)
        nursery.cancel_scope.cancel()


async def until(condition: object, *, seconds: float = 10.0) -> None:
    """Wait until a function of no arguments is true, by yielding to the other tasks.

    Raises:
        TimeoutError: it does not become true.
    """
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not become true")
        await trio.sleep(0.0005)


def _now() -> Moment:
    return Moment(trio.current_time(), WALL)
