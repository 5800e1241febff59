"""One step in the making: the state, the moment, and the outcome that gathers."""

from dataclasses import replace

from lockd.machine.events import Outcome
from lockd.protocol.limits import TEXT_SIZE_MAX, WAITING_PER_SESSION_MAX
from lockd.protocol.messages import AuditEntry, EventNotice, Message, Notice, Refused
from lockd.protocol.terms import AuditKind, ErrorCode
from lockd.state import Host, HostRecord, Lun, Moment, Record, Session, State


class Refusal(Exception):
    """A request that is not carried out. Raised before anything was changed."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Turn:
    """What every rule of the machine gets."""

    __slots__ = ("now", "out", "state")

    def __init__(self, state: State, now: Moment) -> None:
        self.state = state
        self.now = now
        self.out = Outcome()

    def reply(self, session: int, request_id: int, message: Message) -> None:
        """Answer a request, if its session is still there."""
        if session in self.state.sessions:
            self.out.messages.append((session, request_id, message))

    def refuse(self, session: int, request_id: int, code: ErrorCode, message: str) -> None:
        """Answer with a refusal."""
        self.reply(session, request_id, Refused(code=code, message=message[:TEXT_SIZE_MAX]))

    def notify(self, host: Host, notice: Notice) -> None:
        """Tell a host something, if it is connected."""
        if host.session is not None:
            self.out.messages.append((host.session, 0, notice))

    def keep(self, record: Record) -> None:
        """Have a record made durable before anybody is answered."""
        self.out.records.append(record)

    def change(self, host: Host, **changes: object) -> HostRecord:
        """Change what is kept of a host."""
        host.record = replace(host.record, **changes)  # type: ignore[arg-type]
        self.keep(host.record)
        return host.record

    def audit(  # noqa: PLR0913 - all but two by name
        self,
        kind: AuditKind,
        text: str,
        *,
        lun: str = "",
        host: str = "",
        generation: int = 0,
        lba: int = 0,
    ) -> None:
        """Add a line to the audit trail, the log and the event stream."""
        state = self.state
        state.audit_sequence += 1
        entry = AuditEntry(
            sequence=state.audit_sequence,
            wall=self.now.wall,
            kind=kind,
            lun=lun,
            host=host,
            generation=generation,
            lba=lba,
            text=text[:TEXT_SIZE_MAX],
        )
        self.out.audit.append(entry)
        if state.watchers:
            notice = EventNotice(entry=entry)
            self.out.messages += [(watcher, 0, notice) for watcher in state.watchers]

    def audit_host(self, kind: AuditKind, host: Host, text: str) -> None:
        """The same, about a host."""
        record = host.record
        self.audit(kind, text, lun=record.lun, host=str(record), generation=record.generation)

    def nexus(self, session: Session) -> Host:
        """The host that speaks.

        Raises:
            Refusal: it is not registered, or was fenced.
        """
        if session.nexus is None:
            raise Refusal(ErrorCode.NOT_REGISTERED, "register on a LUN first")
        host = self.state.hosts[session.nexus]
        if host.record.blocked:
            raise Refusal(ErrorCode.FENCED, f"{host.record} was fenced")
        return host

    def refuse_if_full(self) -> None:
        """What would have to be remembered is not begun while there is no room to do so.

        Raises:
            Refusal: the store is full.
        """
        if self.state.store_full:
            raise Refusal(ErrorCode.STATE_FULL, self.state.store_full)

    def lun(self, name: str) -> Lun:
        """A LUN by name.

        Raises:
            Refusal: lockd does not serve it.
        """
        lun = self.state.luns.get(name)
        if lun is None:
            served = ", ".join(self.state.luns) or "none"
            raise Refusal(ErrorCode.NO_SUCH_LUN, f"no LUN {name!r} here; served: {served}")
        return lun

    def begin_wait(self, session: Session) -> None:
        """Count a request that waits for another party.

        Raises:
            Refusal: the session has too many of them.
        """
        if session.waiting >= WAITING_PER_SESSION_MAX:
            raise Refusal(
                ErrorCode.TOO_MANY, f"{session.waiting} requests of this session wait already"
            )
        session.waiting += 1

    def end_wait(self, session: int) -> None:
        """The request waits no longer (or its session is gone)."""
        held = self.state.sessions.get(session)
        if held is not None:
            held.waiting -= 1
