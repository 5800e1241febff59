"""The status report: who holds what since when, and who waits for whom."""

from lockd.machine.asks import words_for
from lockd.machine.turn import Turn
from lockd.protocol.limits import STATUS_HOSTS_MAX, STATUS_WAITS_MAX, TEXT_SIZE_MAX
from lockd.protocol.messages import (
    HostStatus,
    LunStatus,
    ReservationStatus,
    StatusReport,
    WaitStatus,
)
from lockd.state import Host, Lun


def status(turn: Turn) -> StatusReport:
    """Everything that lockd knows, at this moment."""
    state = turn.state
    hosts = sorted(state.hosts.values(), key=lambda host: (not host.open, -host.record.since))
    return StatusReport(
        incarnation=state.incarnation,
        uptime=turn.now.boot - state.started.boot,
        sessions=len(state.sessions),
        luns=tuple(_lun(turn, lun) for lun in state.luns.values()),
        hosts=tuple(_host(turn, host) for host in hosts[:STATUS_HOSTS_MAX]),
        waits=_waits(turn)[:STATUS_WAITS_MAX],
        state_full=state.store_full[:TEXT_SIZE_MAX],
    )


def _lun(turn: Turn, lun: Lun) -> LunStatus:
    return LunStatus(
        name=lun.record.lun,
        path=lun.path,
        size=lun.size,
        generation=lun.record.generation,
        reservation=_reservation(turn, lun),
    )


def _reservation(turn: Turn, lun: Lun) -> tuple[ReservationStatus, ...]:
    name, now = lun.record.lun, turn.now.boot
    if lun.reservation is not None:
        held = lun.reservation
        holder = turn.state.name_of((name, held.holder))
        return (
            ReservationStatus(
                holder=holder,
                generation=held.generation,
                age=now - held.since,
                granted=True,
                ending=held.ending,
                waits_for=(holder,) if held.ending else (),
                seconds_left=0.0,
            ),
        )
    if lun.reserving is not None:
        wanted = lun.reserving
        key = name, wanted.by
        return (
            ReservationStatus(
                holder=turn.state.name_of(key),
                generation=turn.state.hosts[key].record.generation,
                age=now - wanted.since,
                granted=False,
                ending="",
                waits_for=tuple(turn.state.name_of((name, u)) for u in sorted(wanted.missing)),
                seconds_left=wanted.deadline - now,
            ),
        )
    return ()


def _host(turn: Turn, host: Host) -> HostStatus:
    record = host.record
    return HostStatus(
        lun=record.lun,
        host_uuid=record.host_uuid,
        name=record.name,
        generation=record.generation,
        nonce=record.nonce,
        pid=record.pid,
        end=record.end,
        connected=host.session is not None,
        permit=host.permit,
        since=record.since,
        silent=turn.now.boot - host.last_heard,
        blocked=record.blocked,
        proof=record.proof,
    )


def _waits(turn: Turn) -> tuple[WaitStatus, ...]:
    state, now = turn.state, turn.now.boot
    waits = [
        WaitStatus(
            lun=ask.lun,
            waiter=state.name_of((ask.lun, ask.asker)),
            holder=state.name_of((ask.lun, ask.holder)),
            what=words_for(ask),
            lba=ask.lba,
            label=ask.label,
            age=now - ask.since,
        )
        for ask in state.asks.values()
    ]
    for fence in state.fences:
        session = state.sessions[fence.session]
        waits.append(
            WaitStatus(
                lun=fence.key[0],
                waiter=state.name_of(session.nexus) if session.nexus else "an administrator",
                holder=state.name_of(fence.key),
                what="fence: waits for its exit",
                lba=0,
                label="",
                age=now - fence.since,
            )
        )
    for register in state.registers:
        key = register.message.lun, register.message.host_uuid
        waits.append(
            WaitStatus(
                lun=key[0],
                waiter=f"{register.message.name} (a new start)",
                holder=state.name_of(key),
                what="register: waits for the end of the earlier start",
                lba=0,
                label="",
                age=now - register.since,
            )
        )
    return tuple(sorted(waits, key=lambda wait: -wait.age))
