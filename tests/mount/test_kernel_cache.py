"""What the kernel keeps is never stale: real mounts that take locks from each other."""

import mmap
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.doctored_mount import COUNTED, FAULTS
from tests.support.hand_overs import HandOvers, Stale
from tests.support.mounts import Datastore, datastore, run_as_user
from tests.support.rename import RENAME_EXCHANGE, renameat2
from tests.support.starved import starved_readers

pytestmark = pytest.mark.slow

HAND_OVERS = int(os.environ.get("VMFS_HAND_OVERS", "400"))
"""In the suite; docs/measurements.md has a run of 10,000."""


def begin(ds: Datastore) -> HandOvers:
    (ds.a.path / "work").mkdir()
    return HandOvers((ds.a.path / "work", ds.b.path / "work"))


@pytest.mark.timeout(3600)
def test_nothing_stale_is_seen_while_locks_change_hands(tmp_path: Path) -> None:
    limit = max(240, HAND_OVERS // 5)
    with datastore(tmp_path, hosts=("a", "b"), seconds=limit) as ds:
        hand_overs = begin(ds)
        hand_overs.run(HAND_OVERS // 3)
        with hand_overs.readers():
            hand_overs.run(HAND_OVERS - HAND_OVERS // 3)


@pytest.mark.timeout(600)
def test_no_name_is_stale_while_readers_starve(tmp_path: Path) -> None:
    """A listing, or the reply to a look, is taken in long after the directory was asked for."""
    with datastore(tmp_path, hosts=("a", "b"), seconds=500) as ds:
        hand_overs = begin(ds)
        with starved_readers(ds.a.path / "work", ds.b.path / "work"):
            hand_overs.run_names(HAND_OVERS // 5)


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_rule_is_found_out(fault: str, tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a",), check=False) as ds:
        ds.mount("b", doctored=fault)
        with pytest.raises(Stale):
            begin(ds).run(HAND_OVERS)


def overwrite(top: Path) -> None:
    (top / "f").write_bytes(b"more than there was before" * 1000)


def append_mapped(top: Path) -> None:
    with (top / "f").open("r+b", buffering=0) as file:
        file.truncate(10_000)
        with mmap.mmap(file.fileno(), 10_000) as mapped:
            mapped[:] = b"m" * 10_000


def strip_set_user_id(top: Path) -> None:
    run_as_user("(top / 'setuid').open('ab', buffering=0).write(b'x')", top)


def exchange(top: Path) -> None:
    renameat2(top / "f", top / "two" / "g", RENAME_EXCHANGE)


CHANGES: tuple[Callable[[Path], object], ...] = (
    overwrite,
    append_mapped,
    strip_set_user_id,
    exchange,
    lambda top: os.truncate(top / "f", 3),
    lambda top: os.utime(top / "f", (5, 6)),
    lambda top: (top / "f").chmod(0o600),
    lambda top: os.chown(top / "f", 7, 8),
    lambda top: (top / "new").touch(),
    lambda top: (top / "f").unlink(),
    lambda top: (top / "linked").unlink(),
    lambda top: (top / "linked-too").rename(top / "f"),
    lambda top: (top / "two" / "g").rename(top / "linked"),
    lambda top: (top / "another").hardlink_to(top / "linked"),
    lambda top: (top / "f").rename(top / "two" / "moved"),
    lambda top: (top / "two" / "below").mkdir(),
    lambda top: (top / "one" / "sub").rmdir(),
    lambda top: (top / "one" / "sub").rename(top / "two" / "sub"),
    lambda top: (top / "symlink").symlink_to("f"),
)


def prepare(top: Path) -> None:
    for path in (top, top / "one", top / "one" / "sub", top / "two"):
        path.mkdir()
    for path in (top / "f", top / "linked", top / "setuid", top / "two" / "g"):
        path.write_bytes(b"content")
    (top / "linked-too").hardlink_to(top / "linked")
    (top / "setuid").chmod(0o4777)
    top.chmod(0o777)


def shown(top: Path) -> dict[str, tuple[float, ...]]:
    """All that stat(2) says about everything below."""
    found: dict[str, tuple[float, ...]] = {}
    for path in (top, *sorted(top.rglob("*"))):
        s = path.lstat()
        found[str(path.relative_to(top))] = (
            s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_blocks,
            s.st_mtime, s.st_ctime,
        )  # fmt: skip
    return found


def test_every_change_here_is_seen_here_at_once(tmp_path: Path) -> None:
    """The other host has no caches yet: what it shows is what there is."""
    with datastore(tmp_path, hosts=("a", "b")) as ds:
        for number in range(len(CHANGES)):
            prepare(ds.a.path / f"{number}")
        before = [shown(ds.a.path / f"{number}") for number in range(len(CHANGES))]
        assert before == [shown(ds.a.path / f"{number}") for number in range(len(CHANGES))]
        time.sleep(1.1)  # times are whole seconds
        for number, change in enumerate(CHANGES):
            change(ds.a.path / f"{number}")
            here = shown(ds.a.path / f"{number}")
            assert here != before[number], f"change {number} did nothing"
            assert here == shown(ds.b.path / f"{number}"), f"change {number}"


def create(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    assert os.fstat(fd).st_size == 0
    os.close(fd)
    assert path.stat().st_nlink == 1


def make_directory(path: Path) -> None:
    path.mkdir()
    assert path.stat().st_nlink == 2


def make_link(path: Path) -> None:
    path.hardlink_to(path.parent / "linked")
    path.stat()


def test_what_was_made_is_not_asked_for(tmp_path: Path) -> None:
    """Each name changes the directory, of which the kernel then asks for the attributes itself."""
    count = 10
    with datastore(tmp_path, hosts=()) as ds:
        process = ds.mount("a", doctored=COUNTED).process
        prepare(ds.a.path / "top")
        for make, asks in ((create, 0), (make_directory, 0), (make_link, count)):
            (ds.a.path / "top" / "begin").symlink_to("said")
            process.wait_for("asked: symlink")
            before = len(process.said)
            for number in range(count):
                make(ds.a.path / "top" / f"{make.__name__}-{number}")
            (ds.a.path / "top" / "begin").unlink()
            process.wait_for("asked: unlink")
            asked = Counter(process.said[before:])["asked: getattr"]
            assert asks <= asked - count <= asks + 3, f"{make.__name__}: {asked}"
