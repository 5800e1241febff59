"""Extents: as few as possible, without gaps, and each where its blocks are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.ondisk.address import FbAddress
from vmfs.space.extent import Extent, ExtentKind, block_extents, clip, plain_runs

HOLE, ZERO, DATA = ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA

addresses = st.lists(
    st.one_of(
        st.just(0),
        st.builds(
            lambda block, tbz: FbAddress(block=block, tbz=tbz).pack(),
            st.integers(0, 5),
            st.booleans(),
        ),
    ),
    max_size=30,
).map(lambda values: np.array(values, dtype=np.uint32))


def expected_of(address: int, block_size: int) -> tuple[ExtentKind, int]:
    """What one block is, and where."""
    if address == 0:
        return HOLE, 0
    return (ZERO, 0) if address & 0x20 else (DATA, (address >> 6) * block_size)


@given(addresses, st.integers(0, 9))
def test_every_block_is_where_its_address_says(values, first):
    extents = block_extents(values, first_block=first, block_size=512)

    at = first * 512
    for extent in extents:
        assert extent.file_offset == at
        for offset in range(0, extent.length, 512):
            kind, place = expected_of(int(values[(at + offset) // 512 - first]), 512)
            assert extent.kind is kind
            assert extent.lv_offset + (offset if kind is DATA else 0) == place
        at = extent.end
    assert at == (first + len(values)) * 512


@given(addresses)
def test_neighbours_could_not_have_been_one(values):
    extents = block_extents(values, first_block=0, block_size=512)

    for one, two in itertools.pairwise(extents):
        joined = one.kind is two.kind
        if joined and one.kind is DATA:
            joined = one.lv_offset + one.length == two.lv_offset
        assert not joined


@given(addresses, st.integers(0, 40 * 512), st.integers(0, 40 * 512))
def test_clipped_extents_are_the_same_bytes(values, offset, length):
    whole = block_extents(values, first_block=0, block_size=512)

    clipped = clip(whole, offset, length)

    total = len(values) * 512
    at = min(offset, total)
    for extent in clipped:
        assert extent.file_offset == at
        assert extent.length > 0
        [origin] = [e for e in whole if e.file_offset <= at < e.end]
        assert extent.kind is origin.kind
        moved = at - origin.file_offset if extent.kind is DATA else 0
        assert extent.lv_offset == origin.lv_offset + moved
        at = extent.end
    assert at == min(offset + length, total)


@pytest.mark.parametrize("bits", [0, 0x10])
def test_cow_flag_does_not_change_where_a_block_is(bits):
    values = np.array([FbAddress(block=7).pack() | bits], dtype=np.uint32)

    assert block_extents(values, first_block=2, block_size=512) == [
        Extent(kind=DATA, file_offset=1024, length=512, lv_offset=7 * 512)
    ]


@given(addresses, st.integers(0, 40 * 512), st.integers(1, 20 * 512))
def test_plain_runs_find_what_is_one_extent_of_data(values, offset, length):
    whole = block_extents(values, first_block=3, block_size=512)

    found = plain_runs(values, first_block=3, block_size=512).find(offset, length)

    holders = [e for e in whole if e.file_offset <= offset and offset + length <= e.end]
    places = [e.lv_offset + offset - e.file_offset for e in holders if e.kind is DATA]
    assert found == (places[0] if places else None)


def test_plain_runs_are_parted_by_a_hole():
    values = np.array([FbAddress(block=6).pack(), 0, FbAddress(block=7).pack()], dtype=np.uint32)

    runs = plain_runs(values, first_block=0, block_size=512)

    assert (runs.starts, runs.ends) == ([0, 1024], [512, 1536])


def test_plain_runs_leave_out_what_a_snapshot_shares():
    shared = FbAddress(block=7).pack() | 0x10
    values = np.array([FbAddress(block=6).pack(), shared, 0], dtype=np.uint32)

    runs = plain_runs(values, first_block=0, block_size=512)

    assert (runs.starts, runs.ends) == ([0], [512])


@given(addresses, st.integers(0, 30), st.integers(0, 6), st.integers(1, 3))
def test_runs_that_learn_of_more_are_what_they_would_have_been(values, gap, block, count):
    runs = plain_runs(values, first_block=3, block_size=512)
    more = [FbAddress(block=block + index).pack() for index in range(count)]
    grown = np.concatenate((values, np.zeros(gap, dtype=np.uint32), np.array(more, np.uint32)))

    assert runs.with_more((3 + len(values) + gap) * 512, count * 512, block * 512)
    assert runs == plain_runs(grown, first_block=3, block_size=512)


def test_runs_learn_only_what_is_behind_them():
    values = np.array([0, FbAddress(block=5).pack()], dtype=np.uint32)
    runs = plain_runs(values, first_block=0, block_size=512)
    assert not runs.with_more(0, 512, 4 * 512)
    assert runs == plain_runs(values, first_block=0, block_size=512)
