"""Where on a LUN the VMFS partition begins: MBR (type 0xFB) or GPT (the VMFS GUID), or none.

Pure: the caller reads the head of the LUN (`HEAD_SIZE` bytes) and hands it in. Whether a bare LUN
holds a volume is not said here, but by the LVM magic at 0x100000.
"""

import zlib
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final
from uuid import UUID

from vmfs.errors import CorruptRecord
from vmfs.units import SECTOR_SIZE

HEAD_SIZE: Final = 34 * SECTOR_SIZE
"""MBR, GPT header, and 128 GPT entries."""

VMFS_GUID: Final = UUID("aa31e02a-400f-11db-9590-000c2911d1b8")
MBR_TYPE_VMFS: Final = 0xFB
MBR_TYPE_PROTECTIVE: Final = 0xEE
PARTITION_START: Final = 2048 * SECTOR_SIZE
"""Where mkfs puts its partition."""

_MBR_ENTRY: Final = Struct("<B3sB3sII")
_GPT_HEADER: Final = Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY: Final = Struct("<16s16sQQQ72s")
_GPT_ENTRY_COUNT: Final = 128
_GPT_TABLE_SECTORS: Final = 32
_MBR_SECTOR_MAX: Final = 0xFFFFFFFF


class TableKind(Enum):
    """What kind of partition table a LUN has."""

    NONE = "none"
    MBR = "mbr"
    GPT = "gpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLocation:
    """A partition, in bytes of the LUN."""

    offset: int
    size: int


def table_kind(head: bytes) -> TableKind:
    """What the head of a LUN looks like; an MBR signature alone counts as an MBR."""
    if head[SECTOR_SIZE : SECTOR_SIZE + 8] == b"EFI PART":
        return TableKind.GPT
    return TableKind.MBR if head[510:512] == b"\x55\xaa" else TableKind.NONE


def find_volume(head: bytes, *, lun_size: int) -> VolumeLocation | None:
    """Find the VMFS partition; None when there is no table, or no such partition in it.

    Args:
        head: the first `HEAD_SIZE` bytes of the LUN.
        lun_size: bytes; a partition must end inside it.

    Raises:
        CorruptRecord: a GPT whose checksum is wrong, or a partition that leaves the LUN.
    """
    assert len(head) >= HEAD_SIZE, "too little of the LUN"
    found: VolumeLocation | None = None
    match table_kind(head):
        case TableKind.GPT:
            found = _find_in_gpt(head)
        case TableKind.MBR:
            found = _find_in_mbr(head)
        case TableKind.NONE:
            return None
    if found is not None and not 0 < found.offset < found.offset + found.size <= lun_size:
        raise CorruptRecord(
            "partition table",
            0,
            "VMFS partition",
            f"bytes {found.offset:#x} to {found.offset + found.size:#x}",
            f"inside the LUN of {lun_size:#x}",
        )
    return found


def _find_in_mbr(head: bytes) -> VolumeLocation | None:
    for index in range(4):
        *_, kind, _, start, count = _MBR_ENTRY.unpack_from(head, 446 + index * 16)
        if kind == MBR_TYPE_VMFS:
            return VolumeLocation(offset=start * SECTOR_SIZE, size=count * SECTOR_SIZE)
    return None


def _find_in_gpt(head: bytes) -> VolumeLocation | None:
    fields = _GPT_HEADER.unpack_from(head, SECTOR_SIZE)
    header_size, header_crc = fields[2], fields[3]
    table_lba, entry_count, entry_size, table_crc = fields[10:14]
    if not _GPT_HEADER.size <= header_size <= SECTOR_SIZE:
        raise CorruptRecord("GPT header", SECTOR_SIZE, "size", header_size, "92 to 512")
    header = bytearray(head[SECTOR_SIZE : SECTOR_SIZE + header_size])
    header[16:20] = bytes(4)
    if zlib.crc32(header) != header_crc:
        raise CorruptRecord("GPT header", SECTOR_SIZE, "crc", header_crc, zlib.crc32(header))
    start, size = table_lba * SECTOR_SIZE, entry_count * entry_size
    if entry_size != _GPT_ENTRY.size or table_lba < 2 or start + size > len(head):
        raise CorruptRecord(
            "GPT header", SECTOR_SIZE, "entries", f"{size} bytes at {start:#x}", "128 at sector 2"
        )
    table = head[start : start + size]
    if zlib.crc32(table) != table_crc:
        raise CorruptRecord("GPT entries", start, "crc", table_crc, zlib.crc32(table))
    for kind, _, first, last, _, _ in _GPT_ENTRY.iter_unpack(table):
        if UUID(bytes_le=kind) == VMFS_GUID:
            if last < first:
                raise CorruptRecord("GPT entries", start, "last sector", last, f"after {first}")
            return VolumeLocation(offset=first * SECTOR_SIZE, size=(last - first + 1) * SECTOR_SIZE)
    return None


def plan_location(kind: TableKind, *, lun_size: int) -> VolumeLocation:
    """The one VMFS partition that mkfs makes: from 1 MiB to the end of the LUN."""
    sectors = lun_size // SECTOR_SIZE
    match kind:
        case TableKind.NONE:
            return VolumeLocation(offset=0, size=sectors * SECTOR_SIZE)
        case TableKind.MBR:
            count = min(sectors - PARTITION_START // SECTOR_SIZE, _MBR_SECTOR_MAX)
            return VolumeLocation(offset=PARTITION_START, size=count * SECTOR_SIZE)
        case TableKind.GPT:
            end = (sectors - _GPT_TABLE_SECTORS - 1) * SECTOR_SIZE
            return VolumeLocation(offset=PARTITION_START, size=end - PARTITION_START)


def build_mbr(location: VolumeLocation) -> list[tuple[int, bytes]]:
    """An MBR with that partition: (LUN offset, bytes) to write."""
    return [(0, _mbr(MBR_TYPE_VMFS, location.offset, location.size))]


def build_gpt(
    location: VolumeLocation, *, lun_size: int, disk_guid: UUID, partition_guid: UUID
) -> list[tuple[int, bytes]]:
    """A protective MBR and both copies of a GPT: (LUN offset, bytes) to write."""
    sectors = lun_size // SECTOR_SIZE
    name = "VMFS".encode("utf-16-le").ljust(72, b"\0")
    first = location.offset // SECTOR_SIZE
    entry = _GPT_ENTRY.pack(
        VMFS_GUID.bytes_le,
        partition_guid.bytes_le,
        first,
        first + location.size // SECTOR_SIZE - 1,
        0,
        name,
    )
    table = entry.ljust(_GPT_TABLE_SECTORS * SECTOR_SIZE, b"\0")

    def header(own: int, other: int, table_lba: int) -> bytes:
        def pack(crc: int) -> bytes:
            return _GPT_HEADER.pack(
                b"EFI PART",
                0x10000,
                _GPT_HEADER.size,
                crc,
                0,
                own,
                other,
                2 + _GPT_TABLE_SECTORS,
                sectors - _GPT_TABLE_SECTORS - 2,
                disk_guid.bytes_le,
                table_lba,
                _GPT_ENTRY_COUNT,
                _GPT_ENTRY.size,
                zlib.crc32(table),
            )

        return pack(zlib.crc32(pack(0))).ljust(SECTOR_SIZE, b"\0")

    last = sectors - 1
    backup_table = last - _GPT_TABLE_SECTORS
    protective = _mbr(MBR_TYPE_PROTECTIVE, SECTOR_SIZE, (sectors - 1) * SECTOR_SIZE)
    return [
        (0, protective + header(1, last, 2) + table),
        (backup_table * SECTOR_SIZE, table + header(last, 1, backup_table)),
    ]


def _mbr(kind: int, offset: int, size: int) -> bytes:
    count = min(size // SECTOR_SIZE, _MBR_SECTOR_MAX)
    entry = _MBR_ENTRY.pack(0, b"\x00\x02\x00", kind, b"\xff\xff\xff", offset // SECTOR_SIZE, count)
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
