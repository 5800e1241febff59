"""A LUN that lockd serves: nobody overwrites what it and its hosts rely on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.server.exclusive import hold
from tests.support.commands import vmfs
from vmfs.cli.served import require_idle
from vmfs.errors import DeviceError, LockBusy
from vmfs.units import MIB


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    made = vmfs("mkfs", path, "--size", "1G", "--label", "ds1", "--files", "400")
    assert made.exit_code == 0, made.output
    return path


@pytest.fixture
def served(lun: Path) -> Iterator[Path]:
    """The LUN, with the lock that lockd takes; this process stands for it."""
    with lun.open("rb+") as file:
        hold(file.fileno(), str(lun))
        yield lun


def head_of(lun: Path) -> bytes:
    with lun.open("rb") as file:
        return file.read(32 * MIB)


@pytest.mark.parametrize(
    "words",
    [("mkfs", "--label", "x"), ("mkfs", "--force", "--label", "x")],
    ids=["asked", "forced"],
)
def test_served_lun_is_not_formatted(served: Path, words: tuple[str, ...]) -> None:
    before = head_of(served)

    refused = vmfs(words[0], served, *words[1:])

    assert refused.exit_code == 1
    assert f"{served} is served by lockd (pid {os.getpid()})" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert head_of(served) == before


def test_lock_mode_of_a_served_lun_is_not_changed(served: Path) -> None:
    refused = vmfs("lockmode", "set", "reservation", served)

    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"vmfs lockmode set: {served} is served by lockd")
    assert vmfs("lockmode", "get", served).stdout == "ats\n"


def test_lun_is_free_again_when_lockd_has_ended(lun: Path) -> None:
    with lun.open("rb+") as file:
        hold(file.fileno(), str(lun))
        with pytest.raises(LockBusy):
            require_idle(lun)
    require_idle(lun)
    assert vmfs("lockmode", "set", "reservation", lun).exit_code == 0
    assert vmfs("check", lun).exit_code == 0


@pytest.mark.parametrize("mode", ["rb", "rb+"])
def test_lun_that_a_process_has_open_for_writing_is_not_formatted(lun: Path, mode: str) -> None:
    with (
        lun.open(mode) as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as other,
    ):
        done = vmfs("mkfs", lun, "--force", "--label", "x", "--files", "400")
        other.kill()

    assert done.exit_code == (0 if mode == "rb" else 1), done.output
    said = f"{lun} is open for writing in cat (pid {other.pid}): unmount it first"
    assert (said in done.stderr) == (mode == "rb+")


def test_lun_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open"):
        require_idle(tmp_path / "none")
