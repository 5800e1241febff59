"""The bytes of a file that stand in its descriptor."""

import dataclasses

from tests.support.file_blocks import new_desc
from tests.support.space import Disk, Host, LockTable, tiny_files
from vmfs.files.inode import Contents
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import DATA_SIZE, Zla

TOTALS = dict.fromkeys(AddressType, 8)


def contents_of(zla: Zla, length: int, area: bytes) -> Contents:
    """What is known of a file after its descriptor was read."""
    host = Host(Disk(tiny_files(totals=TOTALS)), LockTable(), 0)
    return Contents(
        desc=dataclasses.replace(new_desc(zla), length=length),
        area=area,
        staging=host.staging,
        files=host.staging.disk.files,
    )


def resident(data: bytes, *, behind: bytes = b"\0") -> Contents:
    """A file in its descriptor, with `behind` again and again behind its end."""
    area = data + (behind * DATA_SIZE)[: DATA_SIZE - len(data)]
    return contents_of(Zla.RESIDENT, len(data), area)


def test_what_another_left_behind_the_end_never_becomes_the_files() -> None:
    contents = resident(b"abc", behind=b"\xee")
    assert contents.resident(0, 3) == b"abc"

    contents.change(length=10)  # as a truncation to more does

    assert contents.resident(1, 9) == b"bc" + bytes(7)
    assert contents.area() == b"abc".ljust(DATA_SIZE, b"\0")


def test_writes_in_front_of_at_and_behind_the_end() -> None:
    contents = resident(b"abcdef")

    contents.put_resident(1, memoryview(b"XY"))
    assert contents.resident(0, 6) == b"aXYdef"

    contents.put_resident(4, memoryview(b"12345"))
    contents.change(length=9)
    assert contents.resident(0, 9) == b"aXYd12345"

    contents.put_resident(12, memoryview(b"z"))
    contents.change(length=13)
    assert contents.resident(0, 13) == b"aXYd12345\0\0\0z"


def test_what_was_cut_off_reads_as_zero_when_the_file_grows_again() -> None:
    contents = resident(b"abcdef")

    contents.cut_resident(2)
    contents.change(length=2)
    contents.change(length=6)

    assert contents.resident(0, 6) == b"ab" + bytes(4)


def test_an_area_full_of_bytes_is_kept_as_it_is() -> None:
    data = bytes(range(256)) * (DATA_SIZE // 256)
    assert resident(data).area() == data


def test_of_a_file_with_blocks_only_the_addresses_are_kept() -> None:
    area = (b"\x41\0\0\0" * DATA_SIZE)[:DATA_SIZE]
    contents = contents_of(Zla.FB, DATA_SIZE, area)
    assert not contents.is_resident
    assert contents.area() == area
