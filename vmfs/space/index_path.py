"""From the index of a file block to its place in the tree of pointers: plain arithmetic.

    FB       slot ─► file block                                  256 blocks       256 MiB
    PB       slot ─► pointer block ─► file block                 256 x 1024       256 GiB
    DOUBLE   slot ─► pointer block ─► pointer block ─► file block    256 x 1024 x 1024

with the 256 slots of a file descriptor, 1024 addresses in a pointer block, and 1 MiB blocks.
DOUBLE could name 2^28 blocks; the format ends a file at 64 TiB (`FILE_SIZE_MAX`), as the 26-bit
block number ends a volume, so only its first 64 slots are ever used. A sub-block file (SB) has one
slot, a directory made elsewhere several; a resident file (RESIDENT) has no pointers at all.

The upper pointer blocks of a DOUBLE file come from `.pbc.sf` like the lower ones: a genuine ESXi
volume has them so (its `.pb2.sf` holds only 256, which four large files would use up). Those from
`.pb2.sf` are read all the same.

A file only ever grows upwards: RESIDENT, SB, FB, PB, DOUBLE. On the way up, all slots move into
the first pointer block of the new level (`lift`), and slot 0 names that; block indices stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ondisk import pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import FILE_SIZE_MAX, POINTER_COUNT, RESIDENT_MAX, Zla
from vmfs.units import div_ceil

Pointers = NDArray[np.uint32]

_DEPTH: Final = {Zla.SB: 0, Zla.FB: 0, Zla.PB: 1, Zla.DOUBLE: 2}
_BY_REACH: Final = (Zla.FB, Zla.PB, Zla.DOUBLE)
_LEVELS: Final = (Zla.RESIDENT, Zla.SB, *_BY_REACH)
POINTER_BLOCKS: Final = (AddressType.PB, AddressType.PB2)
"""What may stand where a pointer block is expected."""

FILE_BLOCKS: Final = (AddressType.FB,)

_SLOT_TYPES: Final = {
    Zla.SB: (AddressType.SB,),
    Zla.FB: FILE_BLOCKS,
    Zla.PB: POINTER_BLOCKS,
    Zla.DOUBLE: POINTER_BLOCKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How wide the tree is; VMFS-5's numbers by default, tiny ones in tests."""

    slots: int = POINTER_COUNT  # addresses in a file descriptor
    fanout: int = pointer_block.POINTER_COUNT  # addresses in a pointer block

    def __post_init__(self) -> None:
        assert 0 < self.slots <= self.fanout, "the slots must fit into one pointer block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """The part of a range of file blocks whose addresses stand side by side in one place."""

    path: tuple[int, ...]  # of the pointer block: slot, index in the upper one; () is the slots
    first: int  # index of the first address in that place
    start: int  # file block index of the first address
    count: int


def depth(zla: Zla) -> int:
    """Pointer blocks between a slot and a file block."""
    return _DEPTH[zla]


def slot_types(zla: Zla) -> tuple[AddressType, ...]:
    """What the slots of such a file may hold."""
    return _SLOT_TYPES[zla]


def reach(zla: Zla, shape: Shape) -> int:
    """Blocks that the pointers of this level can name (the limit of 64 TiB left aside)."""
    blocks: int = shape.slots * shape.fanout ** _DEPTH[zla]
    return blocks


def file_size_max(block_size: int, shape: Shape) -> int:
    """The largest length of a file, in bytes."""
    return min(FILE_SIZE_MAX, reach(Zla.DOUBLE, shape) * block_size)


def level_needed(
    length: int, *, at_least: Zla, block_size: int, sub_block_size: int, shape: Shape
) -> Zla:
    """The lowest level, not below `at_least`, that can hold a file of `length` bytes.

    Args:
        length: bytes; at most `file_size_max`.
        at_least: the level that the file has (or begins with: SB where resident data is off).
        block_size: of a file block, bytes.
        sub_block_size: of a sub-block, bytes.
        shape: of the tree.
    """
    assert 0 <= length <= file_size_max(block_size, shape), f"length {length}"
    limits = {Zla.RESIDENT: RESIDENT_MAX, Zla.SB: sub_block_size}
    limits |= {zla: reach(zla, shape) * block_size for zla in _BY_REACH}
    levels = _LEVELS[_LEVELS.index(at_least) :]
    return next(zla for zla in levels if length <= limits[zla])


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The levels of one volume's files, in bytes."""

    file_block: int
    sub_block: int
    shape: Shape = Shape()

    def unit(self, zla: Zla) -> int:
        """What one block of a file of that level is; a resident file will get sub-blocks first."""
        return self.sub_block if zla in (Zla.SB, Zla.RESIDENT) else self.file_block

    def reach(self, zla: Zla) -> int:
        """How far the pointers of that level can name."""
        return reach(zla, self.shape) * self.unit(zla)

    @property
    def file_size_max(self) -> int:
        """The largest length of a file."""
        return file_size_max(self.file_block, self.shape)

    def needed(self, length: int, *, at_least: Zla) -> Zla:
        """See `level_needed`."""
        return level_needed(
            length,
            at_least=at_least,
            block_size=self.file_block,
            sub_block_size=self.sub_block,
            shape=self.shape,
        )

    def blocks(self, zla: Zla, offset: int, length: int) -> tuple[int, int]:
        """First block and number of blocks of a range, as far as the level reaches."""
        unit, limit = self.unit(zla), reach(zla, self.shape)
        start = min(offset // unit, limit)
        end = min(div_ceil(offset + length, unit), limit) if length else start
        return start, end - start


def path(zla: Zla, block_index: int, shape: Shape) -> tuple[int, ...]:
    """The way to a block: its slot, then the index in every pointer block below.

    Returns:
        `(slot,)`, `(slot, index)` or `(slot, index in the upper block, index in the lower)`.
    """
    assert 0 <= block_index < reach(zla, shape), f"block {block_index} of a {zla.name} file"
    steps: list[int] = []
    rest = block_index
    for _ in range(_DEPTH[zla]):
        rest, step = divmod(rest, shape.fanout)
        steps.append(step)
    return (rest, *reversed(steps))


def block_index(zla: Zla, steps: tuple[int, ...], shape: Shape) -> int:
    """The reverse of `path`; missing last steps count as 0."""
    index = 0
    for level in range(_DEPTH[zla] + 1):
        index = index * (shape.fanout if level else 1)
        index += steps[level] if level < len(steps) else 0
    return index


def leaves(zla: Zla, start: int, count: int, shape: Shape) -> Iterator[Leaf]:
    """Split a range of file blocks by the place that holds their addresses, ascending."""
    end = start + count
    assert 0 <= start <= end <= reach(zla, shape), f"blocks {start} to {end} of {zla.name}"
    width = shape.fanout if _DEPTH[zla] else shape.slots
    while start < end:
        steps = path(zla, start, shape)
        taken = min(width - steps[-1], end - start)
        yield Leaf(path=steps[:-1], first=steps[-1], start=start, count=taken)
        start += taken


def new_levels(source: Zla, target: Zla) -> int:
    """How many pointer blocks a conversion between FB, PB and DOUBLE needs when a slot is used.

    Each of them takes over the slots: FB to PB and PB to DOUBLE need one, FB to DOUBLE two.
    """
    return _BY_REACH.index(target) - _BY_REACH.index(source)


def lift(pointers: Pointers, shape: Shape) -> Pointers:
    """The pointer block that takes over the slots of a file that grows by one level."""
    assert len(pointers) == shape.slots
    block = np.zeros(shape.fanout, dtype=np.uint32)
    block[: shape.slots] = pointers
    return block
