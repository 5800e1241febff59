"""The LVM header: what stands before the logical volume, at partition + 0x100000.

    header + 0          device header                 512 bytes
    header + 0x200      volume table                  512 slots, ours is the first
    header + 0x7E200    device names                  32 x 256 bytes
    header + 0x80200    extent map 0: bitmap 1024 bytes, then 8192 entries of 128 bytes
    header + 0x180600   extent map 1 ...              up to 8 maps (16 TiB)
    partition + 0x1100000   logical volume

An extent is 256 MiB. More than 8 maps continue in extended headers, which look like a header with
its own maps; they are chained by device offsets. Addresses in messages are bytes of the partition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import VmfsUuid
from vmfs.ondisk.record import (
    Buffer,
    pack_text,
    require,
    require_length,
    require_within,
    unpack_text,
)
from vmfs.units import MIB, TIB

HEADER_OFFSET: Final = 0x100000
LV_START: Final = 0x1100000
EXTENT_SIZE: Final = 256 * MIB
MAGIC: Final = 0xC001D00D
LVM_MAJOR: Final = 5
LVM_MINOR: Final = 0x15

VOLUME_TABLE: Final = 0x200
DEVICE_NAMES: Final = 0x7E200
FIRST_MAP: Final = 0x80200
BITMAP_SIZE: Final = 1024
MAP_EXTENT_COUNT: Final = 8192
MAP_SIZE: Final = 0x100400
HEADER_MAP_COUNT_MAX: Final = 8
HEADER_SPAN: Final = 16 * MIB
"""Room of a header with its 8 maps, before its data begin; of an extended header too."""

_DEVICE_SIZE_MAX: Final = 1 << 50


def bitmap_offset(header: int, index: int) -> int:
    """Where the bitmap of map `index` stands, for a (first or extended) header at `header`."""
    assert 0 <= index < HEADER_MAP_COUNT_MAX, f"extent map {index}"
    return header + FIRST_MAP + index * MAP_SIZE


def table_offset(header: int, index: int) -> int:
    """Where the 8192 extent entries of map `index` stand."""
    return bitmap_offset(header, index) + BITMAP_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHeader:
    """The first sector: what this LUN contributes."""

    device_size: int  # bytes of the partition
    extent_count: int
    last_extent: int
    uuid: VmfsUuid  # of the device (blkid's UUID_SUB)
    created_us: int  # microseconds since 1970
    modified_us: int
    map_count: int  # extent maps behind this header, 0..8 (0 counts as 1)
    extended_header: int = 0  # offset in the partition of the next header; 0: none
    minor: int = LVM_MINOR
    id_type: int = 1  # SCSI disk id, copied from INQUIRY by ESXi: type, length, LUN, ...
    id_length: int = 0
    lun: int = 0
    device_type: int = 0
    scsi_level: int = 0
    vendor: bytes = bytes(8)
    model: bytes = bytes(16)
    revision: bytes = bytes(4)
    disk_id: bytes = bytes(44)
    sector_size: int = 512
    volume_count: int = 1
    generation: int = 3
    data_offset: int = LV_START
    lock_owner: bytes = bytes(16)
    lock_time: int = 0
    reserved_ba: bytes = bytes(4)
    metadata_alignment: int = 0
    unit_count: int = 0
    flags: int = 0
    tail: bytes = bytes(298)

    NAME: ClassVar[str] = "LVM device header"
    LAYOUT: ClassVar[Struct] = Struct("<IIIBBHBB8s16s4s44sIQIIIQQ16sQQ16sQ4sIQIII298s")
    SIZE: ClassVar[int] = 512

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            MAGIC,
            LVM_MAJOR,
            self.minor,
            self.id_type,
            self.id_length,
            self.lun,
            self.device_type,
            self.scsi_level,
            self.vendor,
            self.model,
            self.revision,
            self.disk_id,
            self.sector_size,
            self.device_size,
            self.volume_count,
            self.extent_count,
            self.last_extent,
            self.generation,
            self.data_offset,
            self.uuid.raw,
            self.created_us,
            self.modified_us,
            self.lock_owner,
            self.lock_time,
            self.reserved_ba,
            self.map_count,
            self.extended_header,
            self.metadata_alignment,
            self.unit_count,
            self.flags,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read the header.

        Args:
            data: its sector.
            address: offset in the partition that it was read from.

        Raises:
            Unsupported: LVM of VMFS-3 or VMFS-6, or not one volume on the device.
            CorruptRecord: it is none, or a field is out of range.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        f = cls.LAYOUT.unpack(data)
        require(cls.NAME, address, "magic", f[0], MAGIC)
        if f[1] in (3, 6):
            raise Unsupported(f"LVM version {f[1]} belongs to VMFS-{f[1]}; vmfs reads VMFS-5")
        require(cls.NAME, address, "version", f[1], LVM_MAJOR)
        require(cls.NAME, address, "sector size", f[12], 512)
        require_within(cls.NAME, address, "device size", f[13], range(_DEVICE_SIZE_MAX))
        if f[14] != 1:
            raise Unsupported(f"{f[14]} logical volumes on one device; vmfs handles one")
        require_within(cls.NAME, address, "extents", f[15], range(1, 1 << 20))
        require_within(cls.NAME, address, "data offset", f[18], range(HEADER_OFFSET, TIB))
        require_within(cls.NAME, address, "extent maps", f[25], range(HEADER_MAP_COUNT_MAX + 1))
        return cls(
            minor=f[2],
            id_type=f[3],
            id_length=f[4],
            lun=f[5],
            device_type=f[6],
            scsi_level=f[7],
            vendor=f[8],
            model=f[9],
            revision=f[10],
            disk_id=f[11],
            sector_size=f[12],
            device_size=f[13],
            volume_count=f[14],
            extent_count=f[15],
            last_extent=f[16],
            generation=f[17],
            data_offset=f[18],
            uuid=VmfsUuid(f[19]),
            created_us=f[20],
            modified_us=f[21],
            lock_owner=f[22],
            lock_time=f[23],
            reserved_ba=f[24],
            map_count=f[25],
            extended_header=f[26],
            metadata_alignment=f[27],
            unit_count=f[28],
            flags=f[29],
            tail=f[30],
        )


assert DeviceHeader.LAYOUT.size == DeviceHeader.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedHeader:
    """The head of a further set of extent maps, for volumes above 16 TiB."""

    map_count: int
    data_offset: int
    next_header: int = 0
    tail: bytes = bytes(488)

    NAME: ClassVar[str] = "extended LVM header"
    LAYOUT: ClassVar[Struct] = Struct("<IIQQ488s")
    SIZE: ClassVar[int] = 512

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            MAGIC, self.map_count, self.data_offset, self.next_header, self.tail
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read it.

        Raises:
            CorruptRecord: it is none, or it has no map.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        magic, map_count, data_offset, next_header, tail = cls.LAYOUT.unpack(data)
        require(cls.NAME, address, "magic", magic, MAGIC)
        require_within(
            cls.NAME, address, "extent maps", map_count, range(1, HEADER_MAP_COUNT_MAX + 1)
        )
        return cls(map_count=map_count, data_offset=data_offset, next_header=next_header, tail=tail)


assert ExtendedHeader.LAYOUT.size == ExtendedHeader.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEntry:
    """The volume table's first slot: the logical volume, as this device sees it."""

    size: int  # bytes of the logical volume
    uuid: VmfsUuid  # of the logical volume; the FS descriptor repeats it
    uuid_text: str  # the same, printed
    created_us: int
    modified_us: int
    segment_count: int  # 256 MiB segments on this device: vmfs-tools bounds reads by it
    first_segment: int
    last_segment: int
    generation: int = 9
    state: int = 1  # normal
    snapshot_id: int = 1
    volume_index: int = 0
    device_count: int = 1
    reserved_94: bytes = bytes(124)
    entries_used: int = 0
    tail: bytes = bytes(236)

    NAME: ClassVar[str] = "LVM volume entry"
    LAYOUT: ClassVar[Struct] = Struct("<QQI64s16sIQIIQQQI124sI236s")
    SIZE: ClassVar[int] = 512

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            self.size,
            self.generation,
            self.state,
            pack_text(self.uuid_text, 64),
            self.uuid.raw,
            self.snapshot_id,
            self.created_us,
            self.volume_index,
            self.segment_count,
            self.first_segment,
            self.last_segment,
            self.modified_us,
            self.device_count,
            self.reserved_94,
            self.entries_used,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read it.

        Raises:
            Unsupported: the volume spans several devices.
            CorruptRecord: size and segments contradict each other.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        f = cls.LAYOUT.unpack(data)
        entry = cls(
            size=f[0],
            generation=f[1],
            state=f[2],
            uuid_text=unpack_text(cls.NAME, address, "UUID text", f[3]),
            uuid=VmfsUuid(f[4]),
            snapshot_id=f[5],
            created_us=f[6],
            volume_index=f[7],
            segment_count=f[8],
            first_segment=f[9],
            last_segment=f[10],
            modified_us=f[11],
            device_count=f[12],
            reserved_94=f[13],
            entries_used=f[14],
            tail=f[15],
        )
        if not entry.uuid:
            raise CorruptRecord(cls.NAME, address, "UUID", entry.uuid, "a volume's UUID")
        if entry.device_count != 1 or entry.first_segment != 0:
            raise Unsupported(
                f"the volume spans {entry.device_count} devices; vmfs handles one extent device"
            )
        require_within(cls.NAME, address, "segments", entry.segment_count, range(1, 1 << 20))
        require(cls.NAME, address, "last segment", entry.last_segment, entry.segment_count - 1)
        require(cls.NAME, address, "size", entry.size, entry.segment_count * EXTENT_SIZE)
        return entry


assert VolumeEntry.LAYOUT.size == VolumeEntry.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentEntry:
    """Where 256 MiB of the logical volume stand on the device."""

    used: int = 1
    extent_id: int
    volume_index: int = 0
    physical: int  # offset in the partition
    logical: int  # LV offset
    length: int = EXTENT_SIZE
    version: int = 1
    tail: bytes = bytes(91)

    NAME: ClassVar[str] = "LVM extent entry"
    LAYOUT: ClassVar[Struct] = Struct("<BIIQQQI91s")
    SIZE: ClassVar[int] = 128

    def pack(self) -> bytes:
        """The entry as it stands on disk."""
        return self.LAYOUT.pack(
            self.used,
            self.extent_id,
            self.volume_index,
            self.physical,
            self.logical,
            self.length,
            self.version,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read it, used or not.

        Raises:
            CorruptRecord: `used` is neither 0 nor 1, or a used entry is not whole extents.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        used, extent_id, index, physical, logical, length, version, tail = cls.LAYOUT.unpack(data)
        require_within(cls.NAME, address, "used", used, range(2))
        if used and (not length or length % EXTENT_SIZE or logical % EXTENT_SIZE):
            raise CorruptRecord(cls.NAME, address, "length", length, "whole 256 MiB extents")
        return cls(
            used=used,
            extent_id=extent_id,
            volume_index=index,
            physical=physical,
            logical=logical,
            length=length,
            version=version,
            tail=tail,
        )


assert ExtentEntry.LAYOUT.size == ExtentEntry.SIZE


def require_flat(entries: Sequence[ExtentEntry], *, address: int, start: int = 0) -> int:
    """Check that used extents, in order, are one flat range; return the LV offset of its end.

    Everything above the device floor takes the logical volume for one window on the LUN. ESXi's
    volumes are that up to 16 TiB; above, it leaves room for an extended header every 16 TiB.

    Args:
        entries: one or more tables' entries.
        address: where their table stands, for the message.
        start: LV offset at which the range begins: the end of an earlier table's.

    Raises:
        Unsupported: the mapping has a gap or a turn.
    """
    size = start
    for entry in entries:
        if not entry.used:
            continue
        if entry.logical != size or entry.physical != LV_START + size:
            raise Unsupported(
                f"LVM extent {entry.extent_id} (table at {address:#x}) maps LV "
                f"{entry.logical:#x} to {entry.physical:#x}: not one flat range"
            )
        size += entry.length
    return size
