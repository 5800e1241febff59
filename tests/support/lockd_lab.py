"""A bench for lockd's decisions: the real engine and machine, on time that the test moves.

No task, no socket: each call lets one thing happen and carries out what comes of it. Everything the
engine does to the world is written down in the order in which it is done (`log`), and what each
peer hears is kept (`heard`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from lockd.machine import (
    Event,
    KillFailed,
    LunSearch,
    LunSearched,
    ProcessExited,
    Received,
    SessionClosed,
    SessionOpened,
    Tick,
    next_deadline,
)
from lockd.protocol.codec import FrameReader, decode
from lockd.protocol.limits import PROTOCOL_VERSION, REPLY_SIZE_MAX
from lockd.protocol.messages import (
    AuditEntry,
    EventNotice,
    Hello,
    Message,
    Register,
    Registered,
    Request,
)
from lockd.server.engine import Engine
from lockd.state import (
    NO_PROCESS,
    HostForgotten,
    HostRecord,
    LunRecord,
    Moment,
    ProcessId,
    Record,
    ReservationEnded,
    ReservationRecord,
    State,
    Timing,
)
from lockd.store import MemoryStore, StoreError
from tests.support.lockd import WALL, MemoryBlocks, identity

LUN_SIZE = 8 * 512


class RecordingStore(MemoryStore):
    """A store that tells the lab what it keeps, and fails when told to."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log
        self.fails = False

    def commit(self, records: Sequence[Record]) -> None:
        if self.fails:
            raise StoreError("no space left on device")
        super().commit(records)
        self._log += [f"commit {show_record(record)}" for record in records]

    def append(self, entries: Sequence[AuditEntry]) -> None:
        super().append(entries)
        self._log += [f"audit {e.kind.name}: {e.text}" for e in entries]


class Lab:
    """lockd without the world. Peers are called by name; each has one connection at a time."""

    def __init__(self, *, luns: Sequence[str] = ("ds1",), timing: Timing | None = None) -> None:
        self.log: list[str] = []
        self.store = RecordingStore(self.log)
        self.blocks = {name: MemoryBlocks(LUN_SIZE) for name in luns}
        self.timing = timing or Timing()
        self.now = 1000.0
        self.killed: list[ProcessId] = []
        self.kill_error = ""
        self.searched: list[LunSearch] = []
        self.finished: list[int] = []
        self.heard: dict[str, list[tuple[int, Message]]] = {}
        self.sessions: dict[str, int] = {}
        self.processes: dict[str, ProcessId] = {}
        self._names: dict[int, str] = {}
        self._last_session = 0
        self._last_request = 0
        self._last_pid = 100
        self.engine = self._start()

    # --- what tests do ---

    @property
    def state(self) -> State:
        return self.engine.state

    def connect(self, name: str, *, pid: int | None = None, greet: bool = True) -> int:
        """Connect, as a new process unless a pid is given (0: a process that is not known)."""
        self._last_session += 1
        session = self._last_session
        if pid is None:
            self._last_pid = pid = self._last_pid + 1
        self.sessions[name] = session
        self._names[session] = name
        self.heard.setdefault(name, [])
        process = ProcessId(pid, pid * 10, "test") if pid else NO_PROCESS
        self.processes[name] = process
        self.happen(SessionOpened(session, process))
        if greet:
            self.ask(name, Hello(version=PROTOCOL_VERSION, software="test"))
        return session

    def register(
        self, name: str, *, lun: str = "ds1", nonce: int = 1, recall_ms: int = 0, lease_ms: int = 0
    ) -> Message | None:
        """Register as the host of that name."""
        host = identity(name)
        return self.ask(
            name,
            Register(
                lun=lun,
                host_uuid=host.host_uuid,
                name=host.name,
                nonce=nonce,
                recall_ms=recall_ms,
                lease_ms=lease_ms,
            ),
        )

    def host(self, name: str, *, pid: int | None = None, nonce: int = 1) -> int:
        """Connect and register; returns the generation."""
        self.connect(name, pid=pid)
        registered = self.register(name, nonce=nonce)
        assert isinstance(registered, Registered), registered
        return registered.generation

    def ask(self, name: str, message: Request) -> Message | None:
        """Send a request; its reply, if that came at once."""
        self._last_request += 1
        self.happen(Received(self.sessions[name], self._last_request, message))
        return self.reply(name, self._last_request)

    def tell(self, name: str, message: Request) -> None:
        """Send a message that wants no reply."""
        self.happen(Received(self.sessions[name], 0, message))

    def reply(self, name: str, request_id: int | None = None) -> Message | None:
        """The reply to a request (the last one), if it has come."""
        wanted = self._last_request if request_id is None else request_id
        return next((m for number, m in self.heard[name] if number == wanted), None)

    def notices(self, name: str) -> list[Message]:
        """What a peer was told unasked, since the last call."""
        found = [m for number, m in self.heard[name] if not number]
        self.heard[name] = [pair for pair in self.heard[name] if pair[0]]
        return found

    def hang_up(self, name: str) -> None:
        """The connection is lost; the process lives."""
        self.happen(SessionClosed(self.sessions.pop(name)))

    def exit(self, name: str) -> None:
        """The process is gone, and its exit is seen."""
        process = self.processes[name]
        self.happen(ProcessExited(process, f"the exit of pid {process.pid} was seen"))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        due = next_deadline(self.state)
        if due is not None and due <= self.now:
            self.happen(Tick())

    def restart(self) -> None:
        """Lockd is killed and started again, with the same store and LUNs."""
        self.sessions.clear()
        self._names.clear()
        self.engine = self._start()
        self.state.check_invariants()

    def happen(self, *events: Event) -> None:
        """Let events happen, as one batch, and check the invariants."""
        for event in events:
            self.engine.submit(event)
        self.engine.process()
        self.engine.process()  # what the first round submitted itself
        self.state.check_invariants()

    @contextmanager
    def steps(self) -> Iterator[list[str]]:
        """What is done to the world inside the block."""
        start = len(self.log)
        done: list[str] = []
        yield done
        done += self.log[start:]

    # --- what the engine does to the world ---

    def post(self, session: int, data: bytes) -> None:
        name = self._names.get(session, f"session {session}")
        for body in FrameReader(REPLY_SIZE_MAX).feed(data):
            request_id, message = decode(body)
            self.heard.setdefault(name, []).append((request_id, message))
            if not isinstance(message, EventNotice):
                self.log.append(f"{name} < {show(message)}")

    def finish(self, session: int) -> None:
        self.finished.append(session)
        self.log.append(f"close {self._names.get(session, session)}")

    def kill(self, process: ProcessId) -> str:
        self.killed.append(process)
        self.log.append(f"kill pid {process.pid}")
        return self.kill_error

    def search(self, search: LunSearch) -> None:
        self.searched.append(search)
        self.log.append(f"search {search.lun} known={sorted(search.known)}")

    def found(self, *strangers: str, complete: bool = True, lun: str = "ds1") -> None:
        """The search for openers ended."""
        self.happen(LunSearched(lun, strangers, complete))

    def fail_kill(self, name: str, reason: str) -> None:
        """A kill turns out to be impossible."""
        self.happen(KillFailed(self.processes[name], reason))

    def _start(self) -> Engine:
        served = tuple((name, f"memory:{name}", LUN_SIZE) for name in self.blocks)
        state = State.load(
            self.store.start(), luns=served, timing=self.timing, now=Moment(self.now, WALL)
        )
        clock = lambda: Moment(self.now, WALL)  # noqa: E731 - short
        return Engine(state, self.store, self.blocks, self, clock)


def letter(text: str) -> bytes:
    """A block that is one character all over; `0` is all zero."""
    return bytes(512) if text == "0" else text.encode() * 512


def show(value: object) -> str:
    """A message on one line; blocks as the character they are made of."""
    names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    return " ".join(
        [type(value).__name__, *(f"{name}={_short(getattr(value, name))}" for name in names)]
    )


def show_record(record: Record) -> str:
    """What is made durable, on one line."""
    match record:
        case LunRecord():
            return f"lun {record.lun}: generation {record.generation}"
        case HostRecord():
            blocked = " blocked" if record.blocked else ""
            return f"host {record}: generation {record.generation} {record.end.name}{blocked}"
        case ReservationRecord():
            return f"reservation of {record.lun}: generation {record.generation}"
        case ReservationEnded():
            return f"reservation of {record.lun}: none"
        case HostForgotten():
            return f"host {record.host_uuid.hex()}: forgotten"


def _short(value: object) -> str:
    if isinstance(value, bytes):
        if len(value) == 512 and len(set(value)) == 1:
            return f"[{chr(value[0])}]" if value[0] else "[0]"
        return value.decode("ascii", errors="backslashreplace")
    if hasattr(value, "name"):
        return str(value.name)
    return repr(value) if isinstance(value, str) else str(value)
