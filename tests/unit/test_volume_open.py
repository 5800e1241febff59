"""Opening and closing a volume, through the whole stack on a LUN in memory."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from lockd.client import HostIdentity
from tests.support.build import tiny_request
from tests.support.genuine import genuine_image
from tests.support.volumes import VolumeLab, cat, creation, names, put, volume_lab
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.errors import (
    CorruptRecord,
    LockBusy,
    LockServiceError,
    NotSupported,
    NotVmfs,
    ReadOnly,
    Unsupported,
    VmfsError,
)
from vmfs.files.attributes import ROOT_ADDRESS
from vmfs.ids import LvOffset, VmfsUuid
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, LockProtocol
from vmfs.ondisk.heartbeat import Heartbeat, HeartbeatState, slot_offset
from vmfs.units import MIB
from vmfs.volume import Volume, unix_lockd


async def test_open_create_write_read_close_reopen() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            assert not a.read_only
            assert a.failed is None
            assert a.label == "tiny"
            _, file = await a.namespace.create(ROOT_ADDRESS, b"f", creation())
            await file.write(0, b"hello")
            assert await file.read(0, 100) == b"hello"
            await file.write(5, b"x" * 5_000_000)
            await file.release()
        async with lab.host("b") as b:
            assert await cat(b, b"f") == b"hello" + b"x" * 5_000_000
        await lab.assert_clean()


async def test_close_frees_slot_and_every_lock() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f", b"x" * 9000)
            assert a.slot is not None
            assert (await slot(lab, a.slot)).is_in_use
        freed = await slot(lab, a.slot)
        assert not freed.is_in_use
        assert freed.generation == 1


async def test_closing_with_open_files_keeps_what_was_written() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT_ADDRESS, b"f", creation())
            await file.write(0, b"never closed")
        async with lab.host("b") as b:
            assert await cat(b, b"f") == b"never closed"
        await lab.assert_clean()


async def fail_inside(lab: VolumeLab) -> None:
    async with lab.host("a") as a:
        await put(a, b"f", b"kept")
        raise NotVmfs("mine")


async def test_error_in_the_block_leaves_as_it_is_and_closes_cleanly() -> None:
    async with volume_lab() as lab:
        with pytest.raises(NotVmfs, match="mine"):
            await fail_inside(lab)
        async with lab.host("b") as b:
            assert await cat(b, b"f") == b"kept"
        await lab.assert_clean()


async def test_without_lockd_the_volume_is_read_only_and_says_why() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f", b"data")
        async with Volume.open(lab.device) as volume:
            assert volume.read_only
            assert "lockd" in volume.read_only_reason
            assert volume.slot is None
            assert await cat(volume, b"f") == b"data"
            assert volume.namespace.statistics().blocks_total > 0
            with pytest.raises(ReadOnly):
                await volume.namespace.mkdir(ROOT_ADDRESS, b"d", creation())


async def test_heartbeat_of_another_implementation_means_read_only() -> None:
    async with volume_lab() as lab:
        foreign = Heartbeat(
            lv_offset=slot_offset(528),
            state=HeartbeatState.IN_USE,
            generation=5,
            owner=VmfsUuid(b"an ESXi host    "),
            driver_major=14,
            driver_minor=81,
            address_text="10.0.0.7",
        )
        await (await find_lv(lab.device)).write(foreign.lv_offset, foreign.pack())
        async with lab.host("a") as a:
            assert a.read_only
            assert "10.0.0.7" in a.read_only_reason
            assert "528" in a.read_only_reason


async def test_more_hosts_than_slots_are_refused_and_told_who_is_there(
    autojump_clock: MockClock,
) -> None:
    async with (
        volume_lab() as lab,
        lab.host("a"),
        lab.host("b"),
        lab.host("c"),
        lab.host("d"),
    ):
        with pytest.raises(LockBusy, match="slots are in use") as caught:
            async with lab.host("e"):
                pass
        assert "b" in caught.value.holder


async def test_host_that_is_killed_and_comes_back_finds_its_work(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        for generation in range(3):
            async with lab.host("a") as a:
                await put(a, b"f%d" % generation, b"x" * 3 * MIB)
                await a.sync()
                lab.kill(a)
        async with lab.host("a") as a:
            assert await names(a) == [b"f0", b"f1", b"f2"]
        await lab.assert_clean()


async def be_fenced(lab: VolumeLab) -> None:
    async with lab.host("a") as a:
        await put(a, b"f")
        lab.hosts[id(a)].refused = True
        lab.lockd.sessions.exit(lab.hosts[id(a)].process)
        await trio.sleep(1)
        assert a.failed is not None
        with pytest.raises(VmfsError):
            await put(a, b"g", b"x" * 9000)


async def test_host_that_lockd_lets_in_no_more_fails_its_operations_and_its_close(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        with pytest.raises(VmfsError):
            await be_fenced(lab)


async def test_lockd_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    identity = HostIdentity(host_uuid=b"h" * 16, name="h", nonce=1)
    session = unix_lockd(tmp_path / "socket", identity, "ds1")
    async with volume_lab() as lab:
        with pytest.raises(LockServiceError, match="no lockd"):
            async with Volume.open(lab.device, lockd=session):
                pass


async def test_reservation_mode_does_the_same(autojump_clock: MockClock) -> None:
    request = tiny_request(lock_protocol=LockProtocol.RESERVATION)
    async with volume_lab(request) as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            _, file = await a.namespace.create(ROOT_ADDRESS, b"f", creation())
            await file.write(0, b"under reservation")
            made = await b.namespace.lookup(ROOT_ADDRESS, b"f")
            with pytest.raises(LockBusy):
                await b.namespace.open(made.address, writing=True)
            await file.release()
            assert await cat(b, b"f") == b"under reservation"
            for number in range(5):
                await put(a, b"a%d" % number, b"x" * 2000)
                await put(b, b"b%d" % number, b"y" * 2000)
            assert sorted(await names(a)) == sorted(await names(b))
        await lab.assert_clean()


@pytest.mark.parametrize("size", [64 * MIB, 4096])
async def test_device_without_a_volume(size: int) -> None:
    with pytest.raises(NotVmfs):
        async with Volume.open(MemoryDevice(size)):
            pass


async def test_damaged_descriptor_is_named() -> None:
    async with volume_lab() as lab:
        await (await find_lv(lab.device)).write(DESCRIPTOR_OFFSET, bytes(512))
        with pytest.raises(CorruptRecord, match="FS descriptor"):
            async with lab.host("a"):
                pass


async def test_damaged_system_descriptor_is_named() -> None:
    async with volume_lab() as lab:
        lv = await find_lv(lab.device)
        fdc = LvOffset(4 * MIB + 0x10000 + 64 * 1024)
        await lv.write(fdc + 2048 + 512, b"\xee" * 512)
        with pytest.raises(CorruptRecord, match="file descriptor"):
            async with lab.host("a"):
                pass


async def test_genuine_volume_is_read_only_because_esxi_has_it_open() -> None:
    async with Volume.open(genuine_image("vmfs5")) as volume:
        assert "ESXi" in volume.read_only_reason
        rdm = await volume.namespace.lookup(ROOT_ADDRESS, b"rdm-rdm.vmdk")
        with pytest.raises(NotSupported):
            await volume.namespace.open(rdm.address, writing=False)
        large = await volume.namespace.lookup(ROOT_ADDRESS, b"large-flat.vmdk")
        assert large.size == 42 << 40
        file = await volume.namespace.open(large.address, writing=False)
        assert len(await file.read(large.size - MIB, 2 * MIB)) == MIB
        await file.release()


async def test_vmfs_6_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="VMFS-6"):
        async with Volume.open(genuine_image("vmfs6")):
            pass


async def slot(lab: VolumeLab, index: int) -> Heartbeat:
    data = await (await find_lv(lab.device)).read(slot_offset(index), 512)
    return Heartbeat.unpack(data, address=slot_offset(index))
