"""lockd's decisions, all of them, as one function without clock, socket, disk or randomness.

    outcome = step(state, event, now)

The caller's one duty is order: **an outcome's records are durable before any of its messages is
sent, and before any of its kills is carried out.** So whatever a host was told, a restarted lockd
knows; and nobody is killed whose refusal could be forgotten. Compare-and-writes are carried out at
once, between two steps, which is what makes each of them one step against every other verb.

The rules stand in: `nexus` (who is registered), `reservation` (whole-LUN reservations and permits),
`asks` (one host asks another), `fencing` (proofs of death), `report` (what people see).
"""

from lockd.machine.events import (
    Event,
    Executed,
    Execution,
    Garbled,
    HistoryReading,
    KillFailed,
    LunSearch,
    LunSearched,
    Outcome,
    ProcessExited,
    Received,
    SessionClosed,
    SessionOpened,
    StrangersSeen,
    Tick,
)
from lockd.machine.step import next_deadline, step

__all__ = [
    "Event",
    "Executed",
    "Execution",
    "Garbled",
    "HistoryReading",
    "KillFailed",
    "LunSearch",
    "LunSearched",
    "Outcome",
    "ProcessExited",
    "Received",
    "SessionClosed",
    "SessionOpened",
    "StrangersSeen",
    "Tick",
    "next_deadline",
    "step",
]
