"""LVM, FS descriptor and partition tables: how a volume is found, and what is refused."""

import dataclasses
import zlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import SAMPLES, descriptor, parameters
from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import VmfsUuid
from vmfs.ondisk import lvm
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, FsDescriptor, VolumeParameters
from vmfs.ondisk.lvm import DeviceHeader, ExtentEntry, VolumeEntry, require_flat
from vmfs.ondisk.partition import (
    HEAD_SIZE,
    TableKind,
    VolumeLocation,
    build_gpt,
    build_mbr,
    find_volume,
    plan_location,
    table_kind,
)
from vmfs.units import GIB, MIB

LUN_SIZE = 4 * GIB
GUIDS = {"disk_guid": UUID(int=1), "partition_guid": UUID(int=2)}


def sample(name: str) -> bytes:
    return next(one.record.pack() for one in SAMPLES if one.name == name)


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


# --- FS descriptor


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, (0x2FABF15F).to_bytes(4, "little"), "VMFS-L"),
        (4, (24).to_bytes(4, "little"), "VMFS-6"),
        (4, (4).to_bytes(4, "little"), "VMFS-3"),
    ],
)
def test_descriptor_of_another_vmfs_is_unsupported(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        FsDescriptor.unpack(patched(descriptor().pack(), offset, value), address=DESCRIPTOR_OFFSET)


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        (0x00, "magic"),
        (0x04, "version"),
        (0x9E, "sector size"),
        (0xA1, "block size"),
        (0xA5, "block size"),
        (0xD3, "FDC header size"),
        (0xD7, "FDC clusters per group"),
        (0xDB, "sub-block size"),
        (0x1D, "label"),
    ],
)
def test_damaged_descriptor_is_corrupt(offset: int, field: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        FsDescriptor.unpack(
            patched(descriptor().pack(), offset, b"\xff"), address=DESCRIPTOR_OFFSET
        )

    assert caught.value.field == field


def test_descriptor_carries_our_parameters() -> None:
    read = FsDescriptor.unpack(descriptor().pack(), address=DESCRIPTOR_OFFSET)

    assert read.parameters() == parameters()
    assert read.must_be_ours() == parameters()
    assert read.is_dense
    assert read.fdc_offset == 0x400000
    assert dataclasses.replace(read, block_size=8 * MIB).fdc_offset == 0x800000


def test_descriptor_without_parameters_is_not_ours() -> None:
    foreign = dataclasses.replace(descriptor(), tail=bytes(239))

    assert foreign.parameters() is None
    with pytest.raises(Unsupported, match="read-only"):
        foreign.must_be_ours()


@given(st.integers(4, VolumeParameters.SIZE - 1), st.integers(1, 255))
def test_damaged_parameters_are_never_taken_for_true(position: int, mask: int) -> None:
    data = bytearray(parameters().pack())
    data[position] ^= mask

    with pytest.raises(CorruptRecord):
        VolumeParameters.unpack(bytes(data), address=0)


# --- LVM


@pytest.mark.parametrize("version", [3, 6])
def test_lvm_of_another_vmfs_is_unsupported(version: int) -> None:
    with pytest.raises(Unsupported, match=f"VMFS-{version}"):
        DeviceHeader.unpack(
            patched(sample("lvm-device-header"), 4, bytes([version])), address=0x100000
        )


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0x00, b"\0", "magic"),
        (0x04, b"\x07", "version"),
        (0x5A, b"\x01", "sector size"),
        (0x65, b"\xff", "device size"),
        (0x6A, bytes(4), "extents"),
        (0x7A, bytes(8), "data offset"),
        (0xBE, b"\x09", "extent maps"),
    ],
)
def test_damaged_device_header_is_corrupt(offset: int, value: bytes, field: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        DeviceHeader.unpack(patched(sample("lvm-device-header"), offset, value), address=0x100000)

    assert caught.value.field == field


def test_device_with_several_volumes_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="2 logical volumes"):
        DeviceHeader.unpack(patched(sample("lvm-device-header"), 0x66, b"\x02"), address=0x100000)


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0x54, bytes(16), "UUID"),
        (0x74, bytes(4), "segments"),
        (0x80, b"\x07", "last segment"),
        (0x00, b"\x01", "size"),
        (0x14, b"\xff", "UUID text"),
    ],
)
def test_damaged_volume_entry_is_corrupt(offset: int, value: bytes, field: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        VolumeEntry.unpack(patched(sample("lvm-volume-entry"), offset, value), address=0x100200)

    assert caught.value.field == field


@pytest.mark.parametrize(("offset", "value"), [(0x90, b"\x02"), (0x78, b"\x03")])
def test_volume_on_several_devices_is_unsupported(offset: int, value: bytes) -> None:
    with pytest.raises(Unsupported, match="devices"):
        VolumeEntry.unpack(patched(sample("lvm-volume-entry"), offset, value), address=0x100200)


@pytest.mark.parametrize(("offset", "value"), [(0, b"\x02"), (0x19, b"\x01"), (0x11, b"\x01")])
def test_damaged_extent_entry_is_corrupt(offset: int, value: bytes) -> None:
    with pytest.raises(CorruptRecord):
        ExtentEntry.unpack(patched(sample("lvm-extent-entry"), offset, value), address=0x180700)


def extents(*numbers: int) -> list[ExtentEntry]:
    size = lvm.EXTENT_SIZE
    return [
        ExtentEntry(extent_id=n, physical=lvm.LV_START + n * size, logical=n * size)
        for n in numbers
    ]


def test_flat_extents_are_counted() -> None:
    unused = dataclasses.replace(extents(0)[0], used=0)

    assert require_flat([*extents(0, 1, 2), unused], address=0) == 3 * lvm.EXTENT_SIZE


@pytest.mark.parametrize("numbers", [(0, 2), (1,), (1, 0)])
def test_extents_that_are_not_one_flat_range_are_unsupported(numbers: tuple[int, ...]) -> None:
    with pytest.raises(Unsupported, match="flat"):
        require_flat(extents(*numbers), address=0x180600)


# --- partition tables


def head_of(kind: TableKind) -> tuple[bytes, VolumeLocation]:
    location = plan_location(kind, lun_size=LUN_SIZE)
    pieces: list[tuple[int, bytes]] = []
    if kind is TableKind.MBR:
        pieces = build_mbr(location)
    if kind is TableKind.GPT:
        pieces = build_gpt(location, lun_size=LUN_SIZE, **GUIDS)
    head = bytearray(HEAD_SIZE)
    for offset, data in pieces:
        assert offset + len(data) <= LUN_SIZE
        if offset < HEAD_SIZE:
            head[offset : offset + len(data)] = data
    return bytes(head), location


@pytest.mark.parametrize("kind", [TableKind.MBR, TableKind.GPT])
def test_partition_that_we_make_is_found(kind: TableKind) -> None:
    head, location = head_of(kind)

    assert table_kind(head) is kind
    assert find_volume(head, lun_size=LUN_SIZE) == location
    assert location.offset == MIB


def test_bare_lun_has_no_partition() -> None:
    head, location = head_of(TableKind.NONE)

    assert table_kind(head) is TableKind.NONE
    assert find_volume(head, lun_size=LUN_SIZE) is None
    assert location == VolumeLocation(offset=0, size=LUN_SIZE)


def test_partition_of_another_type_is_not_ours() -> None:
    mbr, _ = head_of(TableKind.MBR)

    assert find_volume(patched(mbr, 450, b"\x83"), lun_size=LUN_SIZE) is None


def test_partition_behind_the_end_of_the_lun_is_corrupt() -> None:
    for kind in (TableKind.MBR, TableKind.GPT):
        head, _ = head_of(kind)
        with pytest.raises(CorruptRecord, match="VMFS partition"):
            find_volume(head, lun_size=GIB)


def test_partition_of_no_length_is_corrupt() -> None:
    mbr, _ = head_of(TableKind.MBR)

    with pytest.raises(CorruptRecord, match="VMFS partition"):
        find_volume(patched(mbr, 458, bytes(4)), lun_size=LUN_SIZE)


@given(st.integers(512, HEAD_SIZE - 1), st.integers(1, 255))
def test_damaged_gpt_is_found_out(position: int, mask: int) -> None:
    head, location = head_of(TableKind.GPT)
    damaged = bytearray(head)
    damaged[position] ^= mask

    try:
        found = find_volume(bytes(damaged), lun_size=LUN_SIZE)
    except CorruptRecord:
        return

    # the signature itself (then the protective MBR is all there is), or bytes behind the header
    assert found in (None, location)
    assert position < 520 or 604 <= position < 1024


def resealed(head: bytes, offset: int, value: bytes) -> bytes:
    """A GPT header with a field replaced and its checksum made good again."""
    head = patched(head, 512 + offset, value)
    size = int.from_bytes(head[524:528], "little")
    checked = patched(head[512 : 512 + size], 16, bytes(4))
    return patched(head, 528, zlib.crc32(checked).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (12, (91).to_bytes(4, "little"), "size"),
        (12, (513).to_bytes(4, "little"), "size"),
        (72, (1).to_bytes(8, "little"), "entries"),
        (80, (4096).to_bytes(4, "little"), "entries"),
        (84, (256).to_bytes(4, "little"), "entries"),
        (88, bytes(4), "crc"),
    ],
)
def test_gpt_header_that_points_nowhere_is_corrupt(offset: int, value: bytes, field: str) -> None:
    head, _ = head_of(TableKind.GPT)

    with pytest.raises(CorruptRecord) as caught:
        find_volume(resealed(head, offset, value), lun_size=LUN_SIZE)

    assert caught.value.field == field


def test_gpt_partition_that_ends_before_it_begins_is_corrupt() -> None:
    head, _ = head_of(TableKind.GPT)
    head = patched(head, 1024 + 40, (5).to_bytes(8, "little"))
    table_crc = zlib.crc32(head[1024 : 1024 + 128 * 128]).to_bytes(4, "little")

    with pytest.raises(CorruptRecord, match="last sector"):
        find_volume(resealed(head, 88, table_crc), lun_size=LUN_SIZE)


def test_gpt_of_other_partitions_has_no_volume() -> None:
    head, _ = head_of(TableKind.GPT)
    head = patched(head, 1024, bytes(16))
    table_crc = zlib.crc32(head[1024 : 1024 + 128 * 128]).to_bytes(4, "little")

    assert find_volume(resealed(head, 88, table_crc), lun_size=LUN_SIZE) is None


@given(st.binary(max_size=64), st.binary(max_size=128))
def test_noise_is_no_partition_table(entries: bytes, header: bytes) -> None:
    head = bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa" + b"EFI PART" + header
    try:
        find_volume(head.ljust(HEAD_SIZE, b"\0"), lun_size=LUN_SIZE)
    except CorruptRecord:
        return


def test_backup_gpt_stands_at_the_end_of_the_lun() -> None:
    location = plan_location(TableKind.GPT, lun_size=LUN_SIZE)

    offset, data = build_gpt(location, lun_size=LUN_SIZE, **GUIDS)[1]

    assert offset + len(data) == LUN_SIZE
    assert location.offset + location.size <= offset
    assert data[-512:-504] == b"EFI PART"


def test_uuid_of_nobody_is_false() -> None:
    assert not VmfsUuid.NIL
