"""The peers' processes: who they are, whether they live, and their end.

A pidfd refers to one process for ever, whatever becomes of its number. It is taken from the socket
when a connection is accepted: SO_PEERPIDFD; before Linux 6.5 SO_PEERCRED and pidfd_open, and then
the peer must still hold its end, or the number may be another's. When the pidfd becomes readable,
all threads of the process are gone, and with them every write that was begun by write(2), by Linux
AIO or through a mapping. It says nothing about io_uring requests nor about children that inherited
the LUN's descriptor: a host must use neither.
"""

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from lockd.server import statx
from lockd.server.fuse_abort import abort_connections
from lockd.state import ProcessId

log = logging.getLogger("lockd")

SO_PEERPIDFD: Final = 77  # asm-generic/socket.h; not in Python's socket module yet

LINGER_SECONDS: Final = 0.5
"""How long a process may take to end by SIGKILL before its FUSE connections are aborted. An exit
takes milliseconds; one that waits for its disk takes longer, and loses nothing by the abort."""

ABORTS_MAX: Final = 4  # threads; one that hangs holds up no other work

ExitSeen = Callable[[ProcessId, str], None]


class UnknownPeer(Exception):
    """The peer's process cannot be identified: it is gone, or of another pid namespace."""


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # proc(5): field 22; comm may hold blanks


class Processes:
    """The processes that lockd watches, by pidfd."""

    def __init__(self, nursery: trio.Nursery, exit_seen: ExitSeen) -> None:
        """The watchers run in `nursery`; `exit_seen` is told once per process."""
        self._nursery = nursery
        self._exit_seen = exit_seen
        self._boot_id = boot_id()
        self._pidfds: dict[ProcessId, int] = {}
        self._lingering: set[ProcessId] = set()
        self._aborts = trio.CapacityLimiter(ABORTS_MAX)

    def identify(self, peer: socket.socket) -> ProcessId:
        """The process at the other end of a connection, watched from now on.

        Raises:
            UnknownPeer: it is gone already, or cannot be seen from here.
        """
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", raw)[0]
        if pid <= 0:
            raise UnknownPeer("the peer is in a pid namespace that lockd cannot see")
        try:
            pidfd = _peer_pidfd(peer, pid)
        except OSError as error:
            raise UnknownPeer(f"pid {pid}: {error.strerror}") from error
        ticks = start_ticks(pid)
        # Alive after its start time was read: so that was its own, not that of its successor.
        if ticks is None or _polls(pidfd, select.POLLIN) or _polls(peer.fileno(), select.POLLHUP):
            os.close(pidfd)
            raise UnknownPeer(f"pid {pid} is gone already")
        process = ProcessId(pid, ticks, self._boot_id)
        self._watch(process, pidfd)
        return process

    def find_again(self, process: ProcessId) -> str:
        """Watch a process that an earlier lockd knew. Returns the proof of its death, or ""."""
        if process.boot_id != self._boot_id:
            return f"the machine was booted since; pid {process.pid} is of an earlier boot"
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            return f"pid {process.pid} does not exist any more"
        if start_ticks(process.pid) != process.start_ticks:
            os.close(pidfd)
            return f"pid {process.pid} does not exist any more (the number is another's now)"
        self._watch(process, pidfd)
        return ""

    def kill(self, process: ProcessId) -> str:
        """Send SIGKILL. Returns why it could not be sent, or ""; the exit is told separately.

        Who does not end by it has its FUSE connections aborted: it may wait for its own mount.
        """
        if process.pid == os.getpid():
            return "it is lockd's own process"
        pidfd = self._pidfds.get(process)
        if pidfd is None:
            return ""  # its exit was seen, and told, just now
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        except OSError as error:
            return error.strerror or str(error)
        if process not in self._lingering:
            self._lingering.add(process)
            self._nursery.start_soon(self._abort_if_it_lingers, process)
        return ""

    async def _abort_if_it_lingers(self, process: ProcessId) -> None:
        await trio.sleep(LINGER_SECONDS)
        if process in self._pidfds:
            aborted = await trio.to_thread.run_sync(
                abort_connections, process.pid, abandon_on_cancel=True, limiter=self._aborts
            )
            what = ", ".join(aborted) or "nothing: it serves no FUSE mount that lockd can tell"
            log.warning("pid %d does not end by SIGKILL; aborted %s", process.pid, what)
        self._lingering.discard(process)

    def close(self) -> None:
        """Watch no more."""
        for pidfd in self._pidfds.values():
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)
        self._pidfds.clear()

    def _watch(self, process: ProcessId, pidfd: int) -> None:
        if process in self._pidfds:
            os.close(pidfd)
            return
        self._pidfds[process] = pidfd
        self._nursery.start_soon(self._wait_for_exit, process, pidfd)

    async def _wait_for_exit(self, process: ProcessId, pidfd: int) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(pidfd)
            # A session of it that was accepted just before is opened in this same step of the loop;
            # it has to be known by then, or its registration would be read as of one that lives.
            await trio.lowlevel.checkpoint()
            del self._pidfds[process]
            os.close(pidfd)
            self._exit_seen(process, f"the exit of pid {process.pid} was seen")


def _peer_pidfd(peer: socket.socket, pid: int) -> int:
    try:
        return peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):  # a kernel before 6.5
            raise
    return os.pidfd_open(pid)


def _polls(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return any(found & event for _, found in poll.poll(0))


def find_openers(path: Path, known: frozenset[int]) -> tuple[tuple[str, ...], bool]:
    """The processes that could write to `path` now, but for `known` and this one.

    A descriptor open for writing counts, and a shared writable mapping. A loop device or a device
    mapper on top of the file has no process, and is not seen. Process 1, where it cannot be looked
    at, is taken for what it is: the init of the machine or container, not a host.

    Returns:
        The processes in words, and whether every process could be looked at.
    """
    target = path.stat()
    strangers = []
    complete = True
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in known | {os.getpid()}:
            continue
        try:
            if _has_open(entry, target) or _has_mapped(entry, target):
                name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                strangers.append(f"pid {entry.name} ({name})")
        except PermissionError:
            # A container's supervisor is often out of sight even for root; it mounts nothing.
            complete = complete and entry.name == "1"
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return tuple(strangers), complete


def _has_open(process: Path, target: os.stat_result) -> bool:
    """Whether it has a descriptor of the file that can write.

    A `stat` through a descriptor is a question to the filesystem it is on; one of our own mounts
    may be dead, or wait for this very lockd. So it is `statx.identity`, which asks the kernel only;
    and first the `ino` of fdinfo, since Linux 5.14 (a block device has many).
    """
    anywhere = stat.S_ISBLK(target.st_mode)
    wanted = (0, target.st_rdev) if anywhere else (target.st_dev, target.st_ino)
    for descriptor in (process / "fd").iterdir():
        try:
            info = (process / "fdinfo" / descriptor.name).read_text(encoding="ascii")
            if int(next(_values(info, "flags:")), 8) & os.O_ACCMODE == os.O_RDONLY:
                continue
            inode = next(_values(info, "ino:"), str(target.st_ino))
            if not anywhere and inode != str(target.st_ino):
                continue
            if statx.identity(descriptor) == wanted:
                return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTCONN):  # closed; a dead FUSE mount
                raise
    return False


def _has_mapped(process: Path, status: os.stat_result) -> bool:
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    maps = (process / "maps").read_text(encoding="utf-8", errors="replace")
    for line in maps.splitlines():
        _, mode, _, where, inode, *_ = line.split()
        if mode[1] == "w" and mode[3] == "s" and (where, inode) == (device, str(status.st_ino)):
            return True
    return False


def _values(info: str, name: str) -> Iterator[str]:
    for line in info.splitlines():
        if line.startswith(name):
            yield line.removeprefix(name).strip()
