"""A cluster of real host processes, and the faults that it meets: kill, stop, cut, lockd's death.

    with fault_lab(seed, directory, protocol="ats", files=2) as lab:
        host = lab.start(count, "a", lab.places[0])
        host.stop(); ...; host.go_on()

Hosts are forked, not started anew, so that one costs milliseconds: the program that uses this
module must not have run trio before. So a test runs it as a program of its own (`run_lab_program`),
which is also how a failure is replayed. Everything dies with that program.
"""

import argparse
import ctypes
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.support.fault_host import ENDED, LUN, RAW, Place, Who, main, set_up
from tests.support.linearizability import UNKNOWN, Operation
from tests.support.mounts import BIN, Process, run_vmfs
from vmfs.ondisk.lvm import LV_START
from vmfs.units import MIB
from vmfs.volume.timing import TEST

REPORT_SECONDS: Final = 60.0
"""How long a host may be silent before the test gives up: ten times what a slow machine needs."""

RAW_BLOCKS: Final = 4

_PR_SET_PDEATHSIG: Final = 1


class HostEnded(AssertionError):
    """A host ended before it said what was waited for; the text has its last words."""


@dataclass
class HostProcess:
    """One start of one host."""

    who: Who
    pid: int
    commands: int
    reports: int
    status: int | None = None  # as of waitpid, once it has ended
    faults: list[float] = field(default_factory=list)  # when something was done to it
    _rest: bytes = b""

    def tell(self, **command: object) -> None:
        """Give it a command."""
        os.write(self.commands, json.dumps(command).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            HostEnded: it ended instead, or said nothing for `REPORT_SECONDS`.
        """
        deadline = time.monotonic() + REPORT_SECONDS
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.reports], [], [], left)[0]:
                raise HostEnded(f"{self.who.client} said nothing for {REPORT_SECONDS} s")
            data = os.read(self.reports, 65536)
            if not data:
                raise HostEnded(f"{self.who.client} ended with status {self.wait()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        if "ended" in report:
            raise HostEnded(f"{self.who.client}: {report['ended']}")
        return report

    def last_words(self) -> str:
        """Why it ended, after it did; empty when it did not say."""
        while data := os.read(self.reports, 65536):
            self._rest += data
        words = [json.loads(line).get("ended", "") for line in self._rest.splitlines()]
        return str(words[-1]) if words else ""

    def stop(self) -> None:
        """SIGSTOP; it stands when this returns (or has ended)."""
        self._fault(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.status = status

    def go_on(self) -> None:
        """SIGCONT."""
        if self.status is None:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._fault(signal.SIGKILL)
        self.wait()

    def cut(self) -> None:
        """Its socket to lockd is shut down."""
        self._fault(signal.SIGUSR1)

    def suffer(self) -> None:
        """Something happens to it that is done elsewhere."""
        self.faults.append(time.monotonic())

    def wait(self) -> int:
        """Its exit status, as `os.waitstatus_to_exitcode` has it."""
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(self.status)

    @property
    def is_running(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None

    def history_size(self) -> int:
        """Bytes of history: what grows when it gets on."""
        try:
            return self.who.history.stat().st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Forget it after its end."""
        for fd in (self.commands, self.reports):
            os.close(fd)

    def _fault(self, number: signal.Signals) -> None:
        self.faults.append(time.monotonic())
        if self.status is None:
            os.kill(self.pid, number)


@dataclass
class FaultLab:
    """A volume, its lockd, and the hosts that were started."""

    directory: Path
    seed: int
    lun: Path
    raw: Path
    socket: Path
    lockd: Process
    lockd_command: list[str | Path]
    places: list[Place] = field(default_factory=list)
    hosts: list[HostProcess] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def start(
        self, behaviour: Callable[..., Any], name: str, *what: object, unfenced: bool = False
    ) -> HostProcess:
        """Fork a host. It says `ready` (hear it) when it has the volume open."""
        nonce = self.starts[name] = self.starts.get(name, 0) + 1
        who = Who(
            lun=self.lun,
            raw=self.raw,
            socket=self.socket,
            name=name,
            nonce=nonce,
            seed=self.seed,
            history=self.directory / f"history-{name}-{nonce}",
            unfenced=unfenced,
        )
        commands, reports = os.pipe(), os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _die_with(parent)
            os.close(commands[1])
            os.close(reports[0])
            main(behaviour, who, commands[0], reports[1], *what)
        os.close(commands[0])
        os.close(reports[1])
        host = HostProcess(who, pid, commands[1], reports[0])
        self.hosts.append(host)
        return host

    def restart_lockd(self) -> None:
        """SIGKILL lockd, and start it again on the same state."""
        for host in self.hosts:
            if host.is_running:
                host.suffer()
        self.lockd.kill()
        self.lockd = _start_lockd(self.lockd_command)

    def set_up(self, count: int) -> None:
        """Make so many files of 1 MiB, and find out where they stand."""
        names = [f"file{n}" for n in range(count)]
        host = self.start(set_up, "setup", names)
        said = [host.hear() for _ in names]
        assert host.wait() == 0
        data = _find(self.lun, [name.encode().ljust(512, b"~") for name in names])
        self.places = [
            Place(address=one["address"], record=one["record"], data=at - LV_START)
            for one, at in zip(said, data, strict=True)
        ]

    def read(self, place: Place, length: int = MIB) -> bytes:
        """What stands on the LUN."""
        with self.lun.open("rb") as lun:
            return os.pread(lun.fileno(), length, self.lun_offset(place))

    def lun_offset(self, place: Place) -> int:
        """Where its data begins on the LUN."""
        return LV_START + place.data

    def history(self) -> list[Operation]:
        """What all hosts recorded. What suffered a fault may end at any time after it."""
        found: list[Operation] = []
        for host in self.hosts:
            found += read_history(host.who)
        return found

    def check(self) -> None:
        """`vmfs check` finds nothing."""
        done = run_vmfs("check", self.lun)
        assert done.returncode == 0, f"vmfs check: {done.returncode}\n{done.stdout}{done.stderr}"

    def end(self) -> None:
        """Everything dies."""
        for host in self.hosts:
            if host.is_running:
                host.kill()
        self.lockd.kill()


class Siege:
    """Some hosts that work on, whatever happens to them: who has ended is started again."""

    def __init__(
        self, lab: FaultLab, names: Sequence[str], start: Callable[[str], HostProcess]
    ) -> None:
        self.lab = lab
        self._start = start
        self.hosts = {name: start(name) for name in names}
        self.done: Counter[str] = Counter()

    def tend(self) -> None:
        """Start again whoever has ended, as only a fault may have ended it."""
        for name, host in self.hosts.items():
            if not host.is_running:
                words = host.last_words()
                assert host.wait() in (ENDED, -signal.SIGKILL), f"{host.who.client}: {words}"
                self.done[f"ended: {words.partition(':')[0] or 'killed'}"] += 1
                self.hosts[name] = self._start(name)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it, and tend the hosts meanwhile."""

        def look() -> bool:
            self.tend()
            return condition()

        until(look, what)

    def until_all_work(self, *, but: str = "") -> None:
        """Every host, as it is now, has done something since it was asked last."""
        marks = {name: (host, host.history_size()) for name, host in self.hosts.items()}

        def have_worked() -> bool:
            for name, (host, size) in marks.items():
                now = self.hosts[name]
                if name != but and now.history_size() <= (size if now is host else 0):
                    return False
            return True

        try:
            self.until(have_worked, "work of every host")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._story()}") from None

    def _story(self) -> str:
        """What each host did last, and what lockd thinks."""
        lines = []
        for host in self.hosts.values():
            done = read_history(host.who)[-1:]
            lines.append(f"{host.who.client} (pid {host.pid}): {done[0] if done else 'nothing'}")
        words = [str(BIN / "lockctl"), "--socket", str(self.lab.socket), "status"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        return "\n".join([*lines, f"now: {time.monotonic():.3f}", said.stdout, said.stderr])

    def strike(self, kind: str, name: str, *, until_others: Callable[[], None]) -> None:
        """Do one thing to one host (or to lockd)."""
        self.done[kind] += 1
        host = self.hosts[name]
        match kind:
            case "kill":
                host.kill()
            case "stop":
                host.stop()
                until_others()
                host.go_on()
            case "cut":
                host.cut()
            case "restart":
                self.lab.restart_lockd()
            case _:
                raise AssertionError(f"no such fault: {kind}")

    def end(self) -> None:
        """Everybody ends in peace."""
        self.until_all_work()
        for host in self.hosts.values():
            host.tell(do="quit")
        for host in self.hosts.values():
            words = f"{host.who.client} ended with {host.wait()}: {host.last_words()}"
            assert host.wait() in (0, ENDED, -signal.SIGKILL), words


def fences(lab: FaultLab, history: Iterable[Operation]) -> list[Operation]:
    """For each lock, that who did not end in peace was fenced, some time after it was hit."""
    history = list(history)
    found = []
    for host in lab.hosts:
        mine = [operation for operation in history if operation.client == host.who.client]
        if not mine or host.wait() == 0:
            continue
        ends = [o.called if o.returned == math.inf else o.returned for o in mine]
        since = min(host.faults, default=max(ends))
        found += [
            Operation(client="lockd", key=key, verb="fence", argument=host.who.client, called=since)
            for key in sorted({operation.key for operation in mine})
        ]
    return found


def read_history(who: Who) -> list[Operation]:
    """The operations of one host; what has no return has an unknown result."""
    calls: dict[int, dict[str, Any]] = {}
    if who.history.exists():
        for line in who.history.read_text().splitlines():
            entry = json.loads(line)
            calls.setdefault(entry["n"], {}).update(entry)
    return [
        Operation(
            client=who.client,
            key=call["key"],
            verb=call["verb"],
            argument=tuple(arg) if isinstance(arg := call["argument"], list) else arg,
            result=call.get("result", UNKNOWN),
            called=call["called"],
            returned=call.get("returned", math.inf),
        )
        for call in calls.values()
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which faults a lab's program makes, and where: the same for each of them."""
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--kinds", default="kill,stop,cut")
    parser.add_argument("--protocol", choices=("ats", "reservation"), default="ats")
    parser.add_argument("--seed", type=int, default=1)


@contextmanager
def fault_lab(
    seed: int, directory: Path, *, protocol: str = "ats", files: int = 1
) -> Iterator[FaultLab]:
    """A fresh volume with `files` files, and a lockd for it and for a LUN of plain blocks."""
    signal.signal(
        signal.SIGUSR1, signal.SIG_IGN
    )  # a host that has no connection yet has none to cut
    lun, raw = directory / "ds1.img", directory / "raw.img"
    done = run_vmfs(
        "mkfs", lun, "--size", "2G", "--label", "ds1", "--hosts", "24", "--lock-mode", protocol
    )
    assert done.returncode == 0, done.stdout + done.stderr
    raw.write_bytes(bytes(512 * RAW_BLOCKS))
    socket = directory / "lockd" / "sock"
    command: list[str | Path] = [BIN / "lockd", "--lun", f"{LUN}={lun}", "--lun", f"{RAW}={raw}"]
    command += ["--socket", socket, "--state", directory / "state"]
    command += ["--recall-seconds", str(2 * TEST.stop)]  # at the pace of its hosts
    command += ["--lease-seconds", str(TEST.lease)]
    lab = FaultLab(directory, seed, lun, raw, socket, _start_lockd(command), command)
    try:
        lab.set_up(files)
        yield lab
    finally:
        lab.end()


def _start_lockd(command: list[str | Path]) -> Process:
    lockd = Process(command, address_space=64 << 30)  # LMDB maps its whole size
    lockd.wait_for("ready")
    return lockd


def until(condition: Callable[[], bool], what: str, *, seconds: float = REPORT_SECONDS) -> None:
    """Wait until `condition()`; looks every few milliseconds.

    Raises:
        TimeoutError: it does not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{seconds} s went by without: {what}")
        time.sleep(0.003)


def random_moment(rng: random.Random, *, seconds: float) -> None:
    """Let a random time pass, so that a fault meets a host anywhere in what it does.

    No condition is waited for here: where the host is then, is what the test varies.
    """
    time.sleep(rng.uniform(0.0, seconds))


def in_lanes(count: int, work: Callable[[int], object]) -> list[Any]:
    """Do `work(lane)` in so many forked processes; what each returned (JSON).

    Raises:
        AssertionError: one of them failed; it has said why on standard error.
    """
    parent = os.getpid()
    lanes: list[tuple[int, int]] = []
    for lane in range(count):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            _die_with(parent)
            os.close(out)
            _lane(work, lane, into)
        os.close(into)
        lanes.append((pid, out))
    results: list[Any] = []
    failed = []
    for lane, (pid, out) in enumerate(lanes):
        with os.fdopen(out, "rb") as stream:
            text = stream.read()
        _, status = os.waitpid(pid, 0)
        if status:
            failed.append(lane)
        else:
            results.append(json.loads(text))
    assert not failed, f"lanes {failed} failed; see what they said above"
    return results


def _lane(work: Callable[[int], object], lane: int, into: int) -> NoReturn:
    status = 1
    try:
        with os.fdopen(into, "w") as stream:
            json.dump(work(lane), stream)
        status = 0
    except BaseException as error:  # the process ends here, whatever it was
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _find(path: Path, markers: list[bytes]) -> list[int]:
    """Where each marker stands in a sparse file, in bytes."""
    found: dict[bytes, int] = {}
    with path.open("rb") as file:
        size, at = path.stat().st_size, 0
        while len(found) < len(markers):
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            end = min(os.lseek(file.fileno(), at, os.SEEK_HOLE), size)
            for block in range(at - at % MIB, end, MIB):
                head = os.pread(file.fileno(), 512, block)
                if head in markers and os.pread(file.fileno(), MIB, block) == head * 2048:
                    found[head] = block
            at = end
    return [found[marker] for marker in markers]


# --- as a program of its own ----------------------------------------------------------------------


def run_lab_program(module: str, *words: str, seconds: float = 200.0) -> dict[str, Any]:
    """Run `python -m module words`; the JSON that it prints last.

    Raises:
        AssertionError: it failed; with what it said, and how to do it again.
    """
    command = [sys.executable, "-m", module, *words]
    replay = " ".join(["python", *command[1:]])
    parent = os.getpid()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            cwd=Path(__file__).parents[2],
            preexec_fn=lambda: _die_with(parent),
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{replay}\ntook longer than {seconds} s:\n{error.stderr!r}") from None
    assert done.returncode == 0, f"failed; again with\n  {replay}\n{done.stdout}{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
