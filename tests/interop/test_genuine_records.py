"""Every record on genuine ESXi volumes is accepted, and packs to the bytes that ESXi wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.genuine import genuine_image
from vmfs.errors import Unsupported
from vmfs.ids import FdAddress
from vmfs.ondisk import lvm, pointer_block
from vmfs.ondisk.address import AddressType, FbAddress, PbAddress, fb_blocks, parse
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, FsDescriptor
from vmfs.ondisk.dirent import unpack_all
from vmfs.ondisk.disk_lock import DiskLock
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FD_SIZE,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    ROOT_FD,
    SBC_FD,
    FileDesc,
    FileType,
    Zla,
    pack_pointers,
    unpack_pointers,
)
from vmfs.ondisk.heartbeat import SLOT_COUNT, Heartbeat, slot_offset
from vmfs.ondisk.lvm import DeviceHeader, ExtentEntry, VolumeEntry, require_flat
from vmfs.ondisk.resource import ClusterMeta, ResourceHeader

pytestmark = pytest.mark.slow
IMAGES = ["vmfs5", "vmfs5-no-dense-sbpc", "vmfs5-resource-optimized"]


class Volume:
    """A genuine volume, read with the records alone."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        data = self.lv(DESCRIPTOR_OFFSET, 512)
        self.descriptor = FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET)
        self.block_size = self.descriptor.block_size
        self.blocks = {FDC_FD: [self.descriptor.fdc_offset // self.block_size]}
        self.headers: dict[FdAddress, ResourceHeader] = {}
        self.headers[FDC_FD] = self.header(FDC_FD)

    def raw(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def lv(self, offset: int, size: int) -> bytes:
        return self.raw(lvm.LV_START + offset, size)

    def lv_offset(self, address: FdAddress, offset: int) -> int:
        index, within = divmod(offset, self.block_size)
        return self.blocks[address][index] * self.block_size + within

    def header(self, address: FdAddress) -> ResourceHeader:
        at = self.lv_offset(address, 0)
        data = self.lv(at, 512)
        header = ResourceHeader.unpack(data, address=at)
        assert header.pack() == data
        return header

    def open(self, address: FdAddress) -> FileDesc:
        """Read a descriptor and all addresses of its file."""
        header = self.headers[FDC_FD]
        at = self.lv_offset(FDC_FD, header.resource_offset(address >> 6 & 0xFFFF, address >> 22))
        data = self.lv(at, FD_SIZE)
        lock = DiskLock.unpack(data[:512], address=at)
        desc = FileDesc.unpack(data[512:1024], address=at + 512, expected=address)
        assert lock.pack() + desc.pack() == data[:1024]
        pointers = unpack_pointers(data[1024:])
        assert pack_pointers(pointers) == data[1024:]
        if desc.zla == Zla.FB:
            self.blocks[address] = fb_blocks(pointers[pointers != 0]).tolist()
        elif desc.zla == Zla.PB and desc.type == FileType.SYSTEM:
            self.blocks[address] = [
                block for one in pointers[pointers != 0] for block in self.pointer_block(int(one))
            ]
        return desc

    def pointer_block(self, value: int) -> list[int]:
        address = parse(value)
        assert isinstance(address, PbAddress)
        offset = self.headers[PBC_FD].resource_offset(address.cluster, address.resource)
        at = self.lv_offset(PBC_FD, offset)
        data = self.lv(at, 4096)
        pointers = pointer_block.unpack(data, address=at, kind=AddressType.FB)
        assert pointer_block.pack(pointers) == data
        return fb_blocks(pointers[pointers != 0]).tolist()


@pytest.fixture(params=IMAGES)
def volume(request: pytest.FixtureRequest) -> Iterator[Volume]:
    with genuine_image(request.param).open("rb") as file:
        volume = Volume(file)
        volume.open(FDC_FD)  # now all its blocks are known
        for address in (FBB_FD, PBC_FD, SBC_FD, PB2_FD):
            volume.open(address)
            volume.headers[address] = volume.header(address)
        yield volume


def test_lvm_records_are_accepted_and_kept(volume: Volume) -> None:
    header = DeviceHeader.unpack(volume.raw(0x100000, 512), address=0x100000)
    entry = VolumeEntry.unpack(volume.raw(0x100200, 512), address=0x100200)
    table = lvm.table_offset(lvm.HEADER_OFFSET, 0)
    extents = []
    for at in range(table, table + header.extent_count * 128, 128):
        extents.append(ExtentEntry.unpack(volume.raw(at, 128), address=at))
        assert extents[-1].pack() == volume.raw(at, 128)

    assert header.pack() == volume.raw(0x100000, 512)
    assert entry.pack() == volume.raw(0x100200, 512)
    assert entry.uuid == volume.descriptor.lv_uuid
    assert require_flat(extents, address=table) == entry.size


def test_descriptor_is_accepted_kept_and_not_ours(volume: Volume) -> None:
    assert volume.descriptor.pack() == volume.lv(DESCRIPTOR_OFFSET, 512)
    assert volume.descriptor.parameters() is None
    with pytest.raises(Unsupported):
        volume.descriptor.must_be_ours()


def test_heartbeats_show_the_esxi_host(volume: Volume) -> None:
    slots = []
    for index in range(SLOT_COUNT):
        at = slot_offset(index)
        slots.append(Heartbeat.unpack(volume.lv(at, 512), address=at))
        assert slots[-1].pack() == volume.lv(at, 512)

    used = [slot for slot in slots if slot.is_in_use]
    assert [slot.index for slot in used] == [528]
    assert used[0].address_text == "10.0.0.229"
    assert used[0].host is None
    journal = parse(used[0].journal_fb)
    assert isinstance(journal, FbAddress)
    assert journal.block * volume.block_size == used[0].journal_offset


@pytest.mark.parametrize("address", [FBB_FD, FDC_FD, PBC_FD, SBC_FD, PB2_FD])
def test_clusters_are_accepted_and_kept(volume: Volume, address: FdAddress) -> None:
    header = volume.headers[address]
    for cluster in range(header.cluster_count):
        at = volume.lv_offset(address, header.cluster_offset(cluster))
        data = volume.lv(at, 1024)
        if not any(data):
            continue  # ESXi grows resource files: clusters it has not reached yet are zero
        lock = DiskLock.unpack(data[:512], address=at)
        meta = ClusterMeta.unpack(data[512:], address=at + 512, number=cluster)
        assert lock.pack() + meta.pack() == data
        assert meta.total == header.cluster_total(cluster)


def test_files_and_directories_are_accepted_and_kept(volume: Volume) -> None:
    seen: set[int] = set()
    todo = [ROOT_FD]
    while todo:
        address = todo.pop()
        if address in seen:
            continue
        seen.add(address)
        desc = volume.open(address)
        assert desc.is_used
        if not desc.is_directory or desc.zla != Zla.FB:
            continue
        at = volume.lv_offset(address, 0)
        data = volume.lv(at, desc.length)
        entries = unpack_all(data, address=at)
        assert b"".join(entry.pack() for entry in entries) == data
        for entry in entries:
            found = volume.open(entry.address)
            assert (found.generation, found.type) == (entry.generation, entry.type)
            todo.append(entry.address)
    assert len(seen) >= 8


def test_vmfs_l_volume_is_named_unsupported(tmp_path: Path) -> None:
    with genuine_image("vmfs5l").open("rb") as file, pytest.raises(Unsupported, match="VMFS-L"):
        Volume(file)


def test_vmfs6_volume_is_named_unsupported() -> None:
    with genuine_image("vmfs6").open("rb") as file:
        file.seek(0x100000)
        with pytest.raises(Unsupported, match="VMFS-6"):
            DeviceHeader.unpack(file.read(512), address=0x100000)
