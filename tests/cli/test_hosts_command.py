"""`vmfs hosts`: slots as they are watched for one interval and a half."""

import json
import threading
from pathlib import Path

import pytest
import trio

from tests.support.commands import vmfs
from tests.support.handmade import HandMade, build_handmade, save
from vmfs.device.image import ImageDevice
from vmfs.device.locate import find_lv
from vmfs.ids import VmfsUuid
from vmfs.ondisk.heartbeat import SLOT_SIZE, Heartbeat, HostInfo, slot_offset

ALICE, BOB = VmfsUuid(b"a" * 16), VmfsUuid(b"b" * 16)
INFO = HostInfo(name="esx-a", pid=4711, nonce=1, interval_ms=60, lease_ms=500)


async def open_slot(volume: HandMade, index: int, owner: VmfsUuid, **changes: VmfsUuid) -> None:
    offset = slot_offset(index)
    slot = Heartbeat.unpack(await volume.lv.read(offset, SLOT_SIZE), address=offset)
    taken = slot.acquired(
        owner=owner, stamp_us=1_000_000, journal_fb=0, journal_offset=0, host=INFO
    )
    if "replayer" in changes:
        taken = taken.replaying(by=changes["replayer"], by_offset=slot_offset(9), by_generation=1)
    await volume.lv.write(offset, taken.pack())


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    async def make() -> Path:
        volume = await build_handmade()
        await open_slot(volume, 3, ALICE)
        await open_slot(volume, 4, BOB, replayer=ALICE)
        await save(volume.lun, tmp_path / "lun.img")
        return tmp_path / "lun.img"

    return trio.run(make)


async def beat(lun: Path, index: int) -> None:
    device = ImageDevice.open(lun, writable=True)
    lv, offset = await find_lv(device), slot_offset(index)
    slot = Heartbeat.unpack(await lv.read(offset, SLOT_SIZE), address=offset)
    await lv.write(offset, slot.beaten(slot.stamp_us + 1).pack())
    await device.aclose()


def test_silent_host_and_one_that_is_being_recovered(lun: Path) -> None:
    result = vmfs("hosts", lun)

    assert result.exit_code == 0, result.output
    heading, alice, bob = result.stdout.splitlines()
    assert heading.split() == ["SLOT", "HOST", "PID", "LEASE", "STATE"]
    assert alice.split()[:5] == ["3", "esx-a", "4711", "0.5", "s"]
    assert "silent for 0." in alice
    assert "after 0.5 s whoever waits for its locks has it fenced" in alice
    assert "dead, recovered by esx-a" in bob


def test_host_that_beats(lun: Path) -> None:
    stop = threading.Event()

    def beats() -> None:
        while not stop.wait(0.01):
            trio.run(beat, lun, 3)

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        result = vmfs("hosts", lun, "--json")
    finally:
        stop.set()
        thread.join()

    alice, _ = json.loads(result.stdout)
    assert alice["state"] == "beating"
    assert alice["interval_seconds"] == 0.06
    assert alice["lease_seconds"] == 0.5
    assert 0 <= alice["beat_seconds_ago"] < 5


def test_idle_volume_has_no_hosts(tmp_path: Path) -> None:
    async def make() -> None:
        volume = await build_handmade()
        await save(volume.lun, tmp_path / "lun.img")

    trio.run(make)
    result = vmfs("hosts", tmp_path / "lun.img")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1


def test_no_volume_is_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "lun.img").write_bytes(bytes(1 << 20))
    result = vmfs("hosts", tmp_path / "lun.img")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
