"""What `vmfs.device.base` promises, held against every device that there is."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from tests.support.faulty import FaultyDevice
from tests.support.loop import loop_device, needs_loop
from tests.support.powercut import RecordingDevice
from vmfs.device.base import Device
from vmfs.device.direct import DirectDevice
from vmfs.device.image import ImageDevice
from vmfs.device.memory import MemoryDevice
from vmfs.device.window import Window
from vmfs.errors import DeviceError
from vmfs.units import KIB, MIB, SECTOR_SIZE

SIZE = 4 * MIB


def _file(folder: Path) -> Path:
    path = folder / "lun.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def _image(folder: Path) -> ImageDevice:
    return ImageDevice.open(_file(folder), writable=True)


def _direct(path: Path) -> DirectDevice:
    try:
        return DirectDevice.open(path, writable=True)
    except DeviceError as error:
        if "EINVAL" in str(error):
            pytest.skip(f"no O_DIRECT on the filesystem of {path.parent}")
        raise


@contextmanager
def _shm() -> Iterator[Path]:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs at /dev/shm")
    with TemporaryDirectory(prefix="vmfs-", dir=shm) as folder:
        yield Path(folder)


MAKERS: dict[str, Callable[[Path, ExitStack], Device]] = {
    "memory": lambda _folder, _stack: MemoryDevice(SIZE),
    "image": lambda folder, _stack: _image(folder),
    "tmpfs": lambda _folder, stack: _image(stack.enter_context(_shm())),
    "direct": lambda folder, _stack: _direct(_file(folder)),
    "loop": lambda folder, stack: _direct(stack.enter_context(loop_device(_file(folder)))),
    "window": lambda _folder, _stack: Window(MemoryDevice(SIZE + 64 * KIB), 3 * SECTOR_SIZE, SIZE),
    "image-window": lambda folder, _stack: Window(_image(folder), 0, SIZE),
    "recording": lambda _folder, _stack: RecordingDevice(SIZE),
    "faulty": lambda _folder, _stack: FaultyDevice(MemoryDevice(SIZE)),
}


@pytest.fixture(
    params=[pytest.param(name, marks=needs_loop) if name == "loop" else name for name in MAKERS]
)
async def device(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Device]:
    with ExitStack() as stack:
        made = MAKERS[request.param](tmp_path, stack)
        yield made
        await made.aclose()
        if isinstance(made, Window):
            await made.device.aclose()


async def test_a_new_device_reads_as_zero(device: Device) -> None:
    assert device.size == SIZE
    assert await device.read(0, SIZE) == bytes(SIZE)


async def test_a_device_has_a_name_for_messages(device: Device) -> None:
    assert device.name


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 512), (512, 4096), (1, 1), (511, 2), (4095, 4098), (100_000, 300_001), (SIZE - 1, 1)],
)
async def test_what_was_written_is_read_and_nothing_else_changes(
    device: Device, offset: int, length: int
) -> None:
    data = random.Random(offset).randbytes(length)

    await device.write(offset, data)

    assert await device.read(offset, length) == data
    assert await device.read(0, SIZE) == bytes(offset) + data + bytes(SIZE - offset - length)


async def test_more_than_a_bounce_buffer_is_written_and_read(device: Device) -> None:
    data = random.Random(7).randbytes(3 * MIB + 777)

    await device.write(333, data)

    assert await device.read(333, len(data)) == data


async def test_an_empty_range_is_read_and_written(device: Device) -> None:
    await device.write(SIZE, b"")

    assert await device.read(SIZE, 0) == b""
    assert await device.read(0, 0) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_every_buffer_can_be_written(
    device: Device, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    await device.write(512, kind(b"x" * 1024))

    assert await device.read(512, 1024) == b"x" * 1024


async def test_the_caller_may_reuse_its_buffer(device: Device) -> None:
    buffer = bytearray(b"a" * 512)

    await device.write(0, buffer)
    buffer[:] = b"b" * 512

    assert await device.read(0, 512) == b"a" * 512


async def test_the_later_write_wins(device: Device) -> None:
    await device.write(0, b"a" * 2048)
    await device.write(512, b"b" * 512)

    assert await device.read(0, 2048) == b"a" * 512 + b"b" * 512 + b"a" * 1024


async def test_reads_and_writes_do_not_checkpoint(device: Device) -> None:
    if isinstance(device, DirectDevice):
        pytest.skip("what goes past the page cache waits for the disk")
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await device.write(0, b"x" * 512)
        await device.read(0, 512)

        assert not ran


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (511, 2), (333, 2 * MIB), (SIZE, 0)])
async def test_what_is_done_now_is_done_as_if_waited_for(
    device: Device, offset: int, length: int
) -> None:
    data = random.Random(offset).randbytes(length)

    if not device.write_now(offset, data):
        assert await device.read(offset, length) == bytes(length)
        await device.write(offset, data)

    assert await device.read(0, SIZE) == bytes(offset) + data + bytes(SIZE - offset - length)
    now = device.read_now(offset, length)
    assert now is None or bytes(now) == data


@pytest.mark.parametrize("made", ["memory", "image", "tmpfs", "window"])
async def test_memory_is_read_and_written_now(made: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        device = MAKERS[made](tmp_path, stack)

        assert device.write_now(512, b"x" * 4096)
        assert bytes(device.read_now(0, 1024) or b"") == bytes(512) + b"x" * 512
        await device.aclose()


async def test_a_flush_keeps_everything(device: Device) -> None:
    await device.write(0, b"x" * 512)

    await device.flush()
    await device.flush()

    assert await device.read(0, 512) == b"x" * 512


@pytest.mark.parametrize("verb", ["write_zeroes", "unmap"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, SIZE),
        (512, 512),
        (64 * KIB, 64 * KIB),
        (1000, 3000),
        (64 * KIB - 512, 2 * MIB + 1024),
        (4096 + 1, 200_000),
        (SIZE - 512, 512),
        (700, 0),
    ],
)
async def test_a_zeroed_range_reads_as_zero_and_nothing_else_does(
    device: Device, verb: str, offset: int, length: int
) -> None:
    await device.write(0, b"\xaa" * SIZE)

    zero: Callable[[int, int], Awaitable[None]] = getattr(device, verb)
    await zero(offset, length)

    end = offset + length
    expected = b"\xaa" * offset + bytes(length) + b"\xaa" * (SIZE - end)
    assert await device.read(0, SIZE) == expected
    await device.write(offset, b"b" * min(length, 512))
    assert await device.read(offset, min(length, 512)) == b"b" * min(length, 512)


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        (0, 2 * MIB, 2 * MIB),
        (2 * MIB, 0, 2 * MIB),
        (512, 1024, 512),
        (1, 5001, 5000),
        (3 * MIB, MIB, 100_001),
        (0, 4096, 0),
    ],
)
async def test_a_copied_range_is_at_both_places(
    device: Device, source: int, target: int, length: int
) -> None:
    before = random.Random(source).randbytes(SIZE)
    await device.write(0, before)

    await device.copy(source, target, length)

    expected = bytearray(before)
    expected[target : target + length] = before[source : source + length]
    assert await device.read(0, SIZE) == bytes(expected)


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (0, SIZE + 1)])
async def test_a_range_that_leaves_the_device_is_our_mistake(
    device: Device, offset: int, length: int
) -> None:
    with pytest.raises(AssertionError):
        await device.read(offset, length)
    with pytest.raises(AssertionError):
        await device.write(offset, bytes(length))
    if not isinstance(device, RecordingDevice | FaultyDevice):
        with pytest.raises(AssertionError):
            device.read_now(offset, length)
        with pytest.raises(AssertionError):
            device.write_now(offset, bytes(length))
    with pytest.raises(AssertionError):
        await device.write_zeroes(offset, length)
    with pytest.raises(AssertionError):
        await device.unmap(offset, length)


async def test_ranges_that_overlap_are_not_copied(device: Device) -> None:
    with pytest.raises(AssertionError):
        await device.copy(0, 512, 1024)
    with pytest.raises(AssertionError):
        await device.copy(0, SIZE - 512, 1024)


async def test_random_verbs_agree_with_an_array_of_bytes(device: Device) -> None:
    rng = random.Random(11)
    model = bytearray(SIZE)
    for _ in range(150):
        offset = rng.randrange(SIZE)
        length = rng.randrange(min(SIZE - offset, 200_000) + 1)
        match rng.randrange(5):
            case 0 | 1:
                data = rng.randbytes(length)
                await device.write(offset, data)
                model[offset : offset + length] = data
            case 2:
                await device.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            case 3:
                await device.unmap(offset, length)
                model[offset : offset + length] = bytes(length)
            case _:
                target = rng.randrange(SIZE)
                length = min(length, abs(target - offset), SIZE - target)
                await device.copy(offset, target, length)
                model[target : target + length] = model[offset : offset + length]
        assert await device.read(offset, length) == model[offset : offset + length]
    assert await device.read(0, SIZE) == bytes(model)
