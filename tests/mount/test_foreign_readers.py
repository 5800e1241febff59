"""What a mount wrote, read by programs that know nothing of us: vmfs-tools, dissect.vmfs, blkid."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dissect.vmfs import VMFS, lvm
from dissect.vmfs.descriptor import FileDescriptor

from tests.support.mounts import datastore, force_unmount, run
from vmfs.units import GIB, MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("debugvmfs") is None, reason="needs Debian's vmfs-tools"),
]

NAME_COUNT = 3000
DOUBLE = "double-indirect.bin"
FSCK_TOTALS = (
    "Unallocated blocks",
    "Lost blocks",
    "Undefined inodes",
    "Orphaned inodes",
    "Directory errors",
)


def write_tree(top: Path) -> None:
    """One file of every kind that the format knows, and a directory of many names."""
    noise = os.urandom(3 * MIB)
    (top / "empty.bin").write_bytes(b"")
    (top / "resident.bin").write_bytes(noise[:900])
    (top / "sub-block.bin").write_bytes(noise[:7000])
    (top / "blocks.bin").write_bytes(noise)
    with (top / "sparse.bin").open("wb") as file:
        for at in (0, 5 * MIB + 17, 299 * MIB):
            file.seek(at)
            file.write(noise[: MIB // 2])
        file.truncate(300 * MIB)
    (top / "link").symlink_to("dir/name-0042")
    (top / "long-link").symlink_to("x" * 1500)
    (top / "dir" / "below" / "it").mkdir(parents=True)
    (top / "dir" / "below" / "it" / "deep.bin").write_bytes(noise[:20_000])
    for number in range(NAME_COUNT):
        (top / "dir" / f"name-{number:04}").touch()
    for number in range(0, NAME_COUNT, 3):
        (top / "dir" / f"name-{number:04}").unlink()
    for number in range(0, NAME_COUNT, 3):
        (top / "dir" / f"name-{number:04}").write_bytes(b"again")


def write_double(top: Path) -> None:
    """A file that reaches past 256 GiB: PB2 -> PB -> FB. vmfs-tools cannot read those."""
    with (top / DOUBLE).open("wb") as file:
        for at in (0, 256 * GIB - 100, 700 * GIB):
            file.seek(at)
            file.write(b"here I am" * 50)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(top: Path) -> dict[str, str]:
    """Path -> sha256 of every regular file, `-> target` of every link; system files apart."""
    found = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and not name.endswith(".sf") and name != DOUBLE:
            found[name] = sha256(path)
    return found


def fsck_totals(lun: Path) -> dict[str, int]:
    printed = run("fsck.vmfs", lun)
    return {name: int(re.search(rf"{name}\s*:\s*(\d+)", printed)[1]) for name in FSCK_TOTALS}


def dissect_hashes(directory: FileDescriptor, prefix: str = "") -> dict[str, str]:
    """The same as `hashes`, by one walk: dissect looks a path up by reading whole directories."""
    found = {}
    for entry in directory.iterdir():
        node, name = entry.file_descriptor, prefix + entry.name
        if entry.name in (".", "..") or node.is_system() or name == DOUBLE:
            continue
        if node.is_dir():
            found |= dissect_hashes(node, f"{name}/")
        elif node.is_symlink():
            found[name] = f"-> {node.link}"
        else:
            found[name] = hashlib.sha256(node.open().read()).hexdigest()
    return found


@pytest.fixture(scope="module", params=["resident", "no-resident"])
def written(request, tmp_path_factory):
    """An unmounted volume with the tree on it, and what our own mount says is there."""
    directory = tmp_path_factory.mktemp(request.param)
    arguments = ("--no-resident",) if request.param == "no-resident" else ()
    with datastore(directory, size="4G", mkfs=arguments) as ds:
        write_tree(ds.a.path)
        if request.param == "resident":
            write_double(ds.a.path)
        expected = hashes(ds.a.path)
        ds.stop()
        yield request.param, ds.lun, expected


def test_vmfs_fuse_reads_the_same(written, tmp_path):
    _, lun, expected = written
    top = tmp_path / "foreign"
    top.mkdir()
    subprocess.run(["vmfs-fuse", lun, top], check=True, timeout=60)
    try:
        assert hashes(top) == expected
    finally:
        force_unmount(top)


def test_debugvmfs_reads_the_same_and_finds_no_bitmap_error(written):
    _, lun, expected = written
    for name in ("resident.bin", "sub-block.bin", "blocks.bin", "sparse.bin"):
        data = subprocess.run(
            ["debugvmfs", lun, "cat", f"/{name}"], capture_output=True, check=True, timeout=120
        ).stdout
        assert hashlib.sha256(data).hexdigest() == expected[name], name
    assert "Total errors: 0" in run("debugvmfs", lun, "check_vol_bitmaps")
    assert len(run("debugvmfs", lun, "ls", "/dir").split()) >= NAME_COUNT


def test_fsck_vmfs_finds_nothing_when_no_file_is_resident(written):
    kind, lun, _ = written
    totals = fsck_totals(lun)

    if kind == "no-resident":
        assert totals == dict.fromkeys(FSCK_TOTALS, 0)
    else:  # it takes the first bytes of a resident file for a block or inode address
        assert totals["Undefined inodes"] == totals["Directory errors"] == 0


def test_dissect_reads_the_same_double_indirect_too(written):
    kind, lun, expected = written
    with lun.open("rb") as file:
        volume = VMFS(lvm.LVM([file]).volumes[0].open())
        assert dissect_hashes(volume.get("/")) == expected
        if kind == "resident":
            entry = volume.get(f"/{DOUBLE}")
            assert entry.size == 700 * GIB + 450
            for at in (0, 256 * GIB - 100, 700 * GIB):
                stream = entry.open()
                stream.seek(at)
                assert stream.read(450) == b"here I am" * 50
            stream.seek(300 * GIB)
            assert stream.read(MIB) == bytes(MIB)


def test_blkid_knows_what_it_is(written):
    _, lun, _ = written
    assert 'TYPE="VMFS_volume_member"' in run("blkid", "-p", lun)
