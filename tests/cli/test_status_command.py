"""`vmfs status` of mounts: what is said of one that does not serve as it should."""

import json
import os
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.support.commands import vmfs
from tests.support.volumes import VolumeLab, put, volume_lab
from vmfs.cli import status
from vmfs.errors import LeaseLost, VmfsError
from vmfs.fuse.mountinfo import MountEntry
from vmfs.fuse.registry import MountRecord, start_ticks, write_record

ENTRY = MountEntry(
    major=0,
    minor=77,
    mount_point="/mnt/a",
    filesystem_type="fuse.vmfs",
    source="/lun",
    options="rw",
)


def record(*, pid: int, failed: str = "") -> MountRecord:
    return MountRecord(
        pid=pid,
        started=start_ticks(os.getpid()) or 0,
        mount_point="/mnt/a",
        lun="/lun",
        label="ds1",
        host="esx-a",
        lockd="",
        slot=8,
        read_only=False,
        failed=failed,
    )


@pytest.fixture(autouse=True)
def one_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFS_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(status, "mounts_here", lambda: [ENTRY])


@pytest.mark.parametrize(
    ("written", "state", "said"),
    [
        (record(pid=os.getpid()), "serving", ""),
        (record(pid=os.getpid(), failed="no LUN"), "failed", "no LUN; nothing can be changed"),
        (record(pid=1), "dead", "process 1 is gone; vmfs umount takes away"),
        (None, "unknown", "was VMFS_RUNTIME_DIR another"),
    ],
)
def test_mount_that_does_not_serve_is_explained(
    written: MountRecord | None, state: str, said: str
) -> None:
    if written is not None:
        write_record(os.makedev(0, 77), written)

    heading, line, *rest = vmfs("status").stdout.splitlines()
    [told] = json.loads(vmfs("status", "--json").stdout)

    assert heading.split()[-1] == "STATE"
    assert line.split()[-1] == told["state"] == state
    assert said in told["explanation"]
    assert rest == ([f"/mnt/a: {state}: {told['explanation']}"] if said else [])


async def be_fenced(lab: VolumeLab) -> None:
    async with lab.host("a") as a:
        await put(a, b"f")
        lab.hosts[id(a)].refused = True
        lab.lockd.sessions.exit(lab.hosts[id(a)].process)
        assert isinstance(await a.until_failed(), LeaseLost)


async def test_volume_says_when_it_has_failed(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        with pytest.raises(VmfsError):
            await be_fenced(lab)
