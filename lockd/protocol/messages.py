"""The messages, as frozen dataclasses that cannot hold an illegal value.

Three kinds. A *request* goes to lockd and gets exactly one reply; some (`NOTICES_TO_LOCKD`) want
none. A *reply* answers one request. A *notice* comes from lockd unasked.

The statuses are SCSI's (SPC-2, SBC-4), so that who knows arrays knows lockd: GOOD, MISCOMPARE with
the offset of the first differing byte, RESERVATION CONFLICT, unit attention.

Names: a *nexus* is one registered host on one LUN, (host_uuid, generation). *Generation* is lockd's
session generation, not the heartbeat's. `lba` counts blocks of 512 bytes from the start of the LUN.
Ages are seconds; `wall` is seconds since 1970 and only for display.
"""

from dataclasses import dataclass

from lockd.protocol.limits import (
    BLOCK_SIZE,
    HISTORY_COUNT_MAX,
    LABEL_SIZE_MAX,
    NAME_SIZE_MAX,
    PACE_MS_MAX,
    PACE_MS_MIN,
    PAYLOAD_SIZE_MAX,
)
from lockd.protocol.terms import AnswerKind as AnswerKind
from lockd.protocol.terms import AskKind as AskKind
from lockd.protocol.terms import Attention as Attention
from lockd.protocol.terms import AuditKind as AuditKind
from lockd.protocol.terms import ErrorCode as ErrorCode
from lockd.protocol.terms import FenceResult as FenceResult
from lockd.protocol.terms import HostEnd as HostEnd
from lockd.protocol.terms import PermitState as PermitState

U64_MAX = (1 << 64) - 1


def _check_uuid(name: str, value: bytes) -> None:
    if len(value) != 16:
        raise ValueError(f"{name} has 16 bytes, not {len(value)}")


def _check_text(name: str, value: str, size_max: int) -> None:
    if len(value) * 4 > size_max and len(value.encode(errors="surrogatepass")) > size_max:
        raise ValueError(f"{name} is longer than {size_max} bytes")


def _check_u64(name: str, value: int) -> None:
    if not 0 <= value <= U64_MAX:
        raise ValueError(f"{name} is {value}, not a number of 64 bits")


def _check_pace(name: str, value: int) -> None:
    if value and not PACE_MS_MIN <= value <= PACE_MS_MAX:
        raise ValueError(f"{name} is {value}, not 0 nor {PACE_MS_MIN} to {PACE_MS_MAX}")


# --- requests -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of every connection. Answered by Welcome, or Refused(VERSION)."""

    version: int
    software: str  # for the log: what speaks, and which release

    def __post_init__(self) -> None:
        _check_u64("version", self.version)
        _check_text("software", self.software, NAME_SIZE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Open a nexus on a LUN. Answered by Registered.

    The same uuid and nonce again means the same start of the host: it is adopted with its
    generation. A new nonce is a new start: the old one must have ended (or be fenced) first.

    A host that keeps another pace than lockd is set to says so: `recall_ms`, after which it has
    stopped its own I/O if it hangs, and so how long a RESERVE waits for its permit; `lease_ms`,
    after which it may be fenced if it is silent while it holds up others. 0: as lockd is set.
    """

    lun: str
    host_uuid: bytes  # 16 bytes, kept across mounts of the same machine and mount point
    name: str  # what people call it
    nonce: int  # drawn fresh at every start
    recall_ms: int = 0
    lease_ms: int = 0

    def __post_init__(self) -> None:
        _check_text("lun", self.lun, NAME_SIZE_MAX)
        _check_uuid("host_uuid", self.host_uuid)
        _check_text("name", self.name, NAME_SIZE_MAX)
        _check_u64("nonce", self.nonce)
        _check_pace("recall_ms", self.recall_ms)
        _check_pace("lease_ms", self.lease_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unregister:
    """Close the nexus: nothing is in flight, nothing will follow. Answered by Good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAndWrite:
    """SBC-4 COMPARE AND WRITE of one block. Answered by Good, Miscompare or Conflict.

    `durable`: the reply comes after the block survives a power cut. An empty label (heartbeats)
    keeps the change out of the audit trail.
    """

    lba: int
    expected: bytes
    new: bytes
    durable: bool
    label: str

    def __post_init__(self) -> None:
        _check_u64("lba", self.lba)
        if len(self.expected) != BLOCK_SIZE or len(self.new) != BLOCK_SIZE:
            raise ValueError(f"expected and new have {BLOCK_SIZE} bytes each")
        _check_text("label", self.label, LABEL_SIZE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """SPC-2 RESERVE of the whole LUN. Good once no other nexus has I/O in flight, else Conflict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """SPC-2 RELEASE. Always Good; without effect unless the nexus holds the reservation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Reset a LUN: drain, clear the reservation, tell every nexus. Good or Refused(NOT_DRAINED)."""

    lun: str

    def __post_init__(self) -> None:
        _check_text("lun", self.lun, NAME_SIZE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """Notice to lockd: no I/O of this nexus is in flight and none will start until it is granted.

    `recall` is the number of the recall it answers, so that a late one cannot pass for another.
    """

    recall: int

    def __post_init__(self) -> None:
        _check_u64("recall", self.recall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask the host that holds the record at `lba`. Answered by AskAnswer, when it is known."""

    lba: int
    what: AskKind
    holder: bytes
    label: str

    def __post_init__(self) -> None:
        _check_u64("lba", self.lba)
        _check_uuid("holder", self.holder)
        _check_text("label", self.label, LABEL_SIZE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Notice to lockd: what became of an Asked."""

    ask_id: int
    kind: AnswerKind
    payload: bytes

    def __post_init__(self) -> None:
        _check_u64("ask_id", self.ask_id)
        if self.kind in (AnswerKind.GONE, AnswerKind.UNREACHABLE):
            raise ValueError(f"{self.kind.name} is for lockd to say")
        if len(self.payload) > PAYLOAD_SIZE_MAX:
            raise ValueError(f"payload is longer than {PAYLOAD_SIZE_MAX} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Notice to lockd: the sender no longer waits for the reply to `request_id` (an Ask)."""

    request_id: int

    def __post_init__(self) -> None:
        _check_u64("request_id", self.request_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Make sure that a nexus can never write again. Answered by FenceAnswer.

    Which start of the host is meant is said by `generation`, or (generation 0) by `nonce`, or (both
    0) it is the current one. A start that was followed by another one has ended, by construction.
    """

    lun: str
    host_uuid: bytes
    generation: int
    nonce: int

    def __post_init__(self) -> None:
        _check_text("lun", self.lun, NAME_SIZE_MAX)
        _check_uuid("host_uuid", self.host_uuid)
        _check_u64("generation", self.generation)
        _check_u64("nonce", self.nonce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answered by StatusReport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Answered by Good; from then on every audit entry follows as an EventNotice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Answered by HistoryReport: the newest `count` entries, or those older than `before`."""

    count: int
    before: int  # an entry's sequence; 0 means from the newest

    def __post_init__(self) -> None:
        if not 1 <= self.count <= HISTORY_COUNT_MAX:
            raise ValueError(f"count is {self.count}, not 1 to {HISTORY_COUNT_MAX}")
        _check_u64("before", self.before)


# --- replies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """lockd's half of the handshake. `incarnation` grows by one with every start of lockd."""

    version: int
    software: str
    incarnation: int
    luns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """The nexus stands. Without the permit no direct I/O may start until PermitGranted."""

    generation: int
    lun_size: int  # bytes
    permit: bool
    adopted: bool  # True: the nexus of before went on; False: a new generation began


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """SCSI status GOOD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miscompare:
    """SCSI sense MISCOMPARE: nothing was written. `current` is the block as it is."""

    offset: int  # of the first byte that differs
    current: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """SCSI status RESERVATION CONFLICT. `holder` says who is in the way, for people."""

    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAnswer:
    """How an Ask ended. `who` names the holder; `proof` is set with GONE."""

    kind: AnswerKind
    payload: bytes
    who: str
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAnswer:
    """How a fence ended. `proof` says why lockd is sure, or what it waits for."""

    result: FenceResult
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The request was not carried out."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationStatus:
    """Who holds a LUN's reservation, or is about to get it."""

    holder: str
    generation: int
    age: float
    granted: bool  # False: waiting for the permits of `waits_for`
    ending: str  # not empty: it is lost (why), and ends once the holder's I/O is known to have
    waits_for: tuple[str, ...]
    seconds_left: float  # until the wait is given up; 0 where it never is


@dataclass(frozen=True, slots=True, kw_only=True)
class LunStatus:
    """One LUN."""

    name: str
    path: str
    size: int
    generation: int  # the highest that was given out
    reservation: tuple[ReservationStatus, ...]  # none or one


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One host on one LUN."""

    lun: str
    host_uuid: bytes
    name: str
    generation: int
    nonce: int
    pid: int  # 0: not known
    end: HostEnd
    connected: bool
    permit: PermitState
    since: float  # wall time of the registration
    silent: float  # seconds since its last request
    blocked: bool  # on the blocklist: refused for ever
    proof: str  # how it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitStatus:
    """Somebody waits for somebody."""

    lun: str
    waiter: str
    holder: str
    what: str
    lba: int
    label: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """Everything that lockd knows, at one moment."""

    incarnation: int
    uptime: float
    sessions: int
    luns: tuple[LunStatus, ...]
    hosts: tuple[HostStatus, ...]
    waits: tuple[WaitStatus, ...]
    state_full: str = ""  # why no new host is let in: there is no room to remember it


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the audit trail, and of the event stream."""

    sequence: int
    wall: float
    kind: AuditKind
    lun: str
    host: str  # who did it, or whom it befell; may be empty
    generation: int
    lba: int  # 0 where none is meant
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReport:
    """Oldest first."""

    entries: tuple[AuditEntry, ...]


# --- notices from lockd ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Another host asks: answer with Answer(ask_id)."""

    ask_id: int
    lba: int
    what: AskKind
    who: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRecalled:
    """Start no I/O, let what is in flight end, then say Returned(recall)."""

    recall: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitGranted:
    """I/O may start again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAttention:
    """Something happened to the LUN. Always sent before the permit is granted again."""

    reason: Attention
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedNotice:
    """This nexus was fenced: fail what is outstanding, drop every cache, end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNotice:
    """What a watcher gets."""

    entry: AuditEntry


Request = (
    Hello
    | Register
    | Unregister
    | CompareAndWrite
    | Reserve
    | Release
    | Reset
    | Returned
    | Ask
    | Answer
    | Withdraw
    | Fence
    | Status
    | Watch
    | History
)
Reply = (
    Welcome
    | Registered
    | Good
    | Miscompare
    | Conflict
    | AskAnswer
    | FenceAnswer
    | StatusReport
    | HistoryReport
    | Refused
)
Notice = Asked | PermitRecalled | PermitGranted | UnitAttention | FencedNotice | EventNotice
Message = Request | Reply | Notice

NOTICES_TO_LOCKD = (Returned, Answer, Withdraw)
