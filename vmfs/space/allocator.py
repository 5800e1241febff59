"""Which resources an operation gets, and what becomes of those it frees.

    async with allocator.reserve(want={AddressType.FB: 3}, free=old, near=(last,)) as grant:
        blocks = grant.promised(AddressType.FB)     # nobody's yet: fill them now, directly
        ...
        grant.take(AddressType.FB, 3)               # plain calls from here: staged
        grant.free(old)

`reserve` waits, `take` and `free` do not. On entry every cluster that can be touched is pinned
exclusive, and the very resources are chosen and promised; so inside nothing can fail for want of
space, and no two operations of this host are ever promised the same resource.

Where it looks, in this order: the cluster of `near`; clusters that this host has in memory; the
others from the host's own starting point on, without waiting for anybody. Only when that does not
suffice: what is promised ahead to files that grow (`preallocations`); own freed resources whose
transaction must commit first; clusters that another live host holds, which it is asked for; counts
read anew. What then remains is `NoSpace`, before anything is staged. (What another host has freed
counts once it has written that back, at its commit interval or when it is asked: until then a
crash could undo its deletion.)

Freed resources stay out of reach until their transaction has committed; sub-blocks and file blocks
also while the live journal holds older contents of them (a directory's, say), which a replay would
write over the data of the file that has them by then.

Invariants: a resource is in at most one grant; bits change only under the cluster's exclusive
lock; what is cached of a cluster is what the volume says, overlaid by what is staged.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np

from vmfs.errors import CorruptRecord, LockBusy, NoSpace
from vmfs.ids import SlotIndex
from vmfs.locks.order import LockId
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.disk_lock import LockMode
from vmfs.space.counters import FreeCount
from vmfs.space.grant import Grant, Groups, group_by_cluster
from vmfs.space.ledger import ClusterKey, Ledger
from vmfs.space.preallocation import Preallocations
from vmfs.space.staging import ClusterLocks, Staging
from vmfs.space.system_file import KINDS, LOCK_KIND, Addresses, ResourceFiles

_log = logging.getLogger("vmfs.space")

_GOLDEN: Final = 0.6180339887498949
"""Its multiples modulo 1 are spread evenly, for any number of hosts (Knuth, TAOCP 3, 6.4)."""

Place = tuple[int, int]
"""Cluster, and resource in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortfall:
    """What one round of looking did not find, and who may have it."""

    kind: AddressType
    missing: int
    busy: tuple[ClusterKey, ...]  # clusters with room that other live hosts hold


class _Reservation:
    """`Allocator.reserve`. A class, because it is on the way of every operation that changes."""

    __slots__ = ("_allocator", "_free", "_grant", "_label", "_near", "_want")

    def __init__(
        self,
        allocator: "Allocator",
        want: Mapping[AddressType, int],
        free: Addresses | Sequence[int],
        near: Iterable[int],
        label: str,
    ) -> None:
        self._allocator = allocator
        self._want = want
        self._free = free
        self._near = near
        self._label = label

    async def __aenter__(self) -> Grant:
        self._grant = await self._allocator.grant(
            self._want, self._free, self._near, label=self._label
        )
        return self._grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grant.close()


class Allocator:
    """The free space of one open volume, as this host sees it."""

    def __init__(
        self, *, staging: Staging, locks: ClusterLocks, files: ResourceFiles, slot: SlotIndex
    ) -> None:
        """`slot` is the host's heartbeat slot: it decides where in the volume the host begins."""
        self._locks = locks
        self._files = files
        self._staging = staging
        self._ledger = Ledger(staging=staging, files=files)
        self.preallocations = Preallocations(self._ledger, locks)
        self._next = {
            kind: int(slot * _GOLDEN % 1.0 * file.cluster_count) for kind, file in files.items()
        }

    def reserve(
        self,
        *,
        want: Mapping[AddressType, int] | None = None,
        free: Addresses | Sequence[int] = (),
        near: Iterable[int] = (),
        label: str = "",
    ) -> AbstractAsyncContextManager[Grant]:
        """Choose and promise resources, and pin all clusters that will change.

        Args:
            want: how many of each kind.
            free: addresses of any kinds that may be freed inside; without COW.
            near: addresses after which the file would like to continue, at most one of a kind;
                0 is ignored.
            label: for people: what the operation is, best with a path.

        Raises:
            NoSpace: nobody has as many free. Nothing is staged, nothing stays promised.
            LockBusy: a cluster of `free` is in another host's hands and was not given up.
            CorruptRecord: an address of `free` is no resource of the volume, or its cluster is
                damaged.

        Locks: file descriptors that the operation needs are held already; clusters come last in
        the order. One operation has at most one grant at a time.
        """
        return _Reservation(self, want or {}, free, near, label)

    async def grant(
        self,
        want: Mapping[AddressType, int],
        free: Addresses | Sequence[int],
        near: Iterable[int],
        *,
        label: str,
    ) -> Grant:
        """As `reserve`, for who closes the grant himself."""
        wanted = {kind: want[kind] for kind in KINDS if want.get(kind)}
        frees: Groups = {}
        if len(free):
            frees = group_by_cluster(self._files, np.asarray(free, dtype=np.uint32))
        return await self._find(wanted, frees, self._hints(near), label)

    async def load_counts(self) -> None:
        """Read the free counts of all clusters: at mount, before anything else is asked."""
        await self._ledger.count(self._files)

    async def refresh(self) -> None:
        """See what other hosts have taken and freed meanwhile: as `load_counts`."""
        await self.load_counts()

    def free_counts(self) -> dict[AddressType, FreeCount]:
        """Total and free of each kind, without I/O (statfs)."""
        return {kind: self._ledger.counters.total(kind) for kind in self._files}

    def drop(self, lock: LockId) -> None:
        """Forget what is known under a cluster's lock, which is being given up.

        Everything staged under it is committed and in place already. Other locks are ignored.
        """
        for kind, lock_kind in LOCK_KIND.items():
            if lock.kind is lock_kind:
                self._ledger.forget((kind, lock.index))

    def drop_all(self) -> None:
        """Forget everything: this host's locks are gone."""
        self._ledger.forget_all()

    def check_invariants(self) -> None:
        """For tests, between operations."""
        self._ledger.check_invariants()

    async def _find(
        self,
        wanted: Mapping[AddressType, int],
        frees: Groups,
        hints: Mapping[AddressType, Place],
        label: str,
    ) -> Grant:
        """Round after round, each with one more place to look in, so it ends."""
        asked: set[ClusterKey] = set()
        settled = refreshed = False
        while True:
            grant = Grant(self._ledger, self._files)
            try:
                await self._pin_in_order(grant, frees, asked, label)
                short = await self._promise_all(grant, wanted, hints, label)
            except BaseException:
                grant.close()
                raise
            if short is None:
                return grant
            grant.close()
            if await self.preallocations.give_back():
                continue
            if self._ledger.unsettled and not settled:
                settled = True
                await self._ledger.settle()
            elif whom := self._whom_to_ask(short, asked):
                asked |= whom
            elif not refreshed:
                refreshed = True
                await self._ledger.count([short.kind])
            else:
                raise NoSpace(
                    f"{wanted[short.kind]} free {_NAMES[short.kind]} are needed, "
                    f"{short.missing} more than there are"
                )

    async def _pin_in_order(
        self, grant: Grant, frees: Groups, asked: set[ClusterKey], label: str
    ) -> None:
        """Pin the clusters that must be had, and those whose holders are asked."""
        if not (frees or asked):
            return
        locks = {self._lock(key): key for key in {*frees, *asked}}
        for lock, key in sorted(locks.items()):
            try:
                pin = await self._locks.acquire(lock, LockMode.EXCLUSIVE, label=label)
            except LockBusy:
                if key in frees:
                    raise
                continue  # its holder is busy with it: room, but not now, and not for us
            await grant.pin(key, pin)

    async def _promise_all(
        self,
        grant: Grant,
        wanted: Mapping[AddressType, int],
        hints: Mapping[AddressType, Place],
        label: str,
    ) -> _Shortfall | None:
        for kind, count in wanted.items():
            short = await self._promise(grant, kind, count, hints.get(kind), label)
            if short is not None:
                return short
        return None

    async def _promise(
        self, grant: Grant, kind: AddressType, count: int, hint: Place | None, label: str
    ) -> _Shortfall | None:
        """Promise `count` of one kind from clusters that nobody must be asked for."""
        busy: list[ClusterKey] = []
        missing = count
        for number in self._candidates(grant, kind, hint):
            key = kind, number
            cluster = grant.pinned(key)
            was_pinned = cluster is not None
            if cluster is None:
                if self._ledger.is_exhausted(key):
                    continue
                pin = await self._locks.try_acquire(
                    self._lock(key), LockMode.EXCLUSIVE, label=label
                )
                if pin is None:
                    busy.append(key)
                    continue
                try:
                    cluster = await grant.pin(key, pin)
                except CorruptRecord as error:
                    _log.error("nothing is allocated from a damaged cluster: %s", error)
                    self._ledger.counters.note(kind, number, 0)
                    grant.unpin(key)
                    continue
            near = hint[1] if hint is not None and hint[0] == number else 0
            found = grant.promise(cluster, missing, near=near)
            missing -= found
            if missing == 0:
                self._next[kind] = number
                return None
            if not found and not was_pinned:
                grant.unpin(key)
        return _Shortfall(kind=kind, missing=missing, busy=tuple(busy))

    def _candidates(self, grant: Grant, kind: AddressType, hint: Place | None) -> Iterator[int]:
        """Clusters that may have room, best first, each once."""
        free = self._ledger.counters.of(kind)
        start = hint[0] if hint is not None else self._next[kind]
        seen: set[int] = set()
        if start < len(free) and free[start]:
            seen.add(start)
            yield start
        for known in (grant.pinned_numbers, self._ledger.cached):  # asked only when it comes to it
            numbers = known(kind)
            ahead = [n for n in numbers if n >= start]
            for number in (*ahead, *(n for n in numbers if n < start)):
                if free[number] and number not in seen:
                    seen.add(number)
                    yield number
        with_room = np.flatnonzero(free)
        split = int(np.searchsorted(with_room, start))
        for number in np.concatenate((with_room[split:], with_room[:split])):
            if int(number) not in seen:
                yield int(number)

    def _whom_to_ask(self, short: _Shortfall, asked: set[ClusterKey]) -> set[ClusterKey]:
        """As few busy clusters as should do, the emptiest first; none when all were asked."""
        free = self._ledger.counters.of(short.kind)
        chosen: set[ClusterKey] = set()
        expected = 0
        for key in sorted(set(short.busy) - asked, key=lambda key: (-int(free[key[1]]), key[1])):
            chosen.add(key)
            expected += int(free[key[1]])
            if expected >= short.missing:
                break
        return chosen

    def _hints(self, near: Iterable[int]) -> dict[AddressType, Place]:
        """The places right behind these addresses; one that makes no sense is no hint."""
        hints: dict[AddressType, Place] = {}
        for address in near:
            file = self._files.get(_kind(address))
            if file is None:
                continue
            cluster, resource = file.split_one(address)
            if not file.header.contains(cluster, resource):
                continue
            resource += 1
            if resource == file.header.resources_per_cluster:
                cluster, resource = cluster + 1, 0
            hints[file.kind] = cluster, resource
        return hints

    def _lock(self, key: ClusterKey) -> LockId:
        return self._files[key[0]].cluster_lock(key[1])


_NAMES: Final = {
    AddressType.FB: "file blocks",
    AddressType.SB: "sub-blocks",
    AddressType.PB: "pointer blocks",
    AddressType.PB2: "second-level pointer blocks",
    AddressType.FD: "file descriptors",
}


def _kind(address: int) -> AddressType:
    try:
        return AddressType(address & 7)
    except ValueError:
        return AddressType.NONE
