"""What goes into a step, and what comes out of it."""

from dataclasses import dataclass, field

from lockd.protocol.messages import AuditEntry, Good, Message, Miscompare, Request
from lockd.state import ProcessId, Record

# --- in -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Somebody connected. `process` is NO_PROCESS where the peer cannot be known."""

    session: int
    process: ProcessId


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A connection is gone: an I_T nexus loss, if it had a nexus."""

    session: int


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived. `request_id` 0: no reply is wanted."""

    session: int
    request_id: int
    message: Request


@dataclass(frozen=True, slots=True)
class Garbled:
    """What arrived is no message, or not one for lockd."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """A process was seen to exit, with `how` in words. It cannot write any more."""

    process: ProcessId
    how: str


@dataclass(frozen=True, slots=True)
class KillFailed:
    """A process could not be killed."""

    process: ProcessId
    reason: str


@dataclass(frozen=True, slots=True)
class LunSearched:
    """The processes that have the LUN open for writing were looked up.

    `strangers` are those that no registered host accounts for; `complete` is False when not every
    process could be looked at, so that an empty list proves nothing.
    """

    lun: str
    strangers: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Executed:
    """An `Execution` of the step before was carried out. A text is the error of the LUN."""

    execution: "Execution"
    result: Good | Miscompare | str


@dataclass(frozen=True, slots=True)
class StrangersSeen:
    """Who has a LUN open for writing and is not registered, after lockd's database was lost."""

    lun: str
    strangers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; a deadline may have."""


Event = (
    SessionOpened
    | SessionClosed
    | Received
    | Garbled
    | ProcessExited
    | KillFailed
    | LunSearched
    | StrangersSeen
    | Executed
    | Tick
)

# --- out ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Execution:
    """A compare-and-write to carry out now, before the next step, and to report as `Executed`."""

    session: int
    request_id: int
    lun: str
    lba: int
    expected: bytes
    new: bytes
    durable: bool
    label: str
    who: str
    generation: int


@dataclass(frozen=True, slots=True)
class LunSearch:
    """Find out who has the LUN open for writing, but for `known`; to report as `LunSearched`."""

    lun: str
    known: frozenset[int]  # pids of registered hosts


@dataclass(frozen=True, slots=True)
class HistoryReading:
    """Answer a History request from the store."""

    session: int
    request_id: int
    count: int
    before: int


@dataclass(slots=True)
class Outcome:
    """What the caller has to do, in this order.

    1. carry out `executions`, and step with their results at once;
    2. make `records` durable (and write `audit`, which need not be);
    3. `kills` and `searches`;
    4. send `messages` in order, answer `histories`, then close `closes`.
    """

    executions: list[Execution] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    kills: list[ProcessId] = field(default_factory=list)
    searches: list[LunSearch] = field(default_factory=list)
    messages: list[tuple[int, int, Message]] = field(default_factory=list)
    histories: list[HistoryReading] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
