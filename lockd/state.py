"""What lockd knows, as values: sessions, hosts, reservations, and who waits for what.

    session ──0..1── host (nexus) ──n..1── LUN ──0..1── reservation
       one connection   one registered        │
                        host on one LUN       └──0..1── reserving: waits for permits

Two kinds of values. *Records* are frozen and are what the store keeps: they outlive lockd. All
else dies with it. Only `lockd.machine` changes a `State`; `check_invariants` says what must hold
after each of its steps, and the tests call it there.

Times are seconds of CLOCK_BOOTTIME (`boot`), never wall time; `wall` is kept for display only.
"""

from dataclasses import dataclass, field
from typing import Final

from lockd.protocol.messages import Register
from lockd.protocol.terms import AskKind, Attention, HostEnd, PermitState

HostKey = tuple[str, bytes]
"""(LUN name, host uuid)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a step happens."""

    boot: float
    wall: float


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one with the same pid."""

    pid: int
    start_ticks: int  # since boot, as /proc/PID/stat has it
    boot_id: str  # of the kernel that runs it

    def __str__(self) -> str:
        return f"pid {self.pid}"


NO_PROCESS: Final = ProcessId(0, 0, "")
"""The peer's process is not known (a stream that is no socket): its death cannot be proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long lockd waits for others, unless they said otherwise themselves. Seconds."""

    recall: float = 10.0  # for a permit: the time after which a host that hangs has stopped itself
    fence: float = 5.0  # for an exit after SIGKILL: 0.1 ms is usual, more means stuck in the kernel
    lease: float = 16.0  # for a word of a host that everybody waits for; then it is fenced
    register: float = 2.0  # for the exit of an earlier start, whose socket closed but just now


# --- records: what the store keeps ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LunRecord:
    """One LUN. Generations count per LUN and never repeat."""

    lun: str
    generation: int  # the highest that was given out
    rebuilding: bool = False  # hosts of a lost database may still be at work, unregistered
    lost: int = 0  # generations up to this may be of a lost database: nobody knows whose


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """One host on one LUN, in its latest start. All its earlier starts have ended."""

    lun: str
    host_uuid: bytes
    name: str
    generation: int
    nonce: int
    pid: int
    start_ticks: int
    boot_id: str
    since: float  # wall time
    end: HostEnd
    blocked: bool  # on the blocklist: nothing this generation says is heard any more
    proof: str  # why lockd is sure that it ended
    earlier_nonces: tuple[int, ...] = ()  # of starts before this one, which all ended; newest first
    recall_ms: int = 0  # its own pace, as `Register` says it; 0: as lockd is set
    lease_ms: int = 0

    @property
    def key(self) -> HostKey:
        """Where the state and the store keep it."""
        return self.lun, self.host_uuid

    @property
    def process(self) -> ProcessId:
        """The process that registered, or NO_PROCESS."""
        return ProcessId(self.pid, self.start_ticks, self.boot_id)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRecord:
    """A reservation that was granted. It outlives lockd, because its holder's I/O may."""

    lun: str
    host_uuid: bytes
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationEnded:
    """Takes the record of the LUN's reservation out of the store."""

    lun: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostForgotten:
    """Takes a host that ended long ago out of the store."""

    lun: str
    host_uuid: bytes


Record = LunRecord | HostRecord | ReservationRecord | ReservationEnded | HostForgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the store gives back at start."""

    incarnation: int
    audit_sequence: int  # the last one that was used
    luns: tuple[LunRecord, ...]
    hosts: tuple[HostRecord, ...]
    reservations: tuple[ReservationRecord, ...]


# --- what dies with lockd -------------------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """One connection."""

    id: int
    process: ProcessId
    opened: float
    greeted: bool = False
    nexus: HostKey | None = None
    waiting: int = 0  # requests that wait for another party
    process_ended: bool = False  # its exit was seen; what it sent before may still be read


@dataclass(slots=True)
class Host:
    """A nexus, or what is remembered of one that ended."""

    record: HostRecord
    session: int | None
    permit: PermitState
    last_heard: float
    recall: int = 0  # the number of the last recall it was sent
    asked_since: float | None = None  # a recall that it has said nothing since, of any kind

    def hear(self, now: float) -> None:
        """It said something, whatever it was."""
        self.last_heard = now
        self.asked_since = None

    @property
    def open(self) -> bool:
        """Whether it may still be writing."""
        return self.record.end is HostEnd.OPEN


@dataclass(slots=True)
class Reservation:
    """The whole LUN belongs to one nexus.

    While `ending` is set it is lost, but not over: the I/O of its holder is not known to have
    ended, so everybody else is still kept out.
    """

    holder: bytes
    generation: int
    since: float
    ending: str = ""
    attention: Attention = Attention.RESET  # what its holder is told when it is lost
    reset: bool = False  # it ends because of a reset: every nexus is told


@dataclass(slots=True)
class Reserving:
    """A RESERVE that waits until nobody else has I/O in flight."""

    by: bytes
    session: int
    request_id: int
    since: float
    deadline: float
    missing: set[bytes]  # the hosts whose permits are still out


@dataclass(slots=True)
class Resetting:
    """A reset that waits for the end of the reservation."""

    session: int
    request_id: int
    deadline: float


@dataclass(slots=True)
class Lun:
    """One LUN."""

    record: LunRecord
    path: str
    size: int  # bytes
    block_count: int
    reservation: Reservation | None = None
    reserving: Reserving | None = None
    resetting: list[Resetting] = field(default_factory=list)
    strangers: tuple[str, ...] = ()  # may be writing, and this lockd never gave them a permit
    last_recall: int = 0


@dataclass(slots=True)
class AskWait:
    """Somebody asked a host for something and waits."""

    ask_id: int
    session: int
    request_id: int
    lun: str
    asker: bytes
    holder: bytes
    lba: int
    what: AskKind
    label: str
    since: float


@dataclass(slots=True)
class FenceWait:
    """Somebody waits for the proof that a host is dead."""

    key: HostKey
    generation: int
    session: int
    request_id: int
    since: float
    deadline: float
    search: bool = False  # waits for a search of the LUN's openers, not for an exit
    nonce: int = 0


@dataclass(slots=True)
class RegisterWait:
    """A new start of a host waits for the end of the old one."""

    session: int
    request_id: int
    message: Register
    since: float
    deadline: float


@dataclass(slots=True)
class State:
    """All of it."""

    incarnation: int
    started: Moment
    timing: Timing
    audit_sequence: int
    luns: dict[str, Lun] = field(default_factory=dict)
    hosts: dict[HostKey, Host] = field(default_factory=dict)
    sessions: dict[int, Session] = field(default_factory=dict)
    watchers: set[int] = field(default_factory=set)
    asks: dict[int, AskWait] = field(default_factory=dict)
    fences: list[FenceWait] = field(default_factory=list)
    registers: list[RegisterWait] = field(default_factory=list)
    last_ask: int = 0
    store_full: str = ""  # why nothing new can be kept

    @classmethod
    def load(
        cls,
        snapshot: Snapshot,
        *,
        luns: tuple[tuple[str, str, int], ...],
        timing: Timing,
        now: Moment,
    ) -> "State":
        """The state after a start: (name, path, size) of each LUN, and what the store kept.

        Nobody is connected. Hosts that had not ended may still be writing. A reservation that was
        granted is lost, as after a power cycle, and over once its holder has said or proved so.
        """
        state = cls(
            incarnation=snapshot.incarnation,
            started=now,
            timing=timing,
            audit_sequence=snapshot.audit_sequence,
        )
        records = {record.lun: record for record in snapshot.luns}
        for name, path, size in luns:
            record = records.get(name, LunRecord(lun=name, generation=0))
            state.luns[name] = Lun(record, path, size, size // 512)
        reserved = {record.lun: record for record in snapshot.reservations}
        for kept in snapshot.hosts:
            if kept.lun in state.luns:
                permit = PermitState.RETURNED if kept.lun in reserved else PermitState.HELD
                state.hosts[kept.key] = Host(kept, None, permit, now.boot)
        for reservation in reserved.values():
            holder = state.hosts.get((reservation.lun, reservation.host_uuid))
            if holder is not None and holder.open:
                holder.permit = PermitState.RECALLED
                state.luns[reservation.lun].reservation = Reservation(
                    holder=reservation.host_uuid,
                    generation=reservation.generation,
                    since=now.boot,
                    ending="lockd was restarted",
                    attention=Attention.POWER_ON,
                )
        return state

    def hosts_of(self, lun: str) -> list[Host]:
        """Every host that is known on a LUN."""
        return [host for host in self.hosts.values() if host.record.lun == lun]

    def recall_of(self, host: Host) -> float:
        """How long others wait for its permit, seconds."""
        return host.record.recall_ms / 1000 or self.timing.recall

    def lease_of(self, host: Host) -> float:
        """How long it may hold up others without a word, seconds."""
        return host.record.lease_ms / 1000 or self.timing.lease

    def name_of(self, key: HostKey) -> str:
        """What to call a host."""
        host = self.hosts.get(key)
        return str(host.record) if host else f"host {key[1].hex()}"

    def check_invariants(self) -> None:
        """What holds between two steps, whatever happened; I1 to I10 are those of docs/locking."""
        for lun in self.luns.values():
            self._check_lun(lun)
        for key, host in self.hosts.items():
            self._check_host(key, host)
        for session in self.sessions.values():
            if session.nexus is not None:
                assert self.hosts[session.nexus].session == session.id
        self._check_waits()

    def _check_lun(self, lun: Lun) -> None:
        name, reservation, reserving = lun.record.lun, lun.reservation, lun.reserving
        hosts = {host.record.host_uuid: host for host in self.hosts_of(name) if host.open}
        assert reservation is None or reserving is None, "granted and waiting at once"
        if reservation is not None:
            holder = hosts[reservation.holder]  # I1: it exists, and has not ended
            assert holder.record.generation == reservation.generation
            assert reservation.ending or holder.session is not None, "lost on nexus loss"
            for uuid, host in hosts.items():  # I4: nobody else's I/O is in flight
                assert uuid == reservation.holder or host.permit is PermitState.RETURNED
        if reserving is not None:
            assert reserving.missing, "nobody is missing, and it was not granted"
            assert hosts[reserving.by].session == reserving.session
            for uuid, host in hosts.items():
                out = host.permit is not PermitState.RETURNED and uuid != reserving.by
                assert (uuid in reserving.missing) == out
        assert not lun.resetting or (reservation is not None and reservation.reset)

    def _check_host(self, key: HostKey, host: Host) -> None:
        record = host.record
        assert record.key == key
        assert 0 < record.generation <= self.luns[record.lun].record.generation  # I2
        assert record.end is not HostEnd.FENCED or record.blocked  # I6: refused first
        assert host.open or record.proof, "ended without a proof"
        assert host.open or host.session is None, "an ended host speaks"
        if host.session is not None:
            assert self.sessions[host.session].nexus == key

    def _check_waits(self) -> None:
        waiting: dict[int, int] = {}
        for ask in self.asks.values():
            waiting[ask.session] = waiting.get(ask.session, 0) + 1
            assert self.hosts[ask.lun, ask.holder].open, "asks somebody who has ended"  # I10
            assert self.sessions[ask.session].nexus == (ask.lun, ask.asker)
        for fence in self.fences:
            waiting[fence.session] = waiting.get(fence.session, 0) + 1
            if not fence.search:
                assert self.hosts[fence.key].open, "waits for a death that was seen"
                assert self.hosts[fence.key].record.blocked  # I6
        for register in self.registers:
            waiting[register.session] = waiting.get(register.session, 0) + 1
        for lun in self.luns.values():
            for wait in [lun.reserving, *lun.resetting]:
                if wait is not None:
                    waiting[wait.session] = waiting.get(wait.session, 0) + 1
        assert waiting == {s.id: s.waiting for s in self.sessions.values() if s.waiting}
