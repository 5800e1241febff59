"""Three mounts of one LUN, threads on each, all in the same few directories at the same time.

Nobody knows in which order it happened. What must hold all the same: contents are whole (each says
who wrote it, how long it is, and repeats that to its end), names that nobody removes are there,
only errors that another thread explains come back, and afterwards all hosts show one tree.
"""

import errno
import hashlib
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.support.mounts import Datastore, Mount, datastore
from tests.support.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.support.swarm import LENGTHS, check_stamp, stamped
from vmfs.units import MIB

pytestmark = pytest.mark.slow

THREADS: Final = 3
STEPS: Final = 40
DIRECTORIES: Final = ("one", "two")
NAMES: Final = ("a", "b", "c", "d", "e")

EXPLAINED: Final = {
    errno.EBUSY,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,  # a link to a directory
    errno.ESTALE,  # replaced between the kernel's lookup and its open, twice
}


class Worker(threading.Thread):
    """One thread on one host."""

    def __init__(self, top: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.failure: BaseException | None = None
        self.outcomes: Counter[str] = Counter()
        self.dying = threading.Event()  # its host is being killed: errors mean nothing any more
        self._top = top
        self._number = number
        self._rng = Random(seed * 100 + number)
        self._sequence = 0

    def run(self) -> None:
        for _ in range(STEPS):
            verb = self._rng.choice(VERBS)
            try:
                getattr(self, verb)()
                outcome = "done"
            except OSError as error:
                if self.dying.is_set():
                    return
                if error.errno not in EXPLAINED:
                    self.failure = error
                    return
                outcome = errno.errorcode[error.errno]
            except BaseException as error:
                self.failure = None if self.dying.is_set() else error
                return
            self.outcomes[f"{verb} {outcome}"] += 1

    def _path(self) -> Path:
        return self._top / self._rng.choice(DIRECTORIES) / self._rng.choice(NAMES)

    def _own(self) -> tuple[Path, bytes]:
        self._sequence += 1
        data = stamped(self._number, self._sequence, self._rng.choice(LENGTHS))
        return self._top / DIRECTORIES[0] / f"own-{self._number}-{self._sequence}", data

    def publish(self) -> None:
        """A new version, replacing the old one as a whole."""
        own, data = self._own()
        cut = self._rng.randrange(len(data))
        fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.pwrite(fd, data[cut:], cut)
            os.pwrite(fd, data[:cut], 0)
            if self._rng.randrange(2):
                os.fsync(fd)
        finally:
            os.close(fd)
        try:
            own.rename(self._path())
        except OSError:
            own.unlink()
            raise

    def append(self) -> None:
        own, data = self._own()
        for start in range(0, len(data), len(data) // 3 + 1):
            with own.open("ab", buffering=0) as file:
                file.write(data[start : start + len(data) // 3 + 1])
        assert own.read_bytes() == data
        own.unlink()

    def read(self) -> None:
        with self._path().open("rb") as file:
            check_stamp(file.read())

    def read_mapped(self) -> None:
        with self._path().open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    check_stamp(mapped[:])

    def holes(self) -> None:
        """Cut and grow; what was cut off never comes back."""
        own, _ = self._own()
        with own.open("w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"end", 3 * MIB)
            os.truncate(own, self._rng.choice((0, 100, 5000, 2 * MIB)))
            file.truncate(3 * MIB + 10)
            assert not os.pread(file.fileno(), 4 * MIB, 0).strip(b"\0")
            os.pwrite(file.fileno(), b"new", MIB)
        assert own.read_bytes().replace(b"\0", b"") == b"new"
        own.unlink()

    def delete_open(self) -> None:
        own, data = self._own()
        with own.open("w+b", buffering=0) as file:
            own.unlink()
            file.write(data)
            assert os.pread(file.fileno(), len(data), 0) == data

    def unlink(self) -> None:
        self._path().unlink()

    def mkdir(self) -> None:
        self._path().mkdir()

    def rmdir(self) -> None:
        self._path().rmdir()

    def rename(self) -> None:
        self._path().rename(self._path())

    def exchange(self) -> None:
        renameat2(self._path(), self._path(), RENAME_EXCHANGE)

    def noreplace(self) -> None:
        renameat2(self._path(), self._path(), RENAME_NOREPLACE)

    def link(self) -> None:
        self._path().hardlink_to(self._path())

    def chmod(self) -> None:
        self._path().chmod(self._rng.choice((0o644, 0o755)))

    def list(self) -> None:
        directory = self._top / self._rng.choice(DIRECTORIES)
        names = [path.name for path in directory.iterdir()]
        assert len(set(names)) == len(names)
        assert "stays" in names

    def stays(self) -> None:
        """What nobody removes is there, for every call."""
        for directory in DIRECTORIES:
            try:
                assert (self._top / directory / "stays").read_bytes() == b"it stays"
            except OSError as error:
                raise AssertionError(f"{directory}/stays: {error}") from error


VERBS: Final = (
    "publish", "publish", "publish", "read", "read", "read_mapped", "append", "holes",
    "delete_open", "unlink", "mkdir", "rmdir", "rename", "rename", "exchange", "noreplace", "link",
    "chmod", "list", "stays",
)  # fmt: skip


def begin(ds: Datastore, *, seed: int) -> dict[str, list[Worker]]:
    """The directories, and threads at work in them on every host."""
    first = next(iter(ds.hosts.values()))
    for directory in DIRECTORIES:
        (first.path / directory).mkdir()
        (first.path / directory / "stays").write_bytes(b"it stays")
    workers = {
        name: [Worker(mount.path, host * 16 + n, seed) for n in range(THREADS)]
        for host, (name, mount) in enumerate(ds.hosts.items())
    }
    for worker in chain.from_iterable(workers.values()):
        worker.start()
    return workers


def end(workers: Iterable[Worker]) -> Counter[str]:
    """Wait for them; what came of their steps."""
    outcomes: Counter[str] = Counter()
    for worker in workers:
        worker.join()
        if worker.failure is not None:
            raise AssertionError(f"{worker.name}: {worker.failure!r}") from worker.failure
        outcomes += worker.outcomes
    return outcomes


def shown(mount: Mount) -> dict[str, object]:
    """Everything that a host shows."""
    found: dict[str, object] = {}
    for directory, _, names in os.walk(mount.path):
        for path in (Path(directory), *(Path(directory) / name for name in names)):
            status = path.lstat()
            digest = ""
            if path.is_file() and not path.name.endswith(".sf"):
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                if path.name in NAMES:
                    check_stamp(data)
            key = str(path.relative_to(mount.path))
            found[key] = (
                status.st_ino, status.st_mode, status.st_nlink, status.st_size,
                status.st_blocks, status.st_mtime, digest,
            )  # fmt: skip
    return found


@pytest.mark.parametrize("mode", ["ats", "reservation"])
def test_hosts_agree_after_everything_at_once(mode: str, tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b", "c"), mkfs=("--lock-mode", mode)) as ds:
        outcomes = end(chain.from_iterable(begin(ds, seed=1).values()))

        assert outcomes["publish done"] > 20, outcomes
        trees = [shown(mount) for mount in ds.hosts.values()]
        assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("mode", ["ats", "reservation"])
def test_others_go_on_when_a_host_is_killed_in_the_middle(mode: str, tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a", "b", "c"), mkfs=("--lock-mode", mode)) as ds:
        workers = begin(ds, seed=2)
        while sum(sum(w.outcomes.values()) for w in workers["c"]) < STEPS // 2:
            workers["c"][0].join(0.02)
        for worker in workers["c"]:
            worker.dying.set()
        ds.hosts["c"].kill()
        end(chain.from_iterable(workers.values()))

        assert shown(ds.a) == shown(ds.b)
        del ds.hosts["c"]
        ds.mount("d")
        assert shown(ds.hosts["d"]) == shown(ds.a)
