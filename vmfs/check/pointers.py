"""The walk down one file's block list, to the last pointer.

What is met on the way is handed to a `Sink`: in the first walk it claims, in the second it names
the owners of what was claimed twice. An index block that was entered before is not entered again,
so pointer blocks that are shared a million times cannot make the walk endless.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vmfs.check.content import levels
from vmfs.check.ownership import Indices
from vmfs.check.reader import KIND_OF_ADDRESS, Node, Reader, ResourceKind
from vmfs.errors import CorruptRecord
from vmfs.ondisk import address as addresses
from vmfs.ondisk import pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import DATA_OFFSET
from vmfs.units import div_ceil

_UNUSED_BITS: Final = {
    AddressType.FB: 0x08,
    AddressType.SB: 0x00,
    AddressType.PB: 0x18,
    AddressType.PB2: 0x18,
}


class Sink(Protocol):
    """Where a walk takes what it meets."""

    def claim(self, kind: ResourceKind, indices: Indices) -> None:
        """The file points to these resources."""
        ...

    def enter(self, kind: ResourceKind, index: int) -> bool:
        """Whether to go into this pointer block (which has been claimed); False if known."""
        ...


@dataclass(slots=True)
class Tally:
    """What one file's pointers hold."""

    blocks: int = 0
    """Data blocks, to-be-zeroed ones among them."""
    tbz_blocks: int = 0
    beyond_length: int = 0
    """Data blocks that lie wholly past the file's length."""
    is_complete: bool = True
    """False when some of the list could not be read: the counts are then too low."""


@dataclass(slots=True, kw_only=True)
class PointerWalk:
    """One walk down one file."""

    reader: Reader
    node: Node
    sink: Sink
    report_bad: Callable[[str, int], None]
    """Called with what is wrong with a pointer, and the LV offset of the array it stands in."""
    tally: Tally

    async def run(self) -> Tally:
        """Walk the whole list; nothing is raised for damage, it is reported."""
        path = levels(self.node.desc.zla)
        if path:
            at = self.node.lv_offset + DATA_OFFSET
            await self._descend(self.node.pointers, path, first_block=0, at=at)
        return self.tally

    async def _descend(
        self,
        pointers: NDArray[np.uint32],
        path: tuple[AddressType, ...],
        *,
        first_block: int,
        at: int,
    ) -> None:
        positions = np.flatnonzero(pointers)
        if not len(positions):
            return
        values = pointers[positions]
        if path[0] is AddressType.PB2:  # ESXi puts PB addresses there too (see `content`)
            pb = (values & np.uint32(7)) == np.uint32(AddressType.PB)
            other = (AddressType.PB, *path[1:])
            await self._visit(values[pb], positions[pb], other, first_block=first_block, at=at)
            values, positions = values[~pb], positions[~pb]
        await self._visit(values, positions, path, first_block=first_block, at=at)

    async def _visit(
        self,
        values: NDArray[np.uint32],
        positions: Indices,
        path: tuple[AddressType, ...],
        *,
        first_block: int,
        at: int,
    ) -> None:
        good, indices = self._resolve(values, path[0], positions, at)
        positions, values, indices = positions[good], values[good], indices[good]
        if len(path) == 1:
            self._take_leaves(values, positions + first_block, indices, KIND_OF_ADDRESS[path[0]])
            return
        span = pointer_block.POINTER_COUNT ** (len(path) - 1)
        for position, value, index in zip(
            positions.tolist(), values.tolist(), indices.tolist(), strict=True
        ):
            first = first_block + position * span
            await self._enter(value, index, path, first_block=first)

    async def _enter(
        self, value: int, index: int, path: tuple[AddressType, ...], *, first_block: int
    ) -> None:
        kind = KIND_OF_ADDRESS[path[0]]
        fresh = self.sink.enter(kind, index)
        self.sink.claim(kind, np.array([index], dtype=np.int64))
        if not fresh:
            self.tally.is_complete = False
            return
        try:
            at, below = await self.reader.index_block(value)
        except CorruptRecord as error:
            self.report_bad(str(error), error.address)
            self.tally.is_complete = False
            return
        await self._descend(below, path[1:], first_block=first_block, at=at)

    def _take_leaves(
        self,
        values: NDArray[np.uint32],
        blocks: Indices,
        indices: Indices,
        kind: ResourceKind,
    ) -> None:
        desc = self.node.desc
        self.tally.blocks += len(values)
        if kind is ResourceKind.FBB:
            self.tally.tbz_blocks += int(np.count_nonzero(addresses.tbz_mask(values)))
        needed = div_ceil(desc.length, desc.block_size) if desc.block_size else 0
        self.tally.beyond_length += int(np.count_nonzero(blocks >= needed))
        self.sink.claim(kind, indices)

    def _resolve(
        self, values: NDArray[np.uint32], kind: AddressType, positions: Indices, at: int
    ) -> tuple[NDArray[np.bool_], Indices]:
        """Which values are addresses of that kind that exist, and the number of each resource."""
        header = self.reader.resources[KIND_OF_ADDRESS[kind]].header
        wide = values.astype(np.int64)
        good = ((wide & 7) == kind) & ((wide & _UNUSED_BITS[kind]) == 0)
        if kind is AddressType.FB:
            indices = wide >> 6
        else:
            resource = wide >> 28 & 15
            if kind is AddressType.SB:
                resource |= (wide >> 3 & 3) << 4
            good &= resource < header.resources_per_cluster
            indices = (wide >> 6 & 0x3FFFFF) * header.resources_per_cluster + resource
        good &= indices < header.total
        wrong = np.flatnonzero(~good)
        if len(wrong):
            first = int(wrong[0])
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            text = (
                f"pointer {int(positions[first])} is {int(values[first]):#x}, "
                f"expected a {kind.name} address below {header.total:#x}{more}"
            )
            self.report_bad(text, at)
            self.tally.is_complete = False
        return good, indices
