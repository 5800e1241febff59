"""A LUN that is a block device: past the page cache, on two hosts and in lockd."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.support.loop import needs_loop
from tests.support.mounts import datastore, run, run_vmfs
from vmfs.units import KIB, MIB

pytestmark = [pytest.mark.slow, needs_loop]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_two_hosts_share_a_block_device_and_one_is_killed(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(48 * MIB + 4321))
    with datastore(tmp_path, hosts=("a", "b"), block=True) as ds:
        assert ds.lun.is_block_device()
        run("cp", source, ds.a.path / "copy")
        (ds.a.path / "small").mkdir()
        for number in range(50):
            (ds.a.path / "small" / f"{number}").write_bytes(b"%d" % number * 300)

        assert digest(ds.b.path / "copy") == digest(source)
        with (ds.b.path / "copy").open("r+b") as file:  # the other host changes what is not whole
            file.seek(5 * MIB + 777)
            file.write(b"changed" * KIB)
            os.fsync(file.fileno())
        expected = bytearray(source.read_bytes())
        expected[5 * MIB + 777 : 5 * MIB + 777 + 7 * KIB] = b"changed" * KIB
        assert (ds.a.path / "copy").read_bytes() == expected
        for number in range(0, 50, 2):
            (ds.b.path / "small" / f"{number}").unlink()
        assert sorted(int(name.name) for name in (ds.a.path / "small").iterdir()) == list(
            range(1, 50, 2)
        )

        listed = run_vmfs("ls", f"{ds.lun}:/")
        assert listed.returncode == 0, listed.stderr
        assert "copy" in listed.stdout
        with (ds.a.path / "kept").open("wb") as file:
            file.write(b"kept" * MIB)
            os.fsync(file.fileno())

        ds.a.kill()

        assert (ds.b.path / "kept").read_bytes() == b"kept" * MIB
        (ds.b.path / "copy").unlink()
