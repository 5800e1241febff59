"""What one seed asks for, as data: hosts, workload and faults. Printed with `scripts/sim -v`."""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from vmfs.volume.timing import Timing

PACE: Final = Timing(
    heartbeat=1.0, beat=2.0, stop=3.5, lease=6.0, commit=1.5, refresh=1000.0, close=20.0
)
"""Faster than production, so that a seed needs few beats; the order of the times is the same."""


class FaultKind(Enum):
    """What may happen. `docs/simulation.md` says why the cluster is entitled to survive it."""

    KILL = "kill -9"
    KILL_IN_IO = "kill -9 at its next I/O"
    KILL_STUCK = "kill -9, and it hangs in the kernel until its I/O has ended"
    FREEZE_SHORT = "SIGSTOP, SIGCONT within the lease"
    FREEZE_IN_IO = "SIGSTOP between the permit check and the I/O, SIGCONT within the lease"
    FREEZE_LONG = "SIGSTOP beyond the lease"
    FREEZE_LONG_IN_IO = "SIGSTOP between the permit check and the I/O, beyond the lease"
    CUT = "its connection to lockd breaks"
    SLOW = "each I/O takes long"
    LOCKD_RESTART = "lockd is killed and started again"
    LOCKD_FORGETS = "lockd is killed and its database is lost"
    POWER_CUT = "the power is cut, everywhere"
    ADMIN_FENCE = "an administrator fences it"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    at: float  # virtual seconds
    kind: FaultKind
    host: int  # whom it hits, where it hits one
    seconds: float  # how long it lasts, where it lasts

    def __str__(self) -> str:
        return f"t={self.at:5.2f} host {self.host}: {self.kind.value} ({self.seconds:.2f} s)"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a seed decides before anything runs; the rest is drawn while it runs."""

    seed: int
    hosts: int
    places: int
    reservation: bool
    operations: int  # of each host
    pace: float  # mean pause between two operations, seconds
    faults: tuple[Fault, ...]


_WEIGHTS: Final = {
    FaultKind.KILL: 3,
    FaultKind.KILL_IN_IO: 5,
    FaultKind.KILL_STUCK: 2,
    FaultKind.FREEZE_SHORT: 1,
    FaultKind.FREEZE_IN_IO: 2,
    FaultKind.FREEZE_LONG: 1,
    FaultKind.FREEZE_LONG_IN_IO: 3,
    FaultKind.CUT: 2,
    FaultKind.SLOW: 1,
    FaultKind.LOCKD_RESTART: 2,
    FaultKind.LOCKD_FORGETS: 1,
    FaultKind.POWER_CUT: 2,
    FaultKind.ADMIN_FENCE: 1,
}

_LASTS: Final = {
    FaultKind.KILL_STUCK: (0.1, 4.0),
    FaultKind.FREEZE_SHORT: (0.1, PACE.lease * 0.8),
    FaultKind.FREEZE_IN_IO: (0.1, PACE.lease * 0.8),
    FaultKind.FREEZE_LONG: (PACE.lease * 1.5, PACE.lease * 2.5),
    FaultKind.FREEZE_LONG_IN_IO: (PACE.lease * 1.5, PACE.lease * 2.5),
    FaultKind.SLOW: (0.05, 1.0),
    FaultKind.LOCKD_RESTART: (0.01, 1.0),
    FaultKind.LOCKD_FORGETS: (0.01, 1.0),
}


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = Random(seed)
    hosts = rng.choice((2, 2, 3, 3, 4))
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    faults = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
        kind = rng.choices(kinds, weights)[0]
        low, high = _LASTS.get(kind, (0.0, 0.0))
        at = rng.choice((rng.uniform(0.0, 0.1), rng.uniform(0.0, 1.0), rng.uniform(0.5, 6.0)))
        faults.append(Fault(at, kind, rng.randrange(hosts), rng.uniform(low, high)))
    return Plan(
        seed=seed,
        hosts=hosts,
        places=rng.choice((1, 2, 2, 3)),
        reservation=rng.random() < 0.3,
        operations=rng.choice((3, 5, 8)),
        pace=rng.choice((0.0, 0.02, 0.3)),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )
