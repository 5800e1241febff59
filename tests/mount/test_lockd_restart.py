"""lockd is killed, stopped, and started again while mounts work: they keep all and lose nothing.

Every write is said to be done only after fsync, and at the end every one of them is read on the
other host; the volume is checked after each test.
"""

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio

from lockd.client import observe
from lockd.protocol.terms import HostEnd
from tests.support.mounts import BIN, Datastore, Mount, Process, ProcessFailed, datastore

pytestmark = [pytest.mark.slow, pytest.mark.mount]

AWAY_SECONDS: Final = 0.3
"""Below the self-stop time of the test profile, and the lease."""

BEYOND_LEASE_SECONDS: Final = 1.2


class Writer(threading.Thread):
    """Makes files on one mount, one after the other, durably, and remembers them."""

    def __init__(self, mount: Mount, number: int) -> None:
        super().__init__(daemon=True)
        self.done: list[tuple[str, bytes]] = []
        self.failures: list[OSError] = []
        self.expected: set[int] = set()  # errors that a caller is told to try again after
        self.ending = threading.Event()
        self._top = mount.path
        self._name = f"{mount.name}{number}"
        self._rng = Random(number)

    def run(self) -> None:
        while not self.ending.is_set():
            name = f"{self._name}-{len(self.done) + len(self.failures)}"
            data = f"{name} ".encode() * self._rng.choice((1, 300, 20_000))
            try:
                fd = os.open(self._top / name, os.O_WRONLY | os.O_CREAT)
                try:
                    os.write(fd, data)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno in self.expected:
                    continue
                self.failures.append(error)
            else:
                self.done.append((name, data))


def start_lockd(ds: Datastore, *options: str) -> None:
    """Start lockd again where it was."""
    command: list[str | Path] = [BIN / "lockd", "--lun", f"ds1={ds.lun}", "--socket", ds.socket]
    command += ["--state", ds.directory / "state", *options]
    ds.lockd = Process(command, address_space=64 << 30)
    ds.lockd.wait_for("ready")


@contextmanager
def load(ds: Datastore) -> Iterator[list[Writer]]:
    """Two writers on each host; at the end all that they did is looked at on the other host."""
    writers = [Writer(mount, number) for mount in ds.hosts.values() for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.ending.set()
        for writer in writers:
            writer.join(60)
    for writer in writers:
        assert not writer.is_alive(), "a write hangs"
        assert not writer.failures, writer.failures
        for name, data in writer.done:
            for mount in ds.hosts.values():
                assert (mount.path / name).read_bytes() == data, (mount.name, name)


def test_mount_waits_for_a_lockd_that_is_just_being_started(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=()) as ds:
        ds.lockd.kill()
        path = tmp_path / "early"
        path.mkdir()
        early = Process([BIN / "vmfs", "mount", ds.lun, path, "--lockd", ds.socket])
        ds.hosts["early"] = Mount("early", path, early)
        start_lockd(ds)
        early.wait_for("vmfs: ready:")
        (path / "f").write_bytes(b"f")


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def get_on(writers: list[Writer]) -> None:
    """Return when every writer has done something more."""
    before = [len(writer.done) for writer in writers]
    wait_until(
        lambda: all(
            len(writer.done) > count or writer.failures
            for writer, count in zip(writers, before, strict=True)
        )
    )


def generations(ds: Datastore) -> list[tuple[str, int, int]]:
    """Of all hosts that lockd has on record as open: name, generation, nonce."""

    async def ask() -> list[tuple[str, int, int]]:
        async with observe(ds.socket) as lockd:
            hosts = (await lockd.status()).hosts
            return [(h.name, h.generation, h.nonce) for h in hosts if h.end is HostEnd.OPEN]

    return sorted(trio.run(ask))


@pytest.mark.parametrize("mode", ["ats", "reservation"])
def test_lockd_is_killed_again_and_again_under_load(tmp_path: Path, mode: str) -> None:
    mkfs = ("--lock-mode", mode) if mode == "reservation" else ()
    with datastore(tmp_path, hosts=("a", "b"), mkfs=mkfs) as ds:
        before = generations(ds)
        rng = Random(7)
        with load(ds) as writers:
            for _ in range(8):
                get_on(writers)
                time.sleep(rng.uniform(0, 0.1))  # at another moment each time
                ds.lockd.kill()
                time.sleep(rng.uniform(0, AWAY_SECONDS))
                start_lockd(ds)
                get_on(writers)
        assert generations(ds) == before


def test_lockd_is_away_for_longer_than_the_lease(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        before = generations(ds)
        (ds.a.path / "before").write_bytes(b"x" * 5000)
        with load(ds) as writers:
            for _ in range(3):
                ds.lockd.kill()
                time.sleep(BEYOND_LEASE_SECONDS)
                start_lockd(ds)
                get_on(writers)
        assert generations(ds) == before
        assert (ds.b.path / "before").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("seconds", [AWAY_SECONDS, BEYOND_LEASE_SECONDS])
def test_lockd_is_stopped_and_goes_on(tmp_path: Path, seconds: float) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        before = generations(ds)
        with load(ds) as writers:
            for _ in range(3):
                get_on(writers)
                ds.lockd.send(signal.SIGSTOP)
                time.sleep(seconds)
                ds.lockd.send(signal.SIGCONT)
                get_on(writers)
        assert generations(ds) == before


def test_under_cached_locks_work_goes_on_without_lockd(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a",)) as ds:
        with (ds.a.path / "open").open("wb", buffering=0) as file:
            file.write(b"1" * 4096)
            ds.lockd.kill()
            os.pwrite(file.fileno(), b"2" * 4096, 0)
            os.fsync(file.fileno())
            start_lockd(ds)
        assert (ds.a.path / "open").read_bytes() == b"2" * 4096


def test_what_needs_lockd_fails_after_a_while_and_works_again_later(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        (ds.a.path / "mine").write_bytes(b"x")
        ds.lockd.kill()
        with pytest.raises(OSError):  # noqa: PT011 - any, but no hang
            (ds.b.path / "mine").write_bytes(b"y")
        start_lockd(ds)
        wait_until(lambda: len(generations(ds)) == 2)
        (ds.b.path / "mine").write_bytes(b"y")
        assert (ds.a.path / "mine").read_bytes() == b"y"


def test_a_host_that_dies_while_lockd_is_away_is_recovered(tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        (ds.a.path / "f").write_bytes(b"x" * 5000)
        os.sync()
        ds.lockd.kill()
        ds.a.kill()
        start_lockd(ds)
        (ds.b.path / "f").write_bytes(b"y")
        del ds.hosts["a"]
        (ds.directory / "host-a").rmdir()


@pytest.mark.parametrize("damage", ["deleted", "overwritten"])
def test_the_database_is_lost_and_lockd_is_rebuilt_under_load(tmp_path: Path, damage: str) -> None:
    with datastore(tmp_path, hosts=("a", "b"), mkfs=("--lock-mode", "reservation")) as ds:
        before = generations(ds)
        with load(ds) as writers:
            get_on(writers)
            for writer in writers:  # a lock of a host that has not registered again yet
                writer.expected.add(errno.EBUSY)
            ds.lockd.kill()
            if damage == "deleted":
                shutil.rmtree(ds.directory / "state")
                with pytest.raises(ProcessFailed, match="--rebuild"):
                    start_lockd(ds)
                ds.lockd.kill()
            else:
                (ds.directory / "state" / "state.mdb").write_bytes(b"no database" * 4096)
            start_lockd(ds, "--rebuild")
            get_on(writers)
        after = generations(ds)
        assert [(name, nonce) for name, _, nonce in before] == [
            (name, nonce) for name, _, nonce in after
        ]
        assert min(new for _, new, _ in after) > max(old for _, old, _ in before)
