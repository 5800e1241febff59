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
from vmfs.space.bitmap import Indices, Mask
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
        self._promised: Mask = np.zeros(meta.total, dtype=np.bool_)
        self._pending: Mask = np.zeros(meta.total, dtype=np.bool_)

    @property
    def idle(self) -> bool:
        """Nothing would be lost if it were read again from the volume."""
        return not (self.users or self._promised.any() or self._pending.any())

    @property
    def available(self) -> Mask:
        """What can be chosen."""
        return bitmap.free_mask(self.meta) & ~self._promised & ~self._pending

    def promise(self, count: int, *, near: int = 0) -> Indices:
        """Choose and promise up to `count` resources."""
        chosen = bitmap.choose(self.available, count, near=near)
        self._promised[chosen] = True
        return chosen

    def give_back(self, indices: Indices) -> None:
        """End a promise without use."""
        assert self._promised[indices].all()
        self._promised[indices] = False

    def take(self, indices: Indices) -> None:
        """Turn promised resources into used ones."""
        assert self._promised[indices].all()
        self.meta = bitmap.take(self.meta, indices, at=self.meta_offset)
        self._promised[indices] = False

    def released(self, indices: Indices) -> ClusterMeta:
        """The metadata after these are freed; nothing is changed yet.

        Raises:
            CorruptRecord: one of them is free already, or there is none such.
        """
        return bitmap.release(self.meta, indices, at=self.meta_offset)

    def free(self, indices: Indices, after: ClusterMeta) -> None:
        """Free used resources (`after` is what `released` said); they are pending from now on."""
        self.meta = after
        self._pending[indices] = True

    def settle(self, indices: Indices) -> None:
        """What was freed is safe to use again."""
        assert self._pending[indices].all()
        self._pending[indices] = False

    def check_invariants(self) -> None:
        """What is promised or pending is free on disk, and nothing is both."""
        free = bitmap.free_mask(self.meta)
        assert not (self._promised & ~free).any()
        assert not (self._pending & ~free).any()
        assert not (self._promised & self._pending).any()
        assert self.meta.free == int(free.sum())
