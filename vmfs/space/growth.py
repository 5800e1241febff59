"""How a file's tree of pointers grows. Pure.

`Draft` is a tree being changed. It copies what it changes and leaves the original alone, and asks
a callback for every pointer block that it needs. So the same steps serve twice: once with made-up
addresses, to count what must be reserved (`vmfs.space.missing`); once with real ones.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import NotSupported
from vmfs.ondisk.address import FB_TBZ
from vmfs.ondisk.file_desc import Zla
from vmfs.space import index_path
from vmfs.space.index_path import Pointers, Shape
from vmfs.space.system_file import is_cow

Indices = NDArray[np.int64]

_TBZ: Final = np.uint32(FB_TBZ)


POINTER_ROOM_PER_TABLE: Final = 4096
"""A pointer block is staged in full at most."""


class Draft:
    """A tree of pointers being changed."""

    def __init__(
        self,
        *,
        zla: Zla,
        pointers: Pointers,
        shape: Shape,
        lookup: Callable[[int], Pointers],
        new: Callable[[], int],
    ) -> None:
        """Start from a tree of level FB, PB, DOUBLE or SB.

        Args:
            zla: its level.
            pointers: its slots.
            shape: its widths.
            lookup: the contents of a pointer block, by address.
            new: the address of a new pointer block.
        """
        self.zla = zla
        self.pointers = pointers.copy()
        self.changed: dict[int, Pointers] = {}  # pointer blocks after the changes, new ones too
        self.made: set[int] = set()  # addresses of the new ones
        self.visited: dict[int, Pointers] = {}  # those that were there before, as they were
        self._shape = shape
        self._lookup = lookup
        self._new = new

    def raise_to(self, target: Zla) -> None:
        """Grow to a higher level; block indices stay what they were."""
        levels = index_path.new_levels(self.zla, target) if target is not self.zla else 0
        if self.pointers.any():
            for _ in range(levels):
                address = self._make(index_path.lift(self.pointers, self._shape))
                self.pointers[:] = 0
                self.pointers[0] = address
        self.zla = target

    def touch(self, blocks: Indices) -> None:
        """Make sure that there is a pointer block for each of these file blocks, and look at it.

        Raises:
            NotSupported: one would have to change that a snapshot shares.
        """
        for path in self._paths(blocks):
            address = self._leaf_address(path)
            if address:
                _refuse_shared(address)
                self._table(address)

    def assign(self, blocks: Indices, addresses: Pointers) -> None:
        """Give file blocks their addresses. `blocks` is ascending."""
        assert len(blocks) == len(addresses)
        position = 0
        for path in self._paths(blocks):
            table, chosen = self._leaf_part(path, blocks)
            count = len(chosen)
            table[chosen] = addresses[position : position + count]
            position += count

    def materialise(self, blocks: Indices) -> None:
        """Take the TBZ flag from file blocks: they have contents now. `blocks` is ascending."""
        for path in self._paths(blocks):
            table, chosen = self._leaf_part(path, blocks)
            assert (table[chosen] & _TBZ).all()
            table[chosen] &= ~_TBZ

    def _paths(self, blocks: Indices) -> list[tuple[int, ...]]:
        if not len(blocks):
            return []
        if index_path.depth(self.zla) == 0:
            return [()]
        if blocks[0] // self._shape.fanout == blocks[-1] // self._shape.fanout:
            return [index_path.path(self.zla, int(blocks[0]), self._shape)[:-1]]
        firsts = np.unique(blocks // self._shape.fanout) * self._shape.fanout
        return [index_path.path(self.zla, int(first), self._shape)[:-1] for first in firsts]

    def _leaf_part(self, path: tuple[int, ...], blocks: Indices) -> tuple[Pointers, Indices]:
        """The writable table at `path`, and the indices in it that `blocks` means."""
        if not path:
            return self.pointers, blocks
        start = index_path.block_index(self.zla, path, self._shape)
        first, last = np.searchsorted(blocks, (start, start + self._shape.fanout))
        return self._writable(self._leaf_address(path)), blocks[first:last] - start

    def _leaf_address(self, path: tuple[int, ...]) -> int:
        """The address of the pointer block at `path`, made if there is none; 0 for the slots."""
        if not path:
            return 0
        address = int(self.pointers[path[0]])
        if address == 0:
            address = self._make(self._empty())
            self.pointers[path[0]] = address
        for step in path[1:]:
            below = int(self._table(address)[step])
            if below == 0:
                below = self._make(self._empty())
                self._writable(address)[step] = below
            address = below
        return address

    def _make(self, contents: Pointers) -> int:
        address = self._new()
        self.changed[address] = contents
        self.made.add(address)
        return address

    def _empty(self) -> Pointers:
        return np.zeros(self._shape.fanout, dtype=np.uint32)

    def _table(self, address: int) -> Pointers:
        table = self.changed.get(address)
        if table is None:
            table = self._lookup(address)
            self.visited[address] = table
        return table

    def _writable(self, address: int) -> Pointers:
        if address not in self.changed:
            _refuse_shared(address)
            self.changed[address] = self._table(address).copy()
        return self.changed[address]


def _refuse_shared(address: int) -> None:
    if is_cow(address):
        raise NotSupported("pointer blocks that are shared with a snapshot cannot be written yet")
