"""Hosts that everybody waits for and that say nothing: fenced after a lease of silence.

While one host has the LUN reserved, nobody else can beat, so no other host may judge it: lockd
does, from its last word. So it does with a host that was told to return its permit. Any message of
the host counts, a heartbeat among them; nobody is judged while nobody waits for it.

    reservation granted, or permit recalled ──silent for its lease──► blocklist ──► SIGKILL
        ──exit seen──► nexus lost, reservation over, permit back (`nexus.process_exited`)

Only a host whose process is known is fenced: without the proof nothing would go on.
"""

from collections.abc import Iterator

from lockd.machine import fencing
from lockd.machine.turn import Turn
from lockd.state import NO_PROCESS, Host, State


def deadlines(state: State) -> Iterator[float]:
    """When a lease of silence ends, for each host that is waited for."""
    return (since + state.lease_of(host) for host, since, _ in _awaited(state))


def pass_deadlines(turn: Turn) -> None:
    """Fence those that have been silent for a lease."""
    for host, since, what in list(_awaited(turn.state)):
        lease = turn.state.lease_of(host)
        if since + lease <= turn.now.boot and _can_be_fenced(host):  # it may be waited for twice
            fencing.begin(turn, host, "lockd", why=f"{what}, and has been silent for {lease:g} s")


def _awaited(state: State) -> Iterator[tuple[Host, float, str]]:
    """Hosts that are waited for, since when without a word of theirs, and for what."""
    for lun in state.luns.values():
        if lun.reservation is not None:
            name = lun.record.lun
            holder = state.hosts[name, lun.reservation.holder]
            if _can_be_fenced(holder):
                since = max(lun.reservation.since, holder.last_heard)
                yield holder, since, f"it has {name} reserved"
    if not any(lun.last_recall for lun in state.luns.values()):
        return  # with ATS nobody ever reserves, and this is looked at after every step
    for host in state.hosts.values():
        if host.asked_since is not None and _can_be_fenced(host):
            yield host, host.asked_since, "it did not return its permit"


def _can_be_fenced(host: Host) -> bool:
    return host.open and not host.record.blocked and host.record.process != NO_PROCESS
