"""The entry to the machine: one event in, one outcome out."""

from dataclasses import replace

from lockd.machine import asks, fencing, nexus, report, reservation, silence
from lockd.machine.events import (
    Event,
    Executed,
    Execution,
    Garbled,
    HistoryReading,
    KillFailed,
    LunSearched,
    Outcome,
    ProcessExited,
    Received,
    SessionClosed,
    SessionOpened,
    StrangersSeen,
    Tick,
)
from lockd.machine.turn import Refusal, Turn
from lockd.protocol import messages as m
from lockd.protocol.limits import PROTOCOL_VERSION, WATCHERS_MAX
from lockd.protocol.terms import AuditKind, ErrorCode
from lockd.state import Moment, Session, State

SOFTWARE = "lockd"


def step(state: State, event: Event, now: Moment) -> Outcome:  # noqa: C901 - a table
    """Let one event happen. Changes `state`, and says what the caller has to do (`Outcome`)."""
    turn = Turn(state, now)
    match event:
        case Received():
            _received(turn, event)
        case Executed():
            _executed(turn, event)
        case Garbled():
            if (session := state.sessions.get(event.session)) is not None:
                _end_session(turn, session, event.reason)
        case SessionOpened():
            nexus.session_opened(turn, event.session, event.process)
        case SessionClosed():
            nexus.session_closed(turn, event.session)
        case ProcessExited():
            nexus.process_exited(turn, event.process, event.how)
        case KillFailed():
            fencing.kill_failed(turn, event.process, event.reason)
        case LunSearched():
            fencing.searched(turn, event)
        case StrangersSeen():
            _strangers_seen(turn, event)
        case Tick():
            reservation.pass_deadlines(turn)
            fencing.pass_deadlines(turn)
            nexus.pass_deadlines(turn)
            silence.pass_deadlines(turn)
    return turn.out


def next_deadline(state: State) -> float | None:
    """When a `Tick` is due at the latest, if nothing else happens. CLOCK_BOOTTIME seconds."""
    due = [wait.deadline for wait in state.fences]
    due += [wait.deadline for wait in state.registers]
    due += silence.deadlines(state)
    for lun in state.luns.values():
        if lun.reserving is not None:
            due.append(lun.reserving.deadline)
        due += [wait.deadline for wait in lun.resetting]
    return min(due) if due else None


def _received(turn: Turn, event: Received) -> None:
    session = turn.state.sessions.get(event.session)
    if session is None:
        return  # it was turned away, or superseded; what it still says is not heard
    try:
        _dispatch(turn, session, event.request_id, event.message)
    except Refusal as refusal:
        if event.request_id:
            turn.refuse(session.id, event.request_id, refusal.code, str(refusal))


def _dispatch(turn: Turn, session: Session, request_id: int, message: m.Request) -> None:  # noqa: C901
    """The table of verbs. A message that wants no reply has the request id 0."""
    if session.nexus is not None:
        turn.state.hosts[session.nexus].hear(turn.now.boot)
    if not session.greeted and not isinstance(message, m.Hello):
        raise _end_session(turn, session, "say Hello first")
    if bool(request_id) == isinstance(message, m.NOTICES_TO_LOCKD):
        raise _end_session(turn, session, f"{type(message).__name__} with id {request_id}")
    match message:
        case m.CompareAndWrite():
            _compare_and_write(turn, session, request_id, message)
        case m.Ask():
            asks.ask(turn, session, request_id, message)
        case m.Answer():
            asks.answer(turn, session, message)
        case m.Withdraw():
            asks.withdraw(turn, session, message.request_id)
        case m.Returned():
            reservation.returned(turn, session, message.recall)
        case m.Reserve():
            reservation.reserve(turn, session, request_id)
        case m.Release():
            reservation.release(turn, session, request_id)
        case m.Reset():
            reservation.reset(turn, session, request_id, message.lun)
        case m.Fence():
            fencing.fence(turn, session, request_id, message)
        case m.Register():
            nexus.register(turn, session, request_id, message)
        case m.Unregister():
            nexus.unregister(turn, session, request_id)
        case m.Status():
            turn.reply(session.id, request_id, report.status(turn))
        case m.Watch():
            _watch(turn, session, request_id)
        case m.History():
            reading = HistoryReading(session.id, request_id, message.count, message.before)
            turn.out.histories.append(reading)
        case m.Hello():
            _hello(turn, session, request_id, message)


def _strangers_seen(turn: Turn, event: StrangersSeen) -> None:
    """Who is at work and not registered; once it is nobody, the next lockd need not look."""
    lun = turn.state.luns[event.lun]
    lun.strangers = event.strangers
    if lun.record.rebuilding and not event.strangers:
        lun.record = replace(lun.record, rebuilding=False)
        turn.keep(lun.record)


def _compare_and_write(
    turn: Turn, session: Session, request_id: int, message: m.CompareAndWrite
) -> None:
    host = turn.nexus(session)
    lun = turn.state.luns[host.record.lun]
    conflict = reservation.conflict_for(turn, lun, host)
    if conflict is not None:
        turn.reply(session.id, request_id, conflict)
        return
    if message.lba >= lun.block_count:
        raise Refusal(ErrorCode.OUT_OF_RANGE, f"block {message.lba} of {lun.block_count}")
    turn.out.executions.append(
        Execution(
            session.id,
            request_id,
            lun.record.lun,
            message.lba,
            message.expected,
            message.new,
            message.durable,
            message.label,
            str(host.record),
            host.record.generation,
        )
    )


def _executed(turn: Turn, event: Executed) -> None:
    done, result = event.execution, event.result
    if isinstance(result, str):
        turn.refuse(done.session, done.request_id, ErrorCode.IO_ERROR, result)
        return
    if done.label and isinstance(result, m.Good):
        turn.audit(
            AuditKind.LOCK_CHANGED,
            done.label,
            lun=done.lun,
            host=done.who,
            generation=done.generation,
            lba=done.lba,
        )
    turn.reply(done.session, done.request_id, result)


def _watch(turn: Turn, session: Session, request_id: int) -> None:
    watchers = turn.state.watchers
    if len(watchers) >= WATCHERS_MAX and session.id not in watchers:
        raise Refusal(ErrorCode.TOO_MANY, f"{WATCHERS_MAX} sessions watch already")
    watchers.add(session.id)
    turn.reply(session.id, request_id, m.Good())


def _hello(turn: Turn, session: Session, request_id: int, message: m.Hello) -> None:
    if message.version != PROTOCOL_VERSION:
        text = f"lockd speaks version {PROTOCOL_VERSION}, {message.software} {message.version}"
        turn.out.closes.append(session.id)
        raise Refusal(ErrorCode.VERSION, text)
    session.greeted = True
    turn.reply(
        session.id,
        request_id,
        m.Welcome(
            version=PROTOCOL_VERSION,
            software=SOFTWARE,
            incarnation=turn.state.incarnation,
            luns=tuple(turn.state.luns),
        ),
    )


def _end_session(turn: Turn, session: Session, text: str) -> Refusal:
    """The refusal of what is against the protocol; the session ends with it."""
    turn.refuse(session.id, 0, ErrorCode.PROTOCOL, text)
    turn.out.closes.append(session.id)
    return Refusal(ErrorCode.PROTOCOL, text)
