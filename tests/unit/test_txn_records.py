"""The journal's records on disk: byte by byte, and what damage does to them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.journal_rec import (
    ORPHAN_TABLE_SIZE,
    REGION_SIZE_MIN,
    CommitSector,
    CommitState,
    JournalLayout,
    half_of,
    pack_body,
    table_size,
    unpack_body,
)
from vmfs.ondisk.orphan_rec import OrphanEntry, OrphanSector
from vmfs.units import GIB, KIB, MIB, SECTOR_SIZE

SLOT = SlotIndex(3)
ADDRESS = 0x1234_5600


def commit(**changes: object) -> CommitSector:
    fields: dict[str, object] = {
        "state": CommitState.COMMITTED,
        "slot": SLOT,
        "generation": 7,
        "sequence": 11,
        "lv_offset": ADDRESS,
        "run_count": 2,
        "payload_size": 1536,
        "body_digest": bytes(range(16)),
    }
    return CommitSector(**(fields | changes))  # type: ignore[arg-type]


def orphan(address: int) -> OrphanEntry:
    return OrphanEntry(fd_address=FdAddress(address), generation=5, target_size=1 << 40)


@pytest.mark.parametrize("size", [REGION_SIZE_MIN, 256 * KIB, MIB, 4 * MIB, 4 * MIB + 512])
def test_the_parts_of_a_region_are_adjacent_and_disjoint(size: int) -> None:
    layout = JournalLayout(5 * MIB, size)

    assert layout.commit_offset(0) == 5 * MIB
    assert layout.body_offset(0) + layout.body_size == layout.commit_offset(1)
    assert layout.body_offset(1) + layout.body_size <= layout.orphan_offset
    assert layout.orphan_offset + ORPHAN_TABLE_SIZE == 5 * MIB + size


@pytest.mark.parametrize("size", [REGION_SIZE_MIN, 256 * KIB, MIB, 4 * MIB])
def test_the_promised_payload_fits_even_as_single_sectors(size: int) -> None:
    layout = JournalLayout(0, size)
    sectors = layout.payload_size_max // SECTOR_SIZE

    assert table_size(sectors) + sectors * SECTOR_SIZE <= layout.body_size
    more = sectors + 1
    assert table_size(more) + more * SECTOR_SIZE > layout.body_size


def test_a_region_that_is_too_small_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        JournalLayout(0, REGION_SIZE_MIN - 512)


def test_a_commit_sector_is_these_bytes() -> None:
    data = commit().pack()

    assert data[:0x48] == bytes.fromhex(
        "564c4a63 6f6d6d74"  # magic "VLJcommt"
        "01000000 01000000"  # version, state COMMITTED
        "03000000 00000000"  # slot, reserved
        "07000000 00000000"  # generation
        "0b000000 00000000"  # sequence
        "00563412 00000000"  # own LV offset
        "02000000 00060000"  # runs, payload bytes
        "00010203 04050607 08090a0b 0c0d0e0f"  # digest of the body
    )
    assert not any(data[0x48:-16])
    assert CommitSector.unpack(data, address=ADDRESS) == commit()


def test_a_sector_of_zeroes_was_never_written() -> None:
    assert CommitSector.unpack(bytes(512), address=ADDRESS) is None


@pytest.mark.parametrize(
    ("changes", "address", "field"),
    [
        ({}, ADDRESS + 512, "own LV offset"),
        ({"payload_size": 1000}, ADDRESS, "payload size"),
        ({"run_count": 4}, ADDRESS, "run count"),
        ({"state": 3}, ADDRESS, "state"),
    ],
)
def test_a_commit_sector_out_of_range_is_refused(
    changes: dict[str, object], address: int, field: str
) -> None:
    with pytest.raises(CorruptRecord, match=field):
        CommitSector.unpack(commit(**changes).pack(), address=address)


@given(st.integers(0, 511), st.integers(1, 255))
def test_no_changed_byte_of_a_commit_sector_passes(at: int, change: int) -> None:
    data = bytearray(commit().pack())
    data[at] ^= change

    with pytest.raises(CorruptRecord):
        CommitSector.unpack(data, address=ADDRESS)


@pytest.mark.parametrize("size", [0, 511, 513, 1024])
def test_a_commit_sector_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(CorruptRecord, match="length"):
        CommitSector.unpack(commit().pack().ljust(2048)[:size], address=ADDRESS)


def test_transactions_alternate_between_the_halves() -> None:
    assert [half_of(sequence) for sequence in (1, 2, 3, 4)] == [1, 0, 1, 0]


RUNS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), max_size=50)


@given(RUNS)
def test_a_body_comes_apart_as_it_was_put_together(steps: list[tuple[int, int]]) -> None:
    rng = random.Random(1)
    runs, sector = [], 0
    for gap, count in steps:
        sector += gap
        runs.append((sector * SECTOR_SIZE, rng.randbytes(count * SECTOR_SIZE)))
        sector += count

    body = pack_body(runs)

    assert len(body) == table_size(len(runs)) + sum(len(data) for _, data in runs)
    assert unpack_body(body, run_count=len(runs), address=0, lv_size=GIB) == runs


@pytest.mark.parametrize(
    ("runs", "lv_size"),
    [
        ([(1, bytes(512))], GIB),
        ([(0, b"")], GIB),
        ([(0, bytes(100))], GIB),
        ([(1024, bytes(512)), (512, bytes(512))], GIB),
        ([(0, bytes(1024)), (512, bytes(512))], GIB),
        ([(MIB, bytes(512))], MIB),
        ([(MIB - 512, bytes(1024))], MIB),
    ],
)
def test_runs_that_are_not_ascending_sectors_of_the_volume_are_refused(
    runs: list[tuple[int, bytes]], lv_size: int
) -> None:
    with pytest.raises(CorruptRecord, match="journal run"):
        unpack_body(pack_body(runs), run_count=len(runs), address=0, lv_size=lv_size)


def test_a_payload_left_over_is_refused() -> None:
    with pytest.raises(CorruptRecord, match="payload"):
        unpack_body(pack_body([(0, bytes(512))]) + bytes(512), run_count=1, address=0, lv_size=MIB)


def test_an_orphan_sector_comes_apart_as_it_was_put_together() -> None:
    empty = OrphanSector.empty(slot=SLOT, lv_offset=ADDRESS)
    entries = (None, orphan(4), orphan(9), *empty.entries[3:])
    sector = OrphanSector(slot=SLOT, lv_offset=ADDRESS, entries=entries)

    assert OrphanSector.unpack(sector.pack(), address=ADDRESS, slot=SLOT) == sector
    assert OrphanSector.unpack(bytes(512), address=ADDRESS, slot=SLOT) == empty
    assert OrphanSector.PLACES == 30
    assert sector.pack()[:16] == b"VLor\x01\x00\x03\x00" + ADDRESS.to_bytes(8, "little")
    assert sector.pack()[48:64] == bytes.fromhex("04000000 05000000 0000000000010000")


@given(st.integers(0, 511), st.integers(1, 255))
def test_no_changed_byte_of_an_orphan_sector_passes(at: int, change: int) -> None:
    sector = OrphanSector.empty(slot=SLOT, lv_offset=ADDRESS)
    data = bytearray(sector.pack())
    data[at] ^= change

    with pytest.raises(CorruptRecord):
        OrphanSector.unpack(data, address=ADDRESS, slot=SLOT)


def test_an_orphan_sector_of_another_slot_or_place_is_refused() -> None:
    data = OrphanSector.empty(slot=SLOT, lv_offset=ADDRESS).pack()

    with pytest.raises(CorruptRecord, match="slot"):
        OrphanSector.unpack(data, address=ADDRESS, slot=SlotIndex(4))
    with pytest.raises(CorruptRecord, match="own LV offset"):
        OrphanSector.unpack(data, address=ADDRESS + 512, slot=SLOT)
    with pytest.raises(CorruptRecord, match="length"):
        OrphanSector.unpack(data[:-1], address=ADDRESS, slot=SLOT)


def test_an_orphan_without_a_file_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        orphan(0)
