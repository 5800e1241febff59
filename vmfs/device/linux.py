"""The few Linux calls that Python's `os` lacks or leaves half done. The only place with `ctypes`.

Everything here is synchronous, works on an OS file descriptor (`fd`), and raises `OSError`;
`vmfs.device.image` turns that into a `DeviceError` that says which verb, where, and of what.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from typing import Final, Protocol

from vmfs.units import MIB, SECTOR_SIZE, align_down, align_up

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10
"""`linux/falloc.h`. They work on block devices too (Linux 4.9), where ZERO_RANGE is BLKZEROOUT and
PUNCH_HOLE is a discard that *promises* zeroes; plain BLKDISCARD does not, so it is used nowhere."""

_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_BOUNCE_SIZE: Final = MIB

UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENODEV}
)
"""What the kernel answers when the layer below cannot do a bulk verb: time for the fallback."""


class Channel(Protocol):
    """Complete transfers of any length at any offset; no file position, no thread, no await."""

    def pread(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""
        ...

    def pwrite(self, offset: int, view: memoryview) -> None:
        """Write all of `view`."""
        ...


class BufferedChannel:
    """Through the page cache of this kernel."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        done = len(data)
        while done < length and (data := os.pread(self._fd, length - done, offset + done)):
            pieces.append(data)
            done += len(data)
        return b"".join(pieces)

    def pwrite(self, offset: int, view: memoryview) -> None:
        """Write all of `view`."""
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)


class DirectChannel:
    """Past the page cache (O_DIRECT), by way of one page-aligned buffer of 1 MiB.

    A range that does not begin and end on a sector is widened to sectors: read, changed, written.
    Between the read and the write nothing of this process runs, and no other host writes a sector
    of which this one may write a part, so nothing is lost by it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bounce = mmap.mmap(-1, _BOUNCE_SIZE)
        self._view = memoryview(self._bounce)

    def pread(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""
        pieces = []
        end = offset + length
        while offset < end:
            start = align_down(offset, SECTOR_SIZE)
            wanted = min(align_up(end, SECTOR_SIZE) - start, _BOUNCE_SIZE)
            got = self._fill(0, start, wanted)
            piece = bytes(self._view[offset - start : min(got, end - start)])
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def pwrite(self, offset: int, view: memoryview) -> None:
        """Write all of `view`."""
        done = 0
        while done < len(view):
            position = offset + done
            start = align_down(position, SECTOR_SIZE)
            head = position - start
            count = min(len(view) - done, _BOUNCE_SIZE - head)
            end = align_up(head + count, SECTOR_SIZE)
            if head:
                self._fill(0, start, SECTOR_SIZE)
            if end != head + count and not (head and end == SECTOR_SIZE):
                self._fill(end - SECTOR_SIZE, start + end - SECTOR_SIZE, SECTOR_SIZE)
            self._view[head : head + count] = view[done : done + count]
            self._drain(start, end)
            done += count

    def close(self) -> None:
        """Give the buffer back."""
        self._view.release()
        self._bounce.close()

    def _fill(self, at: int, offset: int, length: int) -> int:
        done = 0
        while done < length:
            got = os.preadv(self._fd, [self._view[at + done : at + length]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def _drain(self, offset: int, length: int) -> None:
        done = 0
        while done < length:
            done += os.pwritev(self._fd, [self._view[done:length]], offset + done)


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
