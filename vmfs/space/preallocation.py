"""File blocks promised to a file that grows, before it writes them. In memory only.

    a write allocates   ─► `Preallocations.promise`: the free blocks right behind those it gets
    the next writes     ─► `is_good`, fill the blocks, `take`: no search, no wait, one bit staged
                           (`in_use` around it, where filling them has to wait)
    anything else       ─► `give_back`

A promise pins nothing and stands nowhere on the volume. So it never keeps the lock of a cluster
from another host (it ends with the lock), a host that is killed leaves nothing behind, free space
is counted as if there were none, and whoever finds too little takes all promises back before it
asks anybody else (docs/decisions/015).

Invariant: what is promised is free on the volume as staged, and in one promise or grant only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import trio

from vmfs.ids import LvOffset
from vmfs.locks.base import Pin
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.disk_lock import LockMode
from vmfs.space.cluster import Cluster
from vmfs.space.grant import Grant
from vmfs.space.ledger import Ledger
from vmfs.space.staging import ClusterLocks
from vmfs.space.system_file import Addresses

PREALLOCATED_MAX: Final = 64
"""Blocks promised at once: a search for every 64 MiB is cheap enough, and little to take back."""


class Preallocation:
    """Blocks of one cluster, side by side, that one file uses next. All methods are plain."""

    __slots__ = ("_all", "_cluster", "_end", "_ends", "_label", "_next", "_used", "reads_as_zero")

    def __init__(
        self, every: "Preallocations", cluster: Cluster, *, first: int, count: int, label: str
    ) -> None:
        """`first` and the `count - 1` resources behind it are promised by the caller."""
        self._all = every
        self._cluster = cluster
        self._next = first
        self._end = first + count
        self._label = label
        self._used: trio.Event | None = None  # set when nobody writes to the blocks any more
        self._ends = False  # as soon as nobody does
        self.reads_as_zero = False  # the caller has zeroed what is left

    @property
    def count(self) -> int:
        """Blocks that are left."""
        return self._end - self._next

    @property
    def place(self) -> LvOffset:
        """Where the next of them stands; the others follow it."""
        return self._cluster.file.resource_lv_offset(self._cluster.number, self._next)

    @property
    def size(self) -> int:
        """Bytes of what is left."""
        return self.count * self._cluster.file.resource_size

    def is_good(self) -> bool:
        """Whether they may be filled and taken, as long as nothing is awaited."""
        pin = self._all.pin(self._cluster, self._label)
        if pin is None:
            return False
        pin.release()
        return True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the blocks be written to, and taken, over any `await` inside. Only while `is_good`.

        Whoever wants them back waits, and the cluster's lock is pinned. An error ends the promise.
        """
        assert self._used is None, "one operation at a time, as the guard of the file has it"
        pin = self._all.pin(self._cluster, self._label)
        assert pin is not None, "not asked whether it is good"
        self._used = used = trio.Event()
        try:
            yield
        except BaseException:
            self._ends = True  # nobody knows what stands in the blocks now
            raise
        finally:
            self._used = None
            used.set()
            pin.release()
            if self._ends:
                self.give_back()

    def take(self, count: int) -> Addresses:
        """Take the next `count` blocks; stages their cluster. Only while `is_good`."""
        assert 0 < count <= self.count, f"{count} blocks of {self.count}"
        indices = np.arange(self._next, self._next + count, dtype=np.int64)
        self._cluster.take(indices)
        self._all.ledger.write(self._cluster)
        self._next += count
        return self._cluster.file.pack(self._cluster.number, indices)

    def give_back(self) -> None:
        """End the promise, when it is not `in_use` any more. A second call does nothing."""
        self._ends = True
        if self._used is None:
            if self.count:
                self._cluster.give_back(np.arange(self._next, self._end, dtype=np.int64))
            self._next = self._end
            self._all.forget(self)

    async def given_back(self) -> None:
        """End the promise, and wait until it has ended."""
        self.give_back()
        if self._used is not None:
            await self._used.wait()


class Preallocations:
    """All of one host's."""

    def __init__(self, ledger: Ledger, locks: ClusterLocks) -> None:
        """None yet."""
        self.ledger = ledger
        self._locks = locks
        self._promises: set[Preallocation] = set()

    @property
    def count(self) -> int:
        """Blocks that are promised."""
        return sum(promise.count for promise in self._promises)

    def promise(self, grant: Grant, count: int, *, label: str = "") -> Preallocation | None:
        """Promise up to `count` file blocks right behind the last one of a grant.

        None if none is free there. `grant` is untouched yet; `label` says whose it is, for people.
        """
        share = grant.last_share(AddressType.FB)
        if share is None:
            return None
        cluster, chosen = share
        first = int(chosen[-1]) + 1
        free = cluster.available >> first
        adjacent = (~free & (free + 1)).bit_length() - 1
        count = min(count, adjacent)
        if count <= 0:
            return None
        cluster.promise(count, near=first)
        promise = Preallocation(self, cluster, first=first, count=count, label=label)
        self._promises.add(promise)
        return promise

    def pin(self, cluster: Cluster, label: str) -> Pin | None:
        """Pin the lock of a cluster, if this host has it still, and knows what it knew then."""
        lock = cluster.file.cluster_lock(cluster.number)
        pin = self._locks.try_cached(lock, LockMode.EXCLUSIVE, label=label)
        if pin is None or (pin.token == cluster.token and self.ledger.is_current(cluster)):
            return pin
        pin.release()
        return None

    async def give_back(self) -> bool:
        """Take all promises back; whether there were any. The caller has no cluster pinned."""
        promises = list(self._promises)
        for promise in promises:
            await promise.given_back()
        return bool(promises)

    def forget(self, promise: Preallocation) -> None:
        """It has ended."""
        self._promises.discard(promise)
