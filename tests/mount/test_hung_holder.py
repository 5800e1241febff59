"""A mount is stopped (SIGSTOP): shorter than its lease nothing is lost, longer it is fenced.

Profile `test`: a beat every 100 ms, own I/O stopped after 400 ms, fenced after 800 ms. Nothing here
touches the mount point of a host that is stopped: such a call would hang with it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, Mount, datastore, force_unmount, run_vmfs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LEASE = 0.8
SLACK = 6.0  # two cores, and other things to do


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    mount.process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.process.send(signal.SIGCONT)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def bury(ds: Datastore, mount: Mount) -> None:
    """The mount was fenced: its process is dead, and what is left of it is taken away."""
    assert mount.process.wait() == -signal.SIGKILL
    force_unmount(mount.path)


def open_disk(mount: Mount) -> int:
    return os.open(mount.path / mount.name / "disk", os.O_RDWR)


def was_fenced(ds: Datastore) -> bool:
    return any("fences" in line for line in ds.lockd.said)


def test_stopped_shorter_than_the_lease_nothing_is_lost(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        for number in range(5):
            name = f"f{number}"
            (ds.a.path / name).write_bytes(b"from a")
            with stopped(ds.a):
                reader = threading.Thread(target=(ds.b.path / name).read_bytes)
                reader.start()
                time.sleep(0.3)
            reader.join(10)
            assert not reader.is_alive()
            assert (ds.b.path / name).read_bytes() == b"from a"
            (ds.a.path / name).write_bytes(b"a again")
            assert (ds.b.path / name).read_bytes() == b"a again"
        assert ds.a.process.is_running
        assert not was_fenced(ds)


def test_stopped_past_its_stop_time_and_wanted_by_nobody_nothing_is_lost(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        (ds.a.path / "f").write_bytes(b"from a")
        with stopped(ds.a):
            time.sleep(3 * LEASE)
        write_synced(ds.a.path / "f", b"and on")
        assert (ds.b.path / "f").read_bytes() == b"and on"
        assert not was_fenced(ds)


def test_stopped_past_the_lease_the_waiter_gets_it(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        write_synced(ds.a.path / "synced", b"s" * 3_000_000)
        (ds.a.path / "unsynced").write_bytes(b"u" * 3_000_000)
        held = (ds.a.path / "synced").open("r+b")
        try:
            ds.a.process.send(signal.SIGSTOP)
            before = time.monotonic()

            data = (ds.b.path / "synced").read_bytes()

            took = time.monotonic() - before
            assert data == b"s" * 3_000_000
            assert LEASE * 0.9 <= took <= LEASE + SLACK
            bury(ds, ds.a)
        finally:
            with contextlib.suppress(OSError):  # its host is dead
                held.close()
        assert was_fenced(ds)
        unsynced = ds.b.path / "unsynced"  # gone, or as far as a commit at an interval found it
        assert not unsynced.exists() or set(unsynced.read_bytes()) <= set(b"u")
        write_synced(ds.b.path / "synced", b"from b")
        again = ds.mount("a")
        assert (again.path / "synced").read_bytes() == b"from b"


def test_hosts_that_want_nothing_of_the_stopped_one_never_notice(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b", "c")) as ds:
        for mount in (ds.b, ds.hosts["c"]):
            (mount.path / mount.name).mkdir()
        for mount in (ds.b, ds.hosts["c"]):
            write_synced(mount.path / mount.name / "disk", bytes(1 << 20))
        write_synced(ds.a.path / "busy", b"a")
        slowest: dict[str, float] = {}
        others = (ds.b, ds.hosts["c"])
        # Open before: a path leads through the root directory, which the stopped host has.
        files = {mount.name: open_disk(mount) for mount in others}

        def io(name: str) -> None:
            end = time.monotonic() + 0.5
            while (before := time.monotonic()) < end:
                os.pwrite(files[name], os.urandom(4096), 4096)
                os.fsync(files[name])
                slowest[name] = max(slowest.get(name, 0), time.monotonic() - before)

        with stopped(ds.a):
            workers = [threading.Thread(target=io, args=(name,)) for name in files]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(10)
        for fd in files.values():
            os.close(fd)
        assert set(slowest) == {"b", "c"}
        assert max(slowest.values()) < LEASE / 2
        assert not was_fenced(ds)
        assert (ds.b.path / "busy").read_bytes() == b"a"


RESERVING = ("--lock-mode", "reservation")


def test_stopped_host_holds_up_all_reservations_only_until_lockd_has_fenced_it(
    tmp_path: Path,
) -> None:
    with datastore(tmp_path, hosts=("a", "b"), mkfs=RESERVING) as ds:
        write_synced(ds.a.path / "synced", b"from a")
        ds.a.process.send(signal.SIGSTOP)
        before = time.monotonic()

        write_synced(ds.b.path / "other", b"from b")

        assert time.monotonic() - before <= LEASE + SLACK
        bury(ds, ds.a)
        assert was_fenced(ds)
        assert (ds.b.path / "synced").read_bytes() == b"from a"


def test_busy_hosts_in_reservation_mode_are_never_fenced(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b"), mkfs=RESERVING) as ds:
        for number in range(20):
            write_synced(ds.a.path / f"a{number}", b"a" * 200_000)
            write_synced(ds.b.path / f"b{number}", b"b" * 200_000)
        time.sleep(2 * LEASE)
        assert (ds.b.path / "a19").stat().st_size == 200_000
        assert not was_fenced(ds)


def test_wait_for_a_stopped_host_is_explained_and_can_be_broken(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        slow = ds.mount("slow", "profile=production")
        write_synced(slow.path / "f", b"from slow")
        slow.process.send(signal.SIGSTOP)
        target = ds.b.path / "f"
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(target.read_bytes()))
        reader.start()
        time.sleep(1)

        told_why = run_vmfs("locks", "why", target, "--lockd", ds.socket)
        assert told_why.returncode == 0, told_why.stderr
        told = run_vmfs("locks", "break", "--dry-run", target)
        assert told.returncode == 0, told.stderr
        broken = run_vmfs("locks", "break", target)

        assert f"slow (pid {slow.pid}) would be fenced" in told.stdout
        assert f"waits for slow (pid {slow.pid})" in told_why.stdout
        assert f"slow (pid {slow.pid}) does not say what goes on in it" in told_why.stdout
        assert "next: it" in told_why.stdout
        assert "but on the way there:" in told_why.stdout, "the look-up waits at the directory"
        assert broken.returncode == 0, broken.stderr
        assert f"slow (pid {slow.pid}): fenced:" in broken.stdout
        reader.join(10)
        assert found == [b"from slow"]
        bury(ds, slow)
        trail = run_vmfs("locks", "history", target)
        assert "f" in trail.stdout, trail.stderr


def test_writer_that_was_stopped_past_its_stop_time_waits_for_a_beat(tmp_path: Path) -> None:
    """Many stops of a busy writer, each past the stop time: its log shows waits, and no error."""
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        disk, failures, done = ds.a.path / "disk", list[OSError](), threading.Event()
        write_synced(disk, bytes(1 << 20))
        blocks: dict[int, bytes] = {}

        def write() -> None:
            fd = os.open(disk, os.O_RDWR)
            try:
                for number in range(10**6):
                    if done.is_set():
                        break
                    at, data = number % 256, os.urandom(4096)
                    os.pwrite(fd, data, at * 4096)
                    blocks[at] = data
                os.fsync(fd)
            except OSError as error:
                failures.append(error)
            finally:
                os.close(fd)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(6):
            time.sleep(0.2)
            with stopped(ds.a):
                time.sleep(0.6)
        done.set()
        writer.join(20)

        assert not failures
        assert not was_fenced(ds)
        assert any("io waits" in line for line in ds.a.process.said)
        assert any("io resumed" in line for line in ds.a.process.said)
        data = (ds.b.path / "disk").read_bytes()
        for at, block in blocks.items():
            assert data[at * 4096 : (at + 1) * 4096] == block
