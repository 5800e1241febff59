"""The pace of a mount. Liveness only: no timing makes a write safe (docs/locking.md)."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds, all of them."""

    heartbeat: float  # between two beats
    lease: float  # others may ask for a fence when our slot stood still for so long
    commit: float  # metadata is committed at the latest after this
    refresh: float  # free space of other hosts is counted anew after this
    close: float  # giving everything back at unmount may take so long, then we just stop


PRODUCTION: Final = Timing(heartbeat=3.0, lease=16.0, commit=5.0, refresh=30.0, close=60.0)
TEST: Final = Timing(heartbeat=0.1, lease=0.8, commit=0.2, refresh=2.0, close=10.0)
