"""Whole-LUN reservations and I/O permits: SPC-2 RESERVE(6) and RELEASE(6), with real exclusion.

Every nexus holds a permit for direct I/O. RESERVE recalls all others' and is granted when the last
of them is back, or its host is proved dead. A permit that does not come back in time ends the
RESERVE with a conflict: it is never granted over I/O that may be in flight.

A reservation that is lost (nexus loss, reset, restart of lockd) is not over: its holder may be in
the middle of a write. Until it has returned its permit, or is proved dead, it is *ending*:
everybody else still gets a conflict, and no permit goes out.

           RESERVE              last permit back            RELEASE, holder dead
    free ───────────► reserving ───────────────► granted ────────────────────────► free
      ▲                   │                         │ nexus loss, reset                ▲
      └── time out, RELEASE, session lost ◄         ▼                                  │
                                                 ending ── permit returned, dead ──────┘
"""

from lockd.machine.turn import Refusal, Turn
from lockd.protocol.limits import TEXT_SIZE_MAX
from lockd.protocol.messages import Conflict, Good, PermitGranted, PermitRecalled, UnitAttention
from lockd.protocol.terms import Attention, AuditKind, ErrorCode, PermitState
from lockd.state import (
    Host,
    Lun,
    Reservation,
    ReservationEnded,
    ReservationRecord,
    Reserving,
    Resetting,
    Session,
)


def reserve(turn: Turn, session: Session, request_id: int) -> None:
    """RESERVE by a nexus. There is no queue: a conflict answers at once."""
    host = turn.nexus(session)
    lun = turn.lun(host.record.lun)
    uuid = host.record.host_uuid
    if lun.reserving is not None and lun.reserving.by == uuid:
        raise Refusal(ErrorCode.BAD_REQUEST, "a RESERVE of this host is already under way")
    in_the_way = conflict_for(turn, lun, host)
    if in_the_way is None and lun.reservation is not None and lun.reservation.ending:
        # Its own, but lost: it has a recall to answer first.
        in_the_way = Conflict(holder=f"{host.record}, whose reservation is ending")
    if in_the_way is None and lun.reservation is None and lun.strangers:
        # lockd's database was lost: they may hold a permit that an earlier lockd gave.
        in_the_way = Conflict(holder=f"{', '.join(lun.strangers)} (not registered)"[:TEXT_SIZE_MAX])
    if in_the_way is None and lun.reserving is not None:
        in_the_way = Conflict(holder=turn.state.name_of((lun.record.lun, lun.reserving.by)))
    if in_the_way is not None:
        turn.reply(session.id, request_id, in_the_way)
        return
    if lun.reservation is not None:  # again, by its holder: GOOD (SPC-2)
        turn.reply(session.id, request_id, Good())
        return
    # A full store is no reason to refuse: the LUN's one row is written again, and the host may want
    # to give up a lock. Without that nothing would ever be released.
    out = [
        other
        for other in turn.state.hosts_of(lun.record.lun)
        if other.open and other is not host and other.permit is not PermitState.RETURNED
    ]
    turn.begin_wait(session)
    lun.reserving = Reserving(
        by=uuid,
        session=session.id,
        request_id=request_id,
        since=turn.now.boot,
        deadline=turn.now.boot + max((turn.state.recall_of(other) for other in out), default=0.0),
        missing={other.record.host_uuid for other in out},
    )
    for other in out:
        _recall(turn, lun, other, by=str(host.record))
    _grant_if_complete(turn, lun)


def release(turn: Turn, session: Session, request_id: int) -> None:
    """RELEASE: ends what is the nexus's own; otherwise GOOD without effect."""
    host = turn.nexus(session)
    lun = turn.lun(host.record.lun)
    uuid = host.record.host_uuid
    if lun.reserving is not None and lun.reserving.by == uuid:
        give_up_reserving(turn, lun, in_the_way="this host, which released it")
    reservation = lun.reservation
    if reservation is not None and reservation.holder == uuid and not reservation.ending:
        turn.audit_host(AuditKind.RELEASED, host, f"{host.record} released the LUN")
        _end(turn, lun)
    turn.reply(session.id, request_id, Good())


def reset(turn: Turn, session: Session, request_id: int, name: str) -> None:
    """Reset: let in-flight I/O end, clear the reservation, tell every nexus (LIO's order)."""
    lun = turn.lun(name)
    who = "an administrator" if session.nexus is None else turn.state.name_of(session.nexus)
    reservation = lun.reservation
    if reservation is not None:
        turn.begin_wait(session)
    turn.audit(AuditKind.RESET, f"{who} resets the LUN", lun=name)
    if lun.reserving is not None:
        give_up_reserving(turn, lun, in_the_way="a reset of the LUN")
    if reservation is None:
        for host in turn.state.hosts_of(name):
            if session.nexus != host.record.key:
                turn.notify(host, UnitAttention(reason=Attention.RESET, text=f"reset by {who}"))
        turn.reply(session.id, request_id, Good())
        return
    reservation.reset = True
    holder = turn.state.hosts[name, reservation.holder]
    deadline = turn.now.boot + turn.state.recall_of(holder)
    lun.resetting.append(Resetting(session.id, request_id, deadline))
    lose(turn, lun, f"the LUN was reset by {who}", Attention.RESET)


def returned(turn: Turn, session: Session, recall: int) -> None:
    """A permit comes back. An answer to an earlier recall is none to this one."""
    host = turn.nexus(session)
    if host.permit is not PermitState.RECALLED or host.recall != recall:
        return
    host.permit = PermitState.RETURNED
    permit_is_back(turn, host)


def permit_is_back(turn: Turn, host: Host) -> None:
    """No I/O of `host` is in flight: it said so, or is proved dead (or left)."""
    lun = turn.lun(host.record.lun)
    uuid = host.record.host_uuid
    if lun.reservation is not None and lun.reservation.holder == uuid:
        if lun.reservation.ending or not host.open:
            _end(turn, lun)
    elif lun.reserving is not None:
        lun.reserving.missing.discard(uuid)
        _grant_if_complete(turn, lun)


def lose(turn: Turn, lun: Lun, reason: str, attention: Attention) -> None:
    """The reservation is lost; it ends once its holder's I/O has."""
    reservation = lun.reservation
    assert reservation is not None
    if reservation.ending:
        return
    reservation.ending = reason
    reservation.attention = attention
    holder = turn.state.hosts[lun.record.lun, reservation.holder]
    turn.audit_host(AuditKind.RESERVATION_LOST, holder, f"reservation of {holder.record}: {reason}")
    turn.notify(holder, UnitAttention(reason=attention, text=reason))
    _recall(turn, lun, holder, by=reason)


def give_up_reserving(turn: Turn, lun: Lun, *, in_the_way: str) -> None:
    """A RESERVE ends without a grant; the permits that came back go out again."""
    reserving = lun.reserving
    assert reserving is not None
    lun.reserving = None
    turn.end_wait(reserving.session)
    turn.reply(reserving.session, reserving.request_id, Conflict(holder=in_the_way))
    _grant_permits(turn, lun)


def join(turn: Turn, lun: Lun, host: Host) -> bool:
    """A new nexus. Returns whether it gets a permit: only if nobody has, or wants, the LUN."""
    free = lun.reservation is None and lun.reserving is None
    host.permit = PermitState.HELD if free else PermitState.RETURNED
    return free


def rejoin(turn: Turn, lun: Lun, host: Host) -> bool:
    """A nexus is connected again. Returns whether it has a permit; a recall is sent again.

    Called before the reply to its registration; `after_rejoin` comes after it.
    """
    if lun.reservation is None and lun.reserving is None:
        host.permit = PermitState.HELD
    return host.permit is not PermitState.RETURNED


def after_rejoin(turn: Turn, lun: Lun, host: Host) -> None:
    """What a nexus missed while it was away, said after its registration was answered."""
    reservation = lun.reservation
    if reservation is not None and reservation.holder == host.record.host_uuid:
        turn.notify(host, UnitAttention(reason=reservation.attention, text=reservation.ending))
    if host.permit is PermitState.RECALLED:
        _recall(turn, lun, host, by=reservation.ending if reservation else "a RESERVE")


def conflict_for(turn: Turn, lun: Lun, host: Host) -> Conflict | None:
    """The conflict that `host` meets, if the LUN is another's."""
    reservation = lun.reservation
    if reservation is None or reservation.holder == host.record.host_uuid:
        return None
    return Conflict(holder=turn.state.name_of((lun.record.lun, reservation.holder)))


def pass_deadlines(turn: Turn) -> None:
    """End the waits whose time is up."""
    now = turn.now.boot
    for lun in turn.state.luns.values():
        reserving = lun.reserving
        if reserving is not None and reserving.deadline <= now:
            name = lun.record.lun
            hosts = [turn.state.hosts[name, uuid] for uuid in sorted(reserving.missing)]
            names = ", ".join(str(host.record) for host in hosts)
            text = f"RESERVE failed: no answer to the recall from {names}"
            turn.audit_host(AuditKind.RECALL_FAILED, turn.state.hosts[name, reserving.by], text)
            give_up_reserving(turn, lun, in_the_way=names)
        for wait in [wait for wait in lun.resetting if wait.deadline <= now]:
            lun.resetting.remove(wait)
            turn.end_wait(wait.session)
            assert lun.reservation is not None
            holder = turn.state.name_of((lun.record.lun, lun.reservation.holder))
            turn.refuse(
                wait.session,
                wait.request_id,
                ErrorCode.NOT_DRAINED,
                f"{holder} held the reservation and did not say that its I/O has ended: fence it",
            )


def _recall(turn: Turn, lun: Lun, host: Host, *, by: str) -> None:
    lun.last_recall += 1
    host.permit = PermitState.RECALLED
    host.recall = lun.last_recall
    if host.asked_since is None:
        host.asked_since = turn.now.boot
    turn.notify(host, PermitRecalled(recall=lun.last_recall, by=by))


def _grant_if_complete(turn: Turn, lun: Lun) -> None:
    reserving = lun.reserving
    if reserving is None or reserving.missing:
        return
    host = turn.state.hosts[lun.record.lun, reserving.by]
    generation = host.record.generation
    lun.reserving = None
    lun.reservation = Reservation(reserving.by, generation, turn.now.boot)
    turn.keep(ReservationRecord(lun=lun.record.lun, host_uuid=reserving.by, generation=generation))
    turn.end_wait(reserving.session)
    turn.audit_host(AuditKind.RESERVED, host, f"{host.record} reserved the LUN")
    turn.reply(reserving.session, reserving.request_id, Good())


def _end(turn: Turn, lun: Lun) -> None:
    """The reservation is over, and so is the I/O under it."""
    reservation = lun.reservation
    assert reservation is not None
    lun.reservation = None
    turn.keep(ReservationEnded(lun=lun.record.lun))
    if reservation.reset:
        for host in turn.state.hosts_of(lun.record.lun):
            if host.record.host_uuid != reservation.holder:  # who was told when it was lost
                turn.notify(host, UnitAttention(reason=Attention.RESET, text=reservation.ending))
    for wait in lun.resetting:
        turn.end_wait(wait.session)
        turn.reply(wait.session, wait.request_id, Good())
    lun.resetting.clear()
    _grant_permits(turn, lun)


def _grant_permits(turn: Turn, lun: Lun) -> None:
    """All who are connected may do I/O again. Who is away learns it at its return."""
    for host in turn.state.hosts_of(lun.record.lun):
        connected = host.open and host.session is not None and not host.record.blocked
        if connected and host.permit is not PermitState.HELD:
            host.permit = PermitState.HELD
            turn.notify(host, PermitGranted())
