"""The LUN as lockd uses it: one block at a time, compared and written in one step.

An image file is read and written through the page cache, as its hosts do. A block device is not
(O_DIRECT), because its hosts go past the page cache too: a cached page has more than one block in
it, and writing it back would undo what a host wrote to the neighbours of a lock record meanwhile.

The I/O is done inline, in lockd's one task: that alone makes compare-and-write one step against
every other verb.
"""

import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Self

from lockd.protocol.limits import BLOCK_SIZE
from lockd.protocol.messages import Good, Miscompare
from lockd.server import exclusive

_GOOD = Good()

_BLKROGET = 0x125E  # linux/fs.h: whether nobody may write the device
_BLKSSZGET = 0x1268  # the size of its sectors


class LunError(Exception):
    """The LUN cannot be served."""


class LunFile:
    """An image file or a block device, locked against other lockds."""

    def __init__(self, fd: int, *, name: str, path: Path, size: int) -> None:
        """Use `open`."""
        self._fd = fd
        self.name = name
        self.path = path
        self.size = size
        self._block = memoryview(mmap.mmap(-1, BLOCK_SIZE))  # aligned, as O_DIRECT wants it

    @classmethod
    def open(cls, name: str, path: Path) -> Self:
        """Open and lock.

        Raises:
            LunError: it is not there, cannot be written, or has blocks of another size, or none.
            AlreadyServed: another lockd serves it.
        """
        try:
            direct = os.O_DIRECT if stat.S_ISBLK(path.stat().st_mode) else 0
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | direct)
        except OSError as error:
            raise LunError(f"LUN {name}: cannot open {path}: {error.strerror}") from error
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            if size < BLOCK_SIZE:
                raise LunError(f"LUN {name}: {path} has {size} bytes, less than one block")
            if direct:
                _require_usable(fd, f"LUN {name}: {path}")
            exclusive.hold(fd, f"LUN {name} ({path})")
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, name=name, path=path, size=size)

    def compare_and_write(self, lba: int, expected: bytes, new: bytes) -> Good | Miscompare | str:
        """Write block `lba` if it is `expected`. Not durable before `sync`.

        Returns:
            Good, Miscompare (nothing was written), or the error of the LUN as text.
        """
        offset = lba * BLOCK_SIZE
        try:
            got = os.preadv(self._fd, [self._block], offset)
            current = bytes(self._block[:got])
            if current != expected:
                if len(current) != BLOCK_SIZE:
                    return f"{self.path}: block {lba} is not there any more"
                return Miscompare(offset=first_difference(current, expected), current=current)
            self._block[:] = new
            written = os.pwritev(self._fd, [self._block], offset)
        except OSError as error:
            return f"{self.path}: block {lba}: {error.strerror}"
        return _GOOD if written == BLOCK_SIZE else f"{self.path}: block {lba}: short write"

    def sync(self) -> str | None:
        """Make what was written durable. Returns the error of the LUN, if it has one."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            return f"{self.path}: flush: {error.strerror}"
        return None

    def close(self) -> None:
        """Release it."""
        os.close(self._fd)


def _require_usable(fd: int, what: str) -> None:
    """Refuse a block device on which no lock record can be written (root may open it even so)."""
    if _ask(fd, _BLKROGET):
        raise LunError(f"{what} is read-only")
    sector_size = _ask(fd, _BLKSSZGET)
    if sector_size != BLOCK_SIZE:
        raise LunError(f"{what} has sectors of {sector_size} bytes; a lock record has {BLOCK_SIZE}")


def _ask(fd: int, request: int) -> int:
    (answer,) = struct.unpack("<i", fcntl.ioctl(fd, request, bytes(4)))
    return int(answer)


def first_difference(one: bytes, other: bytes) -> int:
    """The offset of the first byte that differs; the two are of one length and not equal."""
    difference = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return ((difference & -difference).bit_length() - 1) // 8
