"""From a LUN to the logical volume on it: partition table, LVM header, extent map.

Only whole, flat volumes on one device are found (`vmfs.ondisk.lvm.require_flat`): everything above
sees the logical volume as one `Window` on the LUN.
"""

from vmfs.device.base import Device
from vmfs.device.window import Window
from vmfs.errors import CorruptRecord, NotVmfs
from vmfs.ondisk import bulk, lvm, partition
from vmfs.ondisk.lvm import DeviceHeader, ExtendedHeader, ExtentEntry, VolumeEntry

_HEADER_CHAIN_MAX = 64
"""Extended headers followed: 16 TiB each, so far more than the format can hold. Ends a loop."""


async def find_lv(device: Device) -> Window:
    """Find the logical volume of a bare, MBR- or GPT-partitioned LUN.

    Returns:
        A window on `device`, whose ``offset`` is where LV byte 0 stands on the LUN.

    Raises:
        NotVmfs: no VMFS partition, and no LVM header on the bare device.
        Unsupported: VMFS-3 or VMFS-6, several devices, or a mapping with gaps.
        CorruptRecord: a table or header is damaged, or the volume leaves the LUN.
        DeviceError: the LUN cannot be read.
    """
    start, end = await _find_partition(device)
    header = await _read_device_header(device, start, end)
    entry = VolumeEntry.unpack(
        await _read(device, start, lvm.HEADER_OFFSET + lvm.VOLUME_TABLE, VolumeEntry.SIZE),
        address=lvm.HEADER_OFFSET + lvm.VOLUME_TABLE,
    )
    mapped = await _read_mapped_size(device, start, header, count=entry.segment_count)
    address = lvm.table_offset(lvm.HEADER_OFFSET, 0)
    if mapped != entry.size:
        raise CorruptRecord("LVM extent map", address, "mapped bytes", mapped, entry.size)
    offset = start + lvm.LV_START
    if offset + entry.size > device.size:
        raise CorruptRecord(
            VolumeEntry.NAME,
            lvm.HEADER_OFFSET + lvm.VOLUME_TABLE,
            "size",
            entry.size,
            f"at most {device.size - offset:#x}, where {device.name} ends",
        )
    return Window(device, offset, entry.size)


async def _find_partition(device: Device) -> tuple[int, int]:
    """Start and end of what holds the LVM, in bytes of the LUN."""
    if device.size < lvm.LV_START:
        raise NotVmfs(f"{device.name} is too small for a VMFS volume ({device.size} bytes)")
    head = await device.read(0, partition.HEAD_SIZE)
    location = partition.find_volume(head, lun_size=device.size)
    if location is not None:
        return location.offset, location.offset + location.size
    magic = await device.read(lvm.HEADER_OFFSET, 4)
    if int.from_bytes(magic, "little") != lvm.MAGIC:
        raise NotVmfs(
            f"no VMFS volume on {device.name}: neither a VMFS partition "
            f"nor an LVM header at {lvm.HEADER_OFFSET:#x}"
        )
    return 0, device.size


async def _read_device_header(device: Device, start: int, end: int) -> DeviceHeader:
    if end - start < lvm.LV_START:
        raise NotVmfs(f"the VMFS partition of {device.name} is too small for a volume")
    data = await _read(device, start, lvm.HEADER_OFFSET, DeviceHeader.SIZE)
    return DeviceHeader.unpack(data, address=lvm.HEADER_OFFSET)


async def _read_mapped_size(device: Device, start: int, header: DeviceHeader, *, count: int) -> int:
    """Bytes that the first `count` extents map, from as many maps and headers as that takes."""
    mapped = 0
    position, map_count, following = lvm.HEADER_OFFSET, header.map_count, header.extended_header
    for _ in range(_HEADER_CHAIN_MAX):
        for index in range(max(map_count, 1)):
            table, first = lvm.table_offset(position, index), mapped // lvm.EXTENT_SIZE
            wanted = min(count - first, lvm.MAP_EXTENT_COUNT)
            data = await _read(device, start, table, wanted * ExtentEntry.SIZE)
            mapped = _mapped_by(data, table, first=first, count=wanted)
            if mapped >= count * lvm.EXTENT_SIZE or mapped < (first + wanted) * lvm.EXTENT_SIZE:
                return mapped
        if not following:
            return mapped
        data = await _read(device, start, following, ExtendedHeader.SIZE)
        extended = ExtendedHeader.unpack(data, address=following)
        position, map_count, following = following, extended.map_count, extended.next_header
    raise CorruptRecord(DeviceHeader.NAME, lvm.HEADER_OFFSET, "extended headers", "endless", "few")


def _mapped_by(data: bytes, table: int, *, first: int, count: int) -> int:
    """LV offset of the end of what a table maps; it must go on where extent `first` begins."""
    if data == bulk.extent_map(first, count)[1]:  # a 64 TiB volume has 262143 entries
        return (first + count) * lvm.EXTENT_SIZE
    size = ExtentEntry.SIZE
    entries = [
        ExtentEntry.unpack(data[at : at + size], address=table + at)
        for at in range(0, len(data), size)
    ]
    return lvm.require_flat(entries, address=table, start=first * lvm.EXTENT_SIZE)


async def _read(device: Device, start: int, offset: int, length: int) -> bytes:
    """Read at an offset of the partition; a pointer that leaves the LUN is damage, not our bug."""
    if start + offset + length > device.size:
        raise CorruptRecord("LVM header", offset, "end", offset + length, f"inside {device.name}")
    return await device.read(start + offset, length)
