"""How a volume is opened, and the clocks that it reads."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from vmfs.device.opening import IoMode
from vmfs.locks.base import Clock
from vmfs.volume.timing import PRODUCTION, Timing


def boot_clock() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeOptions:
    """How a volume is opened."""

    read_only: bool = False
    write_beside_others: bool = False  # although another implementation has the volume open
    io: IoMode = IoMode.AUTO  # through this kernel's page cache, or past it
    timing: Timing = PRODUCTION
    clock: Clock = boot_clock  # seconds since boot: for heartbeats
    wall_clock: Callable[[], float] = time.time  # seconds since 1970: for mtime and ctime only
    seed: int | None = None  # of the pauses between tries; None: from the operating system
