"""Where a file is nothing but data: the runs of adjacent blocks, as far as they were looked at.

A request in the middle of a disk asks one question only: where does this range stand? The answer is
a look into a few lists of plain numbers here, without a pointer, an extent or an array.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ids import LvOffset
from vmfs.ondisk.address import AddressType, fb_blocks

WINDOW_BLOCKS: Final = 256
"""File blocks whose runs are looked for at once, and kept."""

WINDOWS_MAX: Final = 256
"""Windows that one file keeps: 64 GiB of it; 8 MiB of memory where no two blocks are adjacent."""

_KIND_AND_FLAGS: Final = np.uint32(0x3F)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRuns:
    """Where in the file, and on the volume, there is nothing but data: runs, ascending.

    Lists of plain numbers, to be looked up with `bisect` a hundred thousand times a second.
    """

    starts: list[int]  # file offset of the first byte of each
    ends: list[int]  # file offset behind the last byte
    shifts: list[int]  # LV offset less file offset

    def find(self, offset: int, length: int) -> LvOffset | None:
        """Where a range of the file stands, if it lies in one run."""
        index = bisect_right(self.starts, offset) - 1
        if index < 0 or offset + length > self.ends[index]:
            return None
        return LvOffset(offset + self.shifts[index])

    def with_more(self, offset: int, length: int, place: LvOffset) -> bool:
        """Learn of more data behind the last run; False, and nothing is changed, if it is not."""
        shift, end = place - offset, self.ends[-1] if self.ends else 0
        if offset < end:
            return False
        if self.ends and offset == end and shift == self.shifts[-1]:
            self.ends[-1] += length
        else:
            self.starts.append(offset)
            self.ends.append(offset + length)
            self.shifts.append(shift)
        return True


def plain_runs(addresses: NDArray[np.uint32], *, first_block: int, block_size: int) -> PlainRuns:
    """The runs of adjacent file blocks: each one data, and nobody else's (no TBZ, no COW).

    Args:
        addresses: one per block: 0, or a file block.
        first_block: file block index of the first.
        block_size: bytes.
    """
    indices = np.flatnonzero((addresses & _KIND_AND_FLAGS) == AddressType.FB)
    blocks = fb_blocks(addresses[indices]).astype(np.int64)
    breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(blocks) != 1)) + 1
    firsts = np.concatenate(([0], breaks))[: len(indices)]
    lasts = np.concatenate((breaks, [len(indices)]))[: len(firsts)] - 1
    starts = (indices[firsts] + first_block) * block_size
    return PlainRuns(
        starts=starts.tolist(),
        ends=((indices[lasts] + first_block + 1) * block_size).tolist(),
        shifts=(blocks[firsts] * block_size - starts).tolist(),
    )


class DataRuns:
    """The runs that one file is known to have, window by window, in one version of its blocks."""

    __slots__ = ("_version", "_window_size", "_windows")

    def __init__(self, *, block_size: int) -> None:
        """Nothing is known yet. `block_size` is that of a file block, in bytes."""
        self._window_size = WINDOW_BLOCKS * block_size
        self._windows: dict[int, PlainRuns] = {}
        self._version = 0

    def around(self, offset: int, version: int) -> PlainRuns | None:
        """What is known of the window that an offset is in; None when it was not looked at.

        Of another version than the last, nothing is known.
        """
        if self._version != version:
            self._windows.clear()
            self._version = version
        return self._windows.get(offset // self._window_size)

    def index(self, offset: int) -> int:
        """Which window an offset is in."""
        return offset // self._window_size

    def keep(self, index: int, runs: PlainRuns) -> PlainRuns:
        """Know the runs of a window from now on; the oldest window may be forgotten for it."""
        if len(self._windows) >= WINDOWS_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[index] = runs
        return runs

    def grow(self, offset: int, length: int, place: LvOffset, *, before: int, after: int) -> None:
        """A range became data, and nothing else changed from version `before` to `after`."""
        if self._version != before:
            return
        self._version = after
        first, last = self.index(offset), self.index(offset + length - 1)
        runs = self._windows.get(first)
        if first == last and runs is not None and runs.with_more(offset, length, place):
            return
        for index in range(first, last + 1):
            self._windows.pop(index, None)
