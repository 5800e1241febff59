"""From block index to slot and pointer block, against an oracle that builds the whole tree."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.ondisk.file_desc import Zla
from vmfs.space import index_path
from vmfs.space.index_path import Shape
from vmfs.units import GIB, MIB, TIB

TINY = Shape(slots=3, fanout=4)
FULL = Shape()
TREES = (Zla.SB, Zla.FB, Zla.PB, Zla.DOUBLE)


def all_paths(zla: Zla, shape: Shape) -> list[tuple[int, ...]]:
    """Every path in the order of the blocks: the tree walked from left to right."""
    widths = [shape.slots] + [shape.fanout] * index_path.depth(zla)
    return list(itertools.product(*(range(width) for width in widths)))


@pytest.mark.parametrize("zla", TREES)
def test_path_of_every_block_is_its_place_in_the_walk(zla):
    paths = all_paths(zla, TINY)

    assert index_path.reach(zla, TINY) == len(paths)
    for index, expected in enumerate(paths):
        assert index_path.path(zla, index, TINY) == expected
        assert index_path.block_index(zla, expected, TINY) == index


@pytest.mark.parametrize("zla", TREES)
@given(data=st.data())
def test_leaves_of_a_range_cover_it_in_order(zla, data):
    reach = index_path.reach(zla, TINY)
    start = data.draw(st.integers(0, reach))
    count = data.draw(st.integers(0, reach - start))

    found = [
        (*leaf.path, leaf.first + i)
        for leaf in index_path.leaves(zla, start, count, TINY)
        for i in range(leaf.count)
    ]

    assert found == all_paths(zla, TINY)[start : start + count]


def test_first_block_of_a_leaf_is_found_from_its_path():
    assert index_path.block_index(Zla.PB, (2,), TINY) == 8
    assert index_path.block_index(Zla.DOUBLE, (1, 3), TINY) == 28
    assert index_path.block_index(Zla.DOUBLE, (1,), TINY) == 16


def test_reach_of_the_format_is_what_the_format_says():
    assert index_path.reach(Zla.FB, FULL) * MIB == 256 * MIB
    assert index_path.reach(Zla.PB, FULL) * MIB == 256 * GIB
    assert index_path.reach(Zla.DOUBLE, FULL) * MIB > 64 * TIB
    assert index_path.file_size_max(MIB, FULL) == 64 * TIB
    assert index_path.file_size_max(8 * MIB, FULL) == 64 * TIB
    last = 64 * TIB // MIB - 1
    assert index_path.path(Zla.DOUBLE, last, FULL) == (63, 1023, 1023)


@pytest.mark.parametrize(
    ("length", "at_least", "expected"),
    [
        (0, Zla.RESIDENT, Zla.RESIDENT),
        (1024, Zla.RESIDENT, Zla.RESIDENT),
        (1025, Zla.RESIDENT, Zla.SB),
        (0, Zla.SB, Zla.SB),
        (8192, Zla.RESIDENT, Zla.SB),
        (8193, Zla.SB, Zla.FB),
        (1, Zla.PB, Zla.PB),
        (256 * MIB, Zla.SB, Zla.FB),
        (256 * MIB + 1, Zla.SB, Zla.PB),
        (256 * GIB, Zla.SB, Zla.PB),
        (256 * GIB + 1, Zla.SB, Zla.DOUBLE),
        (64 * TIB, Zla.SB, Zla.DOUBLE),
    ],
)
def test_level_at_every_boundary(length, at_least, expected):
    found = index_path.level_needed(
        length, at_least=at_least, block_size=MIB, sub_block_size=8192, shape=FULL
    )

    assert found is expected


def test_level_past_the_largest_file_is_our_mistake():
    with pytest.raises(AssertionError):
        index_path.level_needed(
            64 * TIB + 1, at_least=Zla.SB, block_size=MIB, sub_block_size=8192, shape=FULL
        )


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (Zla.FB, Zla.FB, 0),
        (Zla.FB, Zla.PB, 1),
        (Zla.PB, Zla.DOUBLE, 1),
        (Zla.FB, Zla.DOUBLE, 2),
    ],
)
def test_new_levels_between_two(source, target, expected):
    assert index_path.new_levels(source, target) == expected


@pytest.mark.parametrize(("source", "target"), [(Zla.FB, Zla.PB), (Zla.PB, Zla.DOUBLE)])
def test_lifted_blocks_keep_their_index(source, target):
    for index in range(index_path.reach(source, TINY)):
        before = index_path.path(source, index, TINY)

        after = index_path.path(target, index, TINY)

        assert after == (0, *before)


def test_lift_moves_all_slots_and_pads_with_holes():
    slots = np.array([9, 0, 7], dtype=np.uint32)

    assert index_path.lift(slots, TINY).tolist() == [9, 0, 7, 0]


def test_block_outside_the_level_is_our_mistake():
    with pytest.raises(AssertionError):
        index_path.path(Zla.FB, 3, TINY)
    with pytest.raises(AssertionError):
        list(index_path.leaves(Zla.PB, 10, 3, TINY))
    with pytest.raises(AssertionError):
        Shape(slots=5, fanout=4)
