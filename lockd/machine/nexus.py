"""How a nexus begins, is lost, comes back, and ends.

    Register ──► OPEN ◄────────────── same nonce: adopted, same generation
                  │ │ socket lost: still OPEN, it may be writing
      Unregister ─┘ └─ process seen to exit
           ▼                   ▼
         LEFT         EXITED, or FENCED if it was on the blocklist

A new start of a host (new nonce) is let in only when the one before it has ended, so that of any
two generations of a host the older is dead. Generations count up per LUN (I2).
"""

from dataclasses import replace

from lockd.machine import asks, fencing, reservation
from lockd.machine.turn import Refusal, Turn
from lockd.protocol.limits import EARLIER_STARTS_MAX, HOSTS_ENDED_MAX, SESSIONS_MAX
from lockd.protocol.messages import Good, Refused, Register, Registered
from lockd.protocol.terms import Attention, AuditKind, ErrorCode, HostEnd, PermitState
from lockd.state import (
    Host,
    HostForgotten,
    HostRecord,
    Lun,
    ProcessId,
    RegisterWait,
    Session,
)


def session_opened(turn: Turn, session_id: int, process: ProcessId) -> None:
    """A connection. Too many of them: the new one is turned away."""
    if len(turn.state.sessions) >= SESSIONS_MAX:
        text = f"lockd has {SESSIONS_MAX} connections, its limit"
        turn.out.messages.append((session_id, 0, Refused(code=ErrorCode.TOO_MANY, message=text)))
        turn.out.closes.append(session_id)
        return
    turn.state.sessions[session_id] = Session(session_id, process, turn.now.boot)


def session_closed(turn: Turn, session_id: int) -> None:
    """A connection is gone, and what waited on it. Its host may still be writing."""
    session = turn.state.sessions.pop(session_id, None)
    if session is None:
        return
    turn.state.watchers.discard(session_id)
    turn.state.registers = [w for w in turn.state.registers if w.session != session_id]
    fencing.session_closed(turn, session_id)
    for lun in turn.state.luns.values():
        lun.resetting = [wait for wait in lun.resetting if wait.session != session_id]
    if session.nexus is not None:
        _lose_nexus(turn, turn.state.hosts[session.nexus], session)


def register(turn: Turn, session: Session, request_id: int, message: Register) -> None:
    """Open a nexus, go on with an old one, or wait for the end of an earlier start."""
    if session.nexus is not None:
        raise Refusal(ErrorCode.BAD_REQUEST, "this connection has registered already")
    if session.process_ended:
        # Sent before its end and read after it: nobody would report that end a second time.
        raise Refusal(ErrorCode.BAD_REQUEST, f"{session.process} has exited")
    lun = turn.lun(message.lun)
    host = turn.state.hosts.get((message.lun, message.host_uuid))
    if host is None or not host.open:
        if host is not None and host.record.blocked and host.record.nonce == message.nonce:
            raise Refusal(ErrorCode.FENCED, f"{host.record} was fenced: {host.record.proof}")
        turn.refuse_if_full()
        _begin(turn, lun, session, request_id, message)
        return
    if host.record.nonce == message.nonce:
        if host.record.blocked:
            raise Refusal(ErrorCode.FENCED, f"{host.record} was fenced")
        if host.record.process == session.process:
            _adopt(turn, lun, host, session, request_id)
            if (host.record.recall_ms, host.record.lease_ms) != (
                message.recall_ms,
                message.lease_ms,
            ):
                turn.change(host, recall_ms=message.recall_ms, lease_ms=message.lease_ms)
            return
    turn.begin_wait(session)
    now = turn.now.boot
    turn.state.registers.append(
        RegisterWait(session.id, request_id, message, now, now + turn.state.timing.register)
    )


def unregister(turn: Turn, session: Session, request_id: int) -> None:
    """The host leaves: nothing of it is in flight."""
    host = turn.nexus(session)
    turn.audit_host(AuditKind.LEFT, host, f"{host.record} left")
    _end(turn, host, HostEnd.LEFT, "it left: nothing of it was in flight")
    turn.reply(session.id, request_id, Good())


def process_exited(turn: Turn, process: ProcessId, how: str) -> None:
    """The proof that every nexus of the process can never write again."""
    for host in list(turn.state.hosts.values()):
        record = host.record
        if not host.open or record.process != process:
            continue
        end = HostEnd.FENCED if record.blocked else HostEnd.EXITED
        kind = AuditKind.FENCED if record.blocked else AuditKind.EXITED
        verb = "is fenced" if record.blocked else "is dead"
        turn.audit_host(kind, host, f"{record} {verb}: {how}")
        _end(turn, host, end, how)
    for session in turn.state.sessions.values():
        if session.process == process:
            session.process_ended = True


def pass_deadlines(turn: Turn) -> None:
    """Turn away the new starts whose predecessors go on living."""
    for wait in [w for w in turn.state.registers if w.deadline <= turn.now.boot]:
        turn.state.registers.remove(wait)
        turn.end_wait(wait.session)
        host = turn.state.hosts[wait.message.lun, wait.message.host_uuid]
        turn.refuse(
            wait.session,
            wait.request_id,
            ErrorCode.STILL_ALIVE,
            f"{host.record} is registered on {wait.message.lun} with this host uuid and has not "
            "ended; end or fence it first",
        )


def _begin(turn: Turn, lun: Lun, session: Session, request_id: int, message: Register) -> None:
    lun.record = replace(lun.record, generation=lun.record.generation + 1)
    process = session.process
    before = turn.state.hosts.get((message.lun, message.host_uuid))
    record = HostRecord(
        lun=message.lun,
        host_uuid=message.host_uuid,
        name=message.name,
        generation=lun.record.generation,
        nonce=message.nonce,
        pid=process.pid,
        start_ticks=process.start_ticks,
        boot_id=process.boot_id,
        since=turn.now.wall,
        end=HostEnd.OPEN,
        blocked=False,
        proof="",
        earlier_nonces=_nonces_of(before)[:EARLIER_STARTS_MAX],
        recall_ms=message.recall_ms,
        lease_ms=message.lease_ms,
    )
    host = Host(record, session.id, PermitState.RETURNED, turn.now.boot)
    turn.state.hosts.pop(record.key, None)  # to the end of the order: forgotten last
    turn.state.hosts[record.key] = host
    session.nexus = record.key
    turn.keep(lun.record)
    turn.keep(record)
    _forget_the_oldest(turn, lun)
    permit = reservation.join(turn, lun, host)
    turn.audit_host(AuditKind.REGISTERED, host, f"{record} registered")
    turn.reply(
        session.id,
        request_id,
        Registered(generation=record.generation, lun_size=lun.size, permit=permit, adopted=False),
    )


def _nonces_of(host: Host | None) -> tuple[int, ...]:
    """The starts of a host that has ended, the last one first."""
    return (host.record.nonce, *host.record.earlier_nonces) if host is not None else ()


def _adopt(turn: Turn, lun: Lun, host: Host, session: Session, request_id: int) -> None:
    if host.session is not None:  # its old connection, which lockd has not seen end yet
        old = turn.state.sessions[host.session]
        turn.out.closes.append(old.id)
        _lose_nexus(turn, host, old)
    host.session = session.id
    host.hear(turn.now.boot)
    session.nexus = host.record.key
    permit = reservation.rejoin(turn, lun, host)
    turn.audit_host(AuditKind.ADOPTED, host, f"{host.record} is connected again")
    turn.reply(
        session.id,
        request_id,
        Registered(
            generation=host.record.generation,
            lun_size=lun.size,
            permit=permit,
            adopted=True,
        ),
    )
    reservation.after_rejoin(turn, lun, host)
    asks.holder_returned(turn, host)


def _lose_nexus(turn: Turn, host: Host, session: Session) -> None:
    """The connection of a nexus is gone; the nexus is not."""
    lun = turn.state.luns[host.record.lun]
    host.session = None
    session.nexus = None
    asks.asker_left(turn, session.id)
    turn.audit_host(AuditKind.NEXUS_LOST, host, f"{host.record} lost its connection")
    _drop_claims(turn, lun, host)


def _drop_claims(turn: Turn, lun: Lun, host: Host) -> None:
    """End what a lost nexus was waiting for, and its reservation."""
    uuid = host.record.host_uuid
    if lun.reserving is not None and lun.reserving.by == uuid:
        reservation.give_up_reserving(turn, lun, in_the_way="a lost connection")
    if lun.reservation is not None and lun.reservation.holder == uuid and host.open:
        reservation.lose(turn, lun, f"{host.record} lost its connection", Attention.NEXUS_LOSS)


def _end(turn: Turn, host: Host, end: HostEnd, proof: str) -> None:
    """A nexus has ended for good: it holds nothing, and whoever waited for it goes on."""
    lun = turn.state.luns[host.record.lun]
    session = turn.state.sessions.get(host.session) if host.session is not None else None
    turn.change(host, end=end, proof=proof)
    host.session = None
    host.permit = PermitState.RETURNED
    if session is not None:
        session.nexus = None
        asks.asker_left(turn, session.id)
    _drop_claims(turn, lun, host)
    reservation.permit_is_back(turn, host)
    asks.holder_ended(turn, host)
    fencing.host_ended(turn, host)
    for wait in list(turn.state.registers):
        if (wait.message.lun, wait.message.host_uuid) == host.record.key:
            _try_again(turn, wait)


def _try_again(turn: Turn, wait: RegisterWait) -> None:
    turn.state.registers.remove(wait)
    turn.end_wait(wait.session)
    session = turn.state.sessions[wait.session]
    try:
        register(turn, session, wait.request_id, wait.message)
    except Refusal as refusal:
        turn.refuse(wait.session, wait.request_id, refusal.code, str(refusal))


def _forget_the_oldest(turn: Turn, lun: Lun) -> None:
    ended = [host for host in turn.state.hosts_of(lun.record.lun) if not host.open]
    for host in ended[: max(0, len(ended) - HOSTS_ENDED_MAX)]:
        del turn.state.hosts[host.record.key]
        turn.keep(HostForgotten(lun=host.record.lun, host_uuid=host.record.host_uuid))
