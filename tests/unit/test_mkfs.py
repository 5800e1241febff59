"""Making volumes: what is planned, written, refused, and left when it goes wrong half-way."""

import pytest

from tests.support.build import IDENTITY, build_volume, tiny_request
from tests.support.records import HOST_A, host_info
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.errors import DeviceError, InvalidArgument, VmfsError
from vmfs.mkfs import (
    Identity,
    Plan,
    Request,
    find_obstacles,
    make_volume,
    plan_volume,
    require_lun_size,
)
from vmfs.ondisk import lvm
from vmfs.ondisk.descriptor import (
    DESCRIPTOR_OFFSET,
    FsDescriptor,
    LockProtocol,
    VolumeFlag,
)
from vmfs.ondisk.dirent import unpack_all
from vmfs.ondisk.disk_lock import DiskLock
from vmfs.ondisk.file_desc import FD_SIZE, ROOT_FD, VLJ_FD, FileDesc
from vmfs.ondisk.heartbeat import SLOT_COUNT, Heartbeat, slot_offset
from vmfs.ondisk.lvm import DeviceHeader, ExtendedHeader, ExtentEntry, VolumeEntry, require_flat
from vmfs.ondisk.partition import TableKind
from vmfs.units import GIB, MIB, TIB


async def test_volume_can_be_read_back_record_by_record() -> None:
    device, plan = await build_volume(
        tiny_request(
            label="ds1",
            lock_protocol=LockProtocol.RESERVATION,
            flags=VolumeFlag.NO_RESIDENT,
        )
    )

    header = DeviceHeader.unpack(await device.read(0x100000, 512), address=0x100000)
    entry = VolumeEntry.unpack(await device.read(0x100200, 512), address=0x100200)
    data = await device.read(plan.lv_base + DESCRIPTOR_OFFSET, 512)
    descriptor = FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET)
    parameters = descriptor.must_be_ours()

    assert header.device_size == device.size
    assert entry.size == plan.lv_size == 256 * MIB
    assert entry.uuid == descriptor.lv_uuid == IDENTITY.lv
    assert descriptor.label == "ds1"
    assert parameters.lock_protocol == LockProtocol.RESERVATION
    assert parameters.flags == VolumeFlag.NO_RESIDENT
    assert (parameters.journal_count, parameters.journal_size) == (4, MIB)
    assert parameters.journal_fd == VLJ_FD
    assert descriptor.pb2_fd_offset == plan.geometry.fd_offset(descriptor.pb2_fd)


async def test_system_files_are_in_the_root_and_own_their_blocks() -> None:
    device, plan = await build_volume()
    geometry = plan.geometry

    async def descriptor(address: int) -> FileDesc:
        at = geometry.fd_offset(address)  # type: ignore[arg-type]
        data = await device.read(plan.lv_base + at, FD_SIZE)
        assert DiskLock.unpack(data[:512], address=at).is_free
        return FileDesc.unpack(data[512:1024], address=at + 512, expected=address)  # type: ignore[arg-type]

    root = await descriptor(ROOT_FD)
    at = geometry.file(ROOT_FD).lv_offset(0)
    entries = unpack_all(await device.read(plan.lv_base + at, root.length))

    assert [entry.name for entry in entries[:2]] == [b".", b".."]
    assert {entry.name.decode() for entry in entries[2:]} == {
        file.name for file in geometry.files if file.name
    }
    for entry in entries:
        desc = await descriptor(entry.address)
        assert desc.is_used
        assert desc.type == entry.type
        assert desc.generation == entry.generation
        assert desc.allocated_blocks == geometry.file(entry.address).block_count


async def test_every_heartbeat_slot_is_free_and_knows_its_place() -> None:
    device, plan = await build_volume()

    for index in range(SLOT_COUNT):
        at = slot_offset(index)
        slot = Heartbeat.unpack(await device.read(plan.lv_base + at, 512), address=at)
        assert not slot.is_in_use
        assert slot.generation == 0


async def test_journals_are_zero_even_where_old_data_stood() -> None:
    plan = plan_volume(tiny_request())
    device = MemoryDevice(plan.request.lun_size)
    for start in range(0, device.size, 64 * 1024):
        await device.write(start, b"old data")

    await make_volume(device, plan)

    journals = plan.geometry.file(VLJ_FD)
    assert not any(await device.read(plan.lv_base + journals.lv_offset(0), journals.length))
    fresh = MemoryDevice(device.size)
    await make_volume(fresh, plan)
    for start, length in plan.zero_runs():
        assert await device.read(start, length) == await fresh.read(start, length)


async def test_bodies_of_resources_are_not_touched() -> None:
    plan = plan_volume(tiny_request())
    covered = sum(length for _, length in plan.zero_runs())

    bodies = plan.geometry.sbc.total * 8192 + plan.geometry.pbc.total * 4096
    assert covered <= plan.lv_base + plan.geometry.used_blocks * MIB - bodies


class RecordingDevice(MemoryDevice):
    """Notes what is done to it, and fails where it is told to."""

    def __init__(self, size: int, *, fail_at: int = -1) -> None:
        super().__init__(size)
        self.log: list[str] = []
        self.fail_at = fail_at

    def _note(self, what: str) -> None:
        if len(self.log) == self.fail_at:
            raise DeviceError(f"{what} failed on purpose")
        self.log.append(what)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._note("write")
        await super().write(offset, data)

    async def flush(self) -> None:
        self._note("flush")
        await super().flush()

    async def unmap(self, offset: int, length: int) -> None:
        self._note("unmap")
        await super().unmap(offset, length)


async def found_anything(device: MemoryDevice, plan: Plan) -> bool:
    """Whether any reader would take the LUN for a volume."""
    try:
        data = await device.read(plan.location.offset + lvm.HEADER_OFFSET, 512)
        DeviceHeader.unpack(data, address=lvm.HEADER_OFFSET)
    except VmfsError:
        return False
    return True


async def test_interrupted_making_leaves_no_volume() -> None:
    """Stop at every single step, over an old volume: either the whole new one, or none."""
    plan = plan_volume(tiny_request(label="new", table=TableKind.MBR))
    whole = RecordingDevice(plan.request.lun_size)
    await make_volume(whole, plan)
    assert whole.log[-1] == "flush"
    assert whole.log.count("flush") == 3
    sealing = len(whole.log) - 1 - len(list(plan.sealing_pieces()))
    assert whole.log[sealing - 1] == "flush"

    for step in range(1, len(whole.log)):
        device = RecordingDevice(plan.request.lun_size)
        await make_volume(device, plan_volume(tiny_request(label="old", table=TableKind.MBR)))
        device.log.clear()
        device.fail_at = step
        with pytest.raises(DeviceError):
            await make_volume(device, plan)
        assert await found_anything(device, plan) == (step > sealing)


async def test_same_identity_makes_the_same_volume() -> None:
    one, plan = await build_volume()
    other, _ = await build_volume()

    for offset, length in plan.zero_runs():
        assert await one.read(offset, length) == await other.read(offset, length)


def test_identities_differ_in_everything_but_time() -> None:
    one, other = Identity.from_seed(b"one", now=5), Identity.from_seed(b"other", now=5)

    uuids = {one.fs, one.lv, one.device, one.host, other.fs, other.lv, other.device, other.host}
    assert len(uuids) == 8
    assert all(uuid.raw[:4] == b"\5\0\0\0" for uuid in uuids)
    assert len({one.disk_guid, one.partition_guid, other.disk_guid}) == 3


@pytest.mark.parametrize("size", [0, GIB - 512, 64 * TIB + 512, GIB + 1])
def test_lun_of_a_size_that_we_do_not_make_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument):
        require_lun_size(size)


@pytest.mark.parametrize("size", [GIB, 64 * TIB])
def test_smallest_and_largest_lun_are_fine(size: int) -> None:
    require_lun_size(size)


def request(size: int, *, label: str = "x", table: TableKind = TableKind.NONE) -> Request:
    return Request(lun_size=size, label=label, identity=IDENTITY, table=table)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(GIB, label="x" * 128), "label"),
        (request(GIB, label="ä" * 64), "label"),
        (request(GIB, label="a\0b"), "label"),
        (request(3 * TIB, table=TableKind.MBR), "2 TiB"),
        (request(100 * MIB), "no room"),
        (request(1 * MIB), "no room"),
    ],
)
def test_request_that_cannot_be_met_is_refused(bad: Request, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        plan_volume(bad)


def all_pieces(plan: Plan) -> list[tuple[int, bytes]]:
    """What is written around the logical volume, and its descriptor."""
    return [*plan.lvm_pieces(), *plan.sealing_pieces()]


@pytest.mark.parametrize("kind", list(TableKind))
@pytest.mark.parametrize("size", [GIB, 1500 * MIB, 2 * TIB, 5 * TIB, 20 * TIB, 64 * TIB])
def test_volume_of_any_size_fits_its_lun(kind: TableKind, size: int) -> None:
    if kind is TableKind.MBR and size > 2 * TIB:
        return
    plan = plan_volume(request(size, table=kind))

    ends = [offset + len(data) for offset, data in all_pieces(plan)]
    assert max(ends) <= size
    assert plan.lv_base + plan.lv_size <= plan.location.offset + plan.location.size <= size
    assert plan.lv_size > size - 2 * 256 * MIB - 64 * MIB


def test_huge_volume_chains_its_extent_maps() -> None:
    plan = plan_volume(request(64 * TIB))
    at = dict(all_pieces(plan))

    header = DeviceHeader.unpack(at[0x100000], address=0x100000)
    chain, following = [], header.extended_header
    while following:
        chain.append(ExtendedHeader.unpack(at[following], address=following))
        following = chain[-1].next_header

    assert header.map_count == 8
    assert [one.map_count for one in chain] == [8, 8, 8]
    assert [one.data_offset - lvm.LV_START for one in chain] == [n * 16 * TIB for n in (1, 2, 3)]
    tables = [data for data in at.values() if len(data) > 64 * 1024]
    entries = [
        ExtentEntry.unpack(data[start : start + 128], address=start)
        for data in tables
        for start in (0, len(data) - 128)
    ]
    assert len(tables) == 32
    assert entries[-1].logical + entries[-1].length == plan.lv_size
    assert plan.lv_size == 64 * TIB - 256 * MIB
    assert require_flat(entries[:1], address=0) == lvm.EXTENT_SIZE


@pytest.mark.parametrize("kind", list(TableKind))
async def test_volume_is_found_where_it_was_planned(kind: TableKind) -> None:
    device, plan = await build_volume(tiny_request(table=kind))

    window = await find_lv(device)

    assert (window.offset, window.size) == (plan.lv_base, plan.lv_size)


@pytest.mark.parametrize("size", [2 * TIB, 17 * TIB, 64 * TIB])
async def test_huge_volume_is_found_through_its_chain(size: int) -> None:
    plan = plan_volume(request(size))
    device = MemoryDevice(size)
    for offset, data in all_pieces(plan):
        await device.write(offset, data)

    assert (await find_lv(device)).size == plan.lv_size


async def test_empty_lun_has_no_obstacles() -> None:
    assert await find_obstacles(MemoryDevice(GIB)) == []
    assert await find_obstacles(MemoryDevice(512)) == []


@pytest.mark.parametrize("kind", list(TableKind))
async def test_volume_is_an_obstacle_wherever_it_stands(kind: TableKind) -> None:
    device, _ = await build_volume(tiny_request(label="precious", table=kind))

    found = "; ".join(await find_obstacles(device))

    assert "precious" in found
    assert ("partition table" in found) == (kind is not TableKind.NONE)


async def test_volume_that_a_host_has_open_is_an_obstacle_that_names_it() -> None:
    device, plan = await build_volume()
    slot = Heartbeat(lv_offset=slot_offset(7)).acquired(
        owner=HOST_A, stamp_us=1, journal_fb=0, journal_offset=0, host=host_info()
    )
    await device.write(plan.lv_base + slot.lv_offset, slot.pack())

    found = "; ".join(await find_obstacles(device))

    assert "host-a.example, pid 4711" in found
    assert "slot 7" in found


async def test_host_of_another_implementation_is_named_by_its_uuid() -> None:
    device, plan = await build_volume()
    slot = Heartbeat(
        lv_offset=slot_offset(528),
        state=Heartbeat(lv_offset=slot_offset(0)).state.IN_USE,
        owner=HOST_A,
        driver_major=14,
        address_text="10.0.0.229",
    )
    await device.write(plan.lv_base + slot.lv_offset, slot.pack())

    assert str(HOST_A) in "; ".join(await find_obstacles(device))


@pytest.mark.parametrize(
    ("offset", "data"),
    [(510, b"\x55\xaa"), (512, b"EFI PART"), (2 * MIB - 1, b"x"), (0x100000, b"\x0d\xd0\x01\xc0")],
)
async def test_anything_in_the_first_2_mib_is_an_obstacle(offset: int, data: bytes) -> None:
    device = MemoryDevice(GIB)
    await device.write(offset, data)

    assert len(await find_obstacles(device)) == 1


async def test_data_behind_the_first_2_mib_is_none() -> None:
    device = MemoryDevice(GIB)
    await device.write(2 * MIB, b"x")

    assert await find_obstacles(device) == []


async def test_damaged_slots_do_not_hide_the_volume() -> None:
    device, plan = await build_volume()
    await device.write(plan.lv_base + slot_offset(0), b"\xff" * 512)

    assert len(await find_obstacles(device)) == 1
