"""Making sure that a host can never write again, and proving it (invariants I3 and I6).

    blocklist durable ──► SIGKILL through the pidfd ──► exit seen = proof ──► FENCED

Three answers. FENCED: its process has exited (or it had left, or a later start of it was let in,
which needs the same proof), and this generation is on the blocklist. ALIVE: told to die, not dead
within the bound; it stays on the blocklist, and a later exit makes it FENCED. UNKNOWN: no process
is known; lockd refuses what it says, but cannot say that it does not write.

A host that never registered here (lockd's database is new, the LUN is not) is judged by who has
the LUN open for writing: nobody but registered hosts means that it cannot write.
"""

from dataclasses import replace

from lockd.machine.events import LunSearch, LunSearched
from lockd.machine.turn import Refusal, Turn
from lockd.protocol.messages import Fence, FenceAnswer, FencedNotice
from lockd.protocol.terms import AuditKind, ErrorCode, FenceResult, HostEnd, PermitState
from lockd.state import (
    NO_PROCESS,
    FenceWait,
    Host,
    HostRecord,
    ProcessId,
    Session,
)


def fence(turn: Turn, session: Session, request_id: int, message: Fence) -> None:
    """Begin a fence, or answer at once when the proof is there."""
    if session.nexus is not None:
        turn.nexus(session)  # who was fenced does not fence others
    key = message.lun, message.host_uuid
    lun = turn.lun(message.lun)
    host = turn.state.hosts.get(key)
    other_start = host is None or _is_another_start(host, message)
    if session.nexus == key and not other_start:
        raise Refusal(ErrorCode.BAD_REQUEST, "a host does not fence itself")
    if host is not None and other_start and message.nonce in host.record.earlier_nonces:
        text = f"that start of {host.record} ended before the present one was let in"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.FENCED, proof=text))
        return
    if host is None or other_start:
        _search(turn, session, request_id, message)
        return
    record = host.record
    if message.generation > record.generation:
        text = f"{record} has generation {record.generation}; {message.generation} never was"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
    elif 0 < message.generation < record.generation and message.generation <= lun.record.lost:
        # It may be this very start, registered anew; or one that is still a stranger.
        text = f"generation {message.generation} was given by a lockd whose database was lost"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
    elif 0 < message.generation < record.generation:
        text = f"generation {message.generation} ended before {record.generation} was let in"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.FENCED, proof=text))
    elif not host.open:
        _block(turn, host)
        turn.reply(session.id, request_id, _fenced(host))
    elif lun.strangers and session.nexus is not None and host.session is not None:
        # lockd is being rebuilt, and who asks may not know yet that this one is back.
        text = f"{record} has just registered with a lockd whose database was lost"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.ALIVE, proof=text))
    else:
        _kill(turn, session, request_id, host)


def begin(turn: Turn, host: Host, by: str, *, why: str = "") -> None:
    """Refuse a host from now on, and have its process killed. Its exit will be the proof."""
    record = host.record
    because = f": {why}" if why else ""
    if not record.blocked:
        turn.audit_host(AuditKind.FENCE_BEGUN, host, f"{by} fences {record}{because}")
        _block(turn, host)
        turn.notify(host, FencedNotice(reason=f"fenced by {by}{because}"))
    if record.process != NO_PROCESS:
        turn.out.kills.append(record.process)


def host_ended(turn: Turn, host: Host) -> None:
    """The proof is there: answer who waits for it."""
    for wait in [wait for wait in turn.state.fences if wait.key == host.record.key]:
        if not wait.search:
            _finish(turn, wait, _fenced(host))


def kill_failed(turn: Turn, process: ProcessId, reason: str) -> None:
    """It could not be killed: it stays refused, and its exit may still be seen."""
    for host in turn.state.hosts.values():
        if host.open and host.record.blocked and host.record.process == process:
            text = f"{host.record} cannot be killed: {reason}"
            turn.audit_host(AuditKind.FENCE_FAILED, host, text)
            _answer_all(turn, host, FenceAnswer(result=FenceResult.ALIVE, proof=text))


def searched(turn: Turn, event: LunSearched) -> None:
    """Answer the fences of hosts that never registered."""
    waits = [w for w in turn.state.fences if w.search and w.key[0] == event.lun]
    for wait in waits:
        host = turn.state.hosts.get(wait.key)
        if host is not None and host.open and wait.nonce in (0, host.record.nonce):
            text = f"{host.record} registered while the search went on; it is not fenced"
            _finish(turn, wait, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
        elif event.strangers:
            text = f"has {event.lun} open and is not registered: {', '.join(event.strangers)}"
            _finish(turn, wait, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
        elif not event.complete:
            text = "never registered here, and lockd may not look at every process (not root?)"
            _finish(turn, wait, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
        else:
            text = f"no process but those of registered hosts has {event.lun} open for writing"
            _refuse_unknown(turn, wait, text)
            _finish(turn, wait, FenceAnswer(result=FenceResult.FENCED, proof=text))


def session_closed(turn: Turn, session: int) -> None:
    """Nobody waits for the answer any more; the fence goes on."""
    turn.state.fences = [wait for wait in turn.state.fences if wait.session != session]


def pass_deadlines(turn: Turn) -> None:
    """Say ALIVE to those who waited long enough for an exit."""
    for wait in [wait for wait in turn.state.fences if wait.deadline <= turn.now.boot]:
        if wait.search:
            text = "the search for processes that have the LUN open did not end"
            _finish(turn, wait, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
            continue
        host = turn.state.hosts[wait.key]
        text = (
            f"{host.record} was sent SIGKILL {turn.now.boot - wait.since:.1f} s ago and has not "
            "exited: it hangs in the kernel (umount -f its mount)"
        )
        turn.audit_host(AuditKind.FENCE_FAILED, host, text)
        _finish(turn, wait, FenceAnswer(result=FenceResult.ALIVE, proof=text))


def _is_another_start(host: Host, message: Fence) -> bool:
    return not message.generation and message.nonce not in (0, host.record.nonce)


def _kill(turn: Turn, session: Session, request_id: int, host: Host) -> None:
    record, now = host.record, turn.now.boot
    if record.process != NO_PROCESS:
        turn.begin_wait(session)
    by = "an administrator" if session.nexus is None else turn.state.name_of(session.nexus)
    begin(turn, host, by)
    if record.process == NO_PROCESS:
        text = f"{record} is refused from now on, but its process is not known"
        turn.reply(session.id, request_id, FenceAnswer(result=FenceResult.UNKNOWN, proof=text))
        return
    turn.state.fences.append(
        FenceWait(
            key=record.key,
            generation=record.generation,
            session=session.id,
            request_id=request_id,
            since=now,
            deadline=now + turn.state.timing.fence,
        )
    )


def _search(turn: Turn, session: Session, request_id: int, message: Fence) -> None:
    turn.begin_wait(session)
    now = turn.now.boot
    turn.state.fences.append(
        FenceWait(
            key=(message.lun, message.host_uuid),
            generation=message.generation,
            session=session.id,
            request_id=request_id,
            since=now,
            deadline=now + turn.state.timing.fence,
            search=True,
            nonce=message.nonce,
        )
    )
    known = {host.record.pid for host in turn.state.hosts_of(message.lun) if host.open}
    turn.out.searches.append(LunSearch(message.lun, frozenset(known - {0})))


def _refuse_unknown(turn: Turn, wait: FenceWait, proof: str) -> None:
    """Put a host that never registered here on the blocklist, should it have a nonce."""
    if wait.key in turn.state.hosts:
        return  # an earlier start of a host that is known: the later start has taken its place
    lun = turn.lun(wait.key[0])
    lun.record = replace(lun.record, generation=lun.record.generation + 1)
    record = HostRecord(
        lun=wait.key[0],
        host_uuid=wait.key[1],
        name=f"host {wait.key[1].hex()[:8]}",
        generation=lun.record.generation,
        nonce=wait.nonce,
        pid=0,
        start_ticks=0,
        boot_id="",
        since=turn.now.wall,
        end=HostEnd.FENCED,
        blocked=True,
        proof=proof,
    )
    host = Host(record, None, PermitState.RETURNED, turn.now.boot)
    turn.state.hosts[wait.key] = host
    turn.keep(lun.record)
    turn.keep(record)
    turn.audit_host(AuditKind.FENCED, host, f"{record.name} is fenced: {proof}")


def _block(turn: Turn, host: Host) -> None:
    if not host.record.blocked:
        turn.change(host, blocked=True)


def _fenced(host: Host) -> FenceAnswer:
    return FenceAnswer(result=FenceResult.FENCED, proof=host.record.proof)


def _answer_all(turn: Turn, host: Host, reply: FenceAnswer) -> None:
    for wait in [wait for wait in turn.state.fences if wait.key == host.record.key]:
        if not wait.search:
            _finish(turn, wait, reply)


def _finish(turn: Turn, wait: FenceWait, reply: FenceAnswer) -> None:
    turn.state.fences.remove(wait)
    turn.end_wait(wait.session)
    turn.reply(wait.session, wait.request_id, reply)
