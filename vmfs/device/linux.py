"""The few Linux calls that Python's `os` lacks or leaves half done.

Everything here is synchronous, works on an OS file descriptor (`fd`), and raises `OSError`;
`vmfs.device.lun` turns that into a `DeviceError` that says which verb, where, and of what.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Final

from vmfs.units import SECTOR_SIZE, align_down

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10
"""`linux/falloc.h`. They work on block devices too (Linux 4.9), where ZERO_RANGE is BLKZEROOUT and
PUNCH_HOLE is a discard that *promises* zeroes; plain BLKDISCARD does not, so it is used nowhere."""

_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_BLKROGET: Final = 0x125E

UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENODEV}
)
"""What the kernel answers when the layer below cannot do a bulk verb: time for the fallback."""


def pread(fd: int, offset: int, length: int) -> bytes:
    """Read up to `length` bytes; fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    pieces = [data]
    done = len(data)
    while done < length and (data := os.pread(fd, length - done, offset + done)):
        pieces.append(data)
        done += len(data)
    return b"".join(pieces)


def pwrite(fd: int, offset: int, view: memoryview) -> None:
    """Write all of `view`."""
    done = os.pwrite(fd, view, offset)
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def size_of(fd: int) -> int:
    """Size in bytes of a regular file or block device, rounded down to whole sectors.

    Raises:
        OSError: with ENOTBLK, it is neither of the two.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return align_down(status.st_size, SECTOR_SIZE)
    if stat.S_ISBLK(status.st_mode):
        (size,) = struct.unpack("<Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
        return align_down(int(size), SECTOR_SIZE)
    raise OSError(errno.ENOTBLK, "neither a regular file nor a block device")


def is_block_device(fd: int) -> bool:
    """Whether `fd` is a block device (else a regular file)."""
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def is_read_only(fd: int) -> bool:
    """Whether `fd` is a block device that nobody may write, though root may open it for that."""
    if not is_block_device(fd):
        return False
    (flag,) = struct.unpack("<i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    return bool(flag)


def logical_sector_size(fd: int) -> int:
    """The smallest unit of I/O of a block device, in bytes; 512 for a regular file."""
    if not is_block_device(fd):
        return SECTOR_SIZE
    (size,) = struct.unpack("<i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, zero or free a range, by `mode`, which `os.posix_fallocate` does not take.

    Raises:
        OSError: as the kernel says; see `UNSUPPORTED`.
    """
    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def system_call(number: int, parameter_count: int) -> Callable[..., int]:
    """One system call as a function of whole numbers and addresses, which raises `OSError`."""
    words = (ctypes.c_long,) * (1 + parameter_count)
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, *words, use_errno=True)
    call = prototype(("syscall", ctypes.CDLL(None, use_errno=True)))

    def checked(*arguments: int) -> int:
        result: int = call(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    return checked
