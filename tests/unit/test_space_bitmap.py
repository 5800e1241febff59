"""Bitmaps of clusters: what is chosen, and that nothing is ever taken or freed twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import CorruptRecord
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space import bitmap

masks = st.lists(st.booleans(), min_size=1, max_size=40).map(lambda m: np.array(m, dtype=np.bool_))


def meta_of(text: str) -> ClusterMeta:
    """A cluster from a picture: `.` is free, `#` in use."""
    bits = sum(1 << i for i, c in enumerate(text) if c == ".")
    return ClusterMeta.with_bits(number=7, total=len(text), free_bits=bits)


def picture(meta: ClusterMeta) -> str:
    return "".join(".#"[not free] for free in bitmap.free_mask(meta))


def test_mask_of_every_bit_position_is_least_significant_first():
    for index in (0, 1, 7, 8, 63, 64, 511):
        meta = ClusterMeta.with_bits(number=0, total=512, free_bits=1 << index)

        assert np.flatnonzero(bitmap.free_mask(meta)).tolist() == [index]


@given(masks)
def test_mask_written_and_read_is_the_same_and_the_counts_follow(mask):
    meta = ClusterMeta.with_bits(number=3, total=len(mask), free_bits=0)

    after = meta.with_free_bits(bitmap.bits_of(np.flatnonzero(mask)))

    assert (bitmap.free_mask(after) == mask).all()
    assert after.free == mask.sum()
    assert after.first_free == (np.flatnonzero(mask)[0] if mask.any() else 0)
    assert ClusterMeta.unpack(after.pack(), address=0, number=3) == after


@given(masks)
def test_runs_cover_exactly_what_is_free(mask):
    starts, lengths = bitmap.runs(mask)

    covered = np.zeros(len(mask), dtype=np.bool_)
    for start, length in zip(starts, lengths, strict=True):
        assert length > 0
        assert not covered[start : start + length].any()
        covered[start : start + length] = True
        assert start == 0 or not mask[start - 1]
        assert start + length == len(mask) or not mask[start + length]
    assert (covered == mask).all()


@given(masks, st.integers(0, 45), st.integers(0, 45))
def test_choice_is_free_distinct_and_complete(mask, count, near):
    chosen = bitmap.choose(mask, count, near=near)

    assert len(chosen) == min(count, mask.sum())
    assert len(set(chosen.tolist())) == len(chosen)
    assert mask[chosen].all()


@given(masks, st.integers(1, 45), st.integers(0, 45))
def test_choice_is_one_run_whenever_one_fits(mask, count, near):
    _, lengths = bitmap.runs(mask)

    chosen = bitmap.choose(mask, count, near=near)

    if (lengths >= count).any():
        assert (np.diff(chosen) == 1).all()


@given(masks, st.integers(0, 45))
def test_choice_of_one_from_bits_is_that_from_the_mask(mask, near):
    chosen = bitmap.choose_one(bitmap.bits_of(np.flatnonzero(mask)), near=near)

    assert bitmap.choose(mask, 1, near=near).tolist() == ([] if chosen is None else [chosen])


@pytest.mark.parametrize(
    ("text", "count", "near", "expected"),
    [
        ("....", 2, 0, [0, 1]),
        ("....", 2, 1, [1, 2]),  # goes on at the hint
        ("..##..", 2, 1, [4, 5]),  # the hint's run is too short from there: the next that fits
        ("..##..", 2, 2, [4, 5]),
        ("..##..", 2, 5, [0, 1]),  # nothing fits behind: the first
        (".#..#.", 3, 0, [0, 2, 3]),  # nothing fits: at the hint, then the longest
        (".#..#.", 3, 1, [2, 3, 0]),
        (".#..#.", 3, 5, [5, 2, 3]),
        ("####", 3, 0, []),
        ("....", 0, 0, []),
        ("..", 2, 9, [0, 1]),  # a hint behind the end
        ("...#.", 4, 1, [1, 2, 0, 4]),  # the hint's run from the hint on, then what is left
    ],
)
def test_choice_in_known_pictures(text, count, near, expected):
    mask = bitmap.free_mask(meta_of(text))

    assert bitmap.choose(mask, count, near=near).tolist() == expected


def test_taken_and_released_comes_back():
    meta = meta_of("..#.")

    taken = bitmap.take(meta, np.array([3, 0]), at=0)
    back = bitmap.release(taken, np.array([0, 3]), at=0)

    assert picture(taken) == "#.##"
    assert (taken.free, taken.first_free) == (1, 1)
    assert back == meta


@pytest.mark.parametrize("indices", [[2], [0, 2], [0, 0], [4], [-1]])
def test_take_of_what_is_not_free_is_damage(indices):
    with pytest.raises(CorruptRecord, match="cluster 7") as caught:
        bitmap.take(meta_of("..#."), np.array(indices), at=0x4000)

    assert caught.value.address == 0x4000


@pytest.mark.parametrize("indices", [[2], [0, 2], [0, 0], [4], [-1]])
def test_release_of_what_is_free_is_damage(indices):
    with pytest.raises(CorruptRecord, match="cluster 7"):
        bitmap.release(meta_of("##.#"), np.array(indices), at=0x4000)
