"""What a file lacks before a range of it can be written: found by trying, on a draft of its tree.

Growing.find  ─► Missing: what to reserve, and what to fill
Growing.draft ─► the tree with all that, once it is there (`BlockMap.install`)
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import NotSupported
from vmfs.ondisk.address import FB_TBZ, AddressType, tbz_mask
from vmfs.ondisk.file_desc import Zla
from vmfs.space.growth import POINTER_ROOM_PER_TABLE, Draft, Indices
from vmfs.space.index_path import Levels, Pointers
from vmfs.space.pointer_tree import PointerTree
from vmfs.space.system_file import cow_mask, is_cow
from vmfs.units import div_ceil

_NO_BLOCKS: Final = np.empty(0, dtype=np.int64)
_NO_ADDRESSES: Final = np.empty(0, dtype=np.uint32)
_NO_TABLES: Final[Mapping[int, Pointers]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a file lacks for a write, from `BlockMap.missing`. Good until the map changes.

    The caller reserves `want` and `free` (`near` is a hint), fills what `BlockMap.fresh` lists,
    then calls `BlockMap.install`.
    """

    zla: Zla  # what the file is afterwards
    blocks: Indices  # file blocks (in units of the new level) that have no address, ascending
    zeroed: Indices  # file blocks that have one, but read as zero until they are written (TBZ)
    zeroed_addresses: Pointers  # of those, as they are afterwards
    carried: int  # bytes from the file's start that the caller must copy into the new blocks
    want: Mapping[AddressType, int]
    free: tuple[int, ...]  # sub-blocks whose contents are carried over
    near: tuple[int, ...]
    tables: Mapping[int, Pointers]  # pointer blocks that the counting went through
    version: int
    converts: bool  # the file changes its level

    @property
    def nothing(self) -> bool:
        """The write changes no pointer."""
        return not (self.want or self.free or len(self.zeroed) or self.carried or self.converts)

    @property
    def room(self) -> int:
        """Bytes of pointer blocks that `install` stages at most."""
        return POINTER_ROOM_PER_TABLE * (len(self.tables) + self.want.get(AddressType.PB, 0))


def nothing_missing(zla: Zla, version: int) -> Missing:
    """What a range lacks that can be written in place."""
    return Missing(
        zla=zla,
        blocks=_NO_BLOCKS,
        zeroed=_NO_BLOCKS,
        zeroed_addresses=_NO_ADDRESSES,
        carried=0,
        want={},
        free=(),
        near=(),
        tables={},
        version=version,
        converts=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing:
    """How one file grows. Nothing is kept here but where its tree is."""

    tree: PointerTree
    levels: Levels  # of the volume

    def find(self, offset: int, length: int, *, file_length: int) -> Missing:
        """What `BlockMap.missing` says; the slots were checked, and the range was loaded.

        Raises:
            NotSupported: the range touches blocks that are shared with a snapshot.
        """
        target = self._level_for(offset, length)
        if self.moves_to(target):
            has_contents = file_length > 0
            if self.tree.zla is not Zla.RESIDENT:
                has_contents = has_contents and bool(self.tree.pointers.any())
            carried = file_length if has_contents else 0
            blocks = _covering(((offset, length), (0, carried)), self.levels.unit(target))
            return self._count(target, blocks, _NO_BLOCKS, carried=carried)
        addresses, first = self._present(offset, length)
        blocks = np.flatnonzero(addresses == 0) + first
        zeroed = np.flatnonzero(_zero_mask(self.tree.zla, addresses)) + first
        missing = self._count(target, blocks, zeroed, carried=0)
        plain = addresses[zeroed - first] & ~np.uint32(FB_TBZ)
        return replace(missing, zeroed_addresses=plain) if len(zeroed) else missing

    def moves_to(self, target: Zla) -> bool:
        """Whether contents leave the descriptor or a sub-block, and the tree starts anew."""
        return target is not self.tree.zla and self.tree.zla in (Zla.RESIDENT, Zla.SB)

    def draft(
        self, target: Zla, *, new: Callable[[], int], tables: Mapping[int, Pointers] = _NO_TABLES
    ) -> Draft:
        """The tree as a draft. Contents that move out of SB or RESIDENT start with an empty one.

        Args:
            target: the level that it is to have.
            new: the address of a new pointer block.
            tables: pointer blocks that are known besides those in the tree.
        """
        tree, moves = self.tree, self.moves_to(target)
        base = Zla.SB if target is Zla.SB else Zla.FB

        def lookup(address: int) -> Pointers:
            table = tables.get(address)
            if table is None:
                table = tree.tables.get(address)
            assert table is not None, f"pointer block {address:#010x} was not loaded"
            return table

        return Draft(
            zla=base if moves else tree.zla,
            pointers=np.zeros_like(tree.pointers) if moves else tree.pointers,
            shape=self.levels.shape,
            lookup=lookup,
            new=new,
        )

    def _level_for(self, offset: int, length: int) -> Zla:
        end, zla = offset + length, self.tree.zla
        in_slots = length and end <= self.levels.shape.slots * self.levels.sub_block
        if zla is Zla.SB and in_slots and self._addresses(offset, length).all():
            return Zla.SB  # all there, if in more sub-blocks than we would make
        return self.levels.needed(end, at_least=zla)

    def _addresses(self, offset: int, length: int) -> Pointers:
        return self.tree.gather(*self.levels.blocks(self.tree.zla, offset, length))

    def _present(self, offset: int, length: int) -> tuple[Pointers, int]:
        """The addresses that a range has now, and the index of its first block."""
        zla, unit = self.tree.zla, self.levels.unit(self.tree.zla)
        first = offset // unit
        if zla is Zla.RESIDENT or not length:
            return _NO_ADDRESSES, first
        addresses = np.zeros(div_ceil(offset + length, unit) - first, dtype=np.uint32)
        there = self._addresses(offset, length)
        addresses[: len(there)] = there
        in_sub_blocks = zla is Zla.SB and any(is_cow(int(address)) for address in addresses)
        if in_sub_blocks or cow_mask(addresses).any():
            raise NotSupported("blocks that are shared with a snapshot cannot be written yet")
        return addresses, first

    def _count(self, target: Zla, blocks: Indices, zeroed: Indices, *, carried: int) -> Missing:
        """Run the change once with made-up addresses, to see what it takes."""
        tree = self.tree
        want: Counter[AddressType] = Counter()
        visited: Mapping[int, Pointers] = {}
        if target is not tree.zla or len(blocks) or len(zeroed):

            def pretend() -> int:
                want[AddressType.PB] += 1
                return want.total() << 3  # type 0: no real address looks so

            draft = self.draft(target, new=pretend)
            draft.raise_to(target)
            draft.touch(np.union1d(blocks, zeroed) if len(zeroed) else blocks)
            visited = draft.visited
        if len(blocks):
            want[AddressType.SB if target is Zla.SB else AddressType.FB] += len(blocks)
        left = tree.pointers[tree.pointers != 0] if self.moves_to(target) else ()
        return Missing(
            zla=target,
            blocks=blocks,
            zeroed=zeroed,
            zeroed_addresses=_NO_ADDRESSES,
            carried=carried,
            want=dict(want),
            free=tuple(int(address) for address in left if not is_cow(int(address))),
            near=self._near(blocks),
            tables=visited,
            version=tree.version,
            converts=target is not tree.zla,
        )

    def _near(self, blocks: Indices) -> tuple[int, ...]:
        """Where the file would like to go on: behind the block before the first new one."""
        tree = self.tree
        hints: list[int] = []
        if tree.zla in (Zla.PB, Zla.DOUBLE) and tree.pointers.any():
            hints.append(int(tree.pointers[tree.pointers != 0][-1]))
        if len(blocks) and tree.zla is not Zla.RESIDENT:
            hints.append(tree.last_before(int(blocks[0])))
        return tuple(hints)


def _zero_mask(zla: Zla, addresses: Pointers) -> NDArray[np.bool_]:
    if zla is Zla.SB:  # the bit means something else there
        return np.zeros(len(addresses), dtype=np.bool_)
    return tbz_mask(addresses)


def _covering(ranges: Iterable[tuple[int, int]], unit: int) -> Indices:
    """The blocks of `unit` bytes that (offset, length) ranges touch, ascending, each once."""
    parts = [
        np.arange(offset // unit, div_ceil(offset + length, unit))
        for offset, length in ranges
        if length
    ]
    return np.unique(np.concatenate([_NO_BLOCKS, *parts])).astype(np.int64)
