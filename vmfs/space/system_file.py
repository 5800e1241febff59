"""Resource files on the volume: where each cluster header and each resource lies, and its lock.

`vmfs.ondisk.resource` counts in bytes of the resource file; a resource file is a file like any
other, so a byte of it is found through the block list of its own descriptor. `ResourceFile` joins
the two. The five of them are kept in a `ResourceFiles` mapping, by the kind of address that they
give out:

    FB  .fbb.sf   file blocks (no body here: block n of the volume is at n x block size)
    SB  .sbc.sf   sub-blocks          PB   .pbc.sf  pointer blocks
    FD  .fdc.sf   file descriptors    PB2  .pb2.sf  pointer blocks of the second level

A resource may straddle two file blocks that are not neighbours: its place is a tuple of runs.
All offsets that leave this module are LV offsets. A block list is read once, when the volume is
opened: resource files do not move or grow while anybody has the volume open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import LvOffset
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk import pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import DATA_OFFSET, FileDesc, Zla
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, META_OFFSET, ResourceHeader
from vmfs.space.staging import Staging
from vmfs.units import SECTOR_SIZE, div_ceil

Addresses = NDArray[np.uint32]
Indices = NDArray[np.int64]
_Values = TypeVar("_Values", int, Indices)

Run = tuple[LvOffset, int]
"""LV offset and length in bytes."""

LOCK_KIND: Final = {
    AddressType.FD: LockKind.FD_CLUSTER,
    AddressType.SB: LockKind.SB_CLUSTER,
    AddressType.PB: LockKind.PB_CLUSTER,
    AddressType.PB2: LockKind.PB2_CLUSTER,
    AddressType.FB: LockKind.FB_CLUSTER,
}
"""The lock that covers a cluster of each kind, in the order in which they are taken."""

KINDS: Final = tuple(LOCK_KIND)

_RESOURCES_MAX: Final = {
    AddressType.FB: 512,
    AddressType.FD: 512,
    AddressType.SB: 64,
    AddressType.PB: 16,
    AddressType.PB2: 16,
}
"""Resources per cluster that an address of the kind, and the bitmap, can tell apart."""

_OTHER_COW: Final = 1 << 5
_FB_COW: Final = 1 << 4
_KIND_MASK: Final = 7
_COW_BITS: Final = np.uint32(_FB_COW | _KIND_MASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFile:
    """One resource file: its geometry, and the blocks that it lies in."""

    kind: AddressType
    header: ResourceHeader
    blocks: Indices  # block numbers on the volume, one per file block of the resource file
    block_size: int  # of the volume, bytes

    def __post_init__(self) -> None:
        assert self.kind in LOCK_KIND, f"no resource file of {self.kind.name}"
        assert (self.header.resource_size == 0) == (self.kind is AddressType.FB)

    @property
    def cluster_count(self) -> int:
        """Clusters; the last may be short."""
        return self.header.cluster_count

    @property
    def resource_size(self) -> int:
        """Bytes of one resource; of a file block too."""
        return self.header.resource_size or self.block_size

    def runs(self, offset: int, length: int) -> list[Run]:
        """The places of a range of this file on the volume, neighbours joined.

        Raises:
            CorruptRecord: the file has no block there, though its header says that it must.
        """
        found: list[Run] = []
        end = offset + length
        while offset < end:
            index, within = divmod(offset, self.block_size)
            if index >= len(self.blocks):
                raise self._ends_before(index)
            taken = min(self.block_size - within, end - offset)
            place = int(self.blocks[index]) * self.block_size + within
            if found and found[-1][0] + found[-1][1] == place:
                found[-1] = (found[-1][0], found[-1][1] + taken)
            else:
                found.append((LvOffset(place), taken))
            offset += taken
        return found

    def cluster_lock(self, cluster: int) -> LockId:
        """The lock of a cluster: the first sector of its header."""
        place = self._place(self.header.cluster_offset(cluster))
        return LockId(LOCK_KIND[self.kind], cluster, place)

    def cluster_meta_offset(self, cluster: int) -> LvOffset:
        """Where a cluster's bitmap and counts stand."""
        return self._place(self.header.meta_offset(cluster))

    def resource_runs(self, cluster: int, resource: int) -> list[Run]:
        """Where a resource's body lies: one run, or two when it straddles file blocks."""
        return self.resources_runs(cluster, resource, 1)

    def resources_runs(self, cluster: int, first: int, count: int) -> list[Run]:
        """Where the bodies of adjacent resources of one cluster lie."""
        if self.kind is AddressType.FB:
            block = cluster * self.header.resources_per_cluster + first
            return [(LvOffset(block * self.block_size), count * self.block_size)]
        offset = self.header.resource_offset(cluster, first)
        return self.runs(offset, count * self.header.resource_size)

    def resource_lv_offset(self, cluster: int, resource: int) -> LvOffset:
        """Where a resource's body begins."""
        if self.kind is AddressType.FB:
            block = cluster * self.header.resources_per_cluster + resource
            return LvOffset(block * self.block_size)
        return self._place(self.header.resource_offset(cluster, resource))

    def address_lv_offset(self, address: int) -> LvOffset:
        """As `resource_lv_offset`, for a packed address (which must be one of this file)."""
        return self.resource_lv_offset(*self.split_one(address))

    def contains(self, address: int) -> bool:
        """Whether a number is the packed address of one of its resources, without flags."""
        cluster, resource = self.split_one(address)
        is_one = self.header.contains(cluster, resource)
        return is_one and self.pack_one(cluster, resource) == address

    def address_runs(self, address: int) -> list[Run]:
        """As `resource_runs`, for a packed address (which must be one of this file)."""
        return self.resource_runs(*self.split_one(address))

    async def read(self, staging: Staging, address: int) -> bytes:
        """Read the whole body of a resource, staged changes included."""
        parts = [await staging.read(*run) for run in self.address_runs(address)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stage(self, staging: Staging, address: int, data: bytes, *, offset: int = 0) -> None:
        """Stage whole sectors of a resource's body.

        Args:
            staging: the running transaction.
            address: packed.
            data: the new bytes; whole sectors.
            offset: where in the body they go; a multiple of the sector size.
        """
        assert len(data) % SECTOR_SIZE == 0
        assert offset % SECTOR_SIZE == 0
        body = self.header.resource_offset(*self.split_one(address))
        assert offset + len(data) <= self.header.resource_size
        position = 0
        for place, length in self.runs(body + offset, len(data)):
            staging.stage(place, data[position : position + length])
            position += length

    def pack(self, cluster: int, resources: Indices) -> Addresses:
        """The addresses of resources of one cluster, without flags."""
        return self._pack(cluster, resources).astype(np.uint32)

    def pack_one(self, cluster: int, resource: int) -> int:
        """As `pack`, for one."""
        return self._pack(cluster, resource)

    def _pack(self, cluster: int, chosen: _Values) -> _Values:
        if self.kind is AddressType.FB:
            first = cluster * self.header.resources_per_cluster
            return (chosen + first) << 6 | int(self.kind)
        where = cluster << 6 | int(self.kind)
        match self.kind:
            case AddressType.FD:
                return chosen << 22 | where
            case AddressType.SB:
                return (chosen & 15) << 28 | chosen >> 4 << 3 | where
            case _:
                return chosen << 28 | where

    def split(self, addresses: Addresses) -> tuple[Indices, Indices]:
        """Clusters and resources of addresses of this kind; flags are ignored, ranges unchecked."""
        return self._split(addresses.astype(np.int64))

    def split_one(self, address: int) -> tuple[int, int]:
        """As `split`, for one."""
        return self._split(address)

    def _split(self, values: _Values) -> tuple[_Values, _Values]:
        match self.kind:
            case AddressType.FB:
                per_cluster = self.header.resources_per_cluster
                return (values >> 6) // per_cluster, (values >> 6) % per_cluster
            case AddressType.FD:
                return values >> 6 & 0xFFFF, values >> 22
            case AddressType.SB:
                return values >> 6 & 0x3FFFFF, values >> 28 | (values >> 3 & 3) << 4
            case _:
                return values >> 6 & 0x3FFFFF, values >> 28

    def wrong(self, addresses: Addresses) -> NDArray[np.bool_]:
        """Where something stands that is neither 0 nor an address of a resource of this file."""
        clusters, resources = self.split(addresses)
        per_cluster = self.header.resources_per_cluster
        wrong = (addresses & np.uint32(_KIND_MASK)) != np.uint32(self.kind)
        wrong |= resources >= per_cluster
        wrong |= clusters * per_cluster + resources >= self.header.total
        mask: NDArray[np.bool_] = wrong & (addresses != 0)
        return mask

    def first_wrong(self, addresses: Addresses) -> int | None:
        """Index of the first that is wrong in that sense."""
        wrong = self.wrong(addresses)
        return int(wrong.argmax()) if wrong.any() else None

    def _place(self, offset: int) -> LvOffset:
        """Where a sector of this file stands: a sector is in one block."""
        index, within = divmod(offset, self.block_size)
        if index >= len(self.blocks):
            raise self._ends_before(index)
        return LvOffset(int(self.blocks[index]) * self.block_size + within)

    def _ends_before(self, index: int) -> CorruptRecord:
        return CorruptRecord(
            ResourceHeader.NAME,
            int(self.blocks[0]) * self.block_size,
            f"blocks of the {self.kind.name} file",
            len(self.blocks),
            f"more than {index}",
        )


ResourceFiles = Mapping[AddressType, ResourceFile]


def is_cow(address: int) -> bool:
    """Whether the resource belongs to another file too, which owns it."""
    match address & _KIND_MASK:
        case AddressType.FB:
            return bool(address & _FB_COW)
        case AddressType.SB | AddressType.PB | AddressType.PB2:
            return bool(address & _OTHER_COW)
        case _:
            return False


def cow_mask(addresses: Addresses) -> NDArray[np.bool_]:
    """Where a file block address with the COW flag stands."""
    mask: NDArray[np.bool_] = (addresses & _COW_BITS) == np.uint32(_FB_COW | AddressType.FB)
    return mask


async def load_resource_file(  # noqa: PLR0913 - four of them describe one file
    staging: Staging,
    *,
    kind: AddressType,
    desc: FileDesc,
    pointers: Addresses,
    block_size: int,
    desc_offset: LvOffset,
    pointer_blocks: ResourceFile | None = None,
) -> ResourceFile:
    """Read a resource file's header, and make its block list ready.

    Args:
        staging: to read through.
        kind: what it gives out.
        desc: its file descriptor, and
        pointers: the 256 addresses of its data area.
        block_size: of the volume, bytes.
        desc_offset: LV offset of the file descriptor, for messages.
        pointer_blocks: the PB resource file, once it is known. ESXi lets `.sbc.sf` grow past 256
            blocks, and then lists them in pointer blocks; the others always fit their descriptor.

    Raises:
        Unsupported: its blocks are listed in another way.
        CorruptRecord: a pointer is no file block, or the header contradicts itself.
    """
    if desc.zla is Zla.PB and pointer_blocks is not None:
        tables = pointers[: div_ceil(desc.length, block_size * pointer_block.POINTER_COUNT)]
        _require_kind(tables, pointer_blocks, LvOffset(desc_offset + DATA_OFFSET))
        bodies = [await pointer_blocks.read(staging, int(address)) for address in tables]
        listed = np.frombuffer(b"".join(bodies), dtype="<u4").astype(np.uint32)
    elif desc.zla is Zla.FB:
        listed = pointers
    else:
        raise Unsupported(
            f"the {kind.name} resource file has block list type {desc.zla.name}; "
            "only direct blocks are known, and one level of pointer blocks"
        )
    count = min(div_ceil(desc.length, block_size), len(listed))
    listed = listed[:count]
    wrong = (listed & np.uint32(_KIND_MASK)) != np.uint32(AddressType.FB)
    if count == 0 or wrong.any():
        index = int(wrong.argmax()) if count else 0
        raise CorruptRecord(
            FileDesc.NAME,
            desc_offset,
            f"block {index} of the {kind.name} resource file",
            int(listed[index]) if count else 0,
            "a file block (low digit 1)",
        )
    blocks = (listed >> np.uint32(6)).astype(np.int64)
    start = LvOffset(int(blocks[0]) * block_size)
    header = ResourceHeader.unpack(await staging.read(start, ResourceHeader.SIZE), address=start)
    if header.resources_per_cluster > _RESOURCES_MAX[kind]:
        raise CorruptRecord(
            ResourceHeader.NAME,
            start,
            f"resources per cluster of the {kind.name} file",
            header.resources_per_cluster,
            f"at most {_RESOURCES_MAX[kind]}",
        )
    if (header.resource_size == 0) != (kind is AddressType.FB):
        raise CorruptRecord(
            ResourceHeader.NAME, start, "resource size", header.resource_size, "0 only for blocks"
        )
    return ResourceFile(kind=kind, header=header, blocks=blocks, block_size=block_size)


def _require_kind(addresses: Addresses, file: ResourceFile, place: LvOffset) -> None:
    """Every one of these, which stand at `place`, is an address of `file`; 0 is none."""
    wrong = file.first_wrong(addresses)
    index = wrong if wrong is not None else int((addresses != 0).argmin()) if len(addresses) else 0
    if wrong is not None or not addresses.all():
        raise CorruptRecord(
            "pointer", place + index * 4, "address", int(addresses[index]), file.kind.name
        )


assert META_OFFSET + SECTOR_SIZE == CLUSTER_HEADER_SIZE
