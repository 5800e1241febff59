"""A reader of VMFS-5 volumes that trusts nothing: the eyes of `check`, `inspect`, `ls` and `cp`.

It shares the record definitions (`ondisk`) with the filesystem, and nothing else: how a file is
found, and where its bytes stand, is worked out here a second time, so that a mistake of the
filesystem shows as a finding instead of being read back as it was written.

    descriptor -> .fdc.sf byte 0 (resource header) -> FD 2 (.fdc.sf itself) -> every other FD
               -> .fbb .pbc .sbc .pb2 headers      -> resources by address

Contract: nothing is ever written; no lock is taken, so on a live volume each answer is of the
moment; every offset and length that comes from disk is held against a bound before it is used; what
cannot be is a `CorruptRecord` that says where.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord, NotVmfs
from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk import address as addresses
from vmfs.ondisk import file_desc, pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, FsDescriptor
from vmfs.ondisk.disk_lock import LockType
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, ResourceHeader
from vmfs.units import align_up, div_ceil

_MODE_TYPE_MASK: Final = 0o170000
_MODE_DIRECTORY: Final = 0o040000


class _KindFacts(NamedTuple):
    file_name: str
    fd: FdAddress
    lock: LockType
    address: AddressType
    noun: str


class ResourceKind(Enum):
    """The five resource files, with everything that is fixed about each."""

    FBB = _KindFacts(".fbb.sf", file_desc.FBB_FD, LockType.FB_CLUSTER, AddressType.FB, "file block")
    FDC = _KindFacts(
        ".fdc.sf", file_desc.FDC_FD, LockType.FD_CLUSTER, AddressType.FD, "file descriptor"
    )
    PBC = _KindFacts(
        ".pbc.sf", file_desc.PBC_FD, LockType.PB_CLUSTER, AddressType.PB, "pointer block"
    )
    SBC = _KindFacts(".sbc.sf", file_desc.SBC_FD, LockType.SB_CLUSTER, AddressType.SB, "sub-block")
    PB2 = _KindFacts(
        ".pb2.sf", file_desc.PB2_FD, LockType.PB2_CLUSTER, AddressType.PB2, "second-level block"
    )

    @property
    def file_name(self) -> str:
        """Name in the root directory."""
        return self.value.file_name

    @property
    def fd(self) -> FdAddress:
        """Address of its own file descriptor."""
        return self.value.fd

    @property
    def lock(self) -> LockType:
        """Type of its clusters' lock records."""
        return self.value.lock

    @property
    def address_type(self) -> AddressType:
        """Kind of the addresses that name its resources."""
        return self.value.address

    @property
    def noun(self) -> str:
        """What one of its resources is called in messages."""
        return self.value.noun


class Source(Protocol):
    """What is read from: a `Device`, or an overlay on one."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def name(self) -> str:
        """For messages."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        ...


KIND_OF_ADDRESS: Final = {kind.address_type: kind for kind in ResourceKind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file descriptor as it was read: lock sector, metadata, data area."""

    address: FdAddress
    lv_offset: LvOffset
    lock: bytes
    desc: FileDesc
    data: bytes

    @property
    def is_directory(self) -> bool:
        """It holds names. `.sdd.sf` does too: a system file whose mode says directory."""
        return is_directory(self.desc)

    @property
    def pointers(self) -> NDArray[np.uint32]:
        """The data area as 256 addresses."""
        return file_desc.unpack_pointers(self.data)


def is_directory(desc: FileDesc) -> bool:
    """Whether the file holds directory entries."""
    if desc.type == FileType.SYSTEM:
        return desc.mode & _MODE_TYPE_MASK == _MODE_DIRECTORY
    return desc.type == FileType.DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFile:
    """Where the bytes of a system file stand."""

    fd: FdAddress
    block_size: int
    blocks: NDArray[np.int64]
    """Block numbers, in file order."""

    @property
    def size(self) -> int:
        """Bytes that its blocks hold."""
        return len(self.blocks) * self.block_size

    def ranges(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The (LV offset, length) pieces of a range of the file.

        Raises:
            CorruptRecord: the range leaves the file.
        """
        if not 0 <= offset <= offset + length <= self.size:
            raise CorruptRecord(
                f"system file {self.fd:#x}",
                offset,
                "end",
                offset + length,
                f"within {self.size:#x}",
            )
        pieces: list[tuple[int, int]] = []
        while length > 0:
            index, inside = divmod(offset, self.block_size)
            size = min(length, self.block_size - inside)
            start = int(self.blocks[index]) * self.block_size + inside
            if pieces and sum(pieces[-1]) == start:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + size)
            else:
                pieces.append((start, size))
            offset, length = offset + size, length - size
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFile:
    """A resource file: its geometry, and where its bytes stand."""

    kind: ResourceKind
    header: ResourceHeader
    file: SystemFile

    def index_of(self, cluster: int, resource: int) -> int:
        """Number of a resource, counted through the whole file."""
        return cluster * self.header.resources_per_cluster + resource

    def place_of(self, index: int) -> tuple[int, int]:
        """The (cluster, resource) of a resource's number."""
        return divmod(index, self.header.resources_per_cluster)

    def cluster_lv_offset(self, cluster: int) -> LvOffset:
        """LV offset of a cluster's lock sector."""
        ranges = self.file.ranges(self.header.cluster_offset(cluster), CLUSTER_HEADER_SIZE)
        return LvOffset(ranges[0][0])

    def resource_lv_offset(self, cluster: int, resource: int) -> LvOffset:
        """LV offset at which a resource begins (it may go on in another file block)."""
        return LvOffset(self.file.ranges(self.header.resource_offset(cluster, resource), 1)[0][0])


@dataclass(slots=True)
class Reader:
    """A volume, open for reading. Make one with `open_volume`."""

    device: Source
    descriptor: FsDescriptor
    resources: dict[ResourceKind, ResourceFile] = field(default_factory=dict)

    @property
    def block_size(self) -> int:
        """Bytes of a file block."""
        return self.descriptor.block_size

    @property
    def block_count(self) -> int:
        """File blocks that an address may name."""
        return self.resources[ResourceKind.FBB].header.total

    async def read(self, offset: int, length: int) -> bytes:
        """Read a range of the logical volume.

        Raises:
            CorruptRecord: the range leaves the volume.
            DeviceError: the LUN could not be read.
        """
        if not 0 <= offset <= offset + length <= self.device.size:
            raise CorruptRecord(
                "volume", offset, "end of range", offset + length, f"within {self.device.size:#x}"
            )
        return await self.device.read(offset, length)

    async def read_system(self, file: SystemFile, offset: int, length: int) -> bytes:
        """Read a range of a system file."""
        pieces = [await self.read(*piece) for piece in file.ranges(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def node(self, address: FdAddress) -> Node:
        """Read a file descriptor.

        Raises:
            CorruptRecord: there is none at that address, or its metadata are not valid.
        """
        parts = addresses.parse_fd(address)
        fdc = self.resources[ResourceKind.FDC]
        if not fdc.header.contains(parts.cluster, parts.resource):
            raise CorruptRecord(
                "file descriptor", address, "address", address, "one inside .fdc.sf"
            )
        offset = fdc.header.resource_offset(parts.cluster, parts.resource)
        lv_offset = fdc.file.ranges(offset, 1)[0][0]
        data = await self.read_system(fdc.file, offset, file_desc.FD_SIZE)
        return split_node(data, lv_offset=lv_offset, address=address)

    async def index_block(self, address: int) -> tuple[LvOffset, NDArray[np.uint32]]:
        """Read a pointer block of either level: where it stands, and its 1024 addresses.

        Raises:
            CorruptRecord: the address is of another kind, or names none that exists.
        """
        kind = addresses.address_type(address)
        if kind not in (AddressType.PB, AddressType.PB2):
            raise CorruptRecord("address", 0, "type", address, "a pointer block's")
        file, offset = self._locate(address, AddressType(kind))
        place = LvOffset(file.file.ranges(offset, 1)[0][0])
        data = await self.read_system(file.file, offset, pointer_block.SIZE)
        return place, pointer_block.unpack(data, address=place)

    def sub_block_ranges(self, address: int, length: int) -> list[tuple[int, int]]:
        """The (LV offset, length) pieces of the first `length` bytes of a sub-block."""
        file, offset = self._locate(address, AddressType.SB)
        assert 0 <= length <= file.header.resource_size
        return file.file.ranges(offset, length)

    def resource_index(self, address: int, kind: AddressType) -> int:
        """Number of the resource that an address names, counted through its resource file.

        Raises:
            CorruptRecord: the address is not of that kind, or names none that exists.
        """
        if addresses.address_type(address) != kind:
            raise CorruptRecord("address", 0, "type", address, f"a {kind.name} address")
        parsed = addresses.parse(address)
        assert parsed is not None
        file = self.resources[KIND_OF_ADDRESS[kind]]
        if isinstance(parsed, addresses.FbAddress):
            if parsed.block >= file.header.total:
                raise CorruptRecord(
                    "address", 0, "block", parsed.block, f"below {file.header.total:#x}"
                )
            return parsed.block
        if not file.header.contains(parsed.cluster, parsed.resource):
            raise CorruptRecord(
                "address",
                0,
                file.kind.noun,
                f"{parsed.resource} of cluster {parsed.cluster}",
                f"one of the {file.header.total} in {file.kind.file_name}",
            )
        return file.index_of(parsed.cluster, parsed.resource)

    def _locate(self, address: int, kind: AddressType) -> tuple[ResourceFile, int]:
        file = self.resources[KIND_OF_ADDRESS[kind]]
        cluster, resource = file.place_of(self.resource_index(address, kind))
        if file.header.resource_size == 0:
            raise CorruptRecord(file.kind.file_name, 0, "resource size", 0, "more than 0")
        return file, file.header.resource_offset(cluster, resource)


def split_node(data: bytes, *, lv_offset: int, address: FdAddress) -> Node:
    """Take the 2048 bytes of a file descriptor apart.

    Raises:
        CorruptRecord: the metadata are not valid, or another file's.
    """
    meta = data[file_desc.META_OFFSET : file_desc.DATA_OFFSET]
    desc = FileDesc.unpack(meta, address=lv_offset + file_desc.META_OFFSET, expected=address)
    return Node(
        address=address,
        lv_offset=LvOffset(lv_offset),
        lock=data[: file_desc.LOCK_SIZE],
        desc=desc,
        data=data[file_desc.DATA_OFFSET :],
    )


async def open_volume(device: Source) -> Reader:
    """Find the descriptor and the resource files of a volume.

    Args:
        device: the logical volume (`vmfs.device.locate.find_lv`).

    Raises:
        NotVmfs, Unsupported: there is no VMFS-5 filesystem.
        CorruptRecord: there is one, but its descriptor or a system file is damaged.
    """
    reader = await open_descriptor(device)
    for kind in (
        ResourceKind.FDC,
        ResourceKind.FBB,
        ResourceKind.PBC,
        ResourceKind.PB2,
        ResourceKind.SBC,  # last: on small-block volumes its own list may need pointer blocks
    ):
        reader.resources[kind] = await _open_resource_file(reader, kind)
    return reader


async def open_descriptor(device: Source) -> Reader:
    """Only the descriptor: what is left to say about a volume whose system files are damaged."""
    if device.size < DESCRIPTOR_OFFSET + FsDescriptor.SIZE:
        raise NotVmfs(f"{device.name} is too small to hold a VMFS volume")
    data = await device.read(DESCRIPTOR_OFFSET, FsDescriptor.SIZE)
    return Reader(device=device, descriptor=FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET))


async def _open_resource_file(reader: Reader, kind: ResourceKind) -> ResourceFile:
    if kind is ResourceKind.FDC:
        file = await _bootstrap_fdc(reader)
    else:
        file = await system_file(reader, await reader.node(kind.fd))
    data = await reader.read_system(file, 0, ResourceHeader.SIZE)
    header = ResourceHeader.unpack(data, address=file.ranges(0, 1)[0][0])
    _require_fitting(reader, kind, header, file)
    return ResourceFile(kind=kind, header=header, file=file)


async def _bootstrap_fdc(reader: Reader) -> SystemFile:
    """Find .fdc.sf by its own third descriptor, which stands in its first block."""
    start, block_size = reader.descriptor.fdc_offset, reader.block_size
    head = await reader.read(start, ResourceHeader.SIZE)
    header = ResourceHeader.unpack(head, address=start)
    index = addresses.parse_fd(ResourceKind.FDC.fd).resource
    inside = header.first_group + header.clusters_per_group * CLUSTER_HEADER_SIZE
    inside += index * file_desc.FD_SIZE
    if header.resource_size != file_desc.FD_SIZE or inside + file_desc.FD_SIZE > block_size:
        raise CorruptRecord(
            "resource file header", start, "geometry", inside, "FD 2 in the first file block"
        )
    data = await reader.read(start + inside, file_desc.FD_SIZE)
    node = split_node(data, lv_offset=start + inside, address=ResourceKind.FDC.fd)
    file = await system_file(reader, node)
    if len(file.blocks) == 0 or int(file.blocks[0]) * block_size != start:
        raise CorruptRecord(
            "system file .fdc.sf", node.lv_offset, "first block", "elsewhere", f"at {start:#x}"
        )
    return file


async def system_file(reader: Reader, node: Node) -> SystemFile:
    """The block list of a system file: direct, or through pointer blocks (ESXi's `.sbc.sf`).

    Raises:
        CorruptRecord: it is no system file, or its block list has a hole or a bad address.
    """
    desc, at = node.desc, node.lv_offset + file_desc.META_OFFSET
    name = f"system file {node.address:#x}"
    if desc.type != FileType.SYSTEM or not desc.is_used:
        raise CorruptRecord(name, at, "type", int(desc.type), int(FileType.SYSTEM))
    if desc.block_size != reader.block_size:
        raise CorruptRecord(name, at, "block size", desc.block_size, reader.block_size)
    count = div_ceil(desc.length, desc.block_size)
    if count > reader.device.size // reader.block_size:  # what follows is as large as this
        raise CorruptRecord(name, at, "length", desc.length, "no more than the volume")
    if desc.zla == Zla.FB:
        pointers = node.pointers[:count]
    elif desc.zla == Zla.PB:
        wanted = div_ceil(count, pointer_block.POINTER_COUNT)
        lists = [(await reader.index_block(int(pointer)))[1] for pointer in node.pointers[:wanted]]
        pointers = np.concatenate(lists)[:count] if lists else np.zeros(0, dtype=np.uint32)
    else:
        raise CorruptRecord(name, at, "zla", int(desc.zla), "file blocks or pointer blocks")
    return SystemFile(
        fd=node.address,
        block_size=desc.block_size,
        blocks=_system_blocks(pointers, count, reader=reader, name=name, at=at),
    )


def _system_blocks(
    pointers: NDArray[np.uint32], count: int, *, reader: Reader, name: str, at: int
) -> NDArray[np.int64]:
    if len(pointers) < count:
        raise CorruptRecord(name, at, "length", count, f"at most {len(pointers)} blocks")
    blocks = addresses.fb_blocks(pointers).astype(np.int64)
    limit = reader.device.size // reader.block_size
    wrong = ~addresses.fb_mask(pointers) | (blocks >= limit)
    if wrong.any():
        index = int(wrong.argmax())
        raise CorruptRecord(
            name, at, f"pointer {index}", int(pointers[index]), f"a file block below {limit:#x}"
        )
    return blocks


def _require_fitting(
    reader: Reader, kind: ResourceKind, header: ResourceHeader, file: SystemFile
) -> None:
    sizes: dict[ResourceKind, Sequence[int]] = {
        ResourceKind.FBB: (0,),
        ResourceKind.FDC: (file_desc.FD_SIZE,),
        ResourceKind.PBC: (pointer_block.SIZE,),
        ResourceKind.PB2: (pointer_block.SIZE,),
    }
    at = file.ranges(0, 1)[0][0]
    blocks = reader.device.size // reader.block_size
    if kind is ResourceKind.FBB and header.total > blocks:
        raise CorruptRecord(f"{kind.file_name} header", at, "total", header.total, blocks)
    if kind in sizes and header.resource_size not in sizes[kind]:
        raise CorruptRecord(
            f"{kind.file_name} header", at, "resource size", header.resource_size, sizes[kind][0]
        )
    if header.file_size > align_up(file.size, file.block_size):
        raise CorruptRecord(
            f"{kind.file_name} header", at, "total", header.total, f"what {file.size:#x} bytes hold"
        )
