"""A damaged volume under a mount: clear errors, and the mount goes on answering."""

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.support.mounts import (
    BIN,
    Process,
    ProcessFailed,
    datastore,
    force_unmount,
    run,
    watchdog,
)
from vmfs.check import content
from vmfs.check.findings import Findings
from vmfs.check.opening import OpenVolume, open_lun
from vmfs.check.reader import ResourceKind
from vmfs.device.image import ImageDevice
from vmfs.device.locate import find_lv
from vmfs.ondisk.file_desc import META_OFFSET
from vmfs.units import MIB

pytestmark = pytest.mark.slow

HONEST = {
    errno.EUCLEAN, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EISDIR,
    errno.EINVAL, errno.EBUSY, errno.ELOOP, errno.EPERM, errno.ENAMETOOLONG, errno.EFBIG,
    errno.ENOSPC, errno.EROFS,
}  # fmt: skip

Place = tuple[int, int]
"""LV offset and length of what is damaged."""


async def _file(volume: OpenVolume, path: bytes) -> Place:
    node = await content.resolve(volume.reader, path, follow=False)
    return node.lv_offset + META_OFFSET, 512


async def _block_list(volume: OpenVolume, path: bytes) -> Place:
    node = await content.resolve(volume.reader, path, follow=False)
    return node.lv_offset + 1024, 64


async def _entries(volume: OpenVolume) -> Place:
    node = await content.resolve(volume.reader, b"/many", follow=False)
    block = int(node.pointers[0])
    if block & 7 == 1:
        return (block >> 6) * MIB, 4096
    return volume.reader.sub_block_ranges(block, 4096)[0]


async def _pointer_block(volume: OpenVolume) -> Place:
    node = await content.resolve(volume.reader, b"/large", follow=False)
    place, _ = await volume.reader.index_block(int(node.pointers[0]))
    return place, 4096


async def _cluster(volume: OpenVolume, kind: ResourceKind) -> Place:
    return volume.reader.resources[kind].cluster_lv_offset(0) + 512, 512


PLACES: dict[str, Callable[[OpenVolume], object]] = {
    "root": lambda volume: _file(volume, b"/"),
    "root-block-list": lambda volume: _block_list(volume, b"/"),
    "directory": lambda volume: _file(volume, b"/many"),
    "directory-entries": _entries,
    "file": lambda volume: _file(volume, b"/plain"),
    "file-block-list": lambda volume: _block_list(volume, b"/plain"),
    "resident-file": lambda volume: _file(volume, b"/tiny"),
    "symlink": lambda volume: _file(volume, b"/link"),
    "pointer-block": _pointer_block,
    "descriptor-bitmap": lambda volume: _cluster(volume, ResourceKind.FDC),
    "block-bitmap": lambda volume: _cluster(volume, ResourceKind.FBB),
    "sub-block-bitmap": lambda volume: _cluster(volume, ResourceKind.SBC),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Path]:
    """A volume with one of everything."""
    directory = tmp_path_factory.mktemp("corrupt")
    with datastore(directory, size="1G", mkfs=("--hosts", "4", "--files", "1024")) as ds:
        top = ds.a.path
        (top / "tiny").write_bytes(b"tiny")
        (top / "plain").write_bytes(b"p" * (3 * MIB))
        (top / "link").symlink_to("plain")
        (top / "many").mkdir()
        for number in range(60):
            (top / "many" / f"name-{number}").write_bytes(b"x" * number * 100)
        with (top / "large").open("wb") as file:
            file.seek(300 * MIB)
            file.write(b"end" * 1000)
        ds.stop()
        kept = directory / "kept.img"
        run("cp", "--sparse=always", ds.lun, kept)
    yield kept
    kept.unlink()


async def _damage(image: Path, name: str, seed: int) -> None:
    """Overwrite some bytes of one structure: all of it, a few bytes, or with ones."""
    device = ImageDevice.open(image, writable=True)
    try:
        volume = await open_lun(device, Findings())
        window = await find_lv(device)
        place, length = await PLACES[name](volume)  # type: ignore[misc]
        rng = random.Random(f"{name} {seed}")
        if seed == 0:
            await window.write(place, rng.randbytes(length))
            return
        if seed == 1:
            await window.write(place, b"\xff" * length)
            return
        data = bytearray(await window.read(place, length))
        for _ in range(8):
            data[rng.randrange(min(length, 160))] = rng.randrange(256)
        await window.write(place, bytes(data))
    finally:
        await device.aclose()


def attempt(action: Callable[[], object], met: list[int]) -> None:
    try:
        action()
    except OSError as error:
        met.append(error.errno or 0)


def walk(top: Path) -> list[int]:
    """Look at everything that can be reached; the errors that this met."""
    met: list[int] = []

    def first_bytes(path: Path) -> None:
        with path.open("rb") as file:
            file.read(2 * MIB)
            file.seek(299 * MIB)
            file.read(2 * MIB)

    todo = [top]
    for path in todo:
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            met.append(error.errno or 0)
            continue
        if stat.S_ISLNK(mode):
            attempt(path.readlink, met)
        elif stat.S_ISDIR(mode):
            attempt(lambda path=path: todo.extend(path.iterdir()), met)
        else:
            attempt(lambda path=path: first_bytes(path), met)
        if len(todo) > 500:
            break  # damaged directories can hold each other
    return met


def change(top: Path) -> None:
    """Try to change everything; whatever is refused is refused honestly."""
    met: list[int] = []
    for action in (
        lambda: (top / "new").write_bytes(b"n" * (2 * MIB)),
        lambda: (top / "many" / "new").write_bytes(b"n"),
        lambda: (top / "many" / "name-1").unlink(),
        lambda: (top / "plain").unlink(),
        lambda: os.truncate(top / "large", 100),
        lambda: (top / "tiny").rename(top / "many" / "tiny"),
        lambda: run("sync", "-f", top),
    ):
        with suppress(AssertionError):  # sync(1) was refused
            attempt(action, met)
    assert set(met) <= HONEST, [os.strerror(number) for number in met]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PLACES)
def test_damaged_volume_is_read_without_harm(image, tmp_path, name, seed):
    lun, top = tmp_path / "lun.img", tmp_path / "mnt"
    top.mkdir()
    run("cp", "--sparse=always", image, lun)
    trio.run(_damage, lun, name, seed)
    process = Process([BIN / "vmfs", "mount", lun, top, "-o", "ro"], address_space=1 << 30)
    try:
        with watchdog(lambda: (force_unmount(top), process.kill()), seconds=60):
            if _refused_to_mount(process):
                return
            met = walk(top)
            assert set(met) <= HONEST, [os.strerror(number) for number in met]
            assert os.statvfs(top).f_namemax == 127
            process.stop()
        assert not any("Traceback" in line for line in process.said), process.said
    finally:
        force_unmount(top)
        process.kill()
        lun.unlink()


def _refused_to_mount(process: Process) -> bool:
    """Whether the volume was not even opened, with one clear line and status 1."""
    try:
        process.wait_for("vmfs: ready:")
    except ProcessFailed:
        assert process.wait() == 1
        assert any("corrupt" in line for line in process.said), process.said
        assert not any("Traceback" in line for line in process.said), process.said
        return True
    return False


@pytest.mark.parametrize("name", PLACES)
def test_damaged_volume_is_written_without_harm_to_the_mount(image, tmp_path, name):
    with datastore(tmp_path, hosts=(), size="1G", check=False) as ds:
        shutil.copyfile(image, ds.lun)  # the same inode: lockd has it open
        trio.run(_damage, ds.lun, name, 2)
        try:
            mount = ds.mount("a")
        except ProcessFailed as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert "corrupt" in said
            assert "Traceback" not in said
            return
        walk(mount.path)
        change(mount.path)
        assert set(walk(mount.path)) <= HONEST
        assert os.statvfs(mount.path).f_namemax == 127
        assert mount.process.is_running
        assert not any("Traceback" in line for line in mount.process.said), mount.process.said
        mount.process.send(15)
        mount.process.wait()
