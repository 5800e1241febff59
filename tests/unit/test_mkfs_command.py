"""`vmfs mkfs` as typed: what it says, what it refuses, and how it ends."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.commands import vmfs
from vmfs.cli.common import only_vmfs_error, run
from vmfs.errors import NoSpace, NotFound, VmfsError
from vmfs.units import GIB, MIB


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    return tmp_path / "lun.img"


def make(lun: Path, *words: str) -> Result:
    return vmfs("mkfs", lun, "--label", "ds1", "--files", "400", *words)


def head_of(lun: Path) -> bytes:
    with lun.open("rb") as file:
        return file.read(32 * MIB)


def test_new_file_becomes_a_sparse_datastore(lun: Path) -> None:
    result = make(lun, "--size", "1G")

    assert result.exit_code == 0, result.output
    assert lun.stat().st_size == GIB
    assert lun.stat().st_blocks * 512 < 4 * MIB
    assert lun.stat().st_mode & 0o077 == 0
    assert "ds1" in result.stdout
    assert "768 blocks of 1 MiB" in result.stdout
    assert "400 files, 16 hosts" in result.stdout
    assert f"vmfs mount {lun} /mnt/ds1" in result.stdout
    assert result.stderr == ""


def test_existing_datastore_is_kept_without_force(lun: Path) -> None:
    make(lun, "--size", "1G")
    before = head_of(lun)

    result = make(lun)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"vmfs mkfs: {lun} is not empty")
    assert len(result.stderr.splitlines()) == 1
    assert "--force" in result.stderr
    assert head_of(lun) == before


def test_existing_datastore_is_replaced_with_force(lun: Path) -> None:
    make(lun, "--size", "1G")

    result = make(lun, "--force", "--partition", "mbr", "--lock-mode", "reservation")

    assert result.exit_code == 0, result.output
    assert "in a mbr partition" in result.stdout
    assert "reservation" in result.stdout


@pytest.mark.parametrize("label", ["", "two\nlines", "\x1b[31m"])
def test_label_that_cannot_be_shown_is_refused(lun: Path, label: str) -> None:
    result = vmfs("mkfs", lun, "--label", label, "--size", "1G")

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not lun.exists()


def test_negative_size_is_called_that(lun: Path) -> None:
    result = make(lun, "--size", "-1G")

    assert result.exit_code == 2
    assert "'-1G' is less than nothing" in result.stderr
    assert not lun.exists()


def test_existing_empty_file_needs_no_size(lun: Path) -> None:
    with lun.open("wb") as file:
        file.truncate(GIB)

    assert make(lun).exit_code == 0


@pytest.mark.parametrize(
    "words", [("--size", "1M"), ("--size", "65T"), (), ("--size", "1073741825")]
)
def test_size_that_cannot_be_leaves_nothing_behind(lun: Path, words: tuple[str, ...]) -> None:
    result = make(lun, *words)

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not lun.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "much"),
        ("--partition", "apm"),
        ("--lock-mode", "none"),
        ("--uuid", "1234"),
        ("--wat",),
    ],
)
def test_usage_errors_end_with_2(lun: Path, words: tuple[str, ...]) -> None:
    result = make(lun, "--size", "1G", *words)

    assert result.exit_code == 2
    assert not lun.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hosts", "0"), "--hosts 0"),
        (("--hosts", "257"), "--hosts 257"),
        (("--files", "7"), "--files 7"),
    ],
)
def test_limits_out_of_range_are_refused(lun: Path, words: tuple[str, ...], message: str) -> None:
    result = make(lun, "--size", "1G", *words)

    assert result.exit_code == 1
    assert message in result.stderr
    assert not lun.exists()


def test_label_too_long_is_refused(lun: Path) -> None:
    result = vmfs("mkfs", lun, "--size", "1G", "--label", "x" * 128)

    assert result.exit_code == 1
    assert "label" in result.stderr


def test_file_is_not_cut_short_without_force(lun: Path) -> None:
    with lun.open("wb") as file:
        file.truncate(2 * GIB)

    refused = make(lun, "--size", "1G")
    forced = make(lun, "--size", "1G", "--force")

    assert refused.exit_code == 1
    assert "cuts it short" in refused.stderr
    assert forced.exit_code == 0
    assert lun.stat().st_size == GIB


def test_directory_is_no_lun(tmp_path: Path) -> None:
    result = make(tmp_path)

    assert result.exit_code == 1
    assert "neither a file nor a block device" in result.stderr


def test_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    result = make(tmp_path / "nowhere" / "lun.img", "--size", "1G")

    assert result.exit_code == 1
    assert "cannot create" in result.stderr


def test_file_that_the_filesystem_cannot_hold_is_not_left_behind(
    lun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(fd: int, size: int) -> None:
        raise OSError(27, os.strerror(27))

    monkeypatch.setattr("vmfs.cli.mkfs.os.ftruncate", too_large)

    result = make(lun, "--size", "64T")

    assert result.exit_code == 1
    assert "16 TiB" in result.stderr
    assert not lun.exists()


def test_other_filesystem_is_named(lun: Path) -> None:
    with lun.open("wb") as file:
        file.truncate(GIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(lun)], check=True)

    result = make(lun)

    assert result.exit_code == 1
    assert "ext4" in result.stderr


def test_same_uuid_makes_the_same_image(tmp_path: Path) -> None:
    uuid = "68626efc-a12e1868-ef2e-b4bc2411b17e"
    images = [tmp_path / "a", tmp_path / "b"]
    for image in images:
        assert make(image, "--size", "1G", "--uuid", uuid).exit_code == 0

    assert head_of(images[0]) == head_of(images[1])


def test_completion_is_printed_for_every_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        result = vmfs("completion", shell)
        assert result.exit_code == 0
        assert "_VMFS_COMPLETE" in result.stdout


def test_help_lists_the_commands() -> None:
    result = vmfs("--help")

    assert result.exit_code == 0
    assert "mkfs" in result.stdout


def test_run_returns_what_the_function_returns() -> None:
    async def answer(value: int, *, more: int) -> int:
        return value + more

    assert run(answer, 40, more=2) == 42


def test_only_vmfs_error_sees_through_nurseries_but_hides_no_bug() -> None:
    lost, full = NotFound("a"), NoSpace("b")

    assert only_vmfs_error(ExceptionGroup("", [ExceptionGroup("", [lost]), full])) is lost
    assert only_vmfs_error(ExceptionGroup("", [lost, ValueError("bug")])) is None
    assert only_vmfs_error(ExceptionGroup("", [ExceptionGroup("", [ValueError("bug")])])) is None
    assert issubclass(NotFound, VmfsError)


def test_error_inside_a_nursery_is_one_line_too(lun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ExceptionGroup("nursery", [NoSpace("the LUN is full")])

    monkeypatch.setattr("vmfs.cli.mkfs.make_volume", fail)

    result = make(lun, "--size", "1G")

    assert result.exit_code == 1
    assert result.stderr == "vmfs mkfs: the LUN is full\n"
    assert not lun.exists()


def test_bug_is_not_hidden_and_leaves_no_file(lun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ExceptionGroup("nursery", [ValueError("a bug")])

    monkeypatch.setattr("vmfs.cli.mkfs.make_volume", fail)

    result = make(lun, "--size", "1G")

    assert isinstance(result.exception, ExceptionGroup)
    assert not lun.exists()


@pytest.mark.parametrize("answer", ["nothing", "hangs"])
def test_blkid_that_does_not_help_is_no_obstacle(
    lun: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def run_blkid(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("blkid", 30)

    with lun.open("wb") as file:
        file.truncate(GIB)
    if answer == "hangs":
        monkeypatch.setattr("vmfs.cli.mkfs.subprocess.run", run_blkid)
    else:
        monkeypatch.setattr("vmfs.cli.mkfs.shutil.which", lambda *_, **__: None)

    assert make(lun).exit_code == 0
