"""Any structure of a volume, as sections of decoded fields. The reading half of `vmfs inspect`.

Unlike `check` this looks at the LUN as it is: no journal is laid over it, and a corrupt record is
shown rather than refused. Only what leads to a structure must be sound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vmfs.check import content, fields
from vmfs.check.fields import Row, decode
from vmfs.check.findings import Findings
from vmfs.check.journals import JournalRegion, find_regions
from vmfs.check.reader import (
    KIND_OF_ADDRESS,
    Reader,
    ResourceFile,
    ResourceKind,
    Source,
    open_volume,
)
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.device.window import Window
from vmfs.errors import CorruptRecord, InvalidArgument, NotVmfs
from vmfs.ids import FdAddress
from vmfs.ondisk import address as addresses
from vmfs.ondisk import file_desc, lvm, partition
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.heartbeat import HEARTBEAT_REGION, SLOT_COUNT, SLOT_SIZE
from vmfs.ondisk.journal_rec import ORPHAN_TABLE_SIZE, CommitSector, half_of, unpack_body
from vmfs.ondisk.orphan_rec import OrphanEntry, OrphanSector
from vmfs.ondisk.resource import META_OFFSET
from vmfs.units import SECTOR_SIZE

_LISTED_MAX: Final = 1024
"""Entries of a table that are shown: pointers, runs, names."""

_IN_USE: Final = 0xABCDEF02
_BLOCK_SHOWN: Final = 512


@dataclass(slots=True, kw_only=True)
class Section:
    """One structure: where it stands, its fields, and what else there is to say."""

    title: str
    address: int
    data: bytes
    rows: list[Row] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


async def lvm_sections(device: Device) -> list[Section]:
    """The LVM header, the volume entry and the first extents. Addresses are of the LUN."""
    head = await device.read(0, min(partition.HEAD_SIZE, device.size))
    if len(head) < partition.HEAD_SIZE:
        raise NotVmfs(f"{device.name} is too small for a VMFS volume")
    location = partition.find_volume(head, lun_size=device.size)
    start = location.offset if location is not None else 0
    title = "LVM device header"
    if location is not None:
        title += f" (in a {partition.table_kind(head).value} partition at {start:#x})"
    plan: Sequence[tuple[str, int, int, Sequence[fields.Field]]] = (
        (title, lvm.HEADER_OFFSET, 512, fields.DEVICE_HEADER),
        ("LVM volume entry", lvm.HEADER_OFFSET + lvm.VOLUME_TABLE, 512, fields.VOLUME_ENTRY),
        ("LVM extent entry 0", lvm.table_offset(lvm.HEADER_OFFSET, 0), 128, fields.EXTENT_ENTRY),
    )
    found = []
    for name, offset, size, table in plan:
        if start + offset + size > device.size:
            raise CorruptRecord(name, start + offset, "end", start + offset + size, device.size)
        data = await device.read(start + offset, size)
        rows = decode(table, data, address=start + offset)
        found.append(Section(title=name, address=start + offset, data=data, rows=rows))
    return found


async def descriptor_sections(source: Source) -> list[Section]:
    """The FS descriptor, with our parameters where they are."""
    data = await _read(source, DESCRIPTOR_OFFSET, SECTOR_SIZE)
    rows = decode(fields.DESCRIPTOR, data, address=DESCRIPTOR_OFFSET)
    at = fields.PARAMETERS_OFFSET
    if any(data[at:]):
        rows += decode(fields.PARAMETERS, data[at:], address=DESCRIPTOR_OFFSET + at, base=at)
    return [Section(title="FS descriptor", address=DESCRIPTOR_OFFSET, data=data, rows=rows)]


async def heartbeat_sections(
    source: Source, slots: Sequence[int] | None, *, shows_all: bool = False
) -> list[Section]:
    """Heartbeat slots: those asked for, or those in use, or all.

    Raises:
        InvalidArgument: there is no such slot.
    """
    found = []
    region = await _read(source, HEARTBEAT_REGION, SLOT_COUNT * SLOT_SIZE)
    for index in range(SLOT_COUNT) if slots is None else slots:
        if not 0 <= index < SLOT_COUNT:
            raise InvalidArgument(f"heartbeat slot {index}: there are 0 to {SLOT_COUNT - 1}")
        data = region[index * SLOT_SIZE : (index + 1) * SLOT_SIZE]
        in_use = fields.number(data[:4]) == _IN_USE
        if slots is None and not shows_all and not in_use:
            continue
        address, at = HEARTBEAT_REGION + index * SLOT_SIZE, fields.HOST_INFO_OFFSET
        rows = decode(fields.HEARTBEAT, data, address=address)
        if any(data[at:]):
            rows += decode(fields.HOST_INFO, data[at:], address=address + at, base=at)
        found.append(
            Section(title=f"heartbeat slot {index}", address=address, data=data, rows=rows)
        )
    return found


def lock_section(data: bytes, *, address: int, title: str) -> Section:
    """A lock record with its shared holders."""
    rows = decode(fields.LOCK, data, address=address)
    count = min(fields.number(data[0x40:0x44]), fields.HOLDER_COUNT_MAX)
    for index in range(count):
        at = fields.HOLDERS_OFFSET + index * fields.HOLDER_SIZE
        for row in decode(fields.HOLDER, data[at : at + 32], address=address + at, base=at):
            rows.append(_renamed(row, f"holder {index} {row.name}"))
    return Section(title=title, address=address, data=data, rows=rows)


def _renamed(row: Row, name: str) -> Row:
    return Row(
        address=row.address,
        offset=row.offset,
        name=name,
        value=row.value,
        meaning=row.meaning,
        raw=row.raw,
    )


@dataclass(slots=True)
class Inspector:
    """What needs the volume's system files to be found."""

    reader: Reader

    @classmethod
    async def open(cls, window: Window) -> "Inspector":
        """Open the volume.

        Raises:
            NotVmfs, Unsupported: there is no VMFS-5 volume.
            CorruptRecord: a system file is damaged.
        """
        return cls(await open_volume(window))

    async def address_of(self, text: str) -> FdAddress:
        """An FD address as a number, or that of the file at a path.

        Raises:
            InvalidArgument: neither.
            NotFound: there is no such path.
        """
        if not text.startswith("/"):
            return FdAddress(parse_number(text))
        node = await content.resolve(
            self.reader, text.encode("utf-8", errors="surrogateescape"), follow=False
        )
        return node.address

    async def fd_sections(self, address: FdAddress) -> list[Section]:
        """A file descriptor: lock, metadata, data area."""
        place, data = await self._fd_bytes(address)
        meta_at, data_at = file_desc.META_OFFSET, file_desc.DATA_OFFSET
        lock = lock_section(
            data[: file_desc.LOCK_SIZE], address=place, title=f"lock of FD {address:#x}"
        )
        meta = Section(
            title=f"metadata of FD {address:#x}",
            address=place + meta_at,
            data=data[meta_at:data_at],
            rows=decode(fields.FILE_DESC, data[meta_at:data_at], address=place + meta_at),
        )
        area = Section(
            title=f"data area of FD {address:#x}", address=place + data_at, data=data[data_at:]
        )
        zla = fields.number(meta.data[0x44:0x48])
        if zla in fields.ZLAS and zla not in (0, file_desc.Zla.RESIDENT):
            area.lines = pointer_lines(file_desc.unpack_pointers(area.data), place + data_at)
        else:
            length = min(fields.number(meta.data[0x14:0x1C]), file_desc.RESIDENT_MAX)
            area.lines = hex_lines(area.data[:length], place + data_at)
        return [lock, meta, area]

    async def lock_sections(self, address: FdAddress) -> list[Section]:
        """Only the lock of a file."""
        return (await self.fd_sections(address))[:1]

    async def resource_sections(self, kind: ResourceKind) -> list[Section]:
        """The header of a resource file."""
        file = self.reader.resources[kind]
        address = file.file.ranges(0, 1)[0][0]
        data = await self.reader.read(address, SECTOR_SIZE)
        rows = decode(fields.RESOURCE_HEADER, data, address=address)
        return [Section(title=f"header of {kind.file_name}", address=address, data=data, rows=rows)]

    async def cluster_sections(self, kind: ResourceKind, cluster: int) -> list[Section]:
        """A resource cluster: lock and metadata.

        Raises:
            InvalidArgument: there is no such cluster.
        """
        file = self.reader.resources[kind]
        if not 0 <= cluster < file.header.cluster_count:
            count = file.header.cluster_count
            raise InvalidArgument(f"{kind.file_name} has clusters 0 to {count - 1}")
        address = file.cluster_lv_offset(cluster)
        data = await self.reader.read_system(
            file.file, file.header.cluster_offset(cluster), 2 * SECTOR_SIZE
        )
        name = f"cluster {cluster} of {kind.file_name}"
        rows = decode(fields.CLUSTER, data[META_OFFSET:], address=address + META_OFFSET)
        return [
            lock_section(data[:SECTOR_SIZE], address=address, title=f"lock of {name}"),
            Section(title=name, address=address + META_OFFSET, data=data[META_OFFSET:], rows=rows),
        ]

    async def journal_sections(self, slot: int) -> list[Section]:
        """A journal: both commit sectors, and the runs of each."""
        region = await self._region(slot)
        found = []
        for half in (0, 1):
            at = region.layout.commit_offset(half)
            data = await self.reader.read(at, SECTOR_SIZE)
            section = Section(
                title=f"journal of slot {slot}, commit sector {half}", address=at, data=data
            )
            if any(data):
                section.rows = decode(fields.COMMIT, data, address=at)
                section.lines = await self._run_lines(region, half, data)
            else:
                section.lines = ["never written"]
            found.append(section)
        return found

    async def orphan_sections(self, slot: int) -> list[Section]:
        """The entries of a slot's orphan table."""
        region = await self._region(slot)
        start = region.layout.orphan_offset
        table = await self.reader.read(start, ORPHAN_TABLE_SIZE)
        section = Section(
            title=f"orphan table of slot {slot}", address=start, data=table[:SECTOR_SIZE]
        )
        for sector in range(0, ORPHAN_TABLE_SIZE, SECTOR_SIZE):
            for place in range(OrphanSector.PLACES):
                at = sector + OrphanSector.LAYOUT.size + place * OrphanEntry.SIZE
                entry = table[at : at + OrphanEntry.SIZE]
                if any(entry):
                    section.rows += decode(fields.ORPHAN, entry, address=start + at, base=at)
        section.lines = [] if section.rows else ["empty"]
        return [section]

    async def directory_sections(self, address: FdAddress) -> list[Section]:
        """The entries of a directory, as they stand.

        Raises:
            InvalidArgument: it is something else.
        """
        node = await self.reader.node(address)
        if not node.is_directory:
            kind = node.desc.type.name.lower().replace("_", " ")
            raise InvalidArgument(f"file descriptor {address:#x} is of type {kind}, no directory")
        content.require_within_reach(node)
        size = min(node.desc.length, _LISTED_MAX * DirEntry.SIZE)
        data = await content.read(self.reader, node, 0, size)
        found = []
        for at in range(0, len(data), DirEntry.SIZE):
            entry = data[at : at + DirEntry.SIZE]
            found.append(
                Section(
                    title=f"entry {at // DirEntry.SIZE} of directory {address:#x} (file offsets)",
                    address=at,
                    data=entry,
                    rows=decode(fields.DIRENT, entry, address=at),
                )
            )
        return found

    async def block_sections(self, value: int) -> list[Section]:
        """What an address names: where it stands, whether it is in use, its first bytes.

        Raises:
            CorruptRecord: it is no address, or names nothing that exists.
        """
        kind = AddressType(addresses.address_type(value)) if value & 7 in KIND_OF_ADDRESS else None
        if kind is None:
            raise InvalidArgument(f"{value:#x} is no address: its low digit is not 1 to 5")
        if kind is AddressType.FD:
            return await self.fd_sections(FdAddress(value))
        index = self.reader.resource_index(value, kind)
        file = self.reader.resources[KIND_OF_ADDRESS[kind]]
        cluster, resource = file.place_of(index)
        place = (
            index * self.reader.block_size
            if kind is AddressType.FB
            else file.resource_lv_offset(cluster, resource)
        )
        free = await self._is_free(file, cluster, resource)
        size = _BLOCK_SHOWN if kind in (AddressType.FB, AddressType.SB) else 4096
        data = await self.reader.read(place, size)
        lines = [
            f"{fields.show_address(value.to_bytes(4, 'little'))}: resource {resource} of cluster "
            f"{cluster} in {file.kind.file_name}, {'free' if free else 'in use'}"
        ]
        if kind in (AddressType.PB, AddressType.PB2):
            lines += pointer_lines(np.frombuffer(data, dtype="<u4"), place)
        else:
            lines += hex_lines(data, place)
        return [
            Section(title=f"{file.kind.noun} {index:#x}", address=place, data=data, lines=lines)
        ]

    async def _is_free(self, file: ResourceFile, cluster: int, resource: int) -> bool:
        header = await self.reader.read_system(
            file.file, file.header.meta_offset(cluster), SECTOR_SIZE
        )
        return bool(fields.number(header[0x10:0x50]) >> resource & 1)

    async def _fd_bytes(self, address: FdAddress) -> tuple[int, bytes]:
        parts = addresses.parse_fd(address)
        fdc = self.reader.resources[ResourceKind.FDC]
        if not fdc.header.contains(parts.cluster, parts.resource):
            raise InvalidArgument(f"{address:#x} names no file descriptor of this volume")
        offset = fdc.header.resource_offset(parts.cluster, parts.resource)
        data = await self.reader.read_system(fdc.file, offset, file_desc.FD_SIZE)
        return fdc.file.ranges(offset, 1)[0][0], data

    async def _region(self, slot: int) -> JournalRegion:
        parameters = self.reader.descriptor.parameters()
        if parameters is None:
            raise InvalidArgument(
                "this volume was not made by vmfs mkfs: it has no journals of ours"
            )
        findings = Findings()
        regions = await find_regions(self.reader, parameters, findings)
        if not 0 <= slot < len(regions):
            raise InvalidArgument(
                f"journal {slot}: there are {len(regions)}"
                + "".join(f"; {found.text}" for found in findings.kept)
            )
        return regions[slot]

    async def _run_lines(self, region: JournalRegion, half: int, data: bytes) -> list[str]:
        try:
            commit = CommitSector.unpack(data, address=region.layout.commit_offset(half))
            assert commit is not None, "the caller has looked for zeroes"
            if half_of(commit.sequence) != half or commit.body_size > region.layout.body_size:
                return ["this commit sector cannot stand here"]
            at = region.layout.body_offset(half)
            body = await self.reader.read(at, commit.body_size)
            if not commit.matches(body):
                return ["the body is not the one that was committed (overwritten since, or lost)"]
            runs = unpack_body(
                body, run_count=commit.run_count, address=at, lv_size=self.reader.device.size
            )
        except CorruptRecord as error:
            return [str(error)]
        return [
            f"run {index}: {len(run)} bytes to LV {offset:#x}"
            for index, (offset, run) in enumerate(runs[:_LISTED_MAX])
        ]


async def open_window(device: Device) -> Window:
    """The logical volume of a LUN."""
    return await find_lv(device)


def pointer_lines(
    pointers: "np.ndarray[tuple[int, ...], np.dtype[np.uint32]]", at: int
) -> list[str]:
    """One line for each pointer that is not 0; long rows of alike ones are not joined."""
    shown = np.flatnonzero(pointers)
    lines = [
        f"{at + index * 4:#12x}  [{index:4}]  "
        + fields.show_address(int(pointers[index]).to_bytes(4, "little"))
        for index in shown[:_LISTED_MAX].tolist()
    ]
    return lines or ["no pointers"]


def hex_lines(data: bytes, address: int) -> list[str]:
    """A hex dump with LV offsets; rows that repeat the one before are left out."""
    lines: list[str] = []
    previous = b""
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == previous:
            if lines[-1] != "*":
                lines.append("*")
            continue
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{address + at:#12x}  {row.hex(' '):<47}  {text}")
        previous = row
    return lines or ["empty"]


def parse_number(text: str) -> int:
    """A number as people copy it from messages: decimal, or hex with 0x.

    Raises:
        InvalidArgument: it is none, or does not fit the 32 bits of an address.
    """
    try:
        value = int(text, 0)
    except ValueError:
        raise InvalidArgument(f"{text!r} is not a number (write hex as 0x...)") from None
    if not 0 <= value < 1 << 32:
        raise InvalidArgument(f"{text!r} is no address or number of 32 bits")
    return value


async def _read(source: Source, offset: int, length: int) -> bytes:
    if offset + length > source.size:
        raise NotVmfs(f"{source.name} is too small to hold a VMFS volume")
    return await source.read(offset, length)
