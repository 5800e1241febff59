"""Leases: when a host stops itself, and when others may have it fenced. Pure.

Liveness only: no write is safe because of a time in here. What makes a takeover safe is lockd's
proof that the holder has ended; these rules say when it is fair to ask for that.

The holder, from the *start* of its last acknowledged beat (production; test profile in brackets):

    0 s                  3 s             10 s [400 ms]                16 s [800 ms]
    beat acknowledged    next beat due   STOPPED: its I/O waits       others may ask for a fence
    ├── MAY_WRITE ───────┼───────────────┼── 6 s [400 ms] of margin ──┼── OVERDUE
                                         └─ next acknowledged beat: MAY_WRITE again, nothing lost

An observer never compares its clock with a time that another host wrote. It looks at the holder's
slot again and again, and counts how long the image has stood still. Three kinds of time it does not
count, because in them a healthy host may have been unable to beat, or the observer unable to see:

* while somebody had the LUN reserved, and after that as long again, one interval at most (the
  beats that waited have to get through). A long reservation so costs one interval more; a cluster
  that makes one short reservation after the other still has a lease clock that moves;
* gaps between two looks beyond `GAPS_MAX` intervals: the observer was stopped itself, or waited;
* whatever went before its first look.

So an observer finds the lease over at the earliest one lease after the last beat it could see.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

LOOKS_PER_INTERVAL: Final = 2
"""How often an observer looks at a slot in one interval of its holder."""

GAPS_MAX: Final = 2
"""An observer that did not look for longer than so many intervals was not watching."""

LEASE_INTERVALS_MIN: Final = 2
"""A lease of fewer intervals than this would end between two beats of a healthy host."""


class LeaseState(Enum):
    """What the holder of a slot may do, by its own clock."""

    MAY_WRITE = "may write"
    STOPPED = "stopped, waiting for a heartbeat to be acknowledged"
    OVERDUE = "stopped; other hosts may have it fenced"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """At what pace a host beats, and for how long a beat is good. Seconds."""

    interval: float  # between the starts of two beats
    beat: float  # a beat without outcome is given up after this
    stop: float  # the host stops its own I/O so long after the start of its last good beat
    lease: float  # others may ask for a fence when its slot stood still for so long

    def __post_init__(self) -> None:
        assert 0 < self.interval < self.stop < self.lease, f"{self}: a host stops before the fence"
        assert self.interval <= self.beat < self.stop, f"{self}: one beat may fail, and the next do"
        assert self.lease >= LEASE_INTERVALS_MIN * self.interval, f"{self}: no room for a late beat"

    def stops_at(self, acknowledged: float) -> float:
        """When the host stops its I/O, if no later beat than that is acknowledged.

        Args:
            acknowledged: the *start* of the last acknowledged beat, own clock.
        """
        return acknowledged + self.stop

    def state(self, *, acknowledged: float, now: float) -> LeaseState:
        """What the host may do now."""
        if now < self.stops_at(acknowledged):
            return LeaseState.MAY_WRITE
        return LeaseState.STOPPED if now < acknowledged + self.lease else LeaseState.OVERDUE


@dataclass(frozen=True, slots=True)
class HolderPace:
    """Interval and lease of another host, as it wrote them into its slot. Seconds."""

    interval: float
    lease: float

    @classmethod
    def of(cls, *, interval_ms: int, lease_ms: int, own: LeaseTiming) -> Self:
        """What the slot says, if it makes sense; what is missing is as with ourselves.

        A lease that is too short for its interval would have a healthy host fenced: stretched.
        """
        interval = interval_ms / 1000 or own.interval
        lease = lease_ms / 1000 or own.lease
        return cls(interval, max(lease, LEASE_INTERVALS_MIN * interval))

    @property
    def look_every(self) -> float:
        """Seconds between two looks at the slot."""
        return self.interval / LOOKS_PER_INTERVAL


class LeaseClock:
    """An observer's clock, which stands still while somebody has the LUN reserved.

    One for each mount; its permit drives it. It never runs faster than the clock that it is given.
    """

    __slots__ = ("_interval", "_reading", "_reserved_since", "_runs_from")

    def __init__(self, *, interval: float) -> None:
        """`interval`: seconds between two beats, the most that is waited after a reservation."""
        self._interval = interval
        self._reading = 0.0  # when it last stood still
        self._runs_from = 0.0
        self._reserved_since: float | None = None

    def reserved(self, now: float) -> None:
        """Somebody reserves the LUN (again: no matter)."""
        if self._reserved_since is None:
            self._reading = self.read(now)
            self._reserved_since = now

    def free(self, now: float) -> None:
        """The reservation is over (or there was none)."""
        if self._reserved_since is None:
            return
        grace = min(now - self._reserved_since, self._interval)
        # What was left of the grace of the reservation before this one is not forgiven.
        self._runs_from = max(self._runs_from, now + grace)
        self._reserved_since = None

    def read(self, now: float) -> float:
        """Seconds that count, from an arbitrary start."""
        if self._reserved_since is not None:
            return self._reading
        return self._reading + max(0.0, now - self._runs_from)


@dataclass(frozen=True, slots=True)
class SlotWatch:
    """One host's slot as an observer saw it last, and for how long it has stood still."""

    pace: HolderPace
    image: bytes
    looked_at: float  # reading of the lease clock
    still_for: float = 0.0  # seconds that count

    def looked(self, image: bytes, reading: float) -> "SlotWatch":
        """After one more look.

        Args:
            image: the slot as it stands; any change of it is a beat.
            reading: of the lease clock, taken *before* the slot was read.
        """
        if image != self.image:
            return SlotWatch(self.pace, image, reading)
        gap = min(reading - self.looked_at, GAPS_MAX * self.pace.interval)
        return SlotWatch(self.pace, image, reading, self.still_for + max(0.0, gap))

    @property
    def is_over(self) -> bool:
        """Whether the holder's lease has ended: a fence may be asked for."""
        return self.still_for >= self.pace.lease

    @property
    def is_late(self) -> bool:
        """Whether beats are missing."""
        return self.still_for > GAPS_MAX * self.pace.interval

    @property
    def left(self) -> float:
        """Seconds until a fence may be asked for, if no beat comes."""
        return max(0.0, self.pace.lease - self.still_for)
