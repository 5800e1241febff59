"""What one operation may take and free: the plain half of the allocator."""

from typing import Final

import numpy as np

from vmfs.errors import CorruptRecord
from vmfs.locks.base import Pin
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space.bitmap import Indices
from vmfs.space.cluster import Cluster
from vmfs.space.ledger import ClusterKey, Ledger, Share
from vmfs.space.system_file import Addresses, ResourceFiles, cow_mask, is_cow

Groups = dict[ClusterKey, Indices]
"""Resources by the cluster that they are in."""

FEW: Final = 8
"""Addresses up to which one after the other is faster than all at once."""

_KIND_MASK: Final = 7
_NONE: Final = np.empty(0, dtype=np.uint32)


class Grant:
    """From `Allocator.reserve`. Good until its block is left; nothing here waits.

    `take` and `free` stage cluster metadata in the running transaction. What was promised and not
    taken goes back when the block is left.
    """

    def __init__(self, ledger: Ledger, files: ResourceFiles) -> None:
        """Empty; `Allocator` fills it."""
        self._ledger = ledger
        self._files = files
        self._pins: dict[ClusterKey, Pin] = {}
        self._clusters: dict[ClusterKey, Cluster] = {}
        self._promised: dict[AddressType, list[Share]] = {}
        self._closed = False

    @property
    def room(self) -> int:
        """Bytes that `take` and `free` may stage at most."""
        return len(self._clusters) * ClusterMeta.SIZE

    def promised(self, kind: AddressType) -> Addresses:
        """What `take` will return next.

        It is known before anything is staged, so that blocks can be filled while still nobody's.
        """
        shares = self._promised.get(kind, [])
        parts = [self._files[kind].pack(cluster.number, chosen) for cluster, chosen in shares]
        return _joined(parts)

    def first(self, kind: AddressType) -> int:
        """The address that `take` will return next."""
        cluster, chosen = self._promised[kind][0]
        return self._files[kind].pack_one(cluster.number, int(chosen[0]))

    def last_share(self, kind: AddressType) -> Share | None:
        """The cluster that the last promised resource is in, and what is promised there."""
        shares = self._promised.get(kind)
        return shares[-1] if shares else None

    def take(self, kind: AddressType, count: int) -> Addresses:
        """Take the next `count` promised resources; stages their clusters.

        Returns:
            Their addresses, without flags, in the order in which the file should use them.
        """
        assert not self._closed, "the grant's block was left"
        taken: list[Addresses] = []
        shares = self._promised.get(kind, [])
        missing = count
        while missing:
            assert shares, f"{count} {kind.name} wanted, {missing} more than were reserved"
            cluster, chosen = shares[0]
            now, later = chosen[:missing], chosen[missing:]
            cluster.take(now)
            self._ledger.write(cluster)
            taken.append(self._files[kind].pack(cluster.number, now))
            missing -= len(now)
            if len(later):
                shares[0] = cluster, later
            else:
                shares.pop(0)
        return _joined(taken)

    def free(self, addresses: Addresses) -> None:
        """Free resources of any kinds, all of whose clusters were named to `reserve`.

        Raises:
            CorruptRecord: one of them is free already, or there is none such: two files own it, or
                the file's pointers are damaged. Nothing is staged then.
        """
        assert not self._closed, "the grant's block was left"
        groups = group_by_cluster(self._files, addresses)
        changes = []
        for key, indices in groups.items():
            cluster = self._clusters.get(key)
            assert cluster is not None, f"{key[0].name} cluster {key[1]} was not reserved"
            changes.append((cluster, indices, cluster.released(indices)))
        for cluster, indices, after in changes:
            cluster.free(indices, after)
            self._ledger.write(cluster)
        if changes:
            self._ledger.freed([(cluster, indices) for cluster, indices, _ in changes])

    # For the allocator.

    def pinned(self, key: ClusterKey) -> Cluster | None:
        """The cluster, if this grant has it pinned and loaded."""
        return self._clusters.get(key)

    def pinned_numbers(self, kind: AddressType) -> list[int]:
        """Numbers of the clusters of one kind that this grant has pinned."""
        return [number for pinned_kind, number in self._clusters if pinned_kind is kind]

    async def pin(self, key: ClusterKey, pin: Pin) -> Cluster:
        """Own `pin` from now on, and load what it protects."""
        assert key not in self._pins
        self._pins[key] = pin
        cluster = await self._ledger.load(*key, token=pin.token)
        cluster.users += 1
        self._clusters[key] = cluster
        return cluster

    def unpin(self, key: ClusterKey) -> None:
        """Let go of one cluster in which nothing is promised."""
        cluster = self._clusters.pop(key, None)
        if cluster is not None:
            cluster.users -= 1
        self._pins.pop(key).release()

    def promise(self, cluster: Cluster, count: int, *, near: int) -> int:
        """Choose up to `count` resources of a pinned cluster; returns how many there were."""
        chosen = cluster.promise(count, near=near)
        if len(chosen):
            self._promised.setdefault(cluster.file.kind, []).append((cluster, chosen))
        return len(chosen)

    def close(self) -> None:
        """Give back what was not taken, and all pins. A second call does nothing."""
        self._closed = True
        for shares in self._promised.values():
            for cluster, chosen in shares:
                cluster.give_back(chosen)
        self._promised.clear()
        for key in list(self._pins):
            self.unpin(key)


def _joined(parts: list[Addresses]) -> Addresses:
    return parts[0] if len(parts) == 1 else np.concatenate([_NONE, *parts])


def _group_few(files: ResourceFiles, addresses: Addresses) -> Groups:
    """As `group_by_cluster`, one after the other."""
    found: dict[ClusterKey, list[int]] = {}
    for address in addresses.tolist():
        file = files.get(address & _KIND_MASK)
        if file is None:
            raise CorruptRecord("address", 0, "type", address, "a low digit of 1 to 5")
        cluster, resource = file.split_one(address)
        if not file.header.contains(cluster, resource):
            raise CorruptRecord("address", 0, "resource", address, f"below {file.header.total}")
        assert not is_cow(address), "a block that another file owns is not ours to free"
        found.setdefault((file.kind, cluster), []).append(resource)
    return {key: np.array(indices, dtype=np.int64) for key, indices in found.items()}


def group_by_cluster(files: ResourceFiles, addresses: Addresses) -> Groups:
    """Sort addresses of any kinds by cluster, in bulk.

    Raises:
        CorruptRecord: one is no resource of this volume.
    """
    if len(addresses) <= FEW:
        return _group_few(files, addresses)
    groups: Groups = {}
    known = np.zeros(len(addresses), dtype=np.bool_)
    for kind, file in files.items():
        mask = (addresses & np.uint32(7)) == np.uint32(kind)
        known |= mask
        mine = addresses[mask]
        if not len(mine):
            continue
        wrong = file.first_wrong(mine)
        if wrong is not None:
            raise CorruptRecord(
                "address", 0, "resource", int(mine[wrong]), f"below {file.header.total}"
            )
        clusters, resources = file.split(mine)
        order = np.argsort(clusters, kind="stable")
        numbers, starts = np.unique(clusters[order], return_index=True)
        pieces = np.split(resources[order], starts[1:])
        groups |= {(kind, int(n)): piece for n, piece in zip(numbers, pieces, strict=True)}
    if not known.all():
        value = int(addresses[~known][0])
        raise CorruptRecord("address", 0, "type", value, "a low digit of 1 to 5")
    assert not cow_mask(addresses).any(), "a block that another file owns is not ours to free"
    return groups
