"""What only an image file has: errors of the medium, fallbacks, honest counters."""

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.context import Disk
from tests.support.uring import needs_uring
from vmfs.device import image, linux, lun, patience
from vmfs.device.aio import AioQueue
from vmfs.device.image import ImageDevice
from vmfs.device.linux_aio import Opcode
from vmfs.device.linux_uring import DEPTH_MAX, UringContext, UringOpcode
from vmfs.errors import DeviceError
from vmfs.units import KIB, MIB

SIZE = 8 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def status(path: Path) -> os.stat_result:
    return path.stat()


def refuse(*_arguments: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def break_down(*_arguments: object, **_named: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot open .*missing: No such file.*ENOENT"):
        ImageDevice.open(tmp_path / "missing", writable=False)


def test_a_directory_is_no_lun(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="neither a regular file nor a block device"):
        ImageDevice.open(tmp_path, writable=False)


async def test_a_partial_last_sector_does_not_count(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(SIZE + 100)

    device = ImageDevice.open(path, writable=False)

    assert device.size == SIZE
    await device.aclose()


async def test_an_image_opened_for_reading_cannot_be_written(path: Path) -> None:
    device = ImageDevice.open(path, writable=False)

    with pytest.raises(DeviceError, match=r"write of 0x200 bytes at 0x400 of .*EBADF"):
        await device.write(1024, bytes(512))

    assert await device.read(0, 512) == bytes(512)
    await device.aclose()
    await device.aclose()  # a second time does nothing


async def test_an_image_cut_short_under_us_is_an_error_of_the_medium(path: Path) -> None:
    device = ImageDevice.open(path, writable=True)
    os.truncate(path, MIB)

    with pytest.raises(DeviceError, match=r"read of 0x400 bytes at 0xffe00 .* ends after 512"):
        await device.read(MIB - 512, 1024)
    await device.aclose()


async def test_the_descriptor_is_not_inherited(path: Path) -> None:
    device = ImageDevice.open(path, writable=True)

    assert not os.get_inheritable(device._fd)
    await device.aclose()


async def test_a_failed_flush_fails_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = ImageDevice.open(path, writable=True)
    with monkeypatch.context() as patch:
        patch.setattr(AioQueue, "transfer", break_down)
        with pytest.raises(DeviceError, match=r"flush .*EIO"):
            await device.flush()

    with pytest.raises(DeviceError, match=r"flush .*EIO"):
        await device.flush()
    await device.aclose()


async def test_callers_share_a_flush_that_begins_after_they_came(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = trio.Event()
    calls = 0
    device = ImageDevice.open(path, writable=True)

    async def wait(_queue: AioQueue, opcode: Opcode) -> int:
        nonlocal calls
        assert opcode is Opcode.FDSYNC
        calls += 1
        await go_on.wait()
        return 0

    monkeypatch.setattr(AioQueue, "transfer", wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.flush)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            nursery.start_soon(device.flush)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()

    assert calls == 2  # the one that was under way, and one for all who came meanwhile
    await device.aclose()


async def test_without_aio_a_flush_takes_a_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(image, "AioQueue", break_down)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: threads.append(threading.get_ident()))
    device = ImageDevice.open(path, writable=True)

    await device.flush()
    await device.flush()

    assert len(threads) == 2
    assert threading.get_ident() not in threads
    await device.aclose()


@pytest.fixture
def misses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The page cache has the first 64 KiB; offsets at which it was asked for others.

    Nothing comes by being looked for again.
    """
    asked: list[int] = []
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.0)
    preadv = os.preadv

    def miss(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset >= 64 * KIB:
            asked.append(offset)
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        return preadv(fd, [buffers[0][: 64 * KIB - offset]], offset, flags & ~os.RWF_NOWAIT)

    monkeypatch.setattr(os, "preadv", miss)
    return asked


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In which threads was read."""
    seen: list[int] = []
    pread = os.pread

    def read(fd: int, length: int, offset: int) -> bytes:
        seen.append(threading.get_ident())
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", read)
    return seen


async def read_what_is_missing(path: Path, asked: list[int]) -> None:
    """Read ranges that the page cache has, has in part, and has not."""
    data = os.urandom(4 * MIB)
    device = ImageDevice.open(path, writable=True)
    await device.write(0, data)

    assert device.read_now(0, 64 * KIB) == data[: 64 * KIB]
    assert device.read_now(32 * KIB, 64 * KIB) is None  # there in part
    assert device.read_now(128 * KIB, 4096) is None
    assert await device.read(0, 4096) == data[:4096]
    assert await device.read(32 * KIB, 64 * KIB) == data[32 * KIB : 96 * KIB]
    assert await device.read(64 * KIB, 3 * MIB + 777) == data[64 * KIB : 3 * MIB + 64 * KIB + 777]
    assert device.read_now(128 * KIB, 4096) is None
    asked.clear()
    assert await device.read(128 * KIB, 4096) == data[128 * KIB : 132 * KIB]
    assert not asked  # what was just missed is not tried again
    await device.aclose()


@needs_uring
async def test_what_the_page_cache_lacks_is_waited_for_without_a_thread(
    path: Path, misses: list[int], threads: list[int]
) -> None:
    await read_what_is_missing(path, misses)

    assert not threads


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOMEM])
async def test_without_io_uring_what_the_page_cache_lacks_is_read_in_a_thread(
    path: Path,
    misses: list[int],
    threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    tries = 0

    def refuse_ring(_depth: int) -> UringContext:
        nonlocal tries
        tries += 1
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(image, "UringContext", refuse_ring)

    await read_what_is_missing(path, misses)

    assert len(threads) == 3
    assert threading.get_ident() not in threads
    assert tries == 1


@needs_uring
async def test_many_misses_at_once_each_get_their_own_bytes(path: Path, misses: list[int]) -> None:
    data = os.urandom(SIZE)
    device = ImageDevice.open(path, writable=True)
    await device.write(0, data)
    found: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        found[offset] = await device.read(offset, 4096)

    async with trio.open_nursery() as nursery:
        for offset in range(64 * KIB, SIZE, 16 * KIB):  # several times the depth of the queue
            nursery.start_soon(read, offset)

    assert len(found) == len(misses) > 4 * DEPTH_MAX
    assert all(found[offset] == data[offset : offset + 4096] for offset in found)
    await device.aclose()


class SlowCache:
    """A page cache that has nothing but what it was asked for `count` times before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.asked = 0
        self._count = count
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(patience, "LOOK_SECONDS", 60.0)

    def preadv(self, fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        self.asked += 1
        if self.asked <= self._count:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        return self._preadv(fd, buffers, offset)


async def test_a_miss_that_a_fast_disk_has_brought_needs_no_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ImageDevice.open(path, writable=True)
    await device.write(MIB, b"x" * 4096)
    cache = SlowCache(monkeypatch, 5)

    assert device.read_now(MIB, 4096) == b"x" * 4096
    assert cache.asked == 6
    assert device.statistics().read_count == 1
    assert device.statistics().read_size == 4096
    await device.aclose()


async def test_a_long_miss_is_not_looked_for_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ImageDevice.open(path, writable=True)
    cache = SlowCache(monkeypatch, 5)

    assert device.read_now(0, 64 * KIB + 512) is None
    assert cache.asked == 1
    await device.aclose()


async def test_an_error_while_a_miss_is_looked_for_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ImageDevice.open(path, writable=True)
    errors = [errno.EAGAIN, errno.EAGAIN, errno.EIO]

    def preadv(*_arguments: object) -> int:
        code = errors.pop(0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(patience, "LOOK_SECONDS", 60.0)

    with pytest.raises(DeviceError, match=r"read of 0x1000 bytes at 0x100000 .*EIO"):
        device.read_now(MIB, 4096)
    await device.aclose()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, misses: list[int]) -> Disk:
    """What the devices of the test read misses from."""
    made = Disk(0)
    monkeypatch.setattr(image, "UringContext", lambda _depth: made)
    return made


async def test_a_miss_that_the_medium_cannot_read_is_named(path: Path, disk: Disk) -> None:
    device = ImageDevice.open(path, writable=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_error, device, r"read of 0x1000 bytes at 0x100000 .*\(EIO\)")
        await trio.testing.wait_all_tasks_blocked()
        disk.end(disk.oldest, -errno.EIO)

    assert device.statistics().read_count == 0
    await device.aclose()


async def expect_error(device: ImageDevice, match: str) -> None:
    with pytest.raises(DeviceError, match=match):
        await device.read(MIB, 4096)


async def test_a_miss_that_ends_early_is_asked_for_again(path: Path, disk: Disk) -> None:
    device = ImageDevice.open(path, writable=True)
    found: list[bytes] = []

    async def read() -> None:
        found.append(await device.read(MIB, 4096))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        address = disk.requests[0][1]
        disk.bring(b"a" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.requests[disk.oldest] == (UringOpcode.READ, address + 1000, 3096, MIB + 1000)
        disk.bring(b"b" * 3096)

    assert found == [b"a" * 1000 + b"b" * 3096]
    await device.aclose()


async def test_a_miss_behind_the_end_of_a_file_cut_short_is_an_error(
    path: Path, disk: Disk
) -> None:
    device = ImageDevice.open(path, writable=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_error, device, "ends after 512 bytes")
        await trio.testing.wait_all_tasks_blocked()
        disk.bring(b"a" * 512)
        await trio.testing.wait_all_tasks_blocked()
        disk.bring(b"")
    await device.aclose()


async def test_memory_of_a_cancelled_miss_is_not_used_before_the_kernel_is_done_with_it(
    path: Path, disk: Disk
) -> None:
    device = ImageDevice.open(path, writable=True)
    ended = trio.Event()

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            await device.read(MIB, 4096)
        ended.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(read, scope)
        await trio.testing.wait_all_tasks_blocked()
        first = disk.requests[0][1]
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()  # so whoever counts it, as the permit does, counts it still
        with pytest.raises(AssertionError, match="in flight"):
            await device.aclose()
        nursery.start_soon(device.read, 2 * MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert [address for _, address, _, _ in disk.requests.values()].count(first) == 1
        disk.bring(b"a" * 4096)
        await ended.wait()
        nursery.start_soon(device.read, 3 * MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert [address for _, address, _, _ in disk.requests.values()].count(first) == 1  # again
        disk.bring(b"b" * 4096)
        disk.bring(b"c" * 4096)
    await device.aclose()


async def test_a_disk_that_does_not_answer_holds_up_nobody_else(path: Path, disk: Disk) -> None:
    device = ImageDevice.open(path, writable=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.read, MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()

        await device.write(0, b"x" * 4096)
        assert await device.read(0, 4096) == b"x" * 4096
        assert len(disk.requests) == 1

        disk.bring(bytes(4096))
    await device.aclose()


async def test_a_filesystem_that_tells_no_misses_is_read_inline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    flags_seen: list[int] = []

    def know_nothing(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        if flags & os.RWF_NOWAIT:
            refuse()
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", know_nothing)
    device = ImageDevice.open(path, writable=True)
    await device.write(0, b"x" * 4096)

    assert device.read_now(0, 4096) == b"x" * 4096
    assert device.read_now(0, 4096) == b"x" * 4096

    assert flags_seen == [os.RWF_NOWAIT, 0, 0]
    await device.aclose()


async def test_a_cancelled_flush_leaves_the_device_usable(path: Path) -> None:
    device = ImageDevice.open(path, writable=True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await device.flush()

    await device.flush()

    assert scope.cancelled_caught
    await device.aclose()


async def test_a_short_transfer_is_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 1000), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:700], at))
    device = ImageDevice.open(path, writable=True)
    data = os.urandom(10_000)

    await device.write(123, data)

    assert await device.read(123, 10_000) == data
    await device.aclose()


async def test_bulk_verbs_are_counted_where_the_kernel_did_them(path: Path) -> None:
    device = ImageDevice.open(path, writable=True)
    await device.write(0, b"x" * (4 * MIB))
    try:
        linux.fallocate(device._fd, linux.FALLOC_PUNCH_HOLE | 1, SIZE - 4096, 4096)
    except OSError:
        pytest.skip("no fallocate here")

    await device.write_zeroes(0, MIB)
    await device.write_zeroes(MIB, 4 * KIB)
    await device.unmap(2 * MIB, MIB)
    await device.copy(3 * MIB, 5 * MIB, MIB)
    await device.flush()

    found = device.statistics()
    assert found.zeroes_offloaded_size == MIB
    assert found.zeroes_written_size == 4 * KIB
    assert (found.unmap_offloaded_size, found.unmap_zeroed_size) == (MIB, 0)
    assert (found.copy_offloaded_size, found.copy_through_size) == (MIB, 0)
    assert (found.write_count, found.write_size, found.flush_count) == (1, 4 * MIB, 1)
    await device.aclose()


async def test_unmap_gives_space_back(path: Path) -> None:
    device = ImageDevice.open(path, writable=True)
    await device.write(0, b"x" * SIZE)
    await device.flush()
    before = status(path).st_blocks

    await device.unmap(0, SIZE)

    if device.statistics().unmap_offloaded_size:
        assert status(path).st_blocks < before
    assert status(path).st_size == SIZE
    await device.aclose()


async def test_what_the_kernel_cannot_do_is_done_here_and_counted_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def refuse_and_count(*_arguments: object) -> None:
        nonlocal calls
        calls += 1
        refuse()

    monkeypatch.setattr(linux, "fallocate", refuse_and_count)
    monkeypatch.setattr(os, "copy_file_range", refuse_and_count)
    device = ImageDevice.open(path, writable=True)
    data = os.urandom(SIZE)
    await device.write(0, data)

    for _ in range(2):
        await device.write_zeroes(0, 2 * MIB + 512)
        await device.unmap(3 * MIB, MIB)
        await device.copy(5 * MIB, 2 * MIB + 512, MIB - 512)

    found = device.statistics()
    assert found.zeroes_written_size == 2 * (2 * MIB + 512)
    assert (found.unmap_offloaded_size, found.unmap_zeroed_size) == (0, 2 * MIB)
    assert (found.copy_offloaded_size, found.copy_through_size) == (0, 2 * (MIB - 512))
    assert calls == 3  # each way was tried once and never again
    assert await device.read(0, 2 * MIB + 512) == bytes(2 * MIB + 512)
    assert await device.read(2 * MIB + 512, MIB - 512) == data[5 * MIB : 6 * MIB - 512]
    assert await device.read(3 * MIB, MIB) == bytes(MIB)
    assert await device.read(4 * MIB, MIB) == data[4 * MIB : 5 * MIB]
    await device.aclose()


@pytest.mark.parametrize("verb", ["write_zeroes", "unmap"])
async def test_an_error_of_a_bulk_verb_is_no_reason_to_fall_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(linux, "fallocate", break_down)
    device = ImageDevice.open(path, writable=True)

    with pytest.raises(DeviceError, match=f"{verb} of 0x100000 bytes at 0x0 .*EIO"):
        await getattr(device, verb)(0, MIB)
    await device.aclose()


async def test_an_error_of_a_copy_is_no_reason_to_fall_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", break_down)
    device = ImageDevice.open(path, writable=True)

    with pytest.raises(DeviceError, match=r"copy .*EIO"):
        await device.copy(0, MIB, MIB)
    await device.aclose()


async def test_large_ranges_go_down_in_bounded_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(lun, "OFFLOAD_CHUNK", 3 * MIB)
    monkeypatch.setattr(
        linux, "fallocate", lambda _fd, _mode, offset, length: steps.append((offset, length))
    )
    device = ImageDevice.open(path, writable=True)

    await device.write_zeroes(MIB, 7 * MIB)

    assert steps == [(MIB, 3 * MIB), (4 * MIB, 3 * MIB), (7 * MIB, MIB)]
    await device.aclose()
