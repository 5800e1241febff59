"""One lockd per state directory, and one per LUN: OFD locks, which the kernel drops at exit.

What the lock on a LUN does not cover: a lockd on another machine; the same block device through a
device node of another name (another inode); a copy. It covers two lockds of one kernel that are
given the same file, whatever path they use.
"""

import fcntl
import os
import struct

from lockd.protocol.limits import LOCK_BYTE


class AlreadyServed(Exception):
    """Another lockd has it."""


def hold(fd: int, what: str) -> None:
    """Take the lock, for as long as the open file description lives.

    Raises:
        AlreadyServed: somebody else has it.
    """
    # struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCK_BYTE, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except (BlockingIOError, PermissionError):
        raise AlreadyServed(f"another lockd serves {what}") from None
