"""The LUN as lockd uses it: one block at a time, compared and written in one step.

The I/O is buffered, so that it is coherent with what the hosts of this kernel read and write
through the same page cache. It is done inline, in lockd's one task: that alone makes
compare-and-write one step against every other verb.
"""

import os
from pathlib import Path
from typing import Self

from lockd.protocol.limits import BLOCK_SIZE
from lockd.protocol.messages import Good, Miscompare
from lockd.server import exclusive

_GOOD = Good()


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

    @classmethod
    def open(cls, name: str, path: Path) -> Self:
        """Open and lock.

        Raises:
            LunError: it is not there, cannot be written, or holds no block.
            AlreadyServed: another lockd serves it.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise LunError(f"LUN {name}: cannot open {path}: {error.strerror}") from error
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            if size < BLOCK_SIZE:
                raise LunError(f"LUN {name}: {path} has {size} bytes, less than one block")
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
            current = os.pread(self._fd, BLOCK_SIZE, offset)
            if current != expected:
                if len(current) != BLOCK_SIZE:
                    return f"{self.path}: block {lba} is not there any more"
                return Miscompare(offset=first_difference(current, expected), current=current)
            written = os.pwrite(self._fd, new, offset)
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


def first_difference(one: bytes, other: bytes) -> int:
    """The offset of the first byte that differs; the two are of one length and not equal."""
    difference = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return ((difference & -difference).bit_length() - 1) // 8
