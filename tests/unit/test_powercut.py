"""The crash device itself: which images a power cut may leave, and which it must not."""

import random

import pytest

from tests.support.powercut import CrashImage, RecordingDevice, crash_images, explore, image_by_id
from vmfs.units import SECTOR_SIZE


def sector(value: int) -> bytes:
    return bytes([value]) * SECTOR_SIZE


def images(device: RecordingDevice, *, dying: str | None = None) -> list[CrashImage]:
    return list(crash_images(device.log, device.start, rng=random.Random(0), dying=dying))


def last_states(device: RecordingDevice, count: int, **options: str) -> set[tuple[int, ...]]:
    """First bytes of the first `count` sectors, in each image of the last moment."""
    last = len(device.log) - 1
    return {
        tuple(image.snapshot.sector(index)[0] for index in range(count))
        for image in images(device, **options)
        if image.id.startswith(f"{last}:")
    }


async def test_what_was_not_flushed_may_be_there_in_any_part() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    await device.write(0, sector(1) + sector(2))
    await device.write(2 * SECTOR_SIZE, sector(3))
    device.mark("end")

    assert last_states(device, 3) >= {
        (0, 0, 0), (1, 2, 3), (1, 2, 0), (0, 0, 3), (1, 0, 0), (0, 2, 0), (1, 0, 3), (0, 2, 3),
    }  # fmt: skip


async def test_what_was_flushed_is_there() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    await device.write(0, sector(1))
    await device.flush()
    await device.write(0, sector(2))
    await device.write(SECTOR_SIZE, sector(3))
    device.mark("end")

    assert last_states(device, 2) == {(1, 0), (2, 0), (1, 3), (2, 3)}


async def test_during_a_flush_nothing_is_certain_yet() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    await device.write(0, sector(1))
    await device.flush()
    before_its_end = [image for image in images(device) if not image.id.startswith("2:")]

    assert {image.snapshot.sector(0)[0] for image in before_its_end} == {0, 1}
    assert last_states(device, 1) <= {(1,)}


async def test_a_flush_speaks_for_the_writes_of_its_host_only() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    other = device.as_host("other")
    await device.write(0, sector(1))
    await other.write(SECTOR_SIZE, sector(2))
    await other.flush()
    device.mark("end")

    assert last_states(device, 2) == {(0, 2), (1, 2)}


async def test_what_another_host_made_durable_is_not_undone_by_an_older_write() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    other = device.as_host("other")
    await device.write(0, sector(1))
    await other.write(0, sector(2))
    await other.flush()
    device.mark("end")

    assert last_states(device, 1) == {(2,)}


async def test_when_one_host_dies_the_writes_of_others_stay() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    other = device.as_host("other")
    await device.write(0, sector(1))
    await other.write(SECTOR_SIZE, sector(2))
    device.mark("end")

    assert last_states(device, 2, dying="host") == {(0, 2), (1, 2)}
    assert last_states(device, 2, dying="other") == {(1, 0), (1, 2)}


async def test_marks_say_what_had_happened() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    device.mark("before")
    await device.write(0, sector(1))
    device.mark("after")

    assert {image.marks for image in images(device)} == {("before",), ("before", "after")}


async def test_an_image_can_be_built_again_from_its_id() -> None:
    device = RecordingDevice(64 * SECTOR_SIZE)
    for index in range(5):
        await device.write(index * 3 * SECTOR_SIZE, sector(index + 1) * 3)
    for image in images(device):
        again = image_by_id(device, image.id, rng=random.Random(0))
        assert again.snapshot.same_as(image.snapshot)


async def test_a_failing_check_names_the_image_and_recovery_is_cut_too() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    await device.write(0, sector(1))

    async def recover(crashed: RecordingDevice) -> None:
        await crashed.write(SECTOR_SIZE, sector(7))

    async def pass_all(_crashed: RecordingDevice, _marks: tuple[object, ...]) -> None:
        pass

    async def find_fault(crashed: RecordingDevice, _marks: tuple[object, ...]) -> None:
        assert await crashed.read(0, 1) == b"\0", "written"

    explored = await explore(device, recover=recover, check=pass_all)
    assert explored.image_count == 2
    assert explored.recovery_image_count == 4
    with pytest.raises(AssertionError, match=r"crash image 0:prefix \(seed 0\).*written"):
        await explore(device, recover=recover, check=find_fault)


async def test_history_can_be_forgotten() -> None:
    device = RecordingDevice(8 * SECTOR_SIZE)
    await device.write(0, sector(1))
    device.forget_history()
    await device.write(SECTOR_SIZE, sector(2))

    assert len(device.log) == 1
    assert await device.read(0, 2 * SECTOR_SIZE) == sector(1) + sector(2)
    assert last_states(device, 2) == {(1, 0), (1, 2)}
