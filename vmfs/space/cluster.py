"""One resource cluster in memory, while this host has its lock.

Its free resources are in one of four states:

    available   free on disk (as staged), and nobody has an eye on it
    promised    free on disk, chosen for an operation of this host that has not taken it yet
    pending     freed by a transaction that has not committed: a crash would bring its owner back
    quarantined freed and committed, but the journal still holds older contents of it, which a
                replay would write over whatever stands there by then

Only the first can be chosen. A promise turns into a used resource (`take`) or is given back.
"""

import numpy as np

from vmfs.ids import LvOffset
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space import bitmap
from vmfs.space.bitmap import Indices
from vmfs.space.system_file import ResourceFile


class Cluster:
    """Bitmap and promises of one cluster. All methods are plain; nothing is staged here."""

    __slots__ = ("_pending", "_promised", "file", "meta", "meta_offset", "number", "token", "users")

    def __init__(self, file: ResourceFile, meta: ClusterMeta, *, token: int) -> None:
        """`token` is that of the cluster's lock when `meta` was read."""
        self.file = file
        self.meta = meta
        self.number = meta.number
        self.meta_offset: LvOffset = file.cluster_meta_offset(meta.number)
        self.token = token
        self.users = 0  # grants that have it pinned
        self._promised = 0  # bits, as in the bitmap
        self._pending = 0

    @property
    def idle(self) -> bool:
        """Nothing would be lost if it were read again from the volume."""
        return not (self.users or self._promised or self._pending)

    @property
    def available(self) -> int:
        """What can be chosen, as bits."""
        return self.meta.free_bits & ~(self._promised | self._pending)

    def promise(self, count: int, *, near: int = 0) -> Indices:
        """Choose and promise up to `count` resources."""
        if count == 1:
            one = bitmap.choose_one(self.available, near=near)
            chosen = np.array([] if one is None else [one], dtype=np.int64)
        else:
            mask = bitmap.mask_of(self.available, self.meta.total)
            chosen = bitmap.choose(mask, count, near=near)
        self._promised |= bitmap.bits_of(chosen)
        return chosen

    def give_back(self, indices: Indices) -> None:
        """End a promise without use."""
        self._unpromise(indices)

    def take(self, indices: Indices) -> None:
        """Turn promised resources into used ones."""
        self.meta = bitmap.take(self.meta, indices, at=self.meta_offset)
        self._unpromise(indices)

    def released(self, indices: Indices) -> ClusterMeta:
        """The metadata after these are freed; nothing is changed yet.

        Raises:
            CorruptRecord: one of them is free already, or there is none such.
        """
        return bitmap.release(self.meta, indices, at=self.meta_offset)

    def free(self, indices: Indices, after: ClusterMeta) -> None:
        """Free used resources (`after` is what `released` said); they are pending from now on."""
        self.meta = after
        self._pending |= bitmap.bits_of(indices)

    def settle(self, indices: Indices) -> None:
        """What was freed is safe to use again."""
        bits = bitmap.bits_of(indices)
        assert self._pending & bits == bits
        self._pending ^= bits

    def check_invariants(self) -> None:
        """What is promised or pending is free on disk, and nothing is both."""
        free = self.meta.free_bits
        assert not self._promised & ~free
        assert not self._pending & ~free
        assert not self._promised & self._pending
        assert self.meta.free == free.bit_count()

    def _unpromise(self, indices: Indices) -> None:
        bits = bitmap.bits_of(indices)
        assert self._promised & bits == bits
        self._promised ^= bits
