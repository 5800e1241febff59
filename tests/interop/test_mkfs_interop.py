"""What vmfs mkfs makes, as Debian's vmfs-tools, blkid and dissect.vmfs see it."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from click.testing import CliRunner, Result
from dissect.util.stream import RangeStream
from dissect.vmfs import lvm as dissect_lvm
from dissect.vmfs import vmfs as dissect_vmfs

from tests.support.loop import can_loop, loop_device
from vmfs.cli.main import cli
from vmfs.ondisk.partition import HEAD_SIZE, find_volume
from vmfs.units import GIB, MIB, parse_size

pytestmark = pytest.mark.slow

SYSTEM_FILES = {
    ".fbb.sf",
    ".fdc.sf",
    ".pbc.sf",
    ".sbc.sf",
    ".vh.sf",
    ".pb2.sf",
    ".sdd.sf",
    ".vlj.sf",
}
FSCK_TOTALS = (
    "Unallocated blocks",
    "Lost blocks",
    "Undefined inodes",
    "Orphaned inodes",
    "Directory errors",
)


def tool(*words: str | Path, check: bool = True) -> str:
    """Run a program of the system; the test is skipped where it is not installed."""
    program = shutil.which(str(words[0]), path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    result = subprocess.run(
        [program, *map(str, words[1:])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def make(path: Path, size: str, *words: str) -> Path:
    arguments = ["mkfs", str(path), "--size", size, "--label", "ds1", *words]
    result = CliRunner().invoke(cli, arguments, prog_name="vmfs")
    assert result.exit_code == 0, result.output
    return path


def require_clean(image: Path) -> None:
    """All checks of vmfs-tools, without a single complaint."""
    assert "Total errors: 0" in tool("debugvmfs", image, "check_vol_bitmaps")
    report = tool("fsck.vmfs", image)
    totals = {name: re.search(rf"{name} *: (\d+)", report) for name in FSCK_TOTALS}
    assert {name: found and found[1] for name, found in totals.items()} == dict.fromkeys(
        FSCK_TOTALS, "0"
    )


@contextlib.contextmanager
def volume_on(image: Path) -> Iterator[BinaryIO]:
    """The partition on an image, or all of it, as a file object."""
    with image.open("rb") as file:
        size = image.stat().st_size
        location = find_volume(file.read(HEAD_SIZE), lun_size=size)
        yield file if location is None else RangeStream(file, location.offset, location.size)


def require_dissect_reads(image: Path, *, blocks: int) -> None:
    with volume_on(image) as file:
        volume = dissect_lvm.LVM([file]).volumes[0]
        assert volume.is_valid()
        assert volume.size == blocks * MIB
        assert len(volume.dataruns()) == 1  # one flat range, also where extent maps are chained
        filesystem = dissect_vmfs.VMFS(volume.open())
        assert filesystem.label == "ds1"
        names = {entry.name for entry in filesystem.get("/").iterdir()}
        assert names == SYSTEM_FILES | {".", ".."}
        assert filesystem.get("/.vh.sf").open().read(MIB) == bytes(MIB)


@pytest.mark.parametrize("words", [(), ("--no-resident", "--lock-mode", "reservation")])
def test_bare_gib_is_clean_for_all_readers(tmp_path: Path, words: tuple[str, ...]) -> None:
    image = make(tmp_path / "lun.img", "1G", *words)

    require_clean(image)
    require_dissect_reads(image, blocks=768)
    assert "Total blocks     : 768" in tool("debugvmfs", image, "df")
    shown = tool("debugvmfs", image, "show")
    assert "Label: ds1" in shown
    assert "Version: 14" in shown
    names = tool("debugvmfs", image, "ls", "/").split()
    assert set(names) >= SYSTEM_FILES
    assert not tool("debugvmfs", image, "show_heartbeats").strip()


def test_blkid_knows_a_bare_volume(tmp_path: Path) -> None:
    image = make(tmp_path / "lun.img", "1G")

    found = tool("blkid", "-p", "-o", "export", image)

    assert "TYPE=VMFS_volume_member" in found
    assert "VERSION=5" in found


def test_volume_in_an_mbr_partition_is_clean(tmp_path: Path) -> None:
    """vmfs-tools finds MBR partitions of type 0xFB by itself."""
    image = make(tmp_path / "lun.img", "1G", "--partition", "mbr")

    require_clean(image)
    require_dissect_reads(image, blocks=768)
    assert "PTTYPE=dos" in tool("blkid", "-p", "-o", "export", image)


def test_volume_in_a_gpt_partition_is_clean(tmp_path: Path) -> None:
    """vmfs-tools knows no GPT: it gets the partition cut out."""
    image = make(tmp_path / "lun.img", "1G", "--partition", "gpt")
    require_dissect_reads(image, blocks=768)
    assert "PTTYPE=gpt" in tool("blkid", "-p", "-o", "export", image)

    with image.open("rb") as file:
        location = find_volume(file.read(HEAD_SIZE), lun_size=GIB)
    assert location is not None
    slice_path = tmp_path / "partition.img"
    tool("dd", f"if={image}", f"of={slice_path}", "bs=1M", "skip=1", "conv=sparse", "status=none")
    require_clean(slice_path)


def test_many_hosts_and_few_files_are_clean(tmp_path: Path) -> None:
    require_clean(make(tmp_path / "lun.img", "2G", "--hosts", "256", "--files", "200"))


def test_hundred_gib_stay_sparse_and_clean(tmp_path: Path) -> None:
    image = make(tmp_path / "lun.img", "100G")

    assert image.stat().st_size == 100 * GIB
    assert image.stat().st_blocks * 512 < 64 * MIB
    require_clean(image)
    require_dissect_reads(image, blocks=102144)


@pytest.mark.parametrize(
    ("size", "blocks"), [("5T", 5242624), ("20T", 20971264), ("50T", 52428544), ("64T", 67108608)]
)
def test_volume_of_many_tib_is_clean(size: str, blocks: int, huge_files: Path) -> None:
    """From 16 TiB on extent maps are chained; from 50 TiB on clusters hold more than 200 blocks."""
    image = make(huge_files / "lun.img", size)

    assert image.stat().st_blocks * 512 < GIB
    require_clean(image)
    require_dissect_reads(image, blocks=blocks)
    assert f"Total blocks     : {blocks}" in tool("debugvmfs", image, "df")


@pytest.fixture
def huge_files() -> Iterator[Path]:
    """A directory on tmpfs: ext4 ends at files of 16 TiB."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2 * GIB:
        pytest.skip("no tmpfs with 2 GiB free at /dev/shm")
    directory = memory / f"vmfs-interop-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.mark.mount
def test_vmfs_fuse_mounts_it(tmp_path: Path) -> None:
    image, target = make(tmp_path / "lun.img", "1G"), tmp_path / "mnt"
    target.mkdir()
    tool("vmfs-fuse", image, target)
    try:
        deadline = time.monotonic() + 10
        while not os.path.ismount(target) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {entry.name for entry in target.iterdir()} == SYSTEM_FILES
        assert (target / ".vlj.sf").stat().st_size == 16 * MIB
        with (target / ".vlj.sf").open("rb") as journals:
            assert journals.read(MIB) == bytes(MIB)
    finally:
        tool("umount", target, check=False)
        tool("umount", "-l", target, check=False)


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 2 GiB; the test is skipped where there is none to be had."""
    image = tmp_path / "backing.img"
    with image.open("wb") as file:
        file.truncate(2 * GIB)
    if not can_loop():
        pytest.skip("no loop device to be had")
    with loop_device(image) as node:
        yield node


@pytest.mark.mount
def test_block_device_becomes_a_datastore_with_its_own_size(block_device: Path) -> None:
    def mkfs(*words: str) -> Result:
        arguments = ["mkfs", str(block_device), "--label", "ds1", *words]
        return CliRunner().invoke(cli, arguments, prog_name="vmfs")

    assert "leave --size out" in mkfs("--size", "1G").stderr
    assert mkfs().exit_code == 0
    require_clean(block_device)
    assert "VMFS_volume_member" in mkfs().stderr
    assert mkfs("--force", "--partition", "gpt").exit_code == 0


@pytest.mark.mount
def test_mounted_block_device_is_refused_even_with_force(
    block_device: Path, tmp_path: Path
) -> None:
    tool("mkfs.ext4", "-q", "-F", block_device)
    target = tmp_path / "ext4"
    target.mkdir()
    tool("mount", block_device, target)
    try:
        arguments = ["mkfs", str(block_device), "--label", "ds1", "--force"]
        result = CliRunner().invoke(cli, arguments, prog_name="vmfs")
    finally:
        tool("umount", target)

    assert result.exit_code == 1
    assert "in use by this machine" in result.stderr


@pytest.mark.mount
def test_read_only_block_device_is_refused_and_said_to_be(block_device: Path) -> None:
    tool("blockdev", "--setro", block_device)
    arguments = ["mkfs", str(block_device), "--label", "ds1"]
    result = CliRunner().invoke(cli, arguments, prog_name="vmfs")

    assert result.exit_code == 1
    assert f"{block_device} is read-only" in result.stderr


def test_making_a_volume_is_quick_and_writes_little(
    tmp_path: Path, huge_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures for the record, with bounds that only a broken bulk writer would pass."""
    for directory, size in ((tmp_path, "1G"), (tmp_path, "100G"), (huge_files, "64T")):
        started = time.monotonic()
        image = make(directory / f"{size}.img", size)
        seconds = time.monotonic() - started
        allocated = image.stat().st_blocks * 512
        image.unlink()
        with capsys.disabled():
            print(f"\nmkfs {size}: {seconds:.2f} s, {allocated / MIB:.0f} MiB allocated")
        assert seconds < 30
        assert allocated < min(parse_size(size) // 20, GIB)
