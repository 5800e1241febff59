"""Real processes and real mounts for tests, and their certain end.

    with datastore(tmp_path, hosts=("a", "b")) as ds:
        (ds.a.path / "disk.img").write_bytes(...)
        ds.b.stop()

`datastore` makes a volume on an image file, starts lockd and a mount per host, and at its end
unmounts them, checks the volume and removes everything. Whatever happens:

* every process dies with the test process (PR_SET_PDEATHSIG), and its mounts with it, because the
  tests run in a mount namespace of their own (`enter_private_namespace`);
* a watchdog thread ends mounts (`umount -f`, then `-l`, then SIGKILL) when a test has used up its
  time: a system call on a hung mount cannot be interrupted from within;
* address space is limited, so that a daemon that runs away dies and not the machine.

Nothing here sleeps: readiness is a line that the process prints.
"""

import ctypes
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.loop import loop_device
from vmfs.fuse.mountinfo import mounted_at, parse_mountinfo

BIN: Final = Path(sys.executable).parent
READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
LIMIT_SECONDS: Final = 240.0
ADDRESS_SPACE: Final = 1 << 30

_CLONE_NEWNS: Final = 0x00020000
_MS_REC_PRIVATE: Final = 0x4000 | (1 << 18)
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def can_mount() -> bool:
    """Whether this machine and this user can run the tests that need a mount."""
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


def enter_private_namespace() -> None:
    """Give this process mounts of its own: what the tests mount is seen by nobody else.

    Raises:
        OSError: not allowed to.
    """
    for result in (
        _libc.unshare(_CLONE_NEWNS),
        _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None),
    ):
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on `path`, without touching it."""
    text = Path("/proc/self/mountinfo").read_text()
    return mounted_at(parse_mountinfo(text), str(path)) is not None


def force_unmount(path: Path) -> None:
    """Take a mount away whatever state it is in: abort the connection first, then detach."""
    while is_mounted(path):
        _libc.umount2(os.fsencode(path), _MNT_FORCE)
        if is_mounted(path) and _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            raise OSError(ctypes.get_errno(), f"cannot unmount {path}")


class ProcessFailed(AssertionError):
    """A process ended, or did not say what it should have; the text has all it said."""


class Process:
    """One started program, with everything it says."""

    def __init__(
        self, command: Sequence[str | Path], *, address_space: int = ADDRESS_SPACE
    ) -> None:
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._popen = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=lambda: _prepare_child(address_space),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_for(self, text: str, *, seconds: float = READY_SECONDS) -> str:
        """The next line that contains `text`.

        Raises:
            ProcessFailed: the process ended first, or said nothing of the kind for so long.
        """
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                raise ProcessFailed(self._story(f"did not say {text!r} in {seconds} s")) from None
            if line is None:
                raise ProcessFailed(self._story(f"ended before it said {text!r}"))
            if text in line:
                return line

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, *, seconds: float = STOP_SECONDS) -> int:
        """The exit status.

        Raises:
            ProcessFailed: still running after so long.
        """
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(self._story(f"still running after {seconds} s")) from None

    def stop(self) -> None:
        """SIGTERM, and status 0 within `STOP_SECONDS`."""
        if self.is_running:
            self.send(signal.SIGTERM)
        status = self.wait()
        self._reader.join(STOP_SECONDS)
        if status != 0:
            raise ProcessFailed(self._story(f"ended with status {status}"))

    def kill(self) -> None:
        """SIGKILL, and wait. Safe at any time."""
        if self.is_running:
            self._popen.kill()
        self._popen.wait()
        self._reader.join(STOP_SECONDS)
        assert self._popen.stdout is not None
        if not self._reader.is_alive():
            self._popen.stdout.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.said.append(line.rstrip("\n"))
            self._lines.put(line)
        self._lines.put(None)

    def _story(self, what: str) -> str:
        command = " ".join(str(word) for word in self._popen.args)  # type: ignore[union-attr]
        return "\n".join([f"{command}: {what}; it said:", *self.said[-60:]])


def _prepare_child(address_space: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass
class Mount:
    """One host that has the volume mounted."""

    name: str
    path: Path
    process: Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Unmount cleanly; the locks are free when this returns."""
        self.process.stop()
        assert not is_mounted(self.path), f"{self.path} is still mounted after a clean stop"

    def kill(self) -> None:
        """The host dies: SIGKILL, and what is left of its mount is taken away."""
        self.process.kill()
        force_unmount(self.path)

    def clean_up(self) -> None:
        force_unmount(self.path)
        self.process.kill()
        self.path.rmdir()


@dataclass
class Datastore:
    """A volume on an image, its lockd, and the hosts that have it mounted."""

    directory: Path
    lun: Path
    socket: Path
    lockd: Process
    hosts: dict[str, Mount] = field(default_factory=dict)

    @property
    def a(self) -> Mount:
        return self.hosts["a"]

    @property
    def b(self) -> Mount:
        return self.hosts["b"]

    def mount(self, name: str, *options: str, doctored: str = "") -> Mount:
        """Mount it as host `name`; ready when this returns. A former mount of the name is gone.

        `doctored`: with this rule broken on purpose (`tests.support.doctored_mount`).
        """
        former = self.hosts.pop(name, None)
        if former is not None:
            former.clean_up()
        path = self.directory / f"host-{name}"
        path.mkdir()
        command: list[str | Path] = [BIN / "vmfs"]
        if doctored:
            command = [sys.executable, "-m", "tests.support.doctored_mount", doctored]
        command += ["mount", self.lun, path]
        command += ["--lockd", self.socket, "--host", name, "-o", "profile=test"]
        for option in options:
            command += ["-o", option]
        mount = Mount(name, path, Process(command))
        self.hosts[name] = mount
        try:
            mount.process.wait_for("vmfs: ready:")
        except ProcessFailed:
            del self.hosts[name]
            mount.clean_up()
            raise
        return mount

    def stop(self) -> None:
        """Unmount every host that is still there, cleanly."""
        for mount in self.hosts.values():
            if mount.process.is_running:
                mount.stop()

    def check(self) -> None:
        """`vmfs check` on the image: nothing found, or an assertion with all that was."""
        done = run_vmfs("check", self.lun)
        assert done.returncode == 0, f"vmfs check: {done.returncode}\n{done.stdout}{done.stderr}"

    def end(self) -> None:
        """Every mount dies, whatever it is doing."""
        for mount in self.hosts.values():
            force_unmount(mount.path)
            mount.process.kill()

    def clean_up(self) -> None:
        for mount in self.hosts.values():
            mount.clean_up()
        self.lockd.kill()


def run_as_user(code: str, directory: Path, *, uid: int = 1000) -> None:
    """Run Python as another user, with `top` naming `directory` even where its parents are closed.

    Args:
        code: statements; `top` is a Path, `os` is there.
        directory: what `top` leads to.
        uid: of user and group.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        head = (
            f"import os, stat; from pathlib import Path; top = Path('/proc/self/fd/{fd}')\n"
            f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
        )  # the interpreter itself may be where only root can read
        done = subprocess.run(
            [sys.executable, "-c", head + code],
            pass_fds=[fd],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    finally:
        os.close(fd)
    assert done.returncode == 0, done.stdout + done.stderr


def run_vmfs(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run one `vmfs` command to its end."""
    return subprocess.run(
        [str(BIN / "vmfs"), *(str(word) for word in words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def run(*words: str | Path, seconds: float = LIMIT_SECONDS) -> str:
    """Run a program that must succeed; what it printed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=seconds, check=False
    )
    command = " ".join(str(word) for word in words)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def datastore(
    directory: Path,
    *,
    hosts: Sequence[str] = ("a",),
    size: str = "2G",
    mkfs: Sequence[str] = (),
    lockd_options: Sequence[str] = (),
    check: bool = True,
    block: bool = False,
    seconds: float = LIMIT_SECONDS,
) -> Iterator[Datastore]:
    """A new volume with lockd and mounts. At the end: unmounted, checked, gone.

    Args:
        directory: where image, sockets and mount points go.
        hosts: who mounts it.
        size: of the image (sparse).
        mkfs: more arguments for `vmfs mkfs`.
        lockd_options: more arguments for lockd.
        check: whether `vmfs check` must find nothing at the end.
        block: whether the LUN is a block device (a loop device on the image).
        seconds: after which the watchdog ends it.
    """
    image, socket = directory / "ds1.img", directory / "lockd" / "sock"
    with ExitStack() as stack:
        stack.callback(image.unlink, missing_ok=True)
        done = run_vmfs("mkfs", image, "--size", size, "--label", "ds1", *mkfs)
        assert done.returncode == 0, done.stdout + done.stderr
        lun = stack.enter_context(loop_device(image)) if block else image
        socket.parent.mkdir()
        command: list[str | Path] = [BIN / "lockd", "--lun", f"ds1={lun}", "--socket", socket]
        command += ["--state", directory / "state", *lockd_options]
        lockd = Process(command, address_space=64 << 30)  # LMDB maps its whole size
        ds = Datastore(directory, lun, socket, lockd)
        stack.callback(ds.clean_up)
        stack.enter_context(watchdog(ds.end, seconds=seconds))
        lockd.wait_for("ready")
        for name in hosts:
            ds.mount(name)
        yield ds
        ds.stop()
        if check:
            ds.check()


@contextmanager
def watchdog(end: Callable[[], object], *, seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Call `end`, from a thread, when the block takes longer than `seconds`; then fail."""
    barked = threading.Event()

    def bark() -> None:
        barked.set()
        end()

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    assert not barked.is_set(), f"took longer than {seconds} s and was ended from outside"
