"""Page-aligned memory for direct I/O, used again and again.

O_DIRECT moves bytes between the disk and our memory without a copy in between, and wants that
memory aligned. Fresh pages cost more than the copy that they save (the kernel zeroes each of them),
so what was used is kept for the next request, up to a bound.
"""

import ctypes
import mmap
from typing import Final

from vmfs.units import KIB, MIB

SIZES: Final = (4 * KIB, 64 * KIB, MIB)
"""Of the buffers, in bytes: a request takes the smallest that it fits in."""

KEPT_SIZE_MAX: Final = 16 * MIB
"""Bytes per size of buffer that wait for their next use; more is given back to the system."""


class AlignedBuffer:
    """Memory that begins at a page boundary and stays where it is."""

    __slots__ = ("_memory", "address", "size", "view")

    def __init__(self, size: int) -> None:
        """Map `size` bytes of fresh memory."""
        self._memory = mmap.mmap(-1, size)
        self.size = size
        self.view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


class BufferPool:
    """Buffers of a few sizes. Who takes one gives it back when the kernel is done with it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._free: dict[int, list[AlignedBuffer]] = {size: [] for size in SIZES}

    def take(self, length: int) -> AlignedBuffer:
        """A buffer of at least `length` bytes, `MIB` at most; what is in it means nothing."""
        size = next(size for size in SIZES if size >= length)
        free = self._free[size]
        return free.pop() if free else AlignedBuffer(size)

    def give(self, buffer: AlignedBuffer) -> None:
        """Take `buffer` back; nobody reads, writes or transfers it any more."""
        free = self._free[buffer.size]
        if len(free) * buffer.size < KEPT_SIZE_MAX:
            free.append(buffer)
