"""Making a volume: a pure plan of what stands where, and a thin shell that writes it.

A plan is the ranges that must read as zero, and the bytes to write over them. Nothing that is zero
is written, so an image file stays sparse. The order is such that a crash leaves no half-made
volume that anyone would open: whatever marked the old contents goes first, then everything of the
new volume comes but its LVM header, and that and the partition table last, with a flush between.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from vmfs.device.base import Device
from vmfs.errors import CorruptRecord, InvalidArgument, VmfsError
from vmfs.ids import VmfsUuid
from vmfs.ondisk import bulk, fresh, lvm
from vmfs.ondisk.descriptor import (
    DESCRIPTOR_OFFSET,
    LABEL_MAX,
    FsDescriptor,
    LockProtocol,
    VolumeFlag,
    VolumeParameters,
)
from vmfs.ondisk.file_desc import PB2_FD, PBC_FD, SBC_FD, SDD_FD, VLJ_FD
from vmfs.ondisk.heartbeat import HEARTBEAT_REGION, SLOT_COUNT, SLOT_SIZE, Heartbeat
from vmfs.ondisk.layout import BLOCK_SIZE, CLUSTERS_PER_GROUP, SUB_BLOCK_SIZE, Geometry, Limits
from vmfs.ondisk.partition import (
    HEAD_SIZE,
    TableKind,
    VolumeLocation,
    build_gpt,
    build_mbr,
    find_volume,
    plan_location,
    table_kind,
)
from vmfs.units import GIB, MIB, SECTOR_SIZE, TIB, div_ceil, format_size

LUN_SIZE_MIN: Final = GIB
LUN_SIZE_MAX: Final = 64 * TIB

FILLED_HEAD_SIZE: Final = 2 * MIB
"""How much of a LUN must be zero for it to count as empty: every table and header starts here."""

_GPT_BACKUP_SIZE: Final = 33 * SECTOR_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The names of a new volume, and the time of its making."""

    fs: VmfsUuid
    lv: VmfsUuid
    device: VmfsUuid
    host: VmfsUuid
    disk_guid: UUID
    partition_guid: UUID
    created: int  # seconds since 1970

    @classmethod
    def from_seed(cls, seed: bytes, *, now: int) -> Self:
        """Derive everything from some random bytes; the same seed gives the same volume.

        Args:
            seed: at least 16 random bytes.
            now: seconds since 1970; it becomes the first field of every UUID, as on ESXi.
        """

        def derived(name: str) -> bytes:
            return hashlib.sha256(name.encode() + b"\0" + seed).digest()[:16]

        def vmfs_uuid(name: str) -> VmfsUuid:
            # the last six bytes stand for a MAC address: a locally administered one
            mac = bytes([0x02]) + derived("mac")[1:6]
            return VmfsUuid(now.to_bytes(4, "little") + derived(name)[4:10] + mac)

        return cls(
            fs=vmfs_uuid("filesystem"),
            lv=vmfs_uuid("logical volume"),
            device=vmfs_uuid("device"),
            host=vmfs_uuid("host"),
            disk_guid=UUID(bytes=derived("disk"), version=4),
            partition_guid=UUID(bytes=derived("partition"), version=4),
            created=now,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants to have made."""

    lun_size: int  # bytes
    label: str
    identity: Identity
    table: TableKind = TableKind.NONE
    lock_protocol: LockProtocol = LockProtocol.ATS
    flags: VolumeFlag = VolumeFlag.NONE
    limits: Limits | None = None  # None: what suits the size
    root_owner: tuple[int, int] = (0, 0)  # uid and gid of the root directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A volume that could be made: every offset is one of the LUN."""

    request: Request
    location: VolumeLocation  # of the partition, or of the whole LUN
    segment_count: int  # LVM extents of 256 MiB
    geometry: Geometry

    @property
    def lv_base(self) -> int:
        """LUN offset of LV byte 0."""
        return self.location.offset + lvm.LV_START

    @property
    def lv_size(self) -> int:
        """Bytes of the logical volume."""
        return self.segment_count * lvm.EXTENT_SIZE

    def zero_runs(self) -> list[tuple[int, int]]:
        """(offset, length) of what must read as zero before anything is written.

        Bodies of sub-blocks and pointer blocks are left alone: whoever takes one fills it.
        """
        geometry = self.geometry
        skipped = sorted(
            (run.start, run.end)
            for address in (PBC_FD, SBC_FD, PB2_FD)
            for run in geometry.file(address).runs
        )
        runs, start = [], 0
        for first, end in skipped:
            runs.append((start, self.lv_base + first * BLOCK_SIZE - start))
            start = self.lv_base + end * BLOCK_SIZE
        for address in (PBC_FD, SBC_FD, PB2_FD):
            runs += [(self.lv_base + at, size) for at, size in self._header_runs(address)]
        runs.append((start, self.lv_base + geometry.used_blocks * BLOCK_SIZE - start))
        tail = self.lv_base + self.lv_size
        if tail < self.request.lun_size:
            runs.append((tail, self.request.lun_size - tail))
        return sorted((at, size) for at, size in runs if size)

    def _header_runs(self, address: int) -> Iterator[tuple[int, int]]:
        """LV ranges of the file header and the cluster headers of a resource file."""
        file = next(file for file in self.geometry.files if file.address == address)
        header = self.geometry.resource_header(file.address)
        yield file.lv_offset(0), header.first_group
        for cluster in range(0, header.cluster_count, header.clusters_per_group):
            at = file.lv_offset(header.cluster_offset(cluster))
            yield at, header.clusters_per_group * 1024

    def inner_pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything that nobody finds without the LVM header."""
        created = self.request.identity.created
        for offset, data in fresh.pieces(
            self.geometry, now=created, root_owner=self.request.root_owner
        ):
            yield self.lv_base + offset, data
        yield self.lv_base + DESCRIPTOR_OFFSET, self.descriptor().pack()
        for at, data in self.lvm_pieces():
            yield self.location.offset + at, data

    def sealing_pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) by which readers find the volume; written when all else is durable."""
        header_offset = self.location.offset + lvm.HEADER_OFFSET
        yield header_offset, self._device_header(self._headers()).pack()
        identity = self.request.identity
        match self.request.table:
            case TableKind.NONE:
                pass
            case TableKind.MBR:
                yield from build_mbr(self.location)
            case TableKind.GPT:
                yield from build_gpt(
                    self.location,
                    lun_size=self.request.lun_size,
                    disk_guid=identity.disk_guid,
                    partition_guid=identity.partition_guid,
                )

    def descriptor(self) -> FsDescriptor:
        """The FS descriptor, with our parameters in it."""
        geometry, request = self.geometry, self.request
        return FsDescriptor(
            uuid=request.identity.fs,
            label=request.label,
            block_size=BLOCK_SIZE,
            created=request.identity.created,
            lv_uuid=request.identity.lv,
            sub_block_size=SUB_BLOCK_SIZE,
            fdc_clusters_per_group=CLUSTERS_PER_GROUP,
            pb2_fd_offset=geometry.fd_offset(PB2_FD),
            pb2_fd=PB2_FD,
            sdd_fd_offset=geometry.fd_offset(SDD_FD),
            sdd_fd=SDD_FD,
            host_uuid=request.identity.host,
        ).with_parameters(
            VolumeParameters(
                lock_protocol=request.lock_protocol,
                flags=request.flags,
                journal_fd=VLJ_FD,
                journal_count=geometry.limits.hosts,
                journal_size=geometry.limits.journal_size,
            )
        )

    def lvm_pieces(self) -> Iterator[tuple[int, bytes]]:
        """The LVM area without its first sector; offsets of the partition."""
        headers = self._headers()
        for index in range(_map_count(self.segment_count)):
            header, within = headers[index // lvm.HEADER_MAP_COUNT_MAX], index % 8
            first = index * lvm.MAP_EXTENT_COUNT
            count = min(lvm.MAP_EXTENT_COUNT, self.segment_count - first)
            bitmap, entries = bulk.extent_map(first, count)
            yield lvm.bitmap_offset(header, within), bitmap
            yield lvm.table_offset(header, within), entries
        for number, at in enumerate(headers[1:], start=1):
            follows = headers[number + 1] if number + 1 < len(headers) else 0
            yield at, self._extended_header(number, follows).pack()
        identity = self.request.identity
        name = f"vmfs.{identity.device}:1".encode()
        yield lvm.HEADER_OFFSET + lvm.DEVICE_NAMES, name.ljust(256, b"\0")
        yield lvm.HEADER_OFFSET + lvm.VOLUME_TABLE, self._volume_entry().pack()

    def _headers(self) -> list[int]:
        """Where the header and its extensions stand; extensions follow the last extent."""
        count = div_ceil(_map_count(self.segment_count), lvm.HEADER_MAP_COUNT_MAX)
        after = lvm.LV_START + self.lv_size
        return [
            lvm.HEADER_OFFSET,
            *(after + index * lvm.HEADER_SPAN for index in range(count - 1)),
        ]

    def _device_header(self, headers: list[int]) -> lvm.DeviceHeader:
        created_us = self.request.identity.created * 1_000_000
        return lvm.DeviceHeader(
            device_size=self.location.size,
            extent_count=self.segment_count,
            last_extent=self.segment_count - 1,
            uuid=self.request.identity.device,
            created_us=created_us,
            modified_us=created_us,
            map_count=min(_map_count(self.segment_count), lvm.HEADER_MAP_COUNT_MAX),
            extended_header=headers[1] if len(headers) > 1 else 0,
        )

    def _extended_header(self, number: int, follows: int) -> lvm.ExtendedHeader:
        first_map = number * lvm.HEADER_MAP_COUNT_MAX
        maps = min(_map_count(self.segment_count) - first_map, lvm.HEADER_MAP_COUNT_MAX)
        first = first_map * lvm.MAP_EXTENT_COUNT * lvm.EXTENT_SIZE
        return lvm.ExtendedHeader(
            map_count=maps, data_offset=lvm.LV_START + first, next_header=follows
        )

    def _volume_entry(self) -> lvm.VolumeEntry:
        identity = self.request.identity
        return lvm.VolumeEntry(
            size=self.lv_size,
            uuid=identity.lv,
            uuid_text=str(identity.lv),
            created_us=identity.created * 1_000_000,
            modified_us=identity.created * 1_000_000,
            segment_count=self.segment_count,
            first_segment=0,
            last_segment=self.segment_count - 1,
        )


def require_lun_size(size: int) -> None:
    """Refuse sizes that we do not make.

    Raises:
        InvalidArgument: below 1 GiB, above 64 TiB, or not whole sectors.
    """
    if not LUN_SIZE_MIN <= size <= LUN_SIZE_MAX:
        raise InvalidArgument(
            f"a LUN of {format_size(size)}: a datastore needs "
            f"{format_size(LUN_SIZE_MIN)} to {format_size(LUN_SIZE_MAX)}"
        )
    if size % SECTOR_SIZE:
        raise InvalidArgument(f"a LUN of {size} bytes: it must be whole sectors of 512 bytes")


def plan_volume(request: Request) -> Plan:
    """Decide where everything goes. Sizes below 1 GiB are for tests: `require_lun_size` first.

    Raises:
        InvalidArgument: the label is too long, the LUN too small, or too big for its table.
    """
    if len(request.label.encode()) > LABEL_MAX or "\0" in request.label:
        raise InvalidArgument(f"the label {request.label!r} is longer than {LABEL_MAX} bytes")
    if request.table == TableKind.MBR and request.lun_size > 2 * TIB:
        raise InvalidArgument(
            f"an MBR partition ends at 2 TiB, the LUN has {format_size(request.lun_size)}: "
            "use --partition gpt"
        )
    location = plan_location(request.table, lun_size=request.lun_size)
    segments = (location.size - lvm.LV_START) // lvm.EXTENT_SIZE
    while segments > 0 and _span(segments) > location.size:
        segments -= 1
    if segments < 1:
        raise InvalidArgument(f"a LUN of {format_size(request.lun_size)} has no room for a volume")
    lv_size = segments * lvm.EXTENT_SIZE
    limits = request.limits or Limits.default(lv_size // BLOCK_SIZE)
    return Plan(
        request=request,
        location=location,
        segment_count=segments,
        geometry=Geometry.plan(lv_size, limits),
    )


def _map_count(segments: int) -> int:
    return div_ceil(segments, lvm.MAP_EXTENT_COUNT)


def _span(segments: int) -> int:
    """Bytes of the partition that so many extents take, extended headers behind them included."""
    extended = div_ceil(_map_count(segments), lvm.HEADER_MAP_COUNT_MAX) - 1
    return lvm.LV_START + segments * lvm.EXTENT_SIZE + extended * lvm.HEADER_SPAN


async def make_volume(device: Device, plan: Plan) -> int:
    """Write a planned volume over whatever the LUN holds.

    Args:
        device: the LUN, of the size that was planned for.
        plan: what to write.

    Returns:
        Bytes written.

    Raises:
        DeviceError: the LUN refused.

    Durability: the volume is complete and durable on return; before that, nobody finds one.
    """
    assert device.size == plan.request.lun_size, "the plan is for another LUN"
    written = 0
    for offset, length in plan.zero_runs():
        await device.unmap(offset, length)
    await device.flush()
    for pieces in (plan.inner_pieces(), plan.sealing_pieces()):
        for offset, data in pieces:
            await device.write(offset, data)
            written += len(data)
        await device.flush()
    return written


async def find_obstacles(device: Device) -> list[str]:
    """Why the LUN should not be overwritten without asking: one sentence for each reason.

    Looks for a partition table, a VMFS volume, hosts that have it open, and for any data in the
    first 2 MiB. (Other filesystems have better detectives: the command asks blkid as well.)
    """
    head = await device.read(0, min(FILLED_HEAD_SIZE, device.size))
    found = []
    kind = table_kind(head)
    if kind is not TableKind.NONE:
        found.append(f"it has a partition table ({kind.value.upper()})")
    for base in _candidate_bases(head, device.size):
        found += await _vmfs_obstacles(device, base)
    if not found and any(head):
        found.append(f"its first {format_size(len(head))} are not empty")
    return found


def _candidate_bases(head: bytes, lun_size: int) -> list[int]:
    """LUN offsets where a VMFS partition may begin."""
    try:
        location = find_volume(head[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0"), lun_size=lun_size)
    except CorruptRecord:
        location = None  # a damaged table is an obstacle already
    return [0] if location is None else [0, location.offset]


async def _vmfs_obstacles(device: Device, base: int) -> list[str]:
    async def sector(offset: int, size: int = SECTOR_SIZE) -> bytes:
        at = base + offset
        return await device.read(at, size) if at + size <= device.size else b""

    magic = lvm.MAGIC.to_bytes(4, "little")
    if (await sector(lvm.HEADER_OFFSET))[:4] != magic:
        return []
    try:
        data = await sector(lvm.LV_START + DESCRIPTOR_OFFSET)
        label = FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET).label
    except VmfsError:
        return ["it holds a VMFS LVM device"]
    found = [f"it holds the VMFS volume {label!r}"]
    slots = await sector(lvm.LV_START + HEARTBEAT_REGION, SLOT_COUNT * SLOT_SIZE)
    for start in range(0, len(slots), SLOT_SIZE):
        try:
            slot = Heartbeat.unpack(
                slots[start : start + SLOT_SIZE], address=HEARTBEAT_REGION + start
            )
        except CorruptRecord:
            continue  # the volume is an obstacle already, whatever state it is in
        if slot.is_in_use:
            found.append(f"that volume is in use by {_who(slot)} (heartbeat slot {slot.index})")
    return found


def _who(slot: Heartbeat) -> str:
    host = slot.host
    if host is not None:
        return f"host {host.name}, pid {host.pid}"
    return f"host {slot.owner} {slot.address_text}".rstrip()
