"""Mounting and unmounting: foreground, background, by mount(8), by signal, after crashes."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import (
    BIN,
    Datastore,
    Process,
    ProcessFailed,
    datastore,
    force_unmount,
    is_mounted,
    run,
    run_vmfs,
    watchdog,
)
from vmfs.fuse.mountinfo import mounted_at, parse_mountinfo
from vmfs.fuse.registry import read_record


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Iterator[Datastore]:
    with datastore(tmp_path_factory.mktemp("life"), hosts=()) as ds:
        yield ds


@pytest.fixture
def directory(tmp_path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    with watchdog(lambda: force_unmount(path), seconds=120):
        yield path
    force_unmount(path)


def close_quietly(fd: int) -> None:
    """Close a file whose mount is gone: close(2) says so, and closes it."""
    with contextlib.suppress(OSError):
        os.close(fd)


def slots_in_use(ds: Datastore) -> str:
    """The lines of `vmfs locks ls` (but its heading): empty when nobody holds anything."""
    done = run_vmfs("locks", "ls", ds.lun)
    assert done.returncode == 0, done.stderr
    return "\n".join(done.stdout.splitlines()[1:])


def test_a_mount_waits_for_requests_with_poll(ds):
    # It falls back to the scheduler where pyfuse3 is another: four times the cost of a small read.
    mount = ds.mount("fast")
    mount.stop()
    assert not [line for line in mount.process.said if "without poll" in line]


def test_foreground_mount_says_ready_once_it_answers(ds, directory):
    command = [BIN / "vmfs", "mount", ds.lun, directory, "--lockd", ds.socket, "--host", "h1"]
    process = Process(command)
    try:
        line = process.wait_for("vmfs: ready:")
        assert "ds1 mounted on" in line
        assert re.search(r"as host h1 \(slot \d+\)$", line.strip())
        assert os.statvfs(directory).f_namemax == 127
        process.stop()
    finally:
        force_unmount(directory)
        process.kill()
    assert not is_mounted(directory)
    assert slots_in_use(ds) == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_signal_unmounts_cleanly_and_keeps_what_was_written(ds, number):
    mount = ds.mount("sig")
    (mount.path / "kept").write_bytes(b"kept")
    mount.process.send(number)
    assert mount.process.wait() == 0
    assert not is_mounted(mount.path)

    again = ds.mount("sig")
    assert (again.path / "kept").read_bytes() == b"kept"
    (again.path / "kept").unlink()
    again.stop()
    ds.check()


def test_signal_while_files_are_open_ends_the_mount_all_the_same(ds):
    mount = ds.mount("open")
    fd = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"data")
    mount.stop()
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.write(fd, b"more")
    close_quietly(fd)

    again = ds.mount("open")
    assert (again.path / "open").read_bytes() == b"data"
    (again.path / "open").unlink()
    again.stop()
    ds.check()


def test_umount_waits_for_the_daemon_and_its_locks(ds):
    mount = ds.mount("um")
    (mount.path / "x").write_bytes(b"x")
    (mount.path / "x").unlink()

    done = run_vmfs("umount", mount.path)

    assert done.returncode == 0, done.stderr
    assert mount.process.wait(seconds=1) == 0
    assert slots_in_use(ds) == ""
    ds.check()


def test_umount_of_a_mount_in_use_fails_and_changes_nothing(ds):
    mount = ds.mount("busy")
    with (mount.path / "x").open("wb"):
        refused = run_vmfs("umount", mount.path)

    assert refused.returncode == 1
    assert "busy" in refused.stderr
    assert (mount.path / "x").exists()
    (mount.path / "x").unlink()
    mount.stop()


def test_umount_of_what_is_no_mount_says_so(tmp_path):
    done = run_vmfs("umount", tmp_path)

    assert done.returncode == 1
    assert "not a vmfs mount" in done.stderr


def test_background_mount_returns_when_ready_and_umount_ends_it(ds, directory, tmp_path):
    log = tmp_path / "log"
    done = run_vmfs(
        "mount", ds.lun, directory, "--background", "-o", f"lockd={ds.socket},host=bg,log={log}"
    )
    assert done.returncode == 0, done.stderr
    assert "vmfs: ready: ds1" in done.stdout
    entry = mounted_at(parse_mountinfo(Path("/proc/self/mountinfo").read_text()), str(directory))
    assert entry is not None
    record = read_record(entry)
    assert record is not None
    (directory / "f").write_bytes(b"f")
    (directory / "f").unlink()

    ended = run_vmfs("umount", directory)

    assert ended.returncode == 0, ended.stderr
    assert not Path(f"/proc/{record.pid}").exists() or "Z" in _state(record.pid)
    assert "unmounted" in log.read_text()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_background_mount_takes_relative_paths(ds, directory, monkeypatch):
    monkeypatch.chdir(ds.socket.parent)
    options = f"lockd={ds.socket.name},host=rel,log=rel.log"

    done = run_vmfs("mount", ds.lun, directory, "--background", "-o", options)

    assert done.returncode == 0, done.stderr
    assert (ds.socket.parent / "rel.log").exists()
    assert run_vmfs("umount", directory).returncode == 0


@pytest.mark.parametrize("how", ["--background", "--foreground"])
def test_mount_without_lockd_there_fails_with_its_reason(ds, directory, tmp_path, how):
    done = run_vmfs("mount", ds.lun, directory, how, "--lockd", tmp_path / "nobody", "--host", "x")

    assert done.returncode == 1
    assert "nobody" in done.stderr
    assert done.stdout == ""
    assert not is_mounted(directory)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-o", "bogus"], 1, "bogus"),
        (["-o", "max_read=1"], 1, "max_read"),
        (["-o", "log=/no/such/log"], 1, "vmfs mount: cannot log to /no/such/log"),
        (["-o", "log=/no/such/log", "--background"], 1, "vmfs mount: cannot log to"),
        (["--bogus"], 2, "bogus"),
    ],
)
def test_mount_with_an_option_that_is_none_says_which(ds, directory, arguments, status, said):
    done = run_vmfs("mount", ds.lun, directory, *arguments)

    assert done.returncode == status
    assert said in done.stderr


def test_mount_of_what_is_no_volume_says_so(directory, tmp_path):
    (tmp_path / "empty").write_bytes(bytes(64 << 20))

    done = run_vmfs("mount", tmp_path / "empty", directory)

    assert done.returncode == 1
    assert "VMFS" in done.stderr


def test_mount_on_what_is_no_directory_says_so(ds, tmp_path):
    (tmp_path / "file").touch()

    for target in ("file", "missing"):
        done = run_vmfs("mount", ds.lun, tmp_path / target)
        assert done.returncode == 1
        assert target in done.stderr


def test_second_mount_under_one_host_name_is_refused(ds, directory):
    first = ds.mount("twin")
    done = run_vmfs("mount", ds.lun, directory, "--lockd", ds.socket, "--host", "twin")
    first.stop()

    assert done.returncode == 1
    assert "--host" in done.stderr


def test_read_only_mount_without_lockd_reads_and_refuses_to_write(ds, directory):
    writer = ds.mount("w")
    (writer.path / "readable").write_bytes(b"r" * 5000)
    writer.stop()
    process = Process([BIN / "vmfs", "mount", ds.lun, directory, "-o", "ro"])
    try:
        process.wait_for("vmfs: ready:")
        assert (directory / "readable").read_bytes() == b"r" * 5000
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
        process.stop()
    finally:
        force_unmount(directory)
        process.kill()
    writer = ds.mount("w")
    (writer.path / "readable").unlink()
    writer.stop()


def test_mount_8_runs_us_for_the_type_fuse_vmfs(ds, directory, tmp_path):
    """The way of fstab: mount.fuse3(8) runs `vmfs LUN DIR -o ...` by PATH."""
    if not Path("/usr/local/bin").is_dir() or shutil.which("mount.fuse3") is None:
        pytest.skip("no mount.fuse3, or no /usr/local/bin to put vmfs into")
    options = f"lockd={ds.socket},host=fstab,noatime,_netdev,noauto,nofail,x-test=1"
    run("mount", "-t", "tmpfs", "none", "/usr/local/bin")  # only in the tests' own namespace
    try:
        script = Path("/usr/local/bin/vmfs")
        script.write_text(f'#!/bin/sh\nexec {BIN / "vmfs"} "$@"\n')
        script.chmod(0o755)
        run("mount", "-t", "fuse.vmfs", ds.lun, directory, "-o", options)
        entry = mounted_at(
            parse_mountinfo(Path("/proc/self/mountinfo").read_text()), str(directory)
        )
        assert entry is not None
        assert entry.is_vmfs
        assert entry.source == str(ds.lun)
        assert "noatime" in entry.options
        (directory / "f").write_bytes(b"f")
        (directory / "f").unlink()
        ended = run_vmfs("umount", directory)
        assert ended.returncode == 0, ended.stderr
        failed = subprocess.run(
            ["mount", "-t", "fuse.vmfs", ds.lun, directory, "-o", "bogus"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert failed.returncode != 0
        assert "bogus" in failed.stderr
    finally:
        run("umount", "/usr/local/bin")


def test_killed_mount_is_replayed_by_the_next(ds):
    mount = ds.mount("dies")
    fd = os.open(mount.path / "synced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"s" * 100_000)
    os.fsync(fd)
    mount.kill()
    close_quietly(fd)

    other = ds.mount("heir")
    assert (other.path / "synced").read_bytes() == b"s" * 100_000
    (other.path / "synced").unlink()
    other.stop()
    ds.check()


def test_mount_stopped_during_its_start_leaves_nothing(ds, directory):
    """SIGTERM at any moment before it is ready: no mount, no slot, or a clean one."""
    process = Process(
        [BIN / "vmfs", "mount", ds.lun, directory, "--lockd", ds.socket, "--host", "brief"]
    )
    try:
        process.send(signal.SIGTERM)
        process.wait()
    finally:
        force_unmount(directory)
        process.kill()
    assert slots_in_use(ds) == ""
    with pytest.raises(ProcessFailed):
        process.wait_for("vmfs: ready:")


def test_mount_point_of_a_dead_mount_says_so_and_umount_frees_it(ds):
    mount = ds.mount("dead")
    mount.process.kill()

    refused = run_vmfs("mount", ds.lun, mount.path, "--lockd", ds.socket, "--host", "next")
    status = run_vmfs("status")
    freed = run_vmfs("umount", mount.path)

    assert refused.returncode == 1
    assert "umount it" in refused.stderr
    line = next(line for line in status.stdout.splitlines() if str(mount.path) in line)
    assert line.split()[-1] == "dead"
    assert freed.returncode == 1
    assert "will be replayed" in freed.stderr
    assert not is_mounted(mount.path)
    ds.mount("heir").stop()
    ds.check()


def test_second_mount_on_a_directory_is_refused(ds):
    mount = ds.mount("first")

    refused = run_vmfs("mount", ds.lun, mount.path, "--lockd", ds.socket, "--host", "second")
    mount.stop()

    assert refused.returncode == 1
    assert f"{ds.lun} is mounted there already" in refused.stderr
    assert not is_mounted(mount.path)


def test_mount_that_hides_files_says_so(ds, directory):
    (directory / "hidden").write_bytes(b"")
    command = ["mount", "--background", ds.lun, directory, "-r"]

    loud = run_vmfs(*command)
    run_vmfs("umount", directory)
    quiet = run_vmfs(*command, "-o", "nonempty")
    run_vmfs("umount", directory)

    assert loud.returncode == quiet.returncode == 0
    assert "is not empty; what is in it is hidden" in loud.stderr
    assert quiet.stderr == ""


def test_umount_of_a_dead_mount_says_when_another_host_has_recovered_it(ds):
    mount = ds.mount("found")
    mount.process.kill()
    ds.mount("finder").stop()

    freed = run_vmfs("umount", mount.path)

    assert freed.returncode == 1
    assert "has been replayed by another host already" in freed.stderr
    ds.check()


def test_status_shows_mounts_and_hosts(ds):
    mount = ds.mount("seen")
    here, hosts = run_vmfs("status"), run_vmfs("status", ds.lun)
    mount.stop()

    assert here.returncode == hosts.returncode == 0
    line = next(line for line in here.stdout.splitlines() if str(mount.path) in line)
    assert line.split()[1:4] == [str(ds.lun), "ds1", "seen"]
    assert line.split()[-2:] == ["rw", "serving"]
    assert f"seen  {mount.pid}" in hosts.stdout
    assert run_vmfs("status", ds.lun).stdout == ""
