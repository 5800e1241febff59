"""Staged sectors against a plain dictionary."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.txn.buffer import StagedSectors
from vmfs.units import MIB, SECTOR_SIZE


def sector(value: int) -> bytes:
    return bytes([value]) * SECTOR_SIZE


def test_an_empty_buffer_has_no_runs() -> None:
    buffer = StagedSectors()

    assert buffer.runs() == []
    assert (len(buffer), buffer.size) == (0, 0)
    assert not buffer.touches(0, 1 << 50)


def test_neighbours_are_joined_across_a_granule() -> None:
    buffer = StagedSectors()
    buffer.stage(MIB, sector(2))
    buffer.stage(MIB - 512, sector(1))
    buffer.stage(0, sector(9))

    assert buffer.runs() == [(0, sector(9)), (MIB - 512, sector(1) + sector(2))]


def test_the_later_image_of_a_sector_replaces_the_earlier() -> None:
    buffer = StagedSectors()
    buffer.stage(512, sector(1) + sector(2))
    buffer.stage(1024, sector(3))

    assert buffer.runs() == [(512, sector(1) + sector(3))]
    assert buffer.size == 1024


def test_what_is_staged_is_a_copy() -> None:
    buffer = StagedSectors()
    data = bytearray(sector(1))
    buffer.stage(0, data)
    data[:] = sector(2)

    assert buffer.runs() == [(0, sector(1))]


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 511), (256, 512), (0, 1)])
def test_parts_of_sectors_are_our_mistake(offset: int, length: int) -> None:
    with pytest.raises(AssertionError):
        StagedSectors().stage(offset, bytes(length))


def test_an_overlay_may_begin_and_end_inside_sectors() -> None:
    buffer = StagedSectors()
    buffer.stage(512, sector(1))
    target = bytearray(b"x" * 700)

    buffer.overlay(500, target)

    assert target == b"x" * 12 + sector(1) + b"x" * 176


def test_a_huge_range_is_judged_quickly() -> None:
    buffer = StagedSectors()
    buffer.stage(5 * MIB, sector(1))

    assert buffer.touches(0, 64 << 40)
    assert not buffer.touches(6 * MIB, 64 << 40)


def test_a_discarded_range_is_staged_no_more() -> None:
    buffer = StagedSectors()
    buffer.stage(0, sector(1) + sector(2) + sector(3))

    buffer.discard(512, 512)

    assert buffer.runs() == [(0, sector(1)), (1024, sector(3))]
    buffer.check_invariants()
    buffer.discard(0, 64 << 40)
    assert buffer.runs() == []
    buffer.check_invariants()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["stage", "stage", "stage", "discard"]),
        st.integers(0, 4100),
        st.integers(1, 40),
    ),
    max_size=40,
)


@given(operations=OPERATIONS, where=st.integers(0, 4100 * 512), length=st.integers(0, 70_000))
def test_it_behaves_like_a_dictionary(
    operations: list[tuple[str, int, int]], where: int, length: int
) -> None:
    buffer = StagedSectors()
    model: dict[int, bytes] = {}
    rng = random.Random(3)
    for verb, first, count in operations:
        if verb == "stage":
            data = rng.randbytes(count * SECTOR_SIZE)
            buffer.stage(first * SECTOR_SIZE, data)
            for index in range(count):
                model[first + index] = data[index * 512 : index * 512 + 512]
        else:
            buffer.discard(first * SECTOR_SIZE, count * SECTOR_SIZE)
            for index in range(count):
                model.pop(first + index, None)
        buffer.check_invariants()

    assert len(buffer) == len(model)
    flat = {
        offset // 512 + at // 512: data[at : at + 512]
        for offset, data in buffer.runs()
        for at in range(0, len(data), 512)
    }
    assert flat == model
    offsets = [offset for offset, _ in buffer.runs()]
    assert offsets == sorted(offsets)
    touched = any(key * 512 < where + length and where < key * 512 + 512 for key in model)
    assert buffer.touches(where, length) == (touched and length > 0)
    target, expected = bytearray(length), bytearray(length)
    buffer.overlay(where, target)
    for key, data in model.items():
        for at in range(512):
            position = key * 512 + at - where
            if 0 <= position < length:
                expected[position] = data[at]
    assert target == expected
