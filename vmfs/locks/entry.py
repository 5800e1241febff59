"""One lock as this host has it in memory: its mode, who uses it, what is under way with it.

    FREE ──attempt──► SHARED / EXCLUSIVE ──closing──► SHARED / FREE
                        │ pins: operations under way; never taken away under them
                        │ opens: open files; asks are answered IN_USE
                        └ neither: cached, given away at the first word

An *attempt* makes the mode stronger, *closing* makes it weaker; the record on the LUN is written by
one of the two at a time (`taking` is the part of an attempt that writes). No I/O happens here.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

import trio

from vmfs.ids import LvOffset
from vmfs.locks.order import LockId, covers, exceeds
from vmfs.ondisk.disk_lock import LockMode

HANDOVER_SECONDS: Final = 0.02
"""How long a host that gave up a lock keeps from taking it back. The answer, a read and a
compare-and-write of the host that asked take half a millisecond; a host that was descheduled for
longer than this asks again."""

_uses = count(1)
"""Numbers the uses of all locks; only which of two is the greater means anything."""


class Attempt:
    """One task gets the lock; the others that want it wait for the outcome."""

    __slots__ = ("ended", "error", "mode")

    def __init__(self, mode: LockMode) -> None:
        self.mode = mode
        self.ended = trio.Event()
        self.error: Exception | None = None


class OpPin:
    """One operation's use of one lock. See `base.Pin`."""

    __slots__ = ("_entry", "_register", "label", "lock", "mode", "task", "token")

    def __init__(self, entry: "Entry", mode: LockMode, label: str, register: set["OpPin"]) -> None:
        self._entry: Entry | None = entry
        self._register = register
        self.lock = entry.lock
        self.mode = mode
        self.label = label
        self.task = trio.lowlevel.current_task()
        self.token = entry.token
        entry.pins.append(self)
        entry.label = label
        entry.used = next(_uses)
        register.add(self)

    def release(self) -> None:
        """End the use. A second call does nothing."""
        entry = self._entry
        if entry is not None:
            self._entry = None
            entry.pins.remove(self)
            self._register.discard(self)
            entry.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Entry:
    """See the module's picture. `LockManager` owns it and is the only one to change it."""

    __slots__ = (
        "_lot",
        "attempt",
        "claimed",
        "closing",
        "label",
        "lock",
        "mode",
        "opens",
        "pins",
        "since",
        "taking",
        "tenure",
        "token",
        "used",
        "waiters",
    )

    def __init__(self, lock: LockId) -> None:
        self.lock = lock
        self.mode = LockMode.FREE
        self.token = 0
        self.tenure = 0  # the token with which this host came into the record, by whatever mode
        self.since = 0.0
        self.used = 0  # the number of the last operation's use
        self.label = ""
        self.pins: list[OpPin] = []
        self.opens: Counter[tuple[LockMode, str]] | None = None
        self.attempt: Attempt | None = None
        self.taking = False
        self.closing = False
        self.claimed = False  # exclusive here, and its record does not say so (`claims`)
        self.waiters = 0
        self._lot: trio.lowlevel.ParkingLot | None = None

    def may_use(self, mode: LockMode) -> bool:
        """Whether an operation may begin under it right now."""
        return not self.closing and covers(self.mode, mode)

    def pin_of(self, task: trio.lowlevel.Task) -> OpPin | None:
        """The pin that this very task has on it already."""
        return next((pin for pin in self.pins if pin.task is task), None)

    def pinned_above(self, mode: LockMode) -> bool:
        """Whether an operation needs more than `mode`."""
        return any(exceeds(pin.mode, mode) for pin in self.pins)

    def open_above(self, mode: LockMode) -> bool:
        """Whether an open file needs more than `mode`."""
        return self.opens is not None and any(exceeds(need, mode) for need, _ in self.opens)

    def is_idle(self) -> bool:
        """Cached at most: nobody uses it and nothing is under way."""
        busy = self.attempt or self.taking or self.closing or self.waiters
        return not (self.pins or self.opens or busy)

    def hold_open(self, mode: LockMode, label: str) -> None:
        """Count an open file in."""
        if self.opens is None:
            self.opens = Counter()
        self.opens[mode, label] += 1
        self.label = label

    def drop_open(self, mode: LockMode, label: str) -> None:
        """Count it out."""
        key = (mode, label)
        assert self.opens is not None, f"{self.lock}: closed more often than opened ({label})"
        assert self.opens[key] > 0, f"{self.lock}: closed more often than opened ({label})"
        self.opens[key] -= 1
        if not self.opens[key]:
            del self.opens[key]
        if not self.opens:
            self.opens = None
        self.wake()

    async def change(self) -> None:
        """Wait until something about it has changed. Look again before believing in anything."""
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        await self._lot.park()

    async def closed(self) -> None:
        """Wait until it is not being given up (any more)."""
        while self.closing:
            await self.change()

    def wake(self) -> None:
        """Something has changed."""
        if self._lot is not None:
            self._lot.unpark_all()

    def use(self) -> str:
        """Who uses it, for the host that asks: the most telling open file, else an operation."""
        if self.opens:
            mode, label = max(self.opens, key=lambda key: covers(key[0], LockMode.EXCLUSIVE))
            how = "writing" if mode is LockMode.EXCLUSIVE else "reading"
            return f"{label or self.lock} is open for {how}"
        if self.pins:
            return f"an operation on {self.pins[0].label or self.lock} is under way"
        return f"{self.label or self.lock} is kept"

    def check_invariants(self) -> None:
        """For tests, between any two steps."""
        assert self.mode in (LockMode.FREE, LockMode.SHARED, LockMode.EXCLUSIVE)
        for pin in self.pins:
            assert covers(self.mode, pin.mode), f"{self.lock}: pinned stronger than held"
        for mode, label in self.opens or ():
            assert covers(self.mode, mode), f"{self.lock}: {label} needs more than is held"
        assert not self.taking or self.attempt is not None or self.claimed
        assert not self.claimed or self.mode is LockMode.EXCLUSIVE


@dataclass(frozen=True, slots=True)
class Handover:
    """A lock was given up for another host, which has not been seen taking it yet."""

    token: int  # of the record as it was given up; it has grown once somebody took it
    until: float  # trio time; whoever asked has had its chance by then


class LockTable:
    """All locks that this host has or is about to get, by the place of their record."""

    def __init__(self) -> None:
        self.entries: dict[LvOffset, Entry] = {}
        self.pins: set[OpPin] = set()
        self.handovers: dict[LvOffset, Handover] = {}

    def entry(self, lock: LockId) -> Entry:
        """The entry of `lock`, made if there is none."""
        entry = self.entries.get(lock.lv_offset)
        if entry is None:
            entry = self.entries[lock.lv_offset] = Entry(lock)
        assert entry.lock == lock, f"{lock} and {entry.lock} have one record"
        return entry

    @contextmanager
    def kept(self, entry: Entry) -> Iterator[None]:
        """Keep the entry in the table for the length of the block, whatever happens to it."""
        entry.waiters += 1
        try:
            yield
        finally:
            entry.waiters -= 1
            self.tidy(entry)

    def tidy(self, entry: Entry) -> None:
        """Take an entry out that means nothing any more."""
        if entry.mode is LockMode.FREE and entry.is_idle():
            self.entries.pop(entry.lock.lv_offset, None)

    def idle_longest(self, number: int) -> list[Entry]:
        """Up to `number` cached locks that nobody uses: those whose last use is longest ago."""
        idle = [e for e in self.entries.values() if e.is_idle() and e.mode is not LockMode.FREE]
        return heapq.nsmallest(number, idle, key=attrgetter("used"))

    def is_wanted(self, lv_offset: LvOffset) -> bool:
        """Whether this host has the lock there, or is writing itself into its record."""
        entry = self.entries.get(lv_offset)
        return entry is not None and (entry.taking or entry.mode is not LockMode.FREE)

    def is_handed_over(self, lock: LockId, now: float) -> bool:
        """Whether whoever asked for it is to have it first."""
        handover = self.handovers.get(lock.lv_offset)
        return handover is not None and now < handover.until

    def hand_over(self, entry: Entry, token: int, now: float) -> None:
        """Remember that the lock was just given up for somebody."""
        expired = [at for at, handover in self.handovers.items() if handover.until <= now]
        for at in expired:
            del self.handovers[at]
        self.handovers[entry.lock.lv_offset] = Handover(token, now + HANDOVER_SECONDS)

    def check_invariants(self) -> None:
        """For tests, between any two steps."""
        for lv_offset, entry in self.entries.items():
            assert entry.lock.lv_offset == lv_offset
            entry.check_invariants()
        assert self.pins == {pin for entry in self.entries.values() for pin in entry.pins}
