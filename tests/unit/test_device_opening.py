"""Which way a LUN is opened, and the odd devices that are refused."""

from pathlib import Path

import pytest

from lockd.server.lun import LunError, LunFile
from tests.support.loop import loop_device, needs_loop
from vmfs.device.direct import DirectDevice
from vmfs.device.image import ImageDevice
from vmfs.device.opening import IoMode, open_lun_device
from vmfs.errors import DeviceError, Unsupported
from vmfs.units import MIB

SIZE = 8 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


async def test_an_image_file_is_opened_through_the_page_cache(image: Path) -> None:
    device = open_lun_device(image, writable=True)

    assert isinstance(device, ImageDevice)
    await device.aclose()


@needs_loop
async def test_a_block_device_is_opened_past_the_page_cache(image: Path) -> None:
    with loop_device(image) as node:
        device = open_lun_device(node, writable=True)

        assert isinstance(device, DirectDevice)
        assert device.size == SIZE
        await device.aclose()


async def test_an_image_is_not_written_past_the_page_cache_of_its_other_writers(
    image: Path,
) -> None:
    with pytest.raises(Unsupported, match="io=inline; io=aio beside it would undo"):
        open_lun_device(image, writable=True, mode=IoMode.AIO)


@needs_loop
async def test_a_block_device_is_not_written_through_a_page_cache(image: Path) -> None:
    with loop_device(image) as node:
        with pytest.raises(Unsupported, match="io=aio; io=inline beside it would undo"):
            open_lun_device(node, writable=True, mode=IoMode.INLINE)
        device = open_lun_device(node, writable=False, mode=IoMode.INLINE)

        assert isinstance(device, ImageDevice)
        assert await device.read(0, 512) == bytes(512)
        await device.aclose()


@needs_loop
async def test_a_device_of_large_sectors_is_read_but_not_written(image: Path) -> None:
    with loop_device(image, sector_size=4096) as node:
        with pytest.raises(Unsupported, match="has sectors of 4096 bytes"):
            open_lun_device(node, writable=True)
        with pytest.raises(LunError, match="has sectors of 4096 bytes"):
            LunFile.open("ds1", node)
        device = open_lun_device(node, writable=False)

        assert await device.read(512, 1024) == bytes(1024)
        await device.aclose()


@needs_loop
async def test_a_read_only_device_is_said_to_be_read_only(image: Path) -> None:
    with loop_device(image, read_only=True) as node:
        with pytest.raises(DeviceError, match="read-only"):
            open_lun_device(node, writable=True)
        with pytest.raises(LunError, match="read-only"):
            LunFile.open("ds1", node)
        device = open_lun_device(node, writable=False)

        assert await device.read(0, 512) == bytes(512)
        await device.aclose()


@needs_loop
async def test_sectors_that_do_not_fill_a_page_count(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * (MIB + 3 * 512 + 100))
    with loop_device(path) as node:
        device = open_lun_device(node, writable=True)

        assert device.size == MIB + 3 * 512
        await device.write(MIB + 2 * 512, b"y" * 512)
        assert await device.read(MIB, 3 * 512) == b"x" * 1024 + b"y" * 512
        await device.aclose()
