"""The clusters this host knows: their bitmaps in memory, and what becomes of freed resources.

`Ledger` is the part of the allocator that neither searches nor locks. It reads cluster metadata,
stages it when it changed, keeps the counters in step, and decides when a freed resource may be
chosen again (states: `vmfs.space.cluster`; why: `vmfs.space.allocator`).
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from vmfs.errors import CorruptRecord
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space.bitmap import Indices
from vmfs.space.cluster import Cluster
from vmfs.space.counters import FreeCounters
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFile, ResourceFiles, Run

CLUSTER_CACHE_MAX: Final = 4096
"""Cluster bitmaps kept in memory while nobody uses them: some 8 MiB."""

_BODY_STAGED: Final = (AddressType.SB, AddressType.FB)
"""Kinds whose contents are staged in one life (directories) and written directly in the next."""

ClusterKey = tuple[AddressType, int]
Share = tuple[Cluster, Indices]
"""Some resources of one cluster."""


class Ledger:
    """Cached clusters by kind and number. Whoever calls holds the lock of the cluster in hand."""

    def __init__(self, *, staging: Staging, files: ResourceFiles) -> None:
        """Empty; `counters` are loaded by whoever owns this."""
        self.counters = FreeCounters(files)
        self._staging = staging
        self._files = files
        self._clusters: dict[ClusterKey, Cluster] = {}  # least recently used first
        self._quarantine: list[Share] = []
        self._pending: int = 0  # resources whose freeing has not committed
        self._changes = 0  # grows with every staging: what was read before may be old

    @property
    def unsettled(self) -> bool:
        """Whether `settle` could make freed resources available."""
        return bool(self._pending or self._quarantine)

    def cached(self, kind: AddressType) -> list[int]:
        """Numbers of the clusters of one kind that are in memory, ascending."""
        return sorted(number for cached_kind, number in self._clusters if cached_kind is kind)

    async def count(self, kinds: Iterable[AddressType]) -> None:
        """Read the free counts of all clusters of these kinds.

        Raises:
            CorruptRecord, DeviceError: as `FreeCounters.load`.
        """
        await self.counters.load(self._staging, kinds)
        for (kind, number), cluster in self._clusters.items():
            self.counters.note(kind, number, cluster.meta.free)  # it may have changed meanwhile

    async def load(self, kind: AddressType, number: int, *, token: int) -> Cluster:
        """One cluster, from memory if its lock has not changed hands since it was read.

        Args:
            kind: of its resources.
            number: its index.
            token: of its lock, which the caller has pinned.

        Raises:
            CorruptRecord: the metadata is damaged.
            DeviceError: it could not be read.
        """
        key = kind, number
        while True:
            known = self._clusters.pop(key, None)
            if known is not None and known.token == token:
                self._clusters[key] = known
                return known
            file = self._files[kind]
            offset = file.cluster_meta_offset(number)
            changes = self._changes
            data = await self._staging.read(offset, ClusterMeta.SIZE)
            if key in self._clusters or changes != self._changes:
                continue  # somebody else loaded it, perhaps changed it, while this task read
            cluster = Cluster(file, _checked(file, number, data), token=token)
            self._make_room()
            self._clusters[key] = cluster
            self.counters.note(kind, number, cluster.meta.free)
            return cluster

    def is_exhausted(self, key: ClusterKey) -> bool:
        """Whether all of a cluster in memory is in use, promised, or freed and not settled."""
        known = self._clusters.get(key)
        return known is not None and not known.available

    def write(self, cluster: Cluster) -> None:
        """Stage a cluster's metadata after a change."""
        self._changes += 1
        self._staging.stage(cluster.meta_offset, cluster.meta.pack())
        self.counters.note(cluster.file.kind, cluster.number, cluster.meta.free)

    def freed(self, shares: Sequence[Share]) -> None:
        """Keep these out of reach until the transaction that runs now has committed.

        What was staged of their contents is dropped. (Not of file descriptors: that one is free
        stands in the descriptor too.)
        """
        for cluster, indices in shares:
            if cluster.file.kind is not AddressType.FD:
                for run in _ranges(cluster, indices):
                    self._staging.discard(*run)
        count = sum(len(indices) for _, indices in shares)
        self._pending += count

        def committed() -> None:
            self._pending -= count
            self._settle_or_keep([*self._quarantine, *shares])

        self._staging.on_commit(committed)

    async def settle(self) -> None:
        """Commit, and checkpoint if need be, so that everything freed so far is available.

        Durability: everything staged before the call is durable.
        """
        if self._pending:
            await self._staging.commit()
        self._settle_or_keep(self._quarantine)
        if self._quarantine:
            await self._staging.checkpoint()
            self._settle_or_keep(self._quarantine)

    def is_current(self, cluster: Cluster) -> bool:
        """Whether this is what is known of it, and has not been forgotten since it was loaded."""
        return self._clusters.get((cluster.file.kind, cluster.number)) is cluster

    def forget(self, key: ClusterKey) -> None:
        """Drop what is known of one cluster: its lock is being given up."""
        self._clusters.pop(key, None)

    def forget_all(self) -> None:
        """Drop everything."""
        self._clusters.clear()
        self._quarantine.clear()

    def check_invariants(self) -> None:
        """Of every cluster in memory."""
        for key, cluster in self._clusters.items():
            assert key == (cluster.file.kind, cluster.number)
            cluster.check_invariants()
            assert self.counters.of(key[0])[key[1]] == cluster.meta.free

    def _settle_or_keep(self, shares: Iterable[Share]) -> None:
        kept: list[Share] = []
        for cluster, indices in shares:
            if not self.is_current(cluster):
                continue  # its lock is gone, and with it the mark
            if self._is_replayable(cluster, indices):
                kept.append((cluster, indices))
            else:
                cluster.settle(indices)
        self._quarantine = kept

    def _is_replayable(self, cluster: Cluster, indices: Indices) -> bool:
        if cluster.file.kind not in _BODY_STAGED:
            return False  # their contents are always staged, so a replay ends with the newest
        return self._staging.is_live(_ranges(cluster, indices))

    def _make_room(self) -> None:
        if len(self._clusters) >= CLUSTER_CACHE_MAX:
            idle = [key for key, cluster in self._clusters.items() if cluster.idle]
            for key in idle[: CLUSTER_CACHE_MAX // 8]:
                del self._clusters[key]


def _ranges(cluster: Cluster, indices: Indices) -> list[Run]:
    """Where the bodies of some resources of one cluster lie, neighbours joined."""
    ordered = np.sort(indices)
    splits = np.flatnonzero(np.diff(ordered) != 1) + 1
    ranges: list[Run] = []
    for run in np.split(ordered, splits):
        ranges.extend(cluster.file.resources_runs(cluster.number, int(run[0]), len(run)))
    return ranges


def _checked(file: ResourceFile, number: int, data: bytes) -> ClusterMeta:
    offset = file.cluster_meta_offset(number)
    meta = ClusterMeta.unpack(data, address=offset, number=number)
    if meta.total > file.header.cluster_total(number):
        raise CorruptRecord(
            ClusterMeta.NAME,
            offset,
            "total",
            meta.total,
            f"at most {file.header.cluster_total(number)}",
        )
    return meta
