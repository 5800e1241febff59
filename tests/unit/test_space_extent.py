"""Extents: as few as possible, without gaps, and each where its blocks are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.file_blocks import addresses
from vmfs.ondisk.address import FbAddress
from vmfs.space.extent import Extent, ExtentKind, block_extents, clip

HOLE, ZERO, DATA = ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA


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
