"""A directory's content as values: dense, indexed, changed in whole sectors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import CorruptRecord, Exists, NotFound
from vmfs.files.dir_block import DOT, DOT_DOT, EntryArray
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.file_desc import FileType
from vmfs.units import SECTOR_SIZE

OWN = FdAddress(0x00000044)
PARENT = DirEntry(type=FileType.DIRECTORY, address=FdAddress(4), generation=1, name=DOT)


def entry(name: bytes, number: int = 7) -> DirEntry:
    return DirEntry(
        type=FileType.FILE, address=FdAddress(number << 22 | 4), generation=number, name=name
    )


def directory(*names: bytes) -> EntryArray:
    array = EntryArray.empty(own=OWN, own_generation=9, parent=PARENT)
    for name in names:
        array.add(entry(name))
    return array


def reread(array: EntryArray) -> EntryArray:
    return EntryArray(array.sectors((0, array.length))[1][: array.length], address=0)


def test_empty_directory_has_dot_and_dot_dot_first() -> None:
    array = directory()

    assert array.is_empty
    assert array.length == 2 * DirEntry.SIZE
    assert array.dot.address == OWN
    assert array.dot_dot == DirEntry(
        type=FileType.DIRECTORY, address=FdAddress(4), generation=1, name=DOT_DOT
    )


def test_add_touches_one_entry_and_stages_whole_sectors() -> None:
    array = directory(b"a")

    changed = array.add(entry(b"b"))
    offset, data = array.sectors(changed)

    assert changed == (3 * 140, 4 * 140)
    assert offset == 0
    assert len(data) == 2 * SECTOR_SIZE
    assert data[3 * 140 : 4 * 140] == entry(b"b").pack()


def test_remove_moves_last_entry_into_hole() -> None:
    array = directory(b"a", b"b", b"c")

    changed = array.remove(b"a")

    assert changed == (2 * 140, 3 * 140)
    assert [listed.name for listed in array.listed()] == [b"c", b"b"]
    array.check_invariants()


def test_remove_last_entry_changes_only_the_length() -> None:
    array = directory(b"a", b"b")

    changed = array.remove(b"b")

    assert changed[0] == changed[1]
    assert array.sectors(changed)[1] == b"" or changed[0] % SECTOR_SIZE
    assert array.find(b"b") is None


def test_rename_keeps_the_slot() -> None:
    array = directory(b"a", b"b")

    array.rename(b"a", entry(b"z"))

    assert [listed.name for listed in array.listed()] == [b"z", b"b"]
    array.check_invariants()


def test_replace_dot_dot_points_to_new_parent() -> None:
    array = directory()

    array.replace(
        DirEntry(type=FileType.DIRECTORY, address=FdAddress(0x84), generation=3, name=DOT_DOT)
    )

    assert reread(array).dot_dot.address == 0x84


def test_taken_and_missing_names_are_errors_that_change_nothing() -> None:
    array = directory(b"a", b"b")

    with pytest.raises(Exists):
        array.add(entry(b"a"))
    with pytest.raises(Exists):
        array.rename(b"a", entry(b"b"))
    with pytest.raises(NotFound):
        array.remove(b"x")
    with pytest.raises(NotFound):
        array.replace(entry(b"x"))
    with pytest.raises(NotFound):
        array.rename(b"x", entry(b"y"))

    array.check_invariants()
    assert [listed.name for listed in array.listed()] == [b"a", b"b"]


def test_content_without_dot_dot_is_corrupt() -> None:
    data = PARENT.pack() + entry(b"a").pack()

    with pytest.raises(CorruptRecord, match="first entries"):
        EntryArray(data, address=0x1000)


def test_name_twice_is_corrupt_and_named() -> None:
    array = directory(b"a")
    data = array.sectors((0, array.length))[1][: array.length] + entry(b"a").pack()

    with pytest.raises(CorruptRecord, match="b'a'"):
        EntryArray(data, address=0x1000)


@pytest.mark.parametrize("length", [1, 139, 141])
def test_length_that_is_no_whole_number_of_entries_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptRecord):
        EntryArray(bytes(length), address=0)


NAMES = st.sampled_from([b"n%d" % n for n in range(12)])


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "rename"]), NAMES, NAMES), max_size=60))
def test_any_sequence_of_changes_keeps_index_entries_and_bytes_in_step(
    steps: list[tuple[str, bytes, bytes]],
) -> None:
    array = directory()
    names: set[bytes] = set()
    disk = bytearray(64 * 1024)

    for verb, name, other in steps:
        try:
            if verb == "add":
                changed = array.add(entry(name))
                names.add(name)
            elif verb == "remove":
                changed = array.remove(name)
                names.remove(name)
            else:
                changed = array.rename(name, entry(other))
                names.remove(name)
                names.add(other)
        except (Exists, NotFound):
            continue
        offset, data = array.sectors(changed)
        disk[offset : offset + len(data)] = data
        array.check_invariants()

    assert {listed.name for listed in array.listed()} == names
    if names:
        on_disk = EntryArray(
            array.sectors((0, 280))[1][:280] + bytes(disk[280 : array.length]), address=0
        )
        assert {listed.name for listed in on_disk.listed()} == names
