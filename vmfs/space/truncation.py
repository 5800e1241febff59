"""Choosing what to free at the end of a file: batches of bounded size, the last blocks first.

A file may have millions of blocks in pieces all over the volume; a transaction holds some hundred
sectors. So a truncation is many batches, and after each the file is whole, only shorter by some
blocks. A pointer block with nothing left in it goes in the same batch as its last block. What a
snapshot shares (COW) belongs to another file: its pointer is dropped, the block is not freed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ondisk.address import AddressType, tbz_mask
from vmfs.ondisk.file_desc import Zla
from vmfs.space import index_path
from vmfs.space.growth import POINTER_ROOM_PER_TABLE
from vmfs.space.index_path import Pointers, Shape
from vmfs.space.system_file import Addresses, ResourceFiles, cow_mask, is_cow

FREE_BATCH_MAX: Final = 8192
"""Addresses in one batch: 8 GiB of 1 MiB blocks."""

FREE_BATCH_CLUSTERS_MAX: Final = 256
"""Clusters that one batch frees into: 128 KiB of journal."""

FREE_BATCH_TABLES_MAX: Final = 16
"""Pointer blocks that one batch goes through, so that what it holds in memory is bounded too."""

LoadTable = Callable[[int, tuple[AddressType, ...]], Awaitable[Pointers]]
"""A pointer block by address, checked to hold addresses of these kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """One batch, from `BlockMap.tail`. Good until the map changes."""

    addresses: Addresses  # to be freed, of any kinds
    pointers: Pointers  # the slots afterwards
    changed: dict[int, tuple[Pointers, Pointers]]  # pointer blocks that stay: before, after
    block_count: int  # data blocks that the file loses, shared ones too
    tbz_count: int  # those of them that read as zero
    done: bool  # nothing is left behind the kept blocks
    version: int = 0

    @property
    def room(self) -> int:
        """Bytes of pointer blocks that `BlockMap.cut` stages at most."""
        return len(self.changed) * POINTER_ROOM_PER_TABLE


class TailCutter:
    """One pass over the end of a tree. Changes nothing but its own copies."""

    def __init__(
        self,
        *,
        zla: Zla,
        pointers: Pointers,
        shape: Shape,
        files: ResourceFiles,
        load: LoadTable,
    ) -> None:
        """The tree as it is; `load` reads its pointer blocks."""
        self._zla = zla
        self._pointers = pointers.copy()
        self._shape = shape
        self._files = files
        self._load = load
        self._freed: list[Addresses] = []
        self._count = 0
        self._clusters: set[int] = set()
        self._tables_seen = 0
        self._changed: dict[int, tuple[Pointers, Pointers]] = {}
        self._blocks = 0
        self._tbz = 0

    async def cut(self, keep: int) -> Tail:
        """Choose a batch among the blocks from index `keep` on."""
        done = True
        if self._zla is not Zla.RESIDENT:
            depth = index_path.depth(self._zla)
            done = await self._cut_table(self._pointers, depth, keep)
        return Tail(
            addresses=np.concatenate([np.empty(0, dtype=np.uint32), *self._freed]),
            pointers=self._pointers,
            changed=self._changed,
            block_count=self._blocks,
            tbz_count=self._tbz,
            done=done,
        )

    async def _cut_table(self, table: Pointers, depth: int, keep: int) -> bool:
        """Cut what `table` (writable) holds from block `keep` on; True when nothing is left there.

        Args:
            table: the slots, or a pointer block.
            depth: pointer blocks between it and the file blocks.
            keep: how many of the blocks below it stay.
        """
        if depth == 0:
            return self._cut_leaf(table, keep)
        width = self._shape.fanout**depth
        for index in reversed(np.flatnonzero(table)):
            kept_below = max(0, keep - int(index) * width)
            if kept_below >= width:
                break
            if self._full():
                return False
            address = int(table[index])
            if is_cow(address):
                table[index] = 0
                continue
            before, below = await self._open(address, depth)
            done = await self._cut_table(below, depth - 1, kept_below)
            if below.any():
                if (below != before).any():
                    self._changed[address] = before, below
            else:
                self._free(np.array([address], dtype=np.uint32))
                table[index] = 0
            if not done:
                return False
        return True

    async def _open(self, address: int, depth: int) -> tuple[Pointers, Pointers]:
        self._tables_seen += 1
        holds = index_path.FILE_BLOCKS if depth == 1 else index_path.POINTER_BLOCKS
        before = await self._load(address, holds)
        return before, before.copy()

    def _cut_leaf(self, table: Pointers, keep: int) -> bool:
        indices = np.flatnonzero(table[keep:])[::-1] + keep
        chosen = indices[: self._affordable(table[indices])]
        addresses = table[chosen]
        table[chosen] = 0
        self._blocks += len(chosen)
        if self._zla is Zla.SB:
            shared = np.array([is_cow(int(address)) for address in addresses], dtype=np.bool_)
        else:
            shared = cow_mask(addresses)
            self._tbz += int(tbz_mask(addresses).sum())
        self._free(addresses[~shared])
        return len(chosen) == len(indices)

    def _free(self, addresses: Addresses) -> None:
        if len(addresses):
            self._freed.append(addresses)
            self._count += len(addresses)
            self._clusters |= set(np.unique(self._cluster_keys(addresses)).tolist())

    def _affordable(self, addresses: Addresses) -> int:
        """How many of these, from the first on, still fit into the batch."""
        limit = min(max(0, FREE_BATCH_MAX - self._count), len(addresses))
        if not limit:
            return 0
        keys = self._cluster_keys(addresses[:limit])
        fresh = np.flatnonzero(~np.isin(keys, list(self._clusters)))
        _, firsts = np.unique(keys[fresh], return_index=True)  # each new cluster's first block
        room = FREE_BATCH_CLUSTERS_MAX - len(self._clusters)
        return limit if len(firsts) <= room else int(np.sort(fresh[firsts])[room])

    def _cluster_keys(self, addresses: Addresses) -> NDArray[np.int64]:
        """One number for the cluster of each of these addresses, which are of one kind."""
        kind = AddressType(int(addresses[0]) & 7)
        clusters, _ = self._files[kind].split(addresses)
        return clusters << 3 | kind

    def _full(self) -> bool:
        return (
            self._count >= FREE_BATCH_MAX
            or len(self._clusters) >= FREE_BATCH_CLUSTERS_MAX
            or self._tables_seen >= FREE_BATCH_TABLES_MAX
        )
