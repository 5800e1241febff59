"""The edge alone, on a tree in memory: whatever a handler raises, the mount lives."""

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.mounts import Process, force_unmount, is_mounted, run_as_user, watchdog


class Edge:
    """A mount of a tree in memory whose methods can be made to fail."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "mnt"
        self.path.mkdir()
        self._faults = directory / "faults"
        self.process = Process(
            [sys.executable, "-m", "tests.support.edge_mount", self.path, self._faults]
        )

    def fail(self, *verbs: str) -> None:
        fresh = self._faults.with_suffix(".new")
        fresh.write_text("\n".join(verbs) + "\n")
        fresh.rename(self._faults)

    def heal(self) -> None:
        self._faults.unlink()


@contextmanager
def running(directory: Path) -> Iterator[Edge]:
    edge = Edge(directory)
    try:
        with watchdog(lambda: (force_unmount(edge.path), edge.process.kill()), seconds=120):
            edge.process.wait_for("ready")
            yield edge
            edge.process.stop()
        assert not is_mounted(edge.path)
    finally:
        force_unmount(edge.path)
        edge.process.kill()


@pytest.fixture(scope="module")
def edge(tmp_path_factory) -> Iterator[Edge]:
    with running(tmp_path_factory.mktemp("edge")) as edge:
        yield edge


def _read(path: Path) -> None:
    with path.open("rb") as file:
        file.read(10)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"more")


def _sync(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())


REQUESTS: dict[str, Callable[[Path], object]] = {
    "lookup": lambda top: (top / "other").stat(),
    "getattr": lambda top: top.stat(),
    "setattr": lambda top: (top / "file").chmod(0o600),
    "create": lambda top: (top / "new").open("xb"),
    "mknod": lambda top: os.mknod(top / "node"),
    "mkdir": lambda top: (top / "newdir").mkdir(),
    "symlink": lambda top: (top / "newlink").symlink_to("x"),
    "readlink": lambda top: (top / "link").readlink(),
    "link": lambda top: (top / "hard").hardlink_to(top / "file"),
    "unlink": lambda top: (top / "file").unlink(),
    "rmdir": lambda top: (top / "dir").rmdir(),
    "rename": lambda top: (top / "file").rename(top / "renamed"),
    "open": lambda top: _read(top / "file"),
    "read": lambda top: _read(top / "file"),
    "write": lambda top: _write(top / "file"),
    "fsync": lambda top: _sync(top / "file"),
    "open_directory": lambda top: list(top.iterdir()),
    "read_directory": lambda top: list(top.iterdir()),
    "sync_directory": lambda top: _sync_directory(top),
    "statistics": lambda top: os.statvfs(top),
}


@pytest.fixture
def tree(edge: Edge) -> Iterator[Path]:
    top = edge.path
    (top / "file").write_bytes(b"contents")
    (top / "other").write_bytes(b"contents")
    (top / "dir").mkdir()
    (top / "link").symlink_to("file")
    yield top
    for path in sorted(top.iterdir()):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("verb", REQUESTS)
def test_handler_that_meets_a_bug_answers_eio_and_the_mount_lives(edge, tree, verb):
    edge.fail(verb)

    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is looked at below)
        REQUESTS[verb](tree)
    edge.heal()

    assert caught.value.errno == errno.EIO
    assert (tree / "other").read_bytes() == b"contents"
    edge.process.wait_for("InjectedError")


@pytest.mark.parametrize("verb", REQUESTS)
def test_handler_that_meets_an_error_on_purpose_answers_its_errno(edge, tree, verb):
    edge.fail(f"{verb} NoSpace")

    with pytest.raises(OSError) as caught:  # noqa: PT011
        REQUESTS[verb](tree)
    edge.heal()

    assert caught.value.errno == errno.ENOSPC
    assert (tree / "other").read_bytes() == b"contents"


def test_release_and_forget_that_meet_bugs_leave_the_mount_alive(edge, tree):
    edge.fail("release", "release_directory", "forget")
    for name in ("file", "other"):
        assert (tree / name).read_bytes() == b"contents"
    assert len(list(tree.iterdir())) == 4
    (tree / "file").unlink()
    edge.heal()

    assert (tree / "other").read_bytes() == b"contents"


def test_busy_says_in_the_log_which_path(edge, tree):
    edge.fail("open LockBusy")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        _read(tree / "file")
    edge.heal()

    assert caught.value.errno == errno.EBUSY
    line = edge.process.wait_for("busy:")
    assert "verb=open path=/file" in line


def test_extended_attributes_and_fifos_are_refused_without_harm(edge, tree):
    for attempt, expected in (
        (lambda: os.getxattr(tree / "file", "user.x"), errno.EOPNOTSUPP),
        (lambda: os.listxattr(tree / "file"), errno.EOPNOTSUPP),
        (lambda: os.setxattr(tree / "file", "user.x", b"1"), errno.EOPNOTSUPP),
        (lambda: os.mkfifo(tree / "fifo"), errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            attempt()
        assert caught.value.errno == expected


def test_write_by_a_user_takes_set_user_id_away(edge, tree):
    path = tree / "file"
    path.chmod(0o6777)
    run_as_user("(top / 'file').open('r+b', buffering=0).write(b'more')", tree)

    assert path.stat().st_mode & 0o7777 == 0o0777


def test_chown_takes_set_user_id_away_but_keeps_it_off_directories(edge, tree):
    (tree / "file").chmod(0o6755)
    (tree / "dir").chmod(0o2755)

    os.chown(tree / "file", 1000, 1000)
    os.chown(tree / "dir", 1000, 1000)

    assert (tree / "file").stat().st_mode & 0o7777 == 0o0755
    assert (tree / "dir").stat().st_mode & 0o7777 == 0o2755


def test_mapped_file_is_read_and_written_through_the_mapping(edge, tree):
    path = tree / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as pages:
        pages[4096:4101] = b"hello"
        pages.flush()

    assert path.read_bytes()[4096:4101] == b"hello"


def test_stop_with_a_request_that_never_ends_drops_it(tmp_path):
    with running(tmp_path) as edge:
        (edge.path / "file").write_bytes(b"x")
        held = os.open(edge.path / "file", os.O_RDONLY)
        edge.fail("getattr hang")
        waiting = subprocess.Popen(["stat", "-f", "-c", "%T", edge.path])
        assert waiting.wait(30) == 0
        waiting = subprocess.Popen(["stat", edge.path], stderr=subprocess.PIPE)
        edge.process.wait_for("hanging")
        edge.heal()

        edge.process.stop()

        assert b"stat" in waiting.communicate(timeout=30)[1]
        assert waiting.returncode != 0
        with suppress(OSError):
            os.close(held)


def test_forced_unmount_ends_the_process_cleanly(tmp_path):
    with running(tmp_path) as edge:
        (edge.path / "file").write_bytes(b"x")
        held = os.open(edge.path / "file", os.O_RDONLY)

        force_unmount(edge.path)

        assert edge.process.wait() == 0
        with suppress(OSError):
            os.close(held)


def test_lazy_unmount_serves_those_who_are_still_there_then_ends(tmp_path):
    with running(tmp_path) as edge:
        (edge.path / "file").write_bytes(b"contents")
        with (edge.path / "file").open("rb", buffering=0) as file:
            assert subprocess.run(["umount", "-l", edge.path], check=False).returncode == 0
            assert not is_mounted(edge.path)
            assert file.read() == b"contents"

        assert edge.process.wait() == 0
