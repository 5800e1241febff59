"""Claims: exclusive locks of objects that only this host can reach, not yet in their records.

Nobody else can get at a file that was just made: its descriptor is in use by the bitmap of a
cluster, and its name stands in a directory, and this host has both exclusively. So its lock record
need not be written before one of those two is given up. A *claim* is such a lock. In memory it is
like any exclusive lock; its record is free.

    claim ─┬─ something is given up that it may be reached through ─┬─ idle: dropped, never written
           │                                                        └─ in use: written first
           ├─ open for a while: written, so that people see who has the file
           └─ given up itself: dropped

What it may be reached through is not traced: `settle` is part of giving up any lock. Invariant: as
long as an object is claimed, everything on the LUN that refers to it is under a lock that this host
has exclusively, or claims; `settle` ends before the record of that lock is written.

docs/decisions/014-claims.md argues it, crash by crash.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from vmfs.errors import LockBusy, VmfsError
from vmfs.locks.base import Clock, DropHook, RevokeHook
from vmfs.locks.entry import Entry, LockTable
from vmfs.locks.records import Got, LockRecords
from vmfs.ondisk.disk_lock import LockMode

log = logging.getLogger("vmfs.locks.claims")

WRITES_MAX: Final = 16
"""Records of claims written at once: enough to keep lockd busy."""

LONG_OPEN_SECONDS: Final = 1.0
"""A file that stays open longer has its claim written: people and tools look at records."""

Revoke = Callable[[], Awaitable[None]]


class Claims:
    """The claims of one mount. `LockManager` makes them, `Giving` ends them."""

    def __init__(self, *, table: LockTable, records: LockRecords) -> None:
        """None yet."""
        self._table = table
        self._records = records
        self._entries: dict[Entry, None] = {}  # in the order in which they were made
        self._leaving: set[Entry] = set()  # closing, without an operation, about to be dropped
        self._writes = trio.CapacityLimiter(WRITES_MAX)
        self._opened = trio.Event()

    def __len__(self) -> int:
        return len(self._entries) + len(self._leaving)

    def add(self, entry: Entry, *, token: int, since: float) -> None:
        """Have `entry`, which is free and whose record is free, with `token` as the record's next.

        Whoever comes into the record next gets this very token, so it names this stretch for
        `tenure` too: should somebody else come first, then not while the claim lasts.
        """
        assert entry.mode is LockMode.FREE, f"{entry.lock} is claimed, and held already"
        entry.mode = LockMode.EXCLUSIVE
        entry.token = entry.tenure = token
        entry.since = since
        entry.claimed = True
        self._entries[entry] = None

    async def write(self, entry: Entry) -> None:
        """Write ourselves into the record of a claim; a lock like any other from then on.

        Waits for no other host.

        Raises:
            LockBusy: another host stands there, which has a handle of the object's predecessor. It
                is a claim still.
            CorruptRecord, LockServiceError, LeaseLost: as `LockRecords.take`.
        """
        async with self._writes:
            while entry.taking:
                await entry.change()
            if entry not in self._entries:
                return
            entry.taking = True
            try:
                outcome = await self._records.take(
                    entry.lock, LockMode.EXCLUSIVE, label=entry.label
                )
                if not isinstance(outcome, Got):
                    raise LockBusy(f"{entry.label or entry.lock}: another host is in its record")
                entry.token = outcome.token
                entry.claimed = False
                del self._entries[entry]
            finally:
                entry.taking = False
                entry.wake()

    async def settle(self, revoke: Revoke, drop: DropHook) -> None:
        """Leave nothing claimed of what is claimed now, and call `revoke` on the way.

        Idle claims take in no operation any more, `revoke` puts in place what was done under them,
        then they are dropped. Those in use are written.

        Raises:
            VmfsError: whatever `revoke` raises, or `write`. What is left is claimed still.
        """
        others = list(self._leaving)
        idle = [entry for entry in self._entries if entry.is_idle()]
        used = [entry for entry in self._entries if not entry.is_idle()]
        with self._left(idle):
            await self._write_all(used)
            await revoke()
            for entry in idle:
                await self.drop(entry, drop)
        for entry in others:  # of another task, which may have failed
            while entry in self._leaving:
                await entry.change()
            await self.write(entry)

    async def drop_idle(self, count: int, revoke: RevokeHook, drop: DropHook) -> None:
        """Drop up to `count` claims, the oldest first, with one `revoke` for all of them."""
        idle = [entry for entry in self._entries if entry.is_idle()][:count]
        if not idle:
            return
        with self._left(idle):
            await revoke(idle[0].lock, LockMode.FREE)
            for entry in idle:
                await self.drop(entry, drop)

    async def leave(self, entry: Entry, revoke: RevokeHook, drop: DropHook) -> None:
        """Give up one claim, which is closing and has no operation: no record says it."""
        self._begin_to_leave(entry)
        try:
            await revoke(entry.lock, LockMode.FREE)
            await self.drop(entry, drop)
        finally:
            self._end_leaving(entry)

    async def drop(self, entry: Entry, drop: DropHook) -> None:
        """End a claim that is leaving. All that was done under it is in place."""
        await drop(entry.lock)
        entry.mode = LockMode.FREE
        entry.claimed = False

    def opened(self) -> None:
        """A file under a claim was opened: see `write_long_open`."""
        self._opened.set()

    async def write_long_open(self, clock: Clock) -> None:
        """Write the claims of files that stay open, until cancelled."""
        while True:
            await self._opened.wait()
            self._opened = trio.Event()
            await trio.sleep(LONG_OPEN_SECONDS)
            for entry in [entry for entry in self._entries if entry.opens]:
                if entry.since > clock() - LONG_OPEN_SECONDS:
                    self._opened.set()
                    continue
                try:
                    await self.write(entry)
                except VmfsError as error:
                    log.warning("claim not written lock=%s error=%s", entry.lock, error)

    def check_invariants(self) -> None:
        """For tests, between any two steps."""
        marked = {entry for entry in self._table.entries.values() if entry.claimed}
        assert marked == {*self._entries, *self._leaving}
        assert all(entry.closing and not entry.pins for entry in self._leaving)

    async def _write_all(self, entries: list[Entry]) -> None:
        failures: list[VmfsError] = []

        async def write(entry: Entry) -> None:
            try:
                await self.write(entry)
            except VmfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(write, entry)
        if failures:
            raise failures[0]

    @contextmanager
    def _left(self, entries: list[Entry]) -> Iterator[None]:
        """Let nobody in; afterwards those that were not dropped are claims as before."""
        for entry in entries:
            entry.closing = True
            self._begin_to_leave(entry)
        try:
            yield
        finally:
            for entry in entries:
                entry.closing = False
                self._end_leaving(entry)
                self._table.tidy(entry)

    def _begin_to_leave(self, entry: Entry) -> None:
        del self._entries[entry]
        self._leaving.add(entry)

    def _end_leaving(self, entry: Entry) -> None:
        self._leaving.remove(entry)
        if entry.claimed:
            self._entries[entry] = None
        entry.wake()
