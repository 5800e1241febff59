"""Memory for direct I/O: aligned, used again, and not hoarded."""

import mmap

import pytest

from vmfs.device.buffers import KEPT_SIZE_MAX, SIZES, BufferPool
from vmfs.units import KIB, MIB


@pytest.mark.parametrize(
    ("length", "size"), [(0, 4 * KIB), (4 * KIB, 4 * KIB), (4 * KIB + 1, 64 * KIB), (MIB, MIB)]
)
def test_a_request_takes_the_smallest_buffer_that_it_fits_in(length: int, size: int) -> None:
    buffer = BufferPool().take(length)

    assert buffer.size == len(buffer.view) == size
    assert buffer.address % mmap.PAGESIZE == 0


def test_what_was_given_back_is_taken_again() -> None:
    pool = BufferPool()
    first, second = pool.take(MIB), pool.take(MIB)
    assert first.address != second.address

    pool.give(first)

    assert pool.take(4 * KIB) is not first
    assert pool.take(MIB) is first


def test_no_more_is_kept_than_the_bound() -> None:
    pool = BufferPool()
    for size in SIZES:
        count = KEPT_SIZE_MAX // size
        buffers = [pool.take(size) for _ in range(count + 1)]
        for buffer in buffers:
            pool.give(buffer)
        again = [pool.take(size) for _ in range(count + 1)]
        assert sum(buffer in buffers for buffer in again) == count
