"""The wait chain of a lock, and finding a path without touching its mount."""

import dataclasses

import pytest

from lockd.protocol.messages import (
    HostStatus,
    LunStatus,
    ReservationStatus,
    StatusReport,
    WaitStatus,
)
from lockd.protocol.terms import HostEnd, PermitState
from vmfs.cli.held_locks import HolderFacts, LockFacts
from vmfs.cli.lock_waits import KnownLock, explain, why_lines
from vmfs.cli.places import mount_above
from vmfs.fuse.mountinfo import MountEntry
from vmfs.ids import VmfsUuid
from vmfs.ondisk.heartbeat import Heartbeat, HostInfo, slot_offset


def host(name: str, pid: int, *, silent: float = 0.5) -> HostStatus:
    return HostStatus(
        lun="ds1",
        host_uuid=name.encode().ljust(16, b"."),
        name=name,
        generation=1,
        nonce=1,
        pid=pid,
        end=HostEnd.OPEN,
        connected=True,
        permit=PermitState.HELD,
        since=0.0,
        silent=silent,
        blocked=False,
        proof="",
    )


def wait(waiter: str, holder: str, lba: int = 100, *, lun: str = "ds1") -> WaitStatus:
    return WaitStatus(
        lun=lun, waiter=waiter, holder=holder, what="give up of /x", lba=lba, label="/x", age=3.0
    )


def report(*hosts: HostStatus, waits: tuple[WaitStatus, ...] = ()) -> StatusReport:
    return StatusReport(
        incarnation=1,
        uptime=1.0,
        sessions=2,
        luns=(LunStatus(name="ds1", path="/x", size=1, generation=1, reservation=()),),
        hosts=hosts,
        waits=waits,
    )


def lock(*, interval_ms: int = 3000, lease_ms: int = 16000) -> KnownLock:
    info = HostInfo(name="a", pid=1, nonce=1, interval_ms=interval_ms, lease_ms=lease_ms)
    slot = Heartbeat(lv_offset=slot_offset(0)).acquired(
        owner=VmfsUuid(b"a" * 16), stamp_us=1, journal_fb=0, journal_offset=0, host=info
    )
    holder = HolderFacts(host="a", pid=1, slot=0, generation=1, is_stale=False, held_seconds=5)
    facts = LockFacts(what="/x", lv_offset=0, mode="exclusive", token=3, holders=(holder,))
    return KnownLock(facts=facts, lba=100, holders=(slot,))


def test_nobody_waits() -> None:
    lines = why_lines(explain(lock(), report(host("a", 1)), "ds1"))
    assert lines == ["/x: exclusive, held by a (pid 1)", "nobody waits for it"]


def test_holder_that_lives_will_answer() -> None:
    found = explain(
        lock(), report(host("a", 1), host("b", 2), waits=(wait("b (pid 2)", "a (pid 1)"),)), "ds1"
    )
    (only,) = found.waits
    assert only.next.startswith("it lives (heard 0.5 s ago)")


@pytest.mark.parametrize(("lease_ms", "left"), [(16000, "6.0 s"), (11000, "1.0 s"), (8000, "0.0")])
def test_silent_holder_is_fenced_when_its_own_lease_is_over(lease_ms: int, left: str) -> None:
    waits = (wait("b (pid 2)", "a (pid 1)"),)
    found = explain(lock(lease_ms=lease_ms), report(host("a", 1, silent=10.0), waits=waits), "ds1")
    assert found.waits[0].next.startswith("it has been silent for 10.0 s; it is fenced in " + left)


def test_chain_goes_on_through_other_locks_and_ends_in_a_circle() -> None:
    waits = (
        wait("b (pid 2)", "a (pid 1)"),
        wait("a (pid 1)", "c (pid 3)", lba=200),
        wait("c (pid 3)", "b (pid 2)", lba=300),
        wait("d (pid 4)", "e (pid 5)", lba=400),
        wait("d (pid 4)", "a (pid 1)", lun="ds2"),
    )
    found = explain(lock(), report(host("a", 1), waits=waits), "ds1")

    assert [(link.depth, link.waiter) for link in found.waits] == [
        (0, "b (pid 2)"),
        (1, "a (pid 1)"),
        (2, "c (pid 3)"),
    ]
    assert found.waits[1].next == "lockd does not know c (pid 3)"


def test_dead_and_dying_holders() -> None:
    dead = dataclasses.replace(host("a", 1), end=HostEnd.EXITED, proof="the exit was seen")
    dying = dataclasses.replace(host("a", 1), blocked=True)
    waits = (wait("b (pid 2)", "a (pid 1)"),)
    assert (
        "it is dead (the exit was seen)"
        in explain(lock(), report(dead, waits=waits), "ds1").waits[0].next
    )
    assert "being fenced" in explain(lock(), report(dying, waits=waits), "ds1").waits[0].next


def reserved(*, granted: bool, waits_for: tuple[str, ...] = ()) -> StatusReport:
    everything = report(host("a", 1))
    reservation = ReservationStatus(
        holder="c (pid 3)",
        generation=1,
        age=1.5,
        granted=granted,
        ending="",
        waits_for=waits_for,
        seconds_left=8.5,
    )
    lun = dataclasses.replace(everything.luns[0], reservation=(reservation,))
    return dataclasses.replace(everything, luns=(lun,))


def test_reservation_is_named() -> None:
    found = explain(lock(), reserved(granted=True), "ds1")
    assert "the whole LUN is reserved by c (pid 3): all others wait" in why_lines(found)


def test_reserve_that_is_not_granted_yet_is_a_wait() -> None:
    found = explain(lock(), reserved(granted=False, waits_for=("a (pid 1)", "b (pid 2)")), "ds1")

    assert found.reserved_by == ""
    assert [(link.waiter, link.holder) for link in found.waits] == [
        ("c (pid 3)", "a (pid 1)"),
        ("c (pid 3)", "b (pid 2)"),
    ]
    assert "given up in 8.5 s" in found.waits[0].next


def mount(point: str, kind: str = "fuse.vmfs") -> MountEntry:
    return MountEntry(
        major=0, minor=1, mount_point=point, filesystem_type=kind, source="/lun", options="rw"
    )


def test_path_is_on_the_nearest_mount() -> None:
    entries = [mount("/", "ext4"), mount("/vmfs"), mount("/vmfs/sub", "tmpfs"), mount("/vmfs2")]
    assert mount_above(entries, "/vmfs/a/b") == entries[1]
    assert mount_above(entries, "/vmfs") == entries[1]
    assert mount_above(entries, "/vmfs/sub/x") is None
    assert mount_above(entries, "/vmfs2/x") == entries[3]
    assert mount_above(entries, "/home") is None
