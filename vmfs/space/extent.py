"""Extents: what a range of a file is made of, in as few pieces as its blocks allow."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ids import LvOffset
from vmfs.ondisk.address import FB_TBZ, fb_blocks, tbz_mask
from vmfs.space.system_file import ResourceFile

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


def few_block_extents(
    at: Callable[[int], int], offset: int, length: int, *, block_size: int
) -> list[Extent]:
    """The extents of a range in a few file blocks, one after the other: 3 us each.

    Args:
        at: the address of a file block, or 0.
        offset: bytes.
        length: bytes.
        block_size: bytes.
    """
    found: list[Extent] = []
    end = offset + length
    while offset < end:
        block, within = divmod(offset, block_size)
        extent = _extent_in(at(block), offset, min(block_size - within, end - offset), block_size)
        if found and found[-1].goes_on_with(extent):
            first = found.pop()
            extent = dataclasses.replace(first, length=first.length + extent.length)
        found.append(extent)
        offset = extent.end
    return found


def _extent_in(address: int, offset: int, length: int, block_size: int) -> Extent:
    """A range inside one file block."""
    kind, place = ExtentKind.HOLE, 0
    if address:
        kind = ExtentKind.ZERO if address & FB_TBZ else ExtentKind.DATA
    if kind is ExtentKind.DATA:
        place = (address >> 6) * block_size + offset % block_size
    return Extent(kind=kind, file_offset=offset, length=length, lv_offset=LvOffset(place))


def sub_block_extents(
    file: ResourceFile, addresses: Iterable[int], *, first_block: int
) -> list[Extent]:
    """The extents of adjacent sub-blocks; one that straddles blocks of its file has two.

    Args:
        file: the resource file of the sub-blocks.
        addresses: one per sub-block, or 0.
        first_block: index of the first, in sub-blocks.
    """
    size = file.resource_size
    found: list[Extent] = []
    for index, address in enumerate(addresses, first_block):
        if address:
            found.extend(body_extents(file, int(address), index * size))
        else:
            found.append(Extent(kind=ExtentKind.HOLE, file_offset=index * size, length=size))
    return found


def body_extents(file: ResourceFile, address: int, file_offset: int) -> list[Extent]:
    """The body of one resource as extents of a file that has it at `file_offset`."""
    found: list[Extent] = []
    for place, length in file.address_runs(address):
        found.append(
            Extent(kind=ExtentKind.DATA, file_offset=file_offset, length=length, lv_offset=place)
        )
        file_offset += length
    return found


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
