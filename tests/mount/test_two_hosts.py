"""Two mounts of one LUN on one machine: real data, real locks, in both lock modes."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, datastore, run, run_vmfs
from vmfs.units import GIB, MIB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ats", "reservation"])
def ds(request, tmp_path_factory) -> Iterator[Datastore]:
    """One datastore for all tests of a mode; each cleans up, and at the end it is checked."""
    directory = tmp_path_factory.mktemp(request.param)
    arguments = ("--lock-mode", request.param)
    with datastore(directory, hosts=("a", "b"), size="8G", mkfs=arguments) as ds:
        yield ds


@pytest.fixture
def names(ds: Datastore) -> Iterator[tuple[Path, Path]]:
    """A fresh directory, as A sees it and as B sees it; gone afterwards."""
    here, there = ds.a.path / "work", ds.b.path / "work"
    here.mkdir()
    yield here, there
    run("rm", "-rf", here)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_noise(path: Path, *, size: int) -> None:
    """Bytes that do not compress, in 1 MiB pieces of which every fourth is zero."""
    with path.open("wb") as file:
        for index in range(size // MIB):
            file.write(bytes(MIB) if index % 4 == 3 else os.urandom(MIB))


def errno_of_open(path: Path, flags: int) -> int:
    """0 when it can be opened."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def test_vmdk_with_contents_copied_on_one_host_reads_the_same_on_the_other(ds, tmp_path):
    raw, vmdk = tmp_path / "disk.raw", ds.a.path / "vm1" / "disk.vmdk"
    vmdk.parent.mkdir()
    write_noise(raw, size=GIB + 16 * MIB)
    try:
        run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, vmdk)
        flat = vmdk.with_name("disk-flat.vmdk")
        copies = [flat.with_name(name) for name in ("cp.vmdk", "dd.vmdk", "direct.vmdk")]
        run("cp", flat, copies[0])
        run("dd", f"if={flat}", f"of={copies[1]}", "bs=64K", "status=none")
        run("dd", f"if={flat}", f"of={copies[2]}", "bs=1M", "oflag=direct", "status=none")

        wanted = sha256(raw)
        for copy in (flat, *copies):
            other = ds.b.path / copy.relative_to(ds.a.path)
            assert sha256(other) == wanted, copy.name
            run("dd", f"if={other}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none")
        there = ds.b.path / "vm1" / "disk.vmdk"
        run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", there, raw)
        assert "monolithicFlat" in run("qemu-img", "info", there)
    finally:
        run("rm", "-rf", vmdk.parent)


def test_sparse_vmdk_made_on_one_host_is_checked_on_the_other(ds, names, tmp_path):
    here, there = names
    run("qemu-img", "create", "-f", "vmdk", here / "thin.vmdk", "1G")
    write_noise(tmp_path / "raw", size=64 * MIB)
    run("qemu-img", "convert", "-O", "vmdk", tmp_path / "raw", here / "full.vmdk")

    run("qemu-img", "check", there / "thin.vmdk")
    run("qemu-img", "check", there / "full.vmdk")
    run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", there / "full.vmdk", tmp_path / "raw")


def test_file_that_is_being_written_is_busy_elsewhere_and_free_at_once_after_close(ds, names):
    here, there = names
    for round_number in range(20):
        with (here / "disk").open("wb", buffering=0) as file:
            file.write(b"%d" % round_number)
            assert errno_of_open(there / "disk", os.O_RDONLY) == errno.EBUSY
            assert errno_of_open(there / "disk", os.O_WRONLY) == errno.EBUSY
        assert (there / "disk").read_bytes() == b"%d" % round_number
        assert errno_of_open(there / "disk", os.O_RDWR) == 0


def test_busy_answer_names_the_path_in_the_log_and_the_holder(ds, names):
    here, there = names
    with (here / "mine").open("wb"):
        assert errno_of_open(there / "mine", os.O_RDWR) == errno.EBUSY

    line = ds.b.process.wait_for("path=/work/mine")
    assert "busy: verb=open" in line
    assert f"holder=a (pid {ds.a.pid})" in line


def test_file_that_both_read_is_not_busy_but_for_writers(ds, names):
    here, there = names
    (here / "shared").write_bytes(b"x" * 5000)
    with (here / "shared").open("rb") as one, (there / "shared").open("rb") as other:
        assert one.read() == other.read()
        assert errno_of_open(here / "shared", os.O_WRONLY) == errno.EBUSY
        assert errno_of_open(there / "shared", os.O_WRONLY) == errno.EBUSY
    assert errno_of_open(there / "shared", os.O_WRONLY) == 0


def test_names_sizes_and_deletions_of_one_host_are_seen_by_the_other_at_once(ds, names):
    here, there = names
    for round_number in range(5):
        path, other = here / f"file{round_number}", there / f"file{round_number}"
        assert not other.exists()
        path.write_bytes(b"x" * (1000 * round_number + 1))
        assert other.stat().st_size == 1000 * round_number + 1
        path.rename(here / "renamed")
        assert not other.exists()
        assert sorted(entry.name for entry in there.iterdir()) == ["renamed"]
        (there / "renamed").unlink()
        assert not (here / "renamed").exists()
        assert list(here.iterdir()) == []
    (there / "sub").mkdir()
    (there / "sub" / "x").symlink_to("target")
    assert (here / "sub" / "x").readlink() == Path("target")


def test_size_of_a_file_that_grows_on_one_host_is_seen_by_stat_on_the_other(ds, names):
    here, there = names
    with (here / "growing").open("wb", buffering=0) as file:
        for count in range(1, 6):
            file.write(b"x" * 100_000)
            assert (there / "growing").stat().st_size == count * 100_000


def test_content_overwritten_in_place_is_never_read_stale(ds, names):
    here, there = names
    paths = [here / "ball", there / "ball"]
    paths[0].write_bytes(b"%08d" % 0 * 4096)
    for turn in range(1, 30):
        mine = paths[turn % 2]
        assert mine.read_bytes() == b"%08d" % (turn - 1) * 4096
        with mine.open("r+b") as file:
            file.write(b"%08d" % turn * 4096)


def test_append_from_both_hosts_in_turn_loses_nothing(ds, names):
    here, there = names
    for turn in range(20):
        path = (here, there)[turn % 2] / "log"
        with path.open("ab", buffering=0) as file:
            file.write(b"%04d\n" % turn)

    assert (here / "log").read_bytes() == b"".join(b"%04d\n" % turn for turn in range(20))


def test_both_hosts_create_in_one_directory_and_each_name_exists_once(ds, names):
    here, there = names
    scripts = [
        f"cd {top} && for i in $(seq 60); do echo {who} > own-{who}-$i; "
        f"(set -C; echo {who} > race-$i) 2>/dev/null; done; true"
        for who, top in (("a", here), ("b", there))
    ]
    run("sh", "-c", f"({scripts[0]}) & ({scripts[1]}) & wait")

    seen = sorted(path.name for path in here.iterdir())
    assert seen == sorted(path.name for path in there.iterdir())
    assert len(seen) == 180
    assert all((there / f"race-{i}").read_text() in ("a\n", "b\n") for i in range(1, 61))


def test_locks_say_who_has_what(ds, names):
    here, there = names
    with (here / "held").open("wb") as held:
        os.fsync(held.fileno())  # what is not committed yet is not on the LUN: nor is its lock
        listed = run_vmfs("locks", "ls", ds.lun)
        who = run_vmfs("locks", "who", here / "held")
        why = run_vmfs("locks", "why", there / "held", "--lockd", ds.socket)

    assert listed.returncode == 0, listed.stderr
    line = next(line for line in listed.stdout.splitlines() if "/work/held" in line)
    assert line.split()[:3] == ["exclusive", "a", str(ds.a.pid)]
    assert who.returncode == 0, who.stderr
    assert str(ds.a.pid) in who.stdout
    assert f"(pid {os.getpid()})" in who.stdout
    assert "open on a by " in who.stdout
    assert "open on a by " in why.stdout
    assert "nobody waits for it" in why.stdout


def test_lock_of_a_file_that_is_not_committed_yet_is_found_at_once(ds):
    """A host that commits every 5 s, and a name that was never on the LUN."""
    slow = ds.mount("slow", "profile=production")
    with (slow.path / "fresh").open("wb"):
        who = run_vmfs("locks", "who", slow.path / "fresh")
        deadline = time.monotonic() + 20
        claimed = who.stdout
        while "nobody holds it" in who.stdout and time.monotonic() < deadline:  # claimed until then
            who = run_vmfs("locks", "who", slow.path / "fresh")
        why = run_vmfs("locks", "why", slow.path / "fresh", "--lockd", ds.socket)
        none = run_vmfs("locks", "why", slow.path / "none", "--lockd", ds.socket)
    (slow.path / "fresh").unlink()
    slow.stop()

    assert who.returncode == why.returncode == 0, who.stderr + why.stderr
    assert f"exclusive  slow  {slow.pid}" in claimed, "else whoever has the directory is named"
    assert who.stdout.splitlines()[1].split()[:3] == ["exclusive", "slow", str(slow.pid)]
    assert f"/fresh: exclusive, held by slow (pid {slow.pid})" in why.stdout
    assert none.returncode == 1
    assert "there is no none on the LUN, and" in none.stderr


def test_lockmode_of_a_volume_in_use_is_shown_but_not_changed(ds):
    mode = run_vmfs("lockmode", "get", ds.a.path).stdout.strip()
    refused = run_vmfs("lockmode", "set", "ats", ds.lun)

    assert mode in ds.directory.name
    assert refused.returncode == 1
    assert "unmount it everywhere" in refused.stderr


def test_listing_shows_new_files_whose_descriptors_belonged_to_others_before(ds, names):
    """Freed descriptors are used again: what this host knew under an address is somebody else."""
    here, there = names
    for _ in range(3):
        for number in range(30):
            (here / f"old-{number}").touch()
        assert len(list(there.iterdir())) == 30
        for number in range(30):
            (here / f"old-{number}").unlink()
            (here / f"new-{number}").write_bytes(b"n" * number)
        assert {path.name for path in there.iterdir()} == {f"new-{n}" for n in range(30)}
        assert all((there / f"new-{n}").stat().st_size == n for n in range(30))
        run("sh", "-c", f"rm {here}/new-*")


def test_listing_of_a_directory_that_others_change_has_all_names_with_their_types(ds, names):
    """It may not be kept, then, and goes out with names only; the kernel gives back what it got."""
    here, there = names
    (here / "directory").mkdir()
    (here / "link").symlink_to("directory")
    for number in range(300):
        (here / f"file-{number}").touch()
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            (here / "again").touch()
            (here / "again").unlink()

    changes = threading.Thread(target=change)
    changes.start()
    try:
        for _ in range(60):
            with os.scandir(there) as entries:
                found = {entry.name: entry for entry in entries}
            assert len(found.keys() - {"again"}) == 302
            assert found["directory"].is_dir(follow_symlinks=False)
            assert found["link"].is_symlink()
            assert found["file-7"].is_file(follow_symlinks=False)
            assert (there / "file-7").stat().st_size == 0
            assert (there / "link").is_dir()
    finally:
        over.set()
        changes.join()
