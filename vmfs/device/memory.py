"""A LUN in memory: sparse, and held to the same contract as a real one."""

from typing import Final

import trio

from vmfs.device.base import Buffer, assert_range
from vmfs.units import KIB

_PAGE_SIZE: Final = 64 * KIB


class MemoryDevice:
    """A device of `size` bytes that reads as zero where nothing was written.

    Pages that hold only zeroes by `write_zeroes` or `unmap` take no memory, so a device of 64 TiB
    costs no more than what is written to it.
    """

    def __init__(self, size: int, *, name: str = "memory") -> None:
        """`size` in bytes; `name` for messages."""
        assert size >= 0, f"a device of {size} bytes"
        self._size = size
        self._name = name
        self._pages: dict[int, bytearray] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    @property
    def allocated_size(self) -> int:
        """Bytes of memory that its pages take."""
        return len(self._pages) * _PAGE_SIZE

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        return self.read_now(offset, length)

    def read_now(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        assert_range(self._size, offset, length)
        pieces = []
        while length:
            index, at = divmod(offset, _PAGE_SIZE)
            count = min(length, _PAGE_SIZE - at)
            page = self._pages.get(index)
            pieces.append(bytes(count) if page is None else bytes(page[at : at + count]))
            offset += count
            length -= count
        return b"".join(pieces)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`."""
        self.write_now(offset, data)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write `data` at `offset`."""
        view = memoryview(data).cast("B")
        assert_range(self._size, offset, len(view))
        while view:
            index, at = divmod(offset, _PAGE_SIZE)
            count = min(len(view), _PAGE_SIZE - at)
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray(_PAGE_SIZE)
            page[at : at + count] = view[:count]
            offset += count
            view = view[count:]
        return True

    async def flush(self) -> None:
        """Nothing to do: but other tasks get to run, as with a real device."""
        await trio.lowlevel.checkpoint()

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zero; whole pages are given back."""
        assert_range(self._size, offset, length)
        end = offset + length
        for index in self._pages_in(offset, end):
            start = index * _PAGE_SIZE
            first, last = max(offset, start), min(end, start + _PAGE_SIZE)
            if last - first == _PAGE_SIZE:
                del self._pages[index]
            else:
                self._pages[index][first - start : last - start] = bytes(last - first)

    async def unmap(self, offset: int, length: int) -> None:
        """Give the range back; it reads as zero afterwards."""
        await self.write_zeroes(offset, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the device; the ranges do not overlap."""
        assert_range(self._size, source, length)
        assert_range(self._size, target, length)
        assert abs(source - target) >= length, "copy: the ranges overlap"
        for start in range(0, length, _PAGE_SIZE):
            count = min(_PAGE_SIZE, length - start)
            await self.write(target + start, await self.read(source + start, count))

    async def aclose(self) -> None:
        """Keep the contents: a device in memory may be opened again by another host."""

    def _pages_in(self, offset: int, end: int) -> list[int]:
        """Indices of existing pages that touch the range, however large the range is."""
        if offset == end:
            return []
        first, last = offset // _PAGE_SIZE, (end - 1) // _PAGE_SIZE
        if last - first < len(self._pages):
            return [index for index in range(first, last + 1) if index in self._pages]
        return [index for index in self._pages if first <= index <= last]
