"""Who owns which resource: one byte for each of the volume, three bits of it used.

    ALLOCATED   its bitmap says that it is in use
    CLAIMED     somebody points to it
    TWICE       somebody else does too
    UNKNOWN     its cluster could not be read: nothing is concluded about it

64 TiB have 67 million file blocks, so 64 MiB of memory. That two owners exist is seen while
walking; who the first was is found by a second walk, which only damaged volumes pay for.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALLOCATED: Final = np.uint8(1)
CLAIMED: Final = np.uint8(2)
TWICE: Final = np.uint8(4)
UNKNOWN: Final = np.uint8(8)

Indices = NDArray[np.int64]


class Ownership:
    """The state of every resource of one kind, by its number."""

    def __init__(self, total: int) -> None:
        """Nothing allocated, nothing claimed."""
        self._state = np.zeros(total, dtype=np.uint8)

    @property
    def total(self) -> int:
        """How many resources there are."""
        return len(self._state)

    def set_allocated(self, first: int, used: NDArray[np.bool_]) -> None:
        """Note what a cluster's bitmap says of the resources from `first` on."""
        self._state[first : first + len(used)] |= np.where(used, ALLOCATED, np.uint8(0))

    def set_unknown(self, first: int, count: int) -> None:
        """Note that nothing is known of a cluster's bitmap."""
        self._state[first : first + count] |= UNKNOWN

    def claim(self, indices: Indices) -> None:
        """Note an owner of each; all must be below `total`."""
        unique, counts = np.unique(indices, return_counts=True)
        before = (self._state[unique] & CLAIMED) != 0
        self._state[unique] |= CLAIMED
        self._state[unique[before | (counts > 1)]] |= TWICE

    def allocated_mask(self, first: int, count: int) -> NDArray[np.bool_]:
        """What the bitmap says of `count` resources from `first` on."""
        mask: NDArray[np.bool_] = (self._state[first : first + count] & ALLOCATED) != 0
        return mask

    def is_claimed(self, index: int) -> bool:
        """Whether an owner is known already."""
        return bool(self._state[index] & CLAIMED)

    def is_unknown(self, index: int) -> bool:
        """Whether the bitmap could not be read."""
        return bool(self._state[index] & UNKNOWN)

    def claimed_twice(self, indices: Indices) -> Indices:
        """Those of `indices` that have more than one owner."""
        found: Indices = indices[(self._state[indices] & TWICE) != 0]
        return found

    def doubly_owned(self) -> Indices:
        """Resources with more than one owner."""
        return np.flatnonzero((self._state & TWICE) != 0)

    def lost(self) -> Indices:
        """Resources that are marked used, and that nobody owns."""
        return np.flatnonzero((self._state & (ALLOCATED | CLAIMED | UNKNOWN)) == ALLOCATED)

    def not_allocated(self) -> Indices:
        """Resources that somebody owns, and that are marked free."""
        return np.flatnonzero((self._state & (ALLOCATED | CLAIMED | UNKNOWN)) == CLAIMED)

    def count_allocated(self) -> int:
        """How many are marked used."""
        return int(np.count_nonzero(self._state & ALLOCATED))


def runs(indices: Indices) -> Iterator[tuple[int, int]]:
    """Sorted numbers as half-open ranges, so that a message names a million blocks in a line."""
    if not len(indices):
        return
    edges = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    for first, last in pairwise(edges):
        yield int(indices[first]), int(indices[last - 1]) + 1
