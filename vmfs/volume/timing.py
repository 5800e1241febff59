"""The pace of a mount. Liveness only: no timing makes a write safe (docs/locking.md)."""

from dataclasses import dataclass
from typing import Final

from vmfs.locks.lease import LeaseTiming


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds, all of them."""

    heartbeat: float  # between two beats
    beat: float  # a beat without outcome is given up after this
    stop: float  # we stop our own I/O so long after the start of the last acknowledged beat
    lease: float  # others may ask for a fence when our slot stood still for so long
    commit: float  # metadata is committed at the latest after this
    refresh: float  # free space of other hosts is counted anew after this
    close: float  # giving everything back at unmount may take so long, then we just stop
    lockd: float = 16.0  # what needs lockd waits so long for it when it is away, then fails

    @property
    def leases(self) -> LeaseTiming:
        """The part that is about heartbeats."""
        return LeaseTiming(
            interval=self.heartbeat, beat=self.beat, stop=self.stop, lease=self.lease
        )


PRODUCTION: Final = Timing(
    heartbeat=3.0, beat=8.0, stop=10.0, lease=16.0, commit=5.0, refresh=30.0, close=60.0
)
TEST: Final = Timing(
    heartbeat=0.1, beat=0.25, stop=0.4, lease=0.8, commit=0.2, refresh=2.0, close=10.0, lockd=5.0
)
