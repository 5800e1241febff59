"""What ext4 does is expected here too, but for what VMFS-5 cannot express (docs/limits.md)."""

import ctypes
import errno
import mmap
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, datastore, run, run_as_user
from vmfs.units import KIB, MIB, TIB

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Iterator[Datastore]:
    with datastore(tmp_path_factory.mktemp("posix"), size="4G") as ds:
        yield ds


@pytest.fixture
def top(ds: Datastore) -> Iterator[Path]:
    """A fresh directory on the mount."""
    path = ds.a.path / "work"
    path.mkdir()
    yield path
    run("rm", "-rf", path)


def refused(action: Callable[[], object]) -> int:
    """The errno with which `action` fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        action()
    assert caught.value.errno is not None
    return caught.value.errno


def rename2(source: Path, target: Path, flags: int) -> None:
    names = os.fsencode(source), os.fsencode(target)
    if _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


# --- names ---


def test_rename_over_a_file_replaces_it_and_its_links_count_down(top):
    (top / "a").write_bytes(b"a")
    (top / "b").write_bytes(b"b")
    (top / "b2").hardlink_to(top / "b")

    (top / "a").rename(top / "b")

    assert (top / "b").read_bytes() == b"a"
    assert (top / "b2").stat().st_nlink == 1
    assert not (top / "a").exists()


def test_rename_noreplace_refuses_and_changes_nothing(top):
    (top / "a").write_bytes(b"a")
    (top / "b").write_bytes(b"b")

    assert refused(lambda: rename2(top / "a", top / "b", NOREPLACE)) == errno.EEXIST
    rename2(top / "a", top / "c", NOREPLACE)

    assert sorted(path.name for path in top.iterdir()) == ["b", "c"]


def test_rename_exchange_swaps_a_file_and_a_directory(top):
    (top / "d1" / "inner").mkdir(parents=True)
    (top / "d2").mkdir()
    (top / "d2" / "file").write_bytes(b"f")

    rename2(top / "d1" / "inner", top / "d2" / "file", EXCHANGE)

    assert (top / "d1" / "inner").read_bytes() == b"f"
    assert (top / "d2" / "file").is_dir()
    assert (top / "d1").stat().st_nlink == 2
    assert (top / "d2").stat().st_nlink == 3
    assert os.listdir(top / "d2" / "file" / "..") == ["file"]  # noqa: PTH208


def test_rename_exchange_with_nothing_and_whiteout_are_refused(top):
    (top / "a").touch()

    assert refused(lambda: rename2(top / "a", top / "none", EXCHANGE)) == errno.ENOENT
    assert refused(lambda: rename2(top / "a", top / "none", WHITEOUT)) == errno.EINVAL


def test_rename_of_a_directory_into_itself_is_refused(top):
    (top / "d" / "e").mkdir(parents=True)

    assert refused(lambda: (top / "d").rename(top / "d" / "e" / "f")) == errno.EINVAL
    assert refused(lambda: rename2(top / "d" / "e", top / "d", EXCHANGE)) in (
        errno.EINVAL,
        errno.ENOTEMPTY,
    )


def test_rename_onto_the_wrong_kind_is_refused(top):
    (top / "d").mkdir()
    (top / "full" / "x").mkdir(parents=True)
    (top / "f").touch()

    assert refused(lambda: (top / "d").rename(top / "f")) == errno.ENOTDIR
    assert refused(lambda: (top / "f").rename(top / "d")) == errno.EISDIR
    assert refused(lambda: (top / "d").rename(top / "full")) == errno.ENOTEMPTY
    (top / "full" / "x").rename(top / "d")


def test_rename_between_two_names_of_one_file_does_nothing(top):
    (top / "a").write_bytes(b"a")
    (top / "b").hardlink_to(top / "a")

    (top / "a").rename(top / "b")

    assert sorted(path.name for path in top.iterdir()) == ["a", "b"]


def test_renamed_directory_has_its_new_parent_behind_dot_dot(top):
    (top / "one" / "child").mkdir(parents=True)
    (top / "two").mkdir()
    fd = os.open(top / "one" / "child", os.O_RDONLY)

    (top / "one" / "child").rename(top / "two" / "child")

    try:
        assert os.stat("..", dir_fd=fd).st_ino == (top / "two").stat().st_ino
    finally:
        os.close(fd)
    assert (top / "one").stat().st_nlink == 2


@pytest.mark.parametrize("length", [127, 128, 255])
def test_names_up_to_127_bytes(top, length):
    path = top / ("n" * length)
    if length <= 127:
        path.touch()
        assert [entry.name for entry in top.iterdir()] == [path.name]
    else:
        for action in (path.touch, path.mkdir, path.stat, lambda: path.symlink_to("x")):
            assert refused(action) == errno.ENAMETOOLONG
        (top / "f").touch()
        assert refused(lambda: (top / "f").rename(path)) == errno.ENAMETOOLONG


def test_name_of_any_bytes_comes_back(top):
    name = bytes(range(1, 47)) + b"\xff\xfe\xc3("
    os.close(os.open(os.fsencode(top) + b"/" + name, os.O_CREAT | os.O_WRONLY))

    assert os.listdir(os.fsencode(top)) == [name]  # noqa: PTH208


def test_directory_that_is_not_empty_or_not_one_is_not_removed(top):
    (top / "d").mkdir()
    (top / "d" / "f").touch()

    assert refused((top / "d").rmdir) == errno.ENOTEMPTY
    assert refused((top / "d" / "f").rmdir) == errno.ENOTDIR
    assert refused((top / "d").unlink) in (errno.EISDIR, errno.EPERM)
    assert refused(lambda: os.rmdir(f"{top}/d/.")) == errno.EINVAL  # noqa: PTH106 (keeps the dot)
    assert refused((top / "none").rmdir) == errno.ENOENT


def test_removed_directory_that_is_open_takes_no_new_names(top):
    (top / "d").mkdir()
    fd = os.open(top / "d", os.O_RDONLY)
    (top / "d").rmdir()
    try:
        assert os.listdir(fd) == []  # noqa: PTH208
        assert refused(lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)) == errno.ENOENT
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_listing_while_names_come_and_go_skips_and_doubles_nothing(top):
    kept = {f"kept-{i:04}" for i in range(600)}
    for name in kept:
        (top / name).touch()
    for i in range(200):
        (top / f"gone-{i:04}").touch()

    seen: list[str] = []
    with os.scandir(top) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 4 == 0 and count < 800:
                (top / f"gone-{count // 4:04}").unlink(missing_ok=True)
                (top / f"new-{count:04}").touch()

    assert len(seen) == len(set(seen))
    assert kept <= set(seen)


def test_directory_lists_dot_and_dot_dot(top):
    (top / "d").mkdir()

    listed = run("ls", "-ai1", top / "d").split()

    assert listed[1::2] == [".", ".."]
    assert [int(number) for number in listed[0::2]] == [
        (top / "d").stat().st_ino,
        top.stat().st_ino,
    ]


@pytest.mark.parametrize("length", [1, 100, 1000, 4095])
def test_symlink_of_any_length_comes_back(top, length):
    target = "t" * length
    (top / "link").symlink_to(target)

    assert os.readlink(top / "link") == target  # noqa: PTH115
    assert (top / "link").lstat().st_size == length


def test_hard_link_shares_everything_and_directories_have_none(top):
    (top / "a").write_bytes(b"one")
    (top / "d").mkdir()
    (top / "b").hardlink_to(top / "a")
    (top / "b").write_bytes(b"other")

    assert (top / "a").read_bytes() == b"other"
    assert (top / "a").stat().st_ino == (top / "b").stat().st_ino
    assert (top / "a").stat().st_nlink == 2
    assert refused(lambda: (top / "e").hardlink_to(top / "d")) == errno.EPERM
    assert refused(lambda: (top / "b").hardlink_to(top / "a")) == errno.EEXIST
    (top / "a").unlink()
    assert (top / "b").read_bytes() == b"other"


def test_exclusive_create_of_what_exists_is_refused(top):
    (top / "f").touch()

    assert refused(lambda: os.open(top / "f", os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    assert refused((top / "f").mkdir) == errno.EEXIST
    assert refused(lambda: os.open(top / "f" / "x", os.O_CREAT)) == errno.ENOTDIR


def test_special_files_are_refused(top):
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR):
        assert refused(lambda kind=kind: os.mknod(top / "node", kind | 0o600)) == errno.EPERM
    os.mknod(top / "plain", stat.S_IFREG | 0o640)
    assert stat.S_IMODE((top / "plain").stat().st_mode) == 0o640


# --- content ---


def test_unlinked_file_lives_until_its_last_close(top, ds):
    free = os.statvfs(ds.a.path).f_bfree
    with (top / "f").open("w+b", buffering=0) as file:
        file.write(b"x" * 8 * MIB)
        (top / "f").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read(3) == b"xxx"
        file.truncate(3 * MIB)
        file.write(b"more")
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 3 * MIB
        os.fchmod(file.fileno(), 0o600)
    run("sync", "-f", ds.a.path)

    assert os.statvfs(ds.a.path).f_bfree == free


@pytest.mark.parametrize(
    "size", [1, 511, 512, 1024, 1025, 8 * KIB, 8 * KIB + 1, 64 * KIB, MIB, MIB + 1, 5 * MIB + 77]
)
def test_content_of_every_size_comes_back(top, size):
    data = random.Random(size).randbytes(size)
    (top / "f").write_bytes(data)

    assert (top / "f").read_bytes() == data
    assert (top / "f").stat().st_size == size
    run("cp", "--sparse=never", top / "f", top / "g")
    run("cmp", top / "f", top / "g")


def test_file_grows_byte_by_byte_through_every_kind_of_block(top):
    wanted = bytearray()
    with (top / "f").open("wb", buffering=0) as file:
        for step, size in enumerate([1, 500, 600, 3000, 5000, 60_000, 70_000, MIB, 2 * MIB]):
            piece = bytes([step + 1]) * size
            file.write(piece)
            wanted += piece

    assert (top / "f").read_bytes() == wanted


def test_holes_read_as_zero_and_cost_nothing(top):
    with (top / "f").open("wb") as file:
        file.seek(200 * MIB)
        file.write(b"end")
    with (top / "f").open("rb") as file:
        assert file.read(100) == bytes(100)
        file.seek(100 * MIB - 7)
        assert file.read(4096) == bytes(4096)
        file.seek(200 * MIB - 2)
        assert file.read() == b"\0\0end"

    assert (top / "f").stat().st_blocks * 512 <= 3 * MIB


def test_truncate_both_ways_never_shows_old_bytes(top):
    path = top / "f"
    path.write_bytes(b"\xaa" * (3 * MIB))
    for size in (2 * MIB + 100, 1000, 10):
        os.truncate(path, size)
        os.truncate(path, 3 * MIB)
        data = path.read_bytes()
        assert data[:size] == b"\xaa" * size
        assert not any(data[size:])
        path.write_bytes(b"\xaa" * (3 * MIB))
    with path.open("r+b") as file:
        file.truncate(0)
        file.seek(5000)
        file.write(b"x")
    assert path.read_bytes() == bytes(5000) + b"x"


def test_file_of_64_tib_is_the_largest(top):
    with (top / "f").open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 64 * TIB)
        assert refused(lambda: os.ftruncate(file.fileno(), 64 * TIB + 1)) == errno.EFBIG
        assert refused(lambda: os.pwrite(file.fileno(), b"x", 64 * TIB)) == errno.EFBIG
        assert refused(lambda: os.ftruncate(file.fileno(), 999_999_999_999_999)) == errno.EFBIG
        assert os.pwrite(file.fileno(), b"last", 64 * TIB - 4) == 4
        assert os.pread(file.fileno(), 10, 64 * TIB - 6) == b"\0\0last"
    assert (top / "f").stat().st_size == 64 * TIB
    os.truncate(top / "f", 5)
    assert (top / "f").read_bytes() == bytes(5)


def test_append_of_two_processes_loses_nothing(top):
    script = f"for i in $(seq 100); do echo $0$i >> {top}/log; done"
    run("sh", "-c", f"sh -c '{script}' a & sh -c '{script}' b & wait")

    lines = (top / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{who}{i}" for who in "ab" for i in range(1, 101))


def test_append_goes_to_the_end_wherever_the_position_is(top):
    fd = os.open(top / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, b"one")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        with (top / "f").open("r+b", buffering=0) as other:
            other.truncate(2)
        os.write(fd, b"three")
    finally:
        os.close(fd)

    assert (top / "f").read_bytes() == b"onthree"


def test_direct_and_buffered_and_mapped_access_agree(top):
    path, buffer = top / "f", mmap.mmap(-1, 64 * KIB)
    buffer[:] = b"d" * 64 * KIB
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [buffer], 0) == 64 * KIB
        assert os.pwritev(fd, [buffer], 2 * MIB) == 64 * KIB
        with path.open("r+b", buffering=0) as file:
            file.seek(10)
            file.write(b"buffered")
            with mmap.mmap(file.fileno(), 0) as pages:
                assert pages[8:20] == b"ddbuffereddd"
                pages[100:106] = b"mapped"
                pages.flush()
        assert os.preadv(fd, [buffer], 0) == 64 * KIB
    finally:
        os.close(fd)

    assert buffer[8:20] == b"ddbuffereddd"
    assert buffer[100:106] == b"mapped"
    assert not any(path.read_bytes()[64 * KIB : 2 * MIB])


def test_many_threads_on_one_file_each_find_what_they_wrote(top):
    fd = os.open(top / "f", os.O_RDWR | os.O_CREAT)
    failures: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(30):
            offset = (rng.randrange(64) * 8 + number) * 8 * KIB
            data = rng.randbytes(8 * KIB)
            os.pwrite(fd, data, offset)
            if os.pread(fd, 8 * KIB, offset) != data:
                failures.append(f"thread {number} at {offset}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)

    assert failures == []


# --- attributes ---


def test_owner_and_mode_are_the_callers(top):
    top.chmod(0o777)
    code = "os.umask(0o027); (top / 'f').touch(); (top / 'd').mkdir(); (top / 'l').symlink_to('x')"
    run_as_user(code, top, uid=1234)

    for name, mode in (("f", 0o640), ("d", 0o750), ("l", 0o777)):
        found = (top / name).lstat()
        assert (found.st_uid, found.st_gid) == (1234, 1234)
        assert stat.S_IMODE(found.st_mode) == mode


def test_permissions_are_checked_by_the_kernel(top):
    (top / "secret").write_bytes(b"s")
    (top / "secret").chmod(0o600)
    code = """
for action in (lambda: (top / 'secret').read_bytes(), lambda: (top / 'new').touch(),
               lambda: (top / 'secret').chmod(0o777), lambda: (top / 'secret').unlink()):
    try:
        action()
    except PermissionError:
        continue
    raise SystemExit('allowed')
"""
    run_as_user(code, top)


def test_sticky_directory_protects_other_peoples_names(top):
    top.chmod(0o1777)
    (top / "roots").touch()
    code = """
(top / 'mine').touch(); (top / 'mine').rename(top / 'mine2'); (top / 'mine2').unlink()
try:
    (top / 'roots').unlink()
except PermissionError:
    raise SystemExit(0)
raise SystemExit('allowed')
"""
    run_as_user(code, top)


def test_set_group_id_directory_hands_its_group_down(top):
    os.chown(top, 0, 4321)
    top.chmod(0o2775)

    (top / "f").touch()
    (top / "d").mkdir()

    assert (top / "f").stat().st_gid == 4321
    assert (top / "d").stat().st_gid == 4321
    assert (top / "d").stat().st_mode & stat.S_ISGID
    assert not (top / "f").stat().st_mode & stat.S_ISGID


def test_write_by_another_user_takes_set_user_id_away(top):
    path = top / "f"
    path.write_bytes(b"x")
    path.chmod(0o6777)
    run_as_user("(top / 'f').open('r+b').write(b'y')", top)

    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_times_are_set_and_move_as_they_should(top):
    path = top / "f"
    path.touch()
    os.utime(path, (1_000_000_000, 1_100_000_000))
    found = path.stat()
    assert (found.st_atime, found.st_mtime) == (1_000_000_000, 1_100_000_000)
    assert found.st_ctime > 1_600_000_000

    path.read_bytes()
    assert path.stat().st_atime == 1_000_000_000
    path.write_bytes(b"changed")
    assert path.stat().st_mtime > 1_600_000_000
    os.utime(top, (5, 5))
    (top / "g").touch()
    assert top.stat().st_mtime > 1_600_000_000


def test_link_count_of_a_directory_counts_its_subdirectories(top):
    for name in "abc":
        (top / name).mkdir()
    assert top.stat().st_nlink == 5
    (top / "a").rmdir()
    (top / "b").rename(top / "c" / "b")
    assert top.stat().st_nlink == 3
    assert (top / "c").stat().st_nlink == 3


def test_statfs_and_block_size_say_what_the_volume_is(ds, top):
    found = os.statvfs(ds.a.path)
    assert (found.f_bsize, found.f_namemax) == (MIB, 127)
    assert 0 < found.f_bfree < found.f_blocks <= 4096
    (top / "f").touch()
    assert (top / "f").stat().st_blksize == MIB


def test_fsync_of_files_and_directories_works(top):
    with (top / "f").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    fd = os.open(top, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    run("sync", "-f", top)
