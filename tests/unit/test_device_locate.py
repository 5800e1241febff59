"""Finding the logical volume on a LUN: what is found, and how everything else is refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import build_volume, tiny_request
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.errors import CorruptRecord, NotVmfs, Unsupported, VmfsError
from vmfs.ondisk import lvm
from vmfs.ondisk.lvm import DeviceHeader, ExtendedHeader, ExtentEntry, VolumeEntry
from vmfs.ondisk.partition import TableKind
from vmfs.units import GIB, MIB

TABLE = lvm.table_offset(lvm.HEADER_OFFSET, 0)
ENTRY = lvm.HEADER_OFFSET + lvm.VOLUME_TABLE


async def damaged(*changes: tuple[int, bytes]) -> MemoryDevice:
    """A bare volume of two extents, with bytes of its LVM area replaced."""
    device, _ = await build_volume(tiny_request(extents=2))
    for offset, data in changes:
        await device.write(offset, data)
    return device


@pytest.mark.parametrize("size", [0, MIB, GIB])
async def test_lun_without_a_volume_is_not_vmfs(size: int) -> None:
    with pytest.raises(NotVmfs):
        await find_lv(MemoryDevice(size))


async def test_partition_too_small_for_a_volume_is_not_vmfs() -> None:
    device, _ = await build_volume(tiny_request(table=TableKind.MBR))
    await device.write(458, (100).to_bytes(4, "little"))

    with pytest.raises(NotVmfs, match="too small"):
        await find_lv(device)


async def test_partition_without_a_header_is_corrupt() -> None:
    device, plan = await build_volume(tiny_request(table=TableKind.GPT))
    await device.write(plan.location.offset + lvm.HEADER_OFFSET, bytes(4))

    with pytest.raises(CorruptRecord, match="magic"):
        await find_lv(device)


async def test_volume_that_leaves_the_lun_is_corrupt() -> None:
    device, plan = await build_volume(tiny_request(extents=2))
    shorter = MemoryDevice(device.size - MIB)
    for offset, data in [*plan.lvm_pieces(), *plan.sealing_pieces()]:
        await shorter.write(offset, data)

    with pytest.raises(CorruptRecord, match="size"):
        await find_lv(shorter)


async def test_extents_out_of_order_are_unsupported() -> None:
    first = ExtentEntry(extent_id=1, physical=lvm.LV_START + lvm.EXTENT_SIZE, logical=0).pack()

    with pytest.raises(Unsupported, match="flat"):
        await find_lv(await damaged((TABLE, first)))


async def test_extent_that_is_missing_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="mapped bytes"):
        await find_lv(await damaged((TABLE + 128, bytes(128))))


async def test_extent_table_that_differs_in_bytes_we_do_not_know_is_accepted() -> None:
    window = await find_lv(await damaged((TABLE + 100, b"\xff")))

    assert window.size == 2 * lvm.EXTENT_SIZE


async def chained(*, following: int, map_count: int = 1) -> MemoryDevice:
    """A volume that claims more extents than its first map holds."""
    device, plan = await build_volume(tiny_request())
    count = lvm.MAP_EXTENT_COUNT * map_count + 5
    big = MemoryDevice(lvm.LV_START + (count + 1) * lvm.EXTENT_SIZE)
    for offset, data in [*plan.lvm_pieces(), *plan.sealing_pieces()]:
        await big.write(offset, data)
    entry = VolumeEntry.unpack(await device.read(ENTRY, 512), address=ENTRY)
    entry = dataclasses.replace(
        entry, size=count * lvm.EXTENT_SIZE, segment_count=count, last_segment=count - 1
    )
    header = DeviceHeader.unpack(
        await device.read(lvm.HEADER_OFFSET, 512), address=lvm.HEADER_OFFSET
    )
    header = dataclasses.replace(header, extended_header=following)
    await big.write(ENTRY, entry.pack())
    await big.write(lvm.HEADER_OFFSET, header.pack())
    return big


async def test_map_that_ends_early_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="mapped bytes"):
        await find_lv(await chained(following=0))


async def test_extended_header_outside_the_lun_is_corrupt() -> None:
    device = await chained(following=1 << 60)
    for index in range(1, lvm.MAP_EXTENT_COUNT):
        at = index * lvm.EXTENT_SIZE
        entry = ExtentEntry(extent_id=index, physical=lvm.LV_START + at, logical=at)
        await device.write(TABLE + index * 128, entry.pack())

    with pytest.raises(CorruptRecord, match="LVM header"):
        await find_lv(device)


async def test_chain_of_headers_that_bites_its_tail_ends() -> None:
    device = await chained(following=8 * GIB)
    for index in range(1, lvm.MAP_EXTENT_COUNT):
        at = index * lvm.EXTENT_SIZE
        entry = ExtentEntry(extent_id=index, physical=lvm.LV_START + at, logical=at)
        await device.write(TABLE + index * 128, entry.pack())
    loop = ExtendedHeader(map_count=1, data_offset=0, next_header=8 * GIB)
    await device.write(8 * GIB, loop.pack())

    with pytest.raises(VmfsError):
        await find_lv(device)


SPOTS = (0, 446, 510, 0x100000, 0x100200, 0x180200, TABLE, TABLE + 128)


@given(
    st.lists(
        st.tuples(st.sampled_from(SPOTS), st.integers(0, 127), st.integers(1, 255)),
        min_size=1,
        max_size=5,
    )
)
async def test_damage_anywhere_is_survived(flips: list[tuple[int, int, int]]) -> None:
    device, plan = await build_volume(tiny_request(extents=2))
    for spot, offset, mask in flips:
        byte = await device.read(spot + offset, 1)
        await device.write(spot + offset, bytes([byte[0] ^ mask]))

    try:
        window = await find_lv(device)
    except VmfsError:
        return

    assert (window.offset, window.size) == (plan.lv_base, plan.lv_size)
