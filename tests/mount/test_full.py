"""A full volume says ENOSPC, keeps what it has, and works again when there is room."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, datastore, run
from vmfs.units import MIB


@pytest.fixture
def ds(tmp_path) -> Iterator[Datastore]:
    with datastore(tmp_path, size="1G", mkfs=("--hosts", "2", "--files", "512")) as ds:
        yield ds


def fill(path: Path, *, direct: bool = False) -> int:
    """Write until there is no more room; the bytes that were taken."""
    written = 0
    flags = os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags, 0o644)
    try:
        while True:
            written += os.write(fd, b"\xbb" * MIB)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)
    return written


def make_files(directory: Path, *, count: int) -> None:
    for number in range(count):
        (directory / f"f{number}").touch()


def test_full_of_blocks_is_enospc_and_recovers_after_a_deletion(ds):
    top = ds.a.path
    (top / "kept").write_bytes(b"k" * (2 * MIB))
    (top / "thin").touch()
    os.truncate(top / "thin", 10 * MIB)

    written = fill(top / "fill")

    assert written > 100 * MIB
    assert os.statvfs(top).f_bavail == 0
    assert (top / "fill").stat().st_size >= written
    with (top / "thin").open("r+b", buffering=0) as file, pytest.raises(OSError) as caught:  # noqa: PT011
        file.write(b"x" * MIB)
    assert caught.value.errno == errno.ENOSPC
    assert (top / "kept").read_bytes() == b"k" * (2 * MIB)
    (top / "small").write_bytes(b"small files may still fit")
    run("sync", "-f", top)
    ds.check()

    (top / "fill").unlink()
    run("sync", "-f", top)
    with (top / "thin").open("r+b", buffering=0) as file:
        file.write(b"x" * MIB)
    assert fill(top / "again") > written - 20 * MIB
    (top / "again").unlink()
    assert (top / "thin").read_bytes()[: 2 * MIB] == b"x" * MIB + bytes(MIB)


def test_full_of_files_is_enospc_and_recovers_after_deletions(ds):
    top = ds.a.path
    with pytest.raises(OSError) as caught:  # noqa: PT011
        make_files(top, count=2000)
    made = len(list(top.iterdir()))

    assert caught.value.errno == errno.ENOSPC
    assert made > 400
    assert os.statvfs(top).f_ffree == 0
    (top / "f0").unlink()
    (top / "f1").unlink()
    run("sync", "-f", top)
    (top / "new").touch()
    (top / "f2").rename(top / "f3")


def test_room_is_kept_for_deleting_on_a_full_volume(ds):
    top = ds.a.path
    for number in range(10):
        (top / f"f{number}").write_bytes(b"x" * (3 * MIB))
    fill(top / "fill")

    for number in range(10):
        (top / f"f{number}").unlink()
    (top / "fill").unlink()
    run("sync", "-f", top)

    assert os.statvfs(top).f_bavail > 500
