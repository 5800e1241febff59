"""File descriptors, pointer blocks and directory entries: what files are made of."""

import dataclasses

import numpy as np
import pytest

from tests.support.records import LOCK_AT, POINTERS, file_desc
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress
from vmfs.ondisk import file_desc as module
from vmfs.ondisk import pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.dirent import NAME_MAX, DirEntry, unpack_all
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla

AT = LOCK_AT + 512


def test_changed_is_a_replacement() -> None:
    desc = file_desc()
    fields = {"length": 77, "mtime": 5, "reserved_70": b"r" * 25, "zla": Zla.DOUBLE}

    assert desc.changed(fields) == dataclasses.replace(desc, **fields)  # type: ignore[arg-type]
    assert desc.changed({}) == desc == file_desc()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"address": FdAddress(0x141)}, "own address"),
        ({"type": FileType.NONE}, "type"),
        ({"length": (1 << 46) + 1}, "length"),
        ({"block_size": 3 << 19}, "block size"),
        ({"block_size": 0}, "block size"),
        ({"block_shift": 13}, "block shift"),
        ({"zla": Zla.RESIDENT}, "length"),
    ],
)
def test_descriptor_that_no_file_can_have_is_corrupt(change: dict[str, object], field: str) -> None:
    damaged = dataclasses.replace(file_desc(), **change)  # type: ignore[arg-type]

    with pytest.raises(CorruptRecord) as caught:
        FileDesc.unpack(damaged.pack(), address=AT)

    assert caught.value.field == field


@pytest.mark.parametrize(("offset", "field"), [(0x0C, "type"), (0x45, "zla")])
def test_descriptor_with_an_unknown_kind_is_corrupt(offset: int, field: str) -> None:
    data = bytearray(file_desc().pack())
    data[offset] = 0x77

    with pytest.raises(CorruptRecord, match=field):
        FileDesc.unpack(bytes(data), address=AT)


def test_descriptor_of_another_file_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="own address"):
        FileDesc.unpack(file_desc().pack(), address=AT, expected=FdAddress(4))


def test_descriptor_that_was_never_used_passes_as_free() -> None:
    desc = FileDesc.unpack(bytes(512), address=AT, expected=FdAddress(4))

    assert not desc.is_used


def test_last_generation_of_a_free_descriptor() -> None:
    used = file_desc()
    freed = dataclasses.replace(used, link_count=0, type=FileType.NONE, zla=Zla.NONE)

    def last(data: bytes, expected: FdAddress = used.address) -> int:
        return FileDesc.last_generation(data, address=AT, expected=expected)

    assert last(bytes(512)) == 0
    assert last(freed.pack()) == used.generation
    with pytest.raises(CorruptRecord, match="the bitmap calls it free"):
        last(used.pack())
    with pytest.raises(CorruptRecord, match="own address"):
        last(freed.pack(), FdAddress(4))
    with pytest.raises(CorruptRecord):
        last(freed.pack()[:-1])


def test_counters_of_more_than_32_bits_are_kept() -> None:
    desc = dataclasses.replace(file_desc(), tbz_blocks=1 << 40, cow_blocks=5 << 32, new_blocks=1)

    assert FileDesc.unpack(desc.pack(), address=AT) == desc


def test_pointers_round_trip_and_are_filled_up() -> None:
    data = module.pack_pointers(POINTERS[:3])

    assert len(data) == 1024
    assert module.unpack_pointers(data)[:4].tolist() == [*POINTERS[:3].tolist(), 0]
    module.unpack_pointers(data)[0] = 5  # a copy of our own
    with pytest.raises(AssertionError):
        module.pack_pointers(np.zeros(257, dtype=np.uint32))
    with pytest.raises(AssertionError):
        module.unpack_pointers(bytes(1000))


def test_pointer_block_round_trips() -> None:
    pointers = np.zeros(1024, dtype=np.uint32)
    pointers[:256] = POINTERS

    data = pointer_block.pack(pointers)

    assert len(data) == 4096
    assert (pointer_block.unpack(data, address=0, kind=AddressType.FB) == pointers).all()


def test_pointer_block_with_a_foreign_address_names_it() -> None:
    pointers = np.zeros(1024, dtype=np.uint32)
    pointers[7] = 0x43

    data = pointer_block.pack(pointers)

    assert pointer_block.unpack(data, address=0)[7] == 0x43
    with pytest.raises(CorruptRecord, match="address 7 is 0x43"):
        pointer_block.unpack(data, address=0x9000, kind=AddressType.FB)


def test_pointer_block_of_wrong_length() -> None:
    with pytest.raises(CorruptRecord, match="length"):
        pointer_block.unpack(bytes(4095), address=0)
    with pytest.raises(AssertionError):
        pointer_block.pack(POINTERS)


def entry(name: bytes = b"disk.vmdk") -> DirEntry:
    return DirEntry(type=FileType.FILE, address=FdAddress(0x02400004), generation=9, name=name)


@pytest.mark.parametrize("name", [b"a", b"x" * NAME_MAX, "Größe".encode(), b"\xff\xfe", b"a b"])
def test_entry_with_any_name_round_trips(name: bytes) -> None:
    assert DirEntry.unpack(entry(name).pack(), address=0).name == name


@pytest.mark.parametrize("name", [b"", b"x" * 128, b"a\0b", b"a/b"])
def test_entry_with_a_name_that_cannot_be_is_our_mistake(name: bytes) -> None:
    with pytest.raises(AssertionError):
        entry(name).pack()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (bytes(140), "type"),
        ((1).to_bytes(4, "little") + entry().pack()[4:], "type"),
        (entry().pack()[:4] + bytes(4) + entry().pack()[8:], "address"),
        (entry().pack()[:4] + (0x0C).to_bytes(4, "little") + entry().pack()[8:], "address"),
        (entry().pack()[:12] + bytes(128), "name"),
        (entry().pack()[:12] + b"a/b".ljust(128, b"\0"), "name"),
        (entry().pack()[:12] + b"x" * 128, "name"),
        (entry().pack()[:12] + b"a\0b".ljust(128, b"\0"), "name padding"),
    ],
)
def test_entry_that_is_none_is_corrupt(data: bytes, field: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        DirEntry.unpack(data, address=0x500000)

    assert caught.value.field == field


def test_directory_is_a_dense_array() -> None:
    data = entry(b"a").pack() + entry(b"b").pack()

    assert [one.name for one in unpack_all(data)] == [b"a", b"b"]
    assert unpack_all(b"") == []


def test_directory_with_a_hole_names_the_place() -> None:
    data = entry(b"a").pack() + bytes(140)

    with pytest.raises(CorruptRecord) as caught:
        unpack_all(data, address=0x500000)

    assert caught.value.address == 0x500000 + 140


def test_directory_of_broken_length_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="length"):
        unpack_all(entry().pack() + b"x")
