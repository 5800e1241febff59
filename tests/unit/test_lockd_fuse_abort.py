"""The end of a process that SIGKILL does not end: it waits in the kernel for its own FUSE mount."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lockd.client import Event, FenceResult, connect
from lockd.server.fuse_abort import abort_connections, connection_numbers, mount_points
from tests.support.lockd import identity, lockd_process

REPOSITORY = Path(__file__).parents[2]
MOUNTINFO = (
    "36 25 0:52 / /mnt/with\\040blank rw,nosuid shared:1 - fuse.vmfs /srv/lun.img rw,user_id=0",
    "37 25 0:53 / /mnt/plain rw - fuse /dev/fuse rw",
    "38 25 0:54 / /proc rw - proc proc rw",
    "39 25 8:52 / / rw - ext4 /dev/sda rw",
)


def ignore(_: Event) -> None:
    pass


@contextlib.contextmanager
def deadlocked_host(socket: Path, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A host in D state, and what hangs with it; the mount is ended by force whatever happens."""
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.deadlocked_host", socket, "esx1", directory],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    reader: subprocess.Popen[bytes] | None = None
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {process.pid}\n"
        reader = subprocess.Popen(["cat", directory / "file"], stderr=subprocess.DEVNULL)
        wait_for_state(process.pid, "D")
        yield process
    finally:
        for _ in range(2):  # the first aborts it, and may find it busy
            subprocess.run(
                ["umount", "-i", "-f", directory],
                stderr=subprocess.DEVNULL,
                timeout=10,
                check=False,
            )
        for child in (process, reader):
            if child is not None:
                child.kill()
                child.wait(10)
        if process.stdout is not None:
            process.stdout.close()
        subprocess.run(
            ["umount", "-i", "-l", directory], stderr=subprocess.DEVNULL, timeout=10, check=False
        )


def wait_for_state(pid: int, state: str) -> None:
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.mount
@pytest.mark.timeout(60)
async def test_a_host_that_waits_for_its_own_mount_is_fenced(tmp_path: Path) -> None:
    lun = tmp_path / "lun.img"
    lun.write_bytes(bytes(1 << 20))
    with (
        lockd_process({"ds1": lun}) as lockd,
        deadlocked_host(lockd.socket, tmp_path / "mnt") as host,
    ):
        os.kill(host.pid, signal.SIGKILL)
        await trio.sleep(0.1)
        assert host.poll() is None  # SIGKILL alone does not end it

        async with connect(lockd.socket, identity("tester"), "ds1", ignore) as client:
            answer = await client.fence(identity("esx1").host_uuid)

        assert answer.result is FenceResult.FENCED
        assert answer.proof == f"the exit of pid {host.pid} was seen"
        assert host.wait(5) == -signal.SIGKILL
        assert "does not end by SIGKILL; aborted FUSE connection" in lockd.log()


def test_a_process_without_a_mount_has_nothing_aborted() -> None:
    assert abort_connections(os.getpid()) == ()


def test_the_number_of_a_connection_stands_in_the_fdinfo() -> None:
    assert list(connection_numbers("pos:\t0\nflags:\t02\nfuse_connection:\t52\n")) == [52]
    assert list(connection_numbers("pos:\t0\nflags:\t02\n")) == []


@pytest.mark.parametrize(
    ("minor", "paths"), [(52, [b"/mnt/with blank"]), (53, [b"/mnt/plain"]), (54, []), (55, [])]
)
def test_only_the_fuse_mount_with_that_number_is_found(minor: int, paths: list[bytes]) -> None:
    assert mount_points(MOUNTINFO, minor) == paths
