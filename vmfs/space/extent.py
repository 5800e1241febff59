"""Extents: what a range of a file is made of, in as few pieces as its blocks allow."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ids import LvOffset
from vmfs.ondisk.address import fb_blocks, tbz_mask

_NOWHERE: Final = LvOffset(0)
"""The FS descriptor's neighbourhood begins there: no file has it."""


class ExtentKind(Enum):
    """What stands behind a range of a file."""

    HOLE = "hole"  # no block: reads as zero, costs no space
    ZERO = "zero"  # blocks that are allocated, and read as zero until they are written (TBZ)
    DATA = "data"
    RESIDENT = "resident"  # in the data area of the file descriptor itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A range of a file of one kind; DATA lies in one piece on the volume."""

    kind: ExtentKind
    file_offset: int  # bytes
    length: int  # bytes, more than 0
    lv_offset: LvOffset = _NOWHERE  # of the first byte; 0 unless DATA

    @property
    def end(self) -> int:
        """File offset behind the last byte."""
        return self.file_offset + self.length

    def goes_on_with(self, other: "Extent") -> bool:
        """Whether the two, which are neighbours in the file, are one."""
        if self.kind is not other.kind:
            return False
        adjacent = self.lv_offset + self.length == other.lv_offset
        return adjacent or self.kind is not ExtentKind.DATA


def block_extents(
    addresses: NDArray[np.uint32], *, first_block: int, block_size: int
) -> list[Extent]:
    """The extents of adjacent file blocks.

    Args:
        addresses: one per block: 0, or a file block.
        first_block: file block index of the first.
        block_size: bytes.
    """
    if not len(addresses):
        return []
    blocks = fb_blocks(addresses).astype(np.int64)
    kinds = np.where(addresses == 0, 0, np.where(tbz_mask(addresses), 1, 2))
    same_kind = kinds[1:] == kinds[:-1]
    adjacent = (kinds[1:] != 2) | (blocks[1:] == blocks[:-1] + 1)
    starts = np.concatenate(([0], np.flatnonzero(~(same_kind & adjacent)) + 1))
    counts = np.diff(np.concatenate((starts, [len(addresses)])))
    names = (ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA)
    return [
        Extent(
            kind=names[kinds[start]],
            file_offset=(first_block + int(start)) * block_size,
            length=int(count) * block_size,
            lv_offset=LvOffset(int(blocks[start]) * block_size if kinds[start] == 2 else 0),
        )
        for start, count in zip(starts, counts, strict=True)
    ]


def clip(extents: Iterable[Extent], offset: int, length: int) -> list[Extent]:
    """The parts of extents that lie in a range of the file."""
    end = offset + length
    clipped: list[Extent] = []
    for extent in extents:
        start = max(extent.file_offset, offset)
        stop = min(extent.end, end)
        if start >= stop:
            continue
        moved = start - extent.file_offset if extent.kind is ExtentKind.DATA else 0
        clipped.append(
            Extent(
                kind=extent.kind,
                file_offset=start,
                length=stop - start,
                lv_offset=LvOffset(extent.lv_offset + moved),
            )
        )
    return clipped
