"""`vmfs check`: text, JSON and the statuses of fsck(8)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support.commands import vmfs
from tests.support.handmade import HandMade, build_handmade, save
from vmfs.units import MIB


@pytest.fixture
def volume() -> HandMade:
    return trio.run(build_handmade)


@pytest.fixture
def lun(volume: HandMade, tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    trio.run(save, volume.lun, path)
    return path


def test_clean_volume_ends_with_0_and_one_line(lun: Path) -> None:
    result = vmfs("check", lun)

    assert result.exit_code == 0
    assert result.stdout == (
        f"{lun}: clean; 14 files, 4 directories, 28 of 256 file blocks in use (28 MiB)\n"
    )
    assert vmfs("check", "--quiet", lun).stdout == ""


def test_damaged_volume_ends_with_4_and_names_the_place(volume: HandMade, tmp_path: Path) -> None:
    trio.run(lambda: volume.rewrite("/dir/one", link_count=3))
    trio.run(save, volume.lun, tmp_path / "lun.img")

    result = vmfs("check", tmp_path / "lun.img")

    assert result.exit_code == 4
    address = volume.made["/dir/one"].address
    assert (
        f"error   link-count: link count is 3, expected 1  (FD {address:#x}, /dir/one)"
        in result.stdout
    )
    assert "1 errors, 0 warnings" in result.stdout


def test_json_is_complete(volume: HandMade, tmp_path: Path) -> None:
    trio.run(lambda: volume.rewrite("/dir/one", link_count=3))
    trio.run(save, volume.lun, tmp_path / "lun.img")

    result = vmfs("check", "--json", tmp_path / "lun.img")
    report = json.loads(result.stdout)

    assert result.exit_code == 4
    assert report["clean"] is False
    assert report["counts"] == {"link-count": 1}
    (finding,) = report["findings"]
    assert finding["code"] == "link-count"
    assert finding["severity"] == "error"
    assert finding["path"] == "/dir/one"


def test_what_cannot_be_checked_ends_with_8(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(32 * MIB))

    for name in ("missing", "noise"):
        result = vmfs("check", tmp_path / name)
        assert result.exit_code == 8
        assert result.stderr.startswith("vmfs check: ")


@pytest.mark.parametrize("args", [[], ["--nonsense", "x"], ["a", "b"]])
def test_usage_errors_end_with_16(args: list[str]) -> None:
    assert vmfs("check", *args).exit_code == 16


def test_help_says_the_statuses() -> None:
    result = vmfs("check", "--help")

    assert result.exit_code == 0
    assert "4 errors left uncorrected" in result.stdout


@pytest.mark.slow
def test_memory_stays_bounded_under_ulimit(lun: Path) -> None:
    code = (
        "import resource, sys; from vmfs.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        "sys.argv[0] = 'vmfs'; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "check", str(lun)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
