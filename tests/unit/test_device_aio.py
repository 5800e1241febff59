"""Requests in flight: who waits for them, what cancellation may do, and what becomes of errors."""

import errno
import os
import platform
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.support.context import Disk
from vmfs.device import aio
from vmfs.device.aio import AioQueue
from vmfs.device.direct import DirectDevice, pieces
from vmfs.device.linux_aio import AioContext, Opcode
from vmfs.errors import DeviceError, Unsupported
from vmfs.locks.permit import GuardedDevice, Permit
from vmfs.units import MIB

SIZE = 4 * MIB


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Disk]]:
    """The disks of the queues that the test makes."""
    made: list[Disk] = []

    def make(depth: int) -> Disk:
        made.append(Disk(depth))
        return made[-1]

    monkeypatch.setattr(aio, "AioContext", make)
    yield made
    for disk in made:
        disk.close()


def queue_of(disks: list[Disk], *, depth: int = 4) -> tuple[AioQueue, Disk]:
    queue = AioQueue(-1, depth=depth)
    return queue, disks[-1]


@asynccontextmanager
async def device_on(disks: list[Disk], folder: Path) -> AsyncIterator[tuple[DirectDevice, Disk]]:
    """A device of which no byte ever moves."""
    path = folder / "lun.img"
    path.touch()
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    device = DirectDevice(fd, path, size=SIZE)
    yield device, disks[-1]
    os.close(fd)


async def test_each_waiter_gets_the_result_of_its_own_request(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks)
    got: dict[int, int] = {}

    async def ask(length: int) -> None:
        got[length] = await queue.transfer(Opcode.PREAD, length=length)

    async with trio.open_nursery() as nursery:
        for length in (1, 2, 3):
            nursery.start_soon(ask, length)
            await wait_all_tasks_blocked()  # so that the first one leads
        slots = {request[2]: slot for slot, request in disk.requests.items()}
        for length in (2, 1, 3):  # whoever leads, and whoever leads after it
            disk.end(slots[length], length * 10)
            await wait_all_tasks_blocked()
            assert got[length] == length * 10
    assert queue.in_flight == 0


async def test_all_that_ended_at_once_are_told(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(queue.transfer, Opcode.FDSYNC)
        await wait_all_tasks_blocked()
        for slot in list(disk.requests):
            disk.end(slot)


async def test_cancellation_waits_for_the_end_of_what_was_started(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks)
    ended: list[int] = []

    async def ask() -> None:
        ended.append(await queue.transfer(Opcode.PWRITE, length=512))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)  # one leads, one sleeps
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert not ended
            assert queue.in_flight == 2
            for slot in list(disk.requests):
                disk.end(slot)
    assert ended == [512, 512]


async def test_no_more_are_started_than_there_is_room_for(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks, depth=2)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(queue.transfer, Opcode.PREAD)
        await wait_all_tasks_blocked()
        assert len(disk.requests) == 2
        disk.end(next(iter(disk.requests)))
        await wait_all_tasks_blocked()
        assert len(disk.requests) == 2
        for slot in list(disk.requests):
            disk.end(slot)


async def test_who_waits_for_room_goes_before_who_comes_back(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks, depth=1)

    async def ask_again_and_again() -> None:
        for _ in range(3):
            await queue.transfer(Opcode.PREAD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_again_and_again)
        await wait_all_tasks_blocked()
        nursery.start_soon(queue.transfer, Opcode.PWRITE)
        began: list[Opcode] = []
        for _ in range(4):
            await wait_all_tasks_blocked()
            began.append(disk.requests[0][0])
            disk.end(0)
    assert began == [Opcode.PREAD, Opcode.PWRITE, Opcode.PREAD, Opcode.PREAD]


async def test_cancelled_before_its_start_it_is_never_started(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks, depth=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.transfer, Opcode.PREAD)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(queue.transfer, Opcode.PWRITE)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert [request[0] for request in disk.requests.values()] == [Opcode.PREAD]
        disk.end(0)


async def test_a_layer_below_without_room_is_asked_again(
    disks: list[Disk], autojump_clock: trio.testing.MockClock
) -> None:
    queue, disk = queue_of(disks)
    disk.refusals = [errno.EAGAIN, errno.EAGAIN]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.transfer, Opcode.PREAD)
        await trio.sleep(1)
        assert len(disk.requests) == 1  # nothing was in flight: after a moment
        disk.refusals = [errno.EAGAIN]
        nursery.start_soon(queue.transfer, Opcode.PREAD)
        await trio.sleep(1)
        assert len(disk.requests) == 1  # something is: when that has ended
        disk.end(next(iter(disk.requests)))
        await trio.sleep(1)
        assert len(disk.requests) == 1
        disk.end(next(iter(disk.requests)))


async def test_refused_request_leaves_its_room_to_others(disks: list[Disk]) -> None:
    queue, disk = queue_of(disks, depth=1)
    disk.refusals = [errno.EBADF]

    with pytest.raises(OSError, match="refused"):
        await queue.transfer(Opcode.PREAD)

    assert queue.in_flight == 0


async def test_permit_counts_a_write_until_it_has_ended(disks: list[Disk], tmp_path: Path) -> None:
    returned: list[bool] = []
    permit = Permit(returned=lambda: returned.append(True))
    async with device_on(disks, tmp_path) as (device, disk), trio.open_nursery() as nursery:
        nursery.start_soon(GuardedDevice(device, permit).write, 0, bytes(4096))
        await wait_all_tasks_blocked()
        permit.recall()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert not returned
            disk.end(0)
            await wait_all_tasks_blocked()
            assert returned


async def test_memory_of_a_request_in_flight_is_nobody_elses(
    disks: list[Disk], tmp_path: Path
) -> None:
    async with device_on(disks, tmp_path) as (device, disk), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await device.write(0, bytes(4096))

        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(device.read, 8192, 4096)
        nursery.start_soon(device.read, 8192, 4096)
        await wait_all_tasks_blocked()
        addresses = [request[1] for request in disk.requests.values()]
        assert len(set(addresses)) == len(addresses) == 3
        assert not any(address % 4096 for address in addresses)
        for slot in list(disk.requests):
            disk.end(slot)


async def test_writes_to_one_sector_wait_for_each_other(disks: list[Disk], tmp_path: Path) -> None:
    async with device_on(disks, tmp_path) as (device, disk), trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"a" * 100)
        await wait_all_tasks_blocked()
        nursery.start_soon(device.write, 100, b"b" * 412)
        nursery.start_soon(device.write, 512, b"c" * 512)
        await wait_all_tasks_blocked()
        in_flight = sorted((request[0], request[3]) for request in disk.requests.values())
        assert in_flight == [(Opcode.PREAD, 0), (Opcode.PWRITE, 512)]
        for _ in range(4):  # its write; the other's read and write
            for slot in list(disk.requests):
                disk.end(slot)
            await wait_all_tasks_blocked()


async def test_what_was_moved_in_part_is_asked_for_again(disks: list[Disk], tmp_path: Path) -> None:
    async with device_on(disks, tmp_path) as (device, disk), trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, bytes(8192))
        await wait_all_tasks_blocked()
        _, address, _, _ = disk.requests[0]
        disk.end(0, 4096)
        await wait_all_tasks_blocked()
        ((slot, request),) = disk.requests.items()
        assert request == (Opcode.PWRITE, address + 4096, 4096, 4096)
        disk.end(slot)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (-errno.EIO, r"read of 0x1000 bytes at 0x2000 of .*lun.img failed: .*EIO"),
        (0, r"read of 0x1000 bytes at 0x2000 of .*lun.img failed: ends after 0 bytes"),
    ],
)
async def test_errors_say_what_was_tried_and_where(
    disks: list[Disk], tmp_path: Path, result: int, message: str
) -> None:
    async with device_on(disks, tmp_path) as (device, disk), trio.open_nursery() as nursery:

        async def fail() -> None:
            with pytest.raises(DeviceError, match=message):
                await device.read(0x2000, 0x1000)

        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        disk.end(0, result)


async def test_flush_that_failed_fails_for_ever(disks: list[Disk], tmp_path: Path) -> None:
    async with device_on(disks, tmp_path) as (device, disk):
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(DeviceError, match=r"flush .*EIO"):
                    await device.flush()

            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            assert disk.requests[0][0] is Opcode.FDSYNC
            disk.end(0, -errno.EIO)
        with pytest.raises(DeviceError, match=r"flush .*EIO"):
            await device.flush()
        assert not disk.requests


def test_without_room_for_aio_a_device_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_depth: int) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(aio, "AioContext", refuse)
    path = tmp_path / "lun.img"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(DeviceError, match=r"no asynchronous I/O .*EAGAIN.*fs\.aio-max-nr"):
        DirectDevice.open(path, writable=True)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_machine_of_another_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")

    with pytest.raises(Unsupported, match="no asynchronous I/O on vax"):
        AioContext(1)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (700, 0, []),
        (512, 512, [(512, 1024, 0, 512, set())]),
        (1, 1, [(0, 512, 1, 2, {0})]),
        (500, 600, [(0, 1536, 500, 1100, {0, 1024})]),
        (512, 600, [(512, 1536, 0, 600, {512})]),
        (
            MIB - 1,
            MIB + 2,
            [
                (MIB - 512, 2 * MIB - 512, 511, MIB, {0}),
                (2 * MIB - 512, 2 * MIB + 512, 0, 513, {512}),
            ],
        ),
    ],
)
def test_ranges_are_cut_into_whole_sectors(
    offset: int, length: int, expected: list[tuple[int, int, int, int, set[int]]]
) -> None:
    found = [
        (piece.start, piece.stop, piece.head, piece.tail, piece.edges())
        for piece in pieces(offset, length)
    ]

    assert found == expected
