"""`vmfs locks why`, `history` and `break`: what lockd knows of one lock.

PATH is looked up on the LUN as far as possible (`vmfs.cli.places`): the mount may hang behind the
very lock that is asked about. The lock's block number then finds it at lockd.
"""

import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Final

import click

from lockd.client import Observer, observe
from lockd.protocol.limits import HISTORY_COUNT_MAX
from lockd.protocol.messages import (
    AuditEntry,
    HostStatus,
    ReservationStatus,
    StatusReport,
    WaitStatus,
)
from lockd.protocol.terms import FenceResult, HostEnd
from vmfs.check.findings import Findings
from vmfs.check.opening import OpenVolume, open_lun
from vmfs.cli.common import mounts_here, run
from vmfs.cli.held_locks import LockFacts, lock_of_file
from vmfs.cli.mount_report import MountReport, ask_mount
from vmfs.cli.open_files import OpenFile, open_file_lines, open_files
from vmfs.cli.places import Place, address_at, place_of
from vmfs.cli.session import name_of_lun
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.errors import InvalidArgument, LockBusy
from vmfs.fuse.registry import read_record
from vmfs.locks.lease import GAPS_MAX, HolderPace
from vmfs.locks.overdue import pace_of
from vmfs.locks.service import BlockMap, lockd_errors
from vmfs.ondisk.heartbeat import Heartbeat
from vmfs.volume.timing import PRODUCTION

PAGES_MAX: Final = 50
"""How far back `history` looks: pages of lockd's audit trail."""

EXIT_STATUS: Final = {FenceResult.FENCED: 0, FenceResult.ALIVE: 3, FenceResult.UNKNOWN: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLock:
    """A lock as the LUN says, and its block as lockd counts."""

    facts: LockFacts
    lba: int
    holders: tuple[Heartbeat, ...]  # the slots of those holders that stand


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitFacts:
    """One link of a wait chain."""

    depth: int  # 0: waits for the lock itself; 1: what its holder waits for, and so on
    waiter: str
    holder: str
    what: str
    seconds: float
    next: str  # what happens next, and when


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyFacts:
    """Why somebody waits for a lock."""

    lock: LockFacts
    open_files: tuple[OpenFile, ...]  # on this machine
    inside: tuple[str, ...]  # what the mounts of this machine say, in words
    reserved_by: str  # the whole LUN; empty: nobody has it
    waits: tuple[WaitFacts, ...]
    way: "WhyFacts | None" = None  # of a directory on the way there, which somebody waits for


@click.command()
@click.argument("path")
@click.option("--lockd", default="", help="lockd's socket, where the mount does not say it.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON object.")
def why(*, path: str, lockd: str, as_json: bool) -> None:
    """Say who waits for the lock of PATH, for whom, since when, and what happens next.

    When nobody does, but somebody waits for a directory on the way there, that is said.
    """
    found = run(_why, place_of(path), lockd)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for line in why_lines(found):
        click.echo(line)


@click.command()
@click.argument("path")
@click.option("--lockd", default="", help="lockd's socket, where the mount does not say it.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON array.")
def history(*, path: str, lockd: str, as_json: bool) -> None:
    """Show what lockd's audit trail says of the lock of PATH, oldest first."""
    entries = run(_history, place_of(path), lockd)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.wall))
        kind = entry.kind.name.lower().replace("_", " ")
        click.echo(f"{when}  {kind}  {entry.host}  {entry.text}")


@click.command(name="break")
@click.argument("path")
@click.option("--lockd", default="", help="lockd's socket, where the mount does not say it.")
@click.option("--dry-run", is_flag=True, help="Only say who would be fenced.")
def break_lock(*, path: str, lockd: str, dry_run: bool) -> None:
    """Fence every host that holds the lock of PATH, now: their mounts are killed.

    When nobody does, but a host has a directory on the way there exclusively, it is that host.
    The lock itself is not touched: the next host that wants it recovers the dead one, and takes it.
    Exit status: 0 fenced, or nobody holds it; 3 still alive; 4 not known. Only 0 is safe.
    """
    sys.exit(run(_break, place_of(path), lockd, dry_run=dry_run))


def lockd_of(place: Place, socket: str) -> str:
    """The socket of the lockd that the mount uses, or the one that was named.

    Raises:
        InvalidArgument: none was named, and the mount does not say.
    """
    record = read_record(place.entry)
    found = socket or (record.lockd if record is not None else "")
    if not found:
        raise InvalidArgument(f"{place.entry.mount_point} does not say which lockd it has: --lockd")
    return found


def explain(
    lock: KnownLock,
    report: StatusReport,
    lun: str,
    *,
    open_files: tuple[OpenFile, ...] = (),
    inside: Sequence[str] = (),
) -> WhyFacts:
    """The wait chain of one lock: who waits for it, for whom those wait, and so on."""
    served = next((entry for entry in report.luns if entry.name == lun), None)
    reservation = served.reservation[0] if served is not None and served.reservation else None
    waits = [wait for wait in report.waits if wait.lun == lun]
    leases = {_label(slot): pace_of(slot, own=PRODUCTION.leases) for slot in lock.holders}
    return WhyFacts(
        lock=lock.facts,
        open_files=open_files,
        inside=tuple(inside),
        reserved_by=reservation.holder if reservation is not None and reservation.granted else "",
        waits=(
            *_waits_to_reserve(reservation),
            *(
                WaitFacts(
                    depth=depth,
                    waiter=wait.waiter,
                    holder=wait.holder,
                    what=wait.what,
                    seconds=wait.age,
                    next=_next(wait.holder, report.hosts, lun, leases),
                )
                for depth, wait in _chain(waits, lock.lba)
            ),
        ),
    )


def _waits_to_reserve(reservation: ReservationStatus | None) -> Iterator[WaitFacts]:
    """A RESERVE that is not granted yet: no lock of the volume is changed before it is."""
    if reservation is None or reservation.granted:
        return
    for holder in reservation.waits_for:
        yield WaitFacts(
            depth=0,
            waiter=reservation.holder,
            holder=holder,
            what="RESERVE of the whole LUN, to change a lock",
            seconds=reservation.age,
            next=(
                "it returns its permit when the I/O that it has under way has ended; "
                f"the RESERVE is given up in {reservation.seconds_left:.1f} s"
            ),
        )


def why_lines(why: WhyFacts) -> list[str]:
    """For people."""
    lock = why.lock
    names = ", ".join(
        f"{holder.host} (pid {holder.pid})" + (" (stale)" if holder.is_stale else "")
        for holder in lock.holders
    )
    lines = [f"{lock.what}: {lock.mode}" + (f", held by {names}" if names else "")]
    lines += open_file_lines(why.open_files)
    lines += why.inside
    if why.reserved_by:
        lines.append(f"the whole LUN is reserved by {why.reserved_by}: all others wait")
    if not why.waits and not any(" waits " in line for line in why.inside):
        lines.append("nobody waits for it")
    if why.way is not None:
        lines += ["but on the way there:", *(f"  {line}" for line in why_lines(why.way))]
    for wait in why.waits:
        indent = "  " * wait.depth
        lines.append(
            f"{indent}{wait.waiter} waits for {wait.holder} ({wait.seconds:.1f} s so far): "
            f"{wait.what}"
        )
        lines.append(f"{indent}  next: {wait.next}")
    return lines


def _chain(waits: Sequence[WaitStatus], lba: int) -> Iterator[tuple[int, WaitStatus]]:
    seen: set[int] = set()

    def follow(depth: int, found: Sequence[WaitStatus]) -> Iterator[tuple[int, WaitStatus]]:
        for wait in found:
            if id(wait) not in seen:
                seen.add(id(wait))
                yield depth, wait
                yield from follow(depth + 1, [w for w in waits if w.waiter == wait.holder])

    yield from follow(0, [wait for wait in waits if wait.lba == lba])


def _next(holder: str, hosts: Sequence[HostStatus], lun: str, leases: dict[str, HolderPace]) -> str:
    known = [h for h in hosts if h.lun == lun and holder in (f"{h.name} (pid {h.pid})", h.name)]
    if not known:
        return f"lockd does not know {holder}"
    host = known[0]
    if host.end is not HostEnd.OPEN:
        return f"it is dead ({host.proof}); who waits recovers it"
    if host.blocked:
        return "it is being fenced; lockd waits for its exit"
    pace = leases.get(holder, HolderPace(PRODUCTION.heartbeat, PRODUCTION.lease))
    if host.silent > GAPS_MAX * pace.interval:
        left = max(0.0, pace.lease - host.silent)
        return f"it has been silent for {host.silent:.1f} s; it is fenced in {left:.1f} s or so"
    return (
        f"it lives (heard {host.silent:.1f} s ago), and answers when its operation has ended; "
        "after 30 s the waiter is told that it is busy"
    )


@asynccontextmanager
async def _at_lockd(place: Place, socket: str) -> AsyncIterator[tuple[Observer, str]]:
    socket = lockd_of(place, socket)
    lun = await name_of_lun(socket, place.lun)
    with lockd_errors("asking lockd"):
        async with observe(socket) as observer:
            yield observer, lun


async def _locks(*places: Place) -> list[KnownLock]:
    """The locks of some paths on one LUN."""
    device = open_lun_device(places[0].lun, writable=False)
    try:
        window = await find_lv(device)
        volume, blocks = await open_lun(device, Findings()), BlockMap(window.offset)
        return [await _lock(volume, blocks, place) for place in places]
    finally:
        await device.aclose()


async def _lock(volume: OpenVolume, blocks: BlockMap, place: Place) -> KnownLock:
    facts = await lock_of_file(volume, await address_at(volume, place), place.inside)
    standing = {holder.slot for holder in facts.holders if not holder.is_stale}
    return KnownLock(
        facts=facts,
        lba=blocks.lba(facts.lv_offset),
        holders=tuple(slot for slot in volume.slots.in_use if slot.index in standing),
    )


async def _why(place: Place, socket: str) -> WhyFacts:
    places = (place, *place.way)
    locks = await _locks(*places)
    async with _at_lockd(place, socket) as (observer, lun):
        report = await observer.status()
    told = await _ask_mounts(place)
    found = [
        explain(
            lock,
            report,
            lun,
            open_files=open_files(where),
            inside=[line for host in told for line in inside_lines(*host, lock.facts.lv_offset)],
        )
        for where, lock in zip(places, locks, strict=True)
    ]
    if found[0].waits:
        return found[0]
    way = next((directory for directory in found[1:] if directory.waits), None)
    return dataclasses.replace(found[0], way=way)


async def _ask_mounts(place: Place) -> list[tuple[str, MountReport | None]]:
    """Every mount of the LUN on this machine, and what it says of itself."""
    told = []
    for entry in mounts_here():
        if entry.is_vmfs and entry.source == place.entry.source:
            record = read_record(entry)
            name = f"{record.host} (pid {record.pid})" if record is not None else entry.mount_point
            told.append((name, await ask_mount(entry)))
    return told


def inside_lines(name: str, report: MountReport | None, lv_offset: int) -> Iterator[str]:
    """Which operations of one host use a lock, and which wait for it."""
    if report is None:
        yield f"{name} does not say what goes on in it"
        return
    for use in report.uses:
        if use.lv_offset == lv_offset and use.operations:
            yield f"{name} is at work on it: {', '.join(use.operations)}"
    for wait in report.waits:
        if wait.lv_offset == lv_offset:
            what = f" for {wait.label!r}" if wait.label else ""
            yield f"inside {name} an operation{what} waits {wait.seconds:.1f} s: {wait.waits_for}"


async def _history(place: Place, socket: str) -> list[AuditEntry]:
    (lock,) = await _locks(place)
    found: list[AuditEntry] = []
    async with _at_lockd(place, socket) as (observer, lun):
        before = 0
        for _ in range(PAGES_MAX):
            page = await observer.history(count=HISTORY_COUNT_MAX, before=before)
            found[:0] = [e for e in page if e.lba == lock.lba and e.lun == lun]
            if len(page) < HISTORY_COUNT_MAX:
                break
            before = page[0].sequence
    return found


async def _break(place: Place, socket: str, *, dry_run: bool) -> int:
    locks = await _locks(place, *place.way)
    lock = _in_the_way(locks)
    if lock is not locks[0] or not lock.holders:
        click.echo(f"{locks[0].facts.what}: nobody who lives holds it")
    if not lock.holders:
        return 0
    click.echo(f"{lock.facts.what}: {lock.facts.mode}")
    worst = 0
    async with _at_lockd(place, socket) as (observer, lun):
        for slot in lock.holders:
            who, info = _label(slot), slot.host
            if info is None or not info.nonce:
                raise LockBusy(f"held by {who}, which is not a host of lockd's", holder=who)
            if dry_run:
                click.echo(f"{who} would be fenced: its mount is killed, all its locks go")
                continue
            answer = await observer.fence_on(lun, slot.owner.raw, nonce=info.nonce)
            word = answer.result.name.lower()
            click.echo(f"{who}: {word}: {answer.proof}")
            worst = max(worst, EXIT_STATUS[answer.result])
    return worst


def _in_the_way(locks: Sequence[KnownLock]) -> KnownLock:
    """The lock itself, or that of the nearest directory on the way there that is held exclusively.

    Who has a directory exclusively may have what is new in it without a word in its lock record
    (docs/decisions/014-claims.md).
    """
    if locks[0].holders:
        return locks[0]
    held = (lock for lock in locks if lock.holders and lock.facts.mode == "exclusive")
    return next(held, locks[0])


def _label(slot: Heartbeat) -> str:
    info = slot.host
    return f"{info.name} (pid {info.pid})" if info is not None else str(slot.owner)
