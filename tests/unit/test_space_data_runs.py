"""The runs of data that a file is known to have: as its extents say, and forgotten with them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.file_blocks import addresses
from vmfs.ids import LvOffset
from vmfs.ondisk.address import FbAddress
from vmfs.space.data_runs import WINDOW_BLOCKS, WINDOWS_MAX, DataRuns, PlainRuns, plain_runs
from vmfs.space.extent import ExtentKind, block_extents

DATA = ExtentKind.DATA
BLOCK = 512


def one_block(index: int) -> PlainRuns:
    values = np.array([FbAddress(block=index).pack()], dtype=np.uint32)
    return plain_runs(values, first_block=index, block_size=BLOCK)


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


def test_what_was_looked_at_is_known_until_the_blocks_change():
    known = DataRuns(block_size=BLOCK)
    assert known.around(0, 1) is None

    runs = known.keep(0, one_block(0))

    assert known.around(BLOCK - 1, 1) is runs
    assert known.around(WINDOW_BLOCKS * BLOCK, 1) is None
    assert known.around(0, 2) is None
    assert known.around(0, 1) is None, "it was forgotten"


def test_growth_is_learned_in_the_version_that_it_began_with_only():
    known = DataRuns(block_size=BLOCK)
    known.around(0, 1)
    known.keep(0, one_block(0))

    known.grow(BLOCK, BLOCK, LvOffset(BLOCK), before=1, after=2)
    assert known.around(0, 2).find(0, 2 * BLOCK) == 0
    known.grow(2 * BLOCK, BLOCK, LvOffset(2 * BLOCK), before=7, after=8)
    assert known.around(0, 8) is None


def test_growth_over_a_border_has_both_windows_looked_at_again():
    known, size = DataRuns(block_size=BLOCK), WINDOW_BLOCKS * BLOCK
    known.around(0, 1)
    for index in (0, 1):
        known.keep(index, one_block(index))

    known.grow(size - BLOCK, 2 * BLOCK, LvOffset(0), before=1, after=2)

    assert known.around(0, 2) is None
    assert known.around(size, 2) is None


def test_the_oldest_window_makes_room():
    known = DataRuns(block_size=BLOCK)
    known.around(0, 1)
    for index in range(WINDOWS_MAX + 1):
        known.keep(index, one_block(index))

    assert known.around(0, 1) is None
    assert known.around(WINDOW_BLOCKS * BLOCK, 1) is not None
