"""What a volume is made of: descriptor, resource files, journals. Read once, when it is opened.

Everything is found from the FS descriptor: it says where `.fdc.sf` begins, whose first block holds
the descriptors of the volume's own files (format rule 2), and those list their blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmfs.device.base import Device
from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import FdAddress, LvOffset, SlotIndex
from vmfs.ondisk.address import AddressType, FbAddress, parse_fd
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, FsDescriptor, VolumeParameters
from vmfs.ondisk.file_desc import (
    DATA_OFFSET,
    FBB_FD,
    FD_SIZE,
    FDC_FD,
    META_OFFSET,
    PB2_FD,
    PBC_FD,
    SBC_FD,
    FileDesc,
    FileType,
    unpack_pointers,
)
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE
from vmfs.space.block_map import BlockMap
from vmfs.space.extent import ExtentKind
from vmfs.space.staging import Staging
from vmfs.space.system_file import Addresses, ResourceFile, ResourceFiles, load_resource_file

RESOURCE_FILES: Final[Mapping[AddressType, FdAddress]] = {
    AddressType.FB: FBB_FD,
    AddressType.FD: FDC_FD,
    AddressType.PB: PBC_FD,
    AddressType.PB2: PB2_FD,
    AddressType.SB: SBC_FD,  # after PB: ESXi may list its blocks in pointer blocks
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Journals:
    """The journal regions in `.vlj.sf`: one for each of the first heartbeat slots."""

    offset: LvOffset
    count: int
    size: int  # bytes of one region
    block_size: int

    def region(self, slot: SlotIndex) -> LvOffset:
        """Where the region of a slot begins."""
        assert 0 <= slot < self.count, f"slot {slot} has no journal"
        return LvOffset(self.offset + slot * self.size)

    def place(self, slot: SlotIndex) -> tuple[int, LvOffset]:
        """What the heartbeat slot says of it: packed block address, LV offset; 0 for none."""
        if slot >= self.count:
            return 0, LvOffset(0)
        region = self.region(slot)
        return FbAddress(block=region // self.block_size).pack(), region


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A volume's own parts."""

    descriptor: FsDescriptor
    parameters: VolumeParameters | None  # None: made by another implementation
    resources: ResourceFiles


async def read_descriptor(device: Device) -> FsDescriptor:
    """Read the FS descriptor of a logical volume.

    Raises:
        Unsupported: not VMFS-5.
        CorruptRecord: it is damaged.
    """
    data = await device.read(DESCRIPTOR_OFFSET, FsDescriptor.SIZE)
    return FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET)


async def read_structure(staging: Staging, descriptor: FsDescriptor) -> Structure:
    """Find the resource files.

    Raises:
        CorruptRecord: one of their descriptors or headers is damaged.
        Unsupported: a layout that VMFS-5 is not known to have.
        DeviceError: the LUN cannot be read.
    """
    resources: dict[AddressType, ResourceFile] = {}
    for kind, address in RESOURCE_FILES.items():
        offset = _boot_offset(descriptor, address)
        desc, area = await _read_desc(staging, offset, address)
        if desc.type is not FileType.SYSTEM:
            raise CorruptRecord(
                FileDesc.NAME, offset + META_OFFSET, "type", desc.type.name, "SYSTEM"
            )
        resources[kind] = await load_resource_file(
            staging,
            kind=kind,
            desc=desc,
            pointers=area,
            block_size=descriptor.block_size,
            desc_offset=offset,
            pointer_blocks=resources.get(AddressType.PB),
        )
    return Structure(descriptor=descriptor, parameters=descriptor.parameters(), resources=resources)


async def read_journals(staging: Staging, structure: Structure) -> Journals:
    """Find the journals of a volume that our mkfs made.

    Raises:
        Unsupported: it was made by another implementation.
        CorruptRecord: `.vlj.sf` is not what the descriptor says.
    """
    parameters = structure.descriptor.must_be_ours()
    files = structure.resources
    offset = files[AddressType.FD].address_lv_offset(parameters.journal_fd)
    desc, pointers = await _read_desc(staging, offset, parameters.journal_fd)
    size = parameters.journal_count * parameters.journal_size
    block_map = BlockMap(desc=desc, pointers=pointers, staging=staging, files=files)
    await block_map.load(0, size)
    extents = block_map.extents(0, size)
    contiguous = len(extents) == 1 and extents[0].kind is ExtentKind.DATA
    if not contiguous or desc.length < size:
        raise CorruptRecord(
            FileDesc.NAME,
            offset + META_OFFSET,
            "journals",
            f"{desc.length} bytes in {len(extents)} pieces",
            f"{size} bytes in one piece",
        )
    return Journals(
        offset=extents[0].lv_offset,
        count=parameters.journal_count,
        size=parameters.journal_size,
        block_size=structure.descriptor.block_size,
    )


def _boot_offset(descriptor: FsDescriptor, address: FdAddress) -> LvOffset:
    """Where a descriptor of the volume's own files stands, before `.fdc.sf` can be read.

    They are the first resources of cluster 0, so all within the first block of `.fdc.sf`; but the
    descriptor itself says where that of `.pb2.sf` is.
    """
    if address == PB2_FD and descriptor.pb2_fd_offset:
        return descriptor.pb2_fd_offset
    headers = descriptor.fdc_clusters_per_group * CLUSTER_HEADER_SIZE
    first = descriptor.fdc_offset + descriptor.fdc_header_size + headers
    offset = first + parse_fd(address).resource * FD_SIZE
    if offset + FD_SIZE > descriptor.fdc_offset + descriptor.block_size:
        raise Unsupported("the first block of .fdc.sf does not hold the volume's own descriptors")
    return LvOffset(offset)


async def _read_desc(
    staging: Staging, offset: LvOffset, address: FdAddress
) -> tuple[FileDesc, Addresses]:
    data = await staging.read(offset + META_OFFSET, FD_SIZE - META_OFFSET)
    desc = FileDesc.unpack(data[: FileDesc.SIZE], address=offset + META_OFFSET, expected=address)
    if not desc.is_used:
        raise CorruptRecord(
            FileDesc.NAME, offset + META_OFFSET, "link count", 0, "a file of the volume itself"
        )
    return desc, unpack_pointers(data[DATA_OFFSET - META_OFFSET :])
