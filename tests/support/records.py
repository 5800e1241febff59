"""One well-filled sample of every record: for round trips, mutations and the golden files."""

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Protocol

from vmfs.ids import FdAddress, LvOffset, VmfsUuid
from vmfs.ondisk.address import fb_addresses
from vmfs.ondisk.descriptor import (
    DESCRIPTOR_OFFSET,
    FsDescriptor,
    LockProtocol,
    VolumeFlag,
    VolumeParameters,
)
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockType
from vmfs.ondisk.file_desc import PB2_FD, SDD_FD, VLJ_FD, FileDesc, FileType, Zla
from vmfs.ondisk.heartbeat import Heartbeat, HostInfo, slot_offset
from vmfs.ondisk.lvm import DeviceHeader, ExtendedHeader, ExtentEntry, VolumeEntry
from vmfs.ondisk.resource import ClusterMeta, ResourceHeader
from vmfs.units import GIB, MIB

HOST_A: Final = VmfsUuid.parse("685eb8eb-7f3e3890-4544-bc24117e2811")
HOST_B: Final = VmfsUuid.parse("685eb8ec-7f3e3891-4545-bc24117e2812")
LV_UUID: Final = VmfsUuid.parse("68626efc-23ce1cd0-1f8b-bc2411b17e28")
FS_UUID: Final = VmfsUuid.parse("68626efc-a12e1868-ef2e-b4bc2411b17e")
DEVICE_UUID: Final = VmfsUuid.parse("68626efc-2be4f100-0635-bc2411b17e28")
TIME: Final = 1_751_281_404
LOCK_AT: Final = LvOffset(0x420000)


class Record(Protocol):
    """What all records have."""

    SIZE: Any

    def pack(self) -> bytes:
        """Bytes."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A record, where it stands, and how it is read back."""

    name: str
    record: Any
    address: int
    reader: Callable[..., Any]

    def unpack(self, data: bytes | memoryview) -> Any:
        """Read it at its address."""
        return self.reader(data, address=self.address)


def holder(owner: VmfsUuid, slot: int, generation: int) -> Holder:
    """A holder in a lock record."""
    return Holder(heartbeat_offset=slot_offset(slot), generation=generation, owner=owner)


def lock_free() -> DiskLock:
    """As mkfs writes it."""
    return DiskLock(type=LockType.FILE_DESC, lv_offset=LOCK_AT)


def host_info() -> HostInfo:
    """Our tail of a slot."""
    return HostInfo(
        name="host-a.example", pid=4711, nonce=0x1122334455667788, interval_ms=3000, lease_ms=16000
    )


def heartbeat_in_use() -> Heartbeat:
    """Slot 5, held by host A."""
    return Heartbeat(lv_offset=slot_offset(5), generation=6).acquired(
        owner=HOST_A,
        stamp_us=123_456_789,
        journal_fb=0x1E41,
        journal_offset=0x7900000,
        host=host_info(),
        address_text="10.0.0.229",
    )


def parameters() -> VolumeParameters:
    """Our private part of the FS descriptor."""
    return VolumeParameters(
        lock_protocol=LockProtocol.ATS,
        flags=VolumeFlag.NO_RESIDENT,
        journal_fd=VLJ_FD,
        journal_count=16,
        journal_size=MIB,
    )


def descriptor() -> FsDescriptor:
    """The FS descriptor of a small volume."""
    return FsDescriptor(
        uuid=FS_UUID,
        label="ds1",
        block_size=MIB,
        created=TIME,
        lv_uuid=LV_UUID,
        sub_block_size=8192,
        fdc_clusters_per_group=64,
        pb2_fd_offset=LvOffset(0x423000),
        pb2_fd=PB2_FD,
        sdd_fd_offset=LvOffset(0x423800),
        sdd_fd=SDD_FD,
        host_uuid=HOST_A,
    ).with_parameters(parameters())


def file_desc() -> FileDesc:
    """A file of three blocks."""
    return FileDesc(
        address=FdAddress(0x02400004),
        generation=9,
        link_count=1,
        type=FileType.FILE,
        length=3 * MIB - 5,
        block_size=MIB,
        allocated_blocks=3,
        mtime=TIME,
        ctime=TIME + 1,
        atime=TIME + 2,
        uid=1000,
        gid=100,
        mode=0o640,
        zla=Zla.FB,
        tbz_blocks=1,
        new_blocks=3,
        affinity_fd=0x02400004,
        tbz_shift=20,
        block_shift=20,
    )


def _samples() -> tuple[Sample, ...]:
    free, first, second = lock_free(), holder(HOST_A, 5, 7), holder(HOST_B, 6, 3)
    header = ResourceHeader.plan(
        resources_per_cluster=200, resource_size=2048, total=20352, clusters_per_group=64
    )
    entry = DirEntry(
        type=FileType.FILE, address=FdAddress(0x02400004), generation=9, name=b"disk.vmdk"
    )
    slot = Heartbeat(lv_offset=slot_offset(3))
    fenced = heartbeat_in_use().replaying(by=HOST_B, by_offset=slot_offset(6), by_generation=3)
    device = DeviceHeader(
        device_size=GIB,
        extent_count=3,
        last_extent=2,
        uuid=DEVICE_UUID,
        created_us=TIME * 1_000_000,
        modified_us=TIME * 1_000_000,
        map_count=1,
    )
    volume = VolumeEntry(
        size=768 * MIB,
        uuid=LV_UUID,
        uuid_text=str(LV_UUID),
        created_us=TIME * 1_000_000,
        modified_us=TIME * 1_000_000,
        segment_count=3,
        first_segment=0,
        last_segment=2,
    )
    extent = ExtentEntry(extent_id=2, physical=0x21100000, logical=0x20000000)
    extended = ExtendedHeader(map_count=8, data_offset=0x100001100000)
    cluster = ClusterMeta.with_bits(number=3, total=200, free_bits=(1 << 200) - (1 << 9))

    def sample(name: str, record: Any, address: int) -> Sample:
        return Sample(name=name, record=record, address=address, reader=type(record).unpack)

    return (
        sample("heartbeat-free", slot, slot.lv_offset),
        sample("heartbeat-in-use", heartbeat_in_use(), slot_offset(5)),
        sample("heartbeat-replaying", fenced, slot_offset(5)),
        sample("host-info", host_info(), slot_offset(5) + 0xA4),
        sample("lock-free", free, LOCK_AT),
        sample("lock-exclusive", free.taken_exclusive(first, 77), LOCK_AT),
        sample("lock-shared", free.taken_shared(first, 77).taken_shared(second, 78), LOCK_AT),
        sample("fs-descriptor", descriptor(), DESCRIPTOR_OFFSET),
        sample("volume-parameters", parameters(), DESCRIPTOR_OFFSET + 0x190),
        sample("resource-header", header, 0x400000),
        sample("cluster-meta", cluster, 0x410E00),
        sample("file-desc", file_desc(), LOCK_AT + 512),
        sample("file-desc-unused", FileDesc(address=FdAddress(0)), LOCK_AT + 512),
        sample("dir-entry", entry, 0x500118),
        sample("lvm-device-header", device, 0x100000),
        sample("lvm-volume-entry", volume, 0x100200),
        sample("lvm-extent-entry", extent, 0x180700),
        sample("lvm-extended-header", extended, 0x100001100000),
    )


SAMPLES: Final = _samples()
POINTERS: Final = fb_addresses(151, 256)
