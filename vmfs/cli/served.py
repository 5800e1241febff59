"""Whether a LUN is in use on this machine: served by lockd, or open in a process.

Nobody is asked: lockd is known by its lock on the file, other processes by their descriptors.

A lockd that serves a LUN knows its hosts, and hosts write to it as soon as they mount: what stands
on it must not be exchanged underneath. Not seen: a lockd on another machine, or one that was given
the same block device by a node of another name (`lockd.server.exclusive`).
"""

import fcntl
import os
import struct
from pathlib import Path

from lockd.protocol.limits import LOCK_BYTE
from vmfs.cli.proc import descriptors, name_of
from vmfs.errors import DeviceError, LockBusy

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid."""


def require_idle(lun: Path) -> None:
    """Refuse to touch a LUN that is in use.

    Raises:
        LockBusy: lockd serves it, or another process has it open for writing; says which.
        DeviceError: the LUN cannot be opened.
    """
    _require_unserved(lun)
    path = str(lun.resolve())
    for pid, link in descriptors("fd"):
        if pid == os.getpid() or not _leads_to(link, path) or not _is_writable(link):
            continue
        holder = f"{name_of(pid)} (pid {pid})"
        raise LockBusy(f"{lun} is open for writing in {holder}: unmount it first", holder=holder)


def _leads_to(link: Path, path: str) -> bool:
    try:
        return str(link.readlink()) == path
    except OSError:
        return False  # closed meanwhile


def _is_writable(link: Path) -> bool:
    try:
        lines = (link.parents[1] / "fdinfo" / link.name).read_text().splitlines()
    except OSError:
        return False
    flags = next(line.split()[1] for line in lines if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _require_unserved(lun: Path) -> None:
    try:
        fd = os.open(lun, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot open {lun}: {error.strerror}") from error
    try:
        wanted = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, LOCK_BYTE, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
        if kind == fcntl.F_UNLCK:
            return
        pid = _holder(os.fstat(fd).st_ino)
    finally:
        os.close(fd)
    holder = f"lockd (pid {pid})" if pid else "a lockd"
    raise LockBusy(
        f"{lun} is served by {holder}: unmount it everywhere and stop lockd", holder=holder
    )


def _holder(inode: int) -> int:
    """The process that has it; 0 when it cannot be seen (the kernel names none for such a lock)."""
    for pid, info in descriptors("fdinfo"):
        try:
            lines = info.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue  # closed meanwhile
        for line in lines:
            words = line.split()
            if words[:1] == ["lock:"] and words[2:3] == ["OFDLCK"]:
                place, start = words[6], words[7]
                if place.endswith(f":{inode}") and start == str(LOCK_BYTE):
                    return pid
    return 0
