"""The pure parts of the edge: errnos, handles, known nodes, options, mountinfo."""

import errno
import inspect

import pytest

import vmfs.errors
from vmfs.errors import CorruptRecord, InvalidArgument, LockBusy, NoSpace, NotFound, VmfsError
from vmfs.fuse.errnos import answer_to, errno_of, is_loud
from vmfs.fuse.handles import Handles
from vmfs.fuse.known_nodes import KnownNodes, address_of, inode_of
from vmfs.fuse.mountinfo import mounted_at, parse_mountinfo, with_device
from vmfs.fuse.options import (
    MountOptions,
    escape_option,
    libfuse_options,
    parse_options,
    split_options,
)
from vmfs.ids import FdAddress

ROOT = FdAddress(4)

EVERY_ERROR = [
    error
    for _, error in inspect.getmembers(vmfs.errors, inspect.isclass)
    if issubclass(error, VmfsError) and error is not VmfsError
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.__name__)
def test_errno_of_every_error_class_is_its_own(error):
    assert "errno" in vars(error), f"{error.__name__} inherits its errno; give it one of its own"
    assert vars(error)["errno"] in errno.errorcode


def test_answer_to_an_error_on_purpose_is_that_error():
    error = NoSpace("full")

    assert answer_to(error) is error
    assert errno_of(error) == errno.ENOSPC


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), KeyError(1), OSError(5, "x")])
def test_answer_to_anything_else_is_none(error):
    assert answer_to(error) is None


def test_answer_to_a_group_is_its_first_when_all_are_on_purpose():
    inner = LockBusy("in use", holder="esx-b")
    group = ExceptionGroup("nursery", [ExceptionGroup("inner", [inner]), NotFound("x")])

    assert answer_to(group) is inner


def test_answer_to_a_group_with_a_bug_in_it_is_none():
    assert answer_to(ExceptionGroup("nursery", [NotFound("x"), ValueError("bug")])) is None


def test_loud_errors_are_those_that_the_caller_did_not_cause():
    assert is_loud(CorruptRecord("FD", 0, "magic", 1, 2))
    assert not is_loud(NotFound("x"))


def test_handles_are_never_given_out_twice():
    handles: Handles[str] = Handles()

    first = handles.add("a")
    handles.remove(first)
    second = handles.add("b")

    assert first != second
    assert handles[second] == "b"
    assert list(handles) == ["b"]
    handles.check_invariants()


@pytest.mark.parametrize("handle", [0, 1, 99])
def test_handles_unknown_handle_is_a_key_error(handle):
    handles: Handles[str] = Handles()

    with pytest.raises(KeyError):
        handles[handle]
    with pytest.raises(KeyError):
        handles.remove(handle)
    assert len(handles) == 0


def test_inode_numbers_root_is_one_and_others_are_addresses():
    assert inode_of(ROOT, root=ROOT) == 1
    assert address_of(1, root=ROOT) == ROOT
    assert address_of(inode_of(FdAddress(0x44), root=ROOT), root=ROOT) == 0x44


def test_known_nodes_forget_in_pieces_reports_the_last_one():
    known = KnownNodes(ROOT)
    node = FdAddress(0x44)
    for name in (b"a", b"a", b"b"):
        known.add(node, parent=ROOT, name=name, generation=1)

    assert not known.forget(node, 1)
    assert known.path(node) == "/b"
    known.check_invariants()
    assert known.forget(node, 2)
    assert len(known) == 0
    known.check_invariants()


def test_known_nodes_forget_more_than_counted_is_forgotten_once():
    known = KnownNodes(ROOT)
    known.add(FdAddress(0x44), parent=ROOT, name=b"a", generation=1)

    assert known.forget(FdAddress(0x44), 99)
    assert not known.forget(FdAddress(0x44), 1)


def test_known_nodes_lent_to_the_kernel_stay_who_they_were():
    known = KnownNodes(ROOT)
    known.add(FdAddress(0x44), parent=ROOT, name=b"a", generation=1)
    known.lend(FdAddress(0x44), parent=ROOT, name=b"b", generation=2)
    known.lend(FdAddress(0x84), parent=ROOT, name=b"c", generation=1)

    assert known.is_another(FdAddress(0x44), 2)
    assert known.path(FdAddress(0x44)) == "/a"
    assert not known.forget(FdAddress(0x44), 1)
    assert known.forget(FdAddress(0x44), 1)
    assert known.forget(FdAddress(0x84), 1)
    assert len(known) == 0


def test_known_nodes_root_is_never_counted():
    known = KnownNodes(ROOT)
    known.add(ROOT, parent=ROOT, name=b".", generation=1)

    assert len(known) == 0
    assert not known.forget(ROOT, 1)
    assert known.path(ROOT) == "/"


def test_known_nodes_path_of_a_cycle_ends():
    known = KnownNodes(ROOT)
    known.add(FdAddress(0x44), parent=FdAddress(0x84), name=b"a", generation=1)
    known.add(FdAddress(0x84), parent=FdAddress(0x44), name=b"b", generation=1)

    assert known.path(FdAddress(0x44)).endswith("/b/a")


def test_known_nodes_path_through_dots_keeps_the_name():
    known = KnownNodes(ROOT)
    known.add(FdAddress(0x44), parent=ROOT, name=b"dir", generation=1)
    known.add(FdAddress(0x44), parent=FdAddress(0x44), name=b".", generation=1)
    known.add(FdAddress(0x84), parent=FdAddress(0x44), name=b"\xff", generation=1)

    assert known.path(FdAddress(0x84)) == "/dir/\N{REPLACEMENT CHARACTER}"
    assert known.path(FdAddress(0xC4)) == "/<0x000000c4>"


def test_options_as_fstab_gives_them():
    options = parse_options(
        "rw,nosuid,lockd=/run/vmfs/lockd.sock,host=esx-a,_netdev,noauto,nofail,user,"
        "x-systemd.requires=lockd.service,comment=mine,allow_other,ro,suid,user=joe"
    )

    assert options == MountOptions(
        lockd="/run/vmfs/lockd.sock",
        host="esx-a",
        read_only=True,
        allow_other=True,
        kernel_flags=("suid",),
    )


def test_options_of_several_texts_add_up_and_the_last_wins():
    options = parse_options("ro,host=a,noatime,", "rw,host=b,max_read=65536", "")

    assert options.read_only is False
    assert options.host == "b"
    assert options.max_read == 65536
    assert options.kernel_flags == ("noatime",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bogus", "bogus"),
        ("lockd", "lockd"),
        ("lockd=", "lockd"),
        ("ro=1", "ro=1"),
        ("max_read=12", "max_read"),
        ("max_read=lots", "max_read"),
        ("read_ahead_kib=-1", "read_ahead_kib"),
        ("spin_us=1001", "spin_us"),
        ("profile=fastest", "profile"),
        ("io=uring", "io=uring: there are auto, inline, aio"),
        ("host=a\\", "backslash"),
    ],
)
def test_options_that_make_no_sense_are_named(text, named):
    with pytest.raises(InvalidArgument, match=named):
        parse_options(text)


@pytest.mark.parametrize("path", ["/a,b", "/a\\b", "/plain", ",", "\\,"])
def test_options_escaped_value_comes_back(path):
    assert split_options(f"x={escape_option(path)},ro") == [f"x={path}", "ro"]


def test_libfuse_options_of_root_let_others_in():
    passed = libfuse_options(MountOptions(), source="/srv/ds1,old.img", is_root=True)

    assert passed == {
        "fsname=/srv/ds1\\,old.img", "subtype=vmfs", "default_permissions", "rw", "allow_other",
    }  # fmt: skip


def test_libfuse_options_of_a_user_keep_others_out_and_check_permissions():
    options = parse_options("ro,noexec,max_read=131072")

    passed = libfuse_options(options, source="ds1", is_root=False)

    assert passed == {
        "fsname=ds1", "subtype=vmfs", "default_permissions", "ro", "noexec", "max_read=131072",
    }  # fmt: skip


MOUNTINFO = """\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
61 22 0:53 / /mnt/ds\\0401 rw,nosuid shared:3 - fuse.vmfs /srv/my\\040lun.img rw,user_id=0
62 61 0:54 / /mnt/ds\\0401 rw - fuse.vmfs /srv/other.img rw
broken line
63 22 0:55 / /mnt/x rw -
"""


def test_mountinfo_finds_the_topmost_mount_and_undoes_escapes():
    entries = parse_mountinfo(MOUNTINFO)

    top = mounted_at(entries, "/mnt/ds 1")
    assert top is not None
    assert (top.source, top.is_vmfs, top.minor) == ("/srv/other.img", True, 54)
    below = with_device(entries, major=0, minor=53)
    assert below is not None
    assert below.source == "/srv/my lun.img"


def test_mountinfo_of_what_is_not_mounted_is_none():
    entries = parse_mountinfo(MOUNTINFO)

    assert len(entries) == 3
    assert mounted_at(entries, "/mnt/ds") is None
    assert with_device(entries, major=9, minor=9) is None
