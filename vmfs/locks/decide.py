"""What to do with a lock record: pure decisions on values. All of locking's logic is here.

    record + which holders still stand + what is wanted  ──►  Take · Ask · Wait · Refuse

A holder *stands* as long as its slot is in use by the same host with the same generation. A holder
that does not stand holds nothing: its slot was released, or recovered after its death (journal
replayed first, generation + 1 after), so its name in a lock record is history.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from lockd.protocol.terms import AskKind
from vmfs.locks.base import HolderIs
from vmfs.ondisk.disk_lock import HOLDER_COUNT_MAX, DiskLock, Holder, LockMode
from vmfs.ondisk.heartbeat import Heartbeat


class Standing(Enum):
    """What a holder's heartbeat slot says about it."""

    STANDS = "in use by it"  # alive, or dead and not recovered yet: only lockd can tell
    REPLAYED = "its journal is being replayed"
    STALE = "released, recovered, or somebody else's by now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Write `new` in place of what was read."""

    new: DiskLock
    stale: tuple[Holder, ...]  # whose names it removes; for the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask these hosts first."""

    holders: tuple[Holder, ...]
    what: AskKind
    one_suffices: bool = False  # the record is full: it needs room for one more


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Somebody is recovering this holder; wait for the slot to change."""

    holder: Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """It cannot be had, and asking would not help."""

    reason: str


Decision = Take | Ask | Wait | Refuse


def judge(slot: Heartbeat, holder: Holder) -> Standing:
    """What `slot`, read from the LUN at `holder.heartbeat_offset`, says about `holder`."""
    same = slot.generation == holder.generation and slot.owner == holder.owner
    if not slot.is_in_use or not same:
        return Standing.STALE
    return Standing.REPLAYED if slot.replayer else Standing.STANDS


def holder_of(slot: Heartbeat) -> Holder:
    """Who has this slot, in the terms of a lock record."""
    return Holder(heartbeat_offset=slot.lv_offset, generation=slot.generation, owner=slot.owner)


def replayer_of(slot: Heartbeat) -> Holder | None:
    """Who replays the journal of this slot's holder, in the terms of a lock record."""
    if not slot.is_in_use or not slot.replayer:
        return None
    return Holder(
        heartbeat_offset=slot.replayer_offset,  # type: ignore[arg-type]
        generation=slot.replayer_generation,
        owner=slot.replayer,
    )


def decide(
    record: DiskLock,
    *,
    me: Holder,
    wanted: LockMode,
    standings: Mapping[Holder, Standing],
    now: int,
) -> Decision:
    """What to do so that `me` gets the lock in at least mode `wanted`.

    Where the record names `me` already (a change whose outcome was not learned) the lock is taken
    anew, never weaker than it stands: an acquisition is always a write, so whatever else this host
    has under way with the record is beaten by it, or beats it.

    Args:
        record: as it stands on the LUN.
        me: this mount.
        wanted: SHARED or EXCLUSIVE.
        standings: of every holder in the record except `me`, read after the record was. A slot's
            generation never comes back, so a holder that was stale then is stale for ever.
        now: this host's uptime in seconds, written into the record for people.
    """
    assert wanted in (LockMode.SHARED, LockMode.EXCLUSIVE), f"{wanted!r} is not for taking"
    if mode_of(record, me) is LockMode.EXCLUSIVE:
        wanted = LockMode.EXCLUSIVE
    stale = tuple(h for h in others(record, me) if standings[h] is Standing.STALE)
    rest = _without(record, stale)
    if rest.global_holder_count:
        return Refuse(reason="it is held in ESXi's way beyond eight holders")
    if rest.mode is LockMode.MULTI_WRITER:
        return Refuse(reason="it is held by several writers at once (multi-writer mode)")
    if wanted is LockMode.SHARED:
        in_the_way = tuple(h for h in (rest.exclusive_holder,) if h is not None)
        what = AskKind.GIVE_UP_TO_SHARED
    else:
        in_the_way = others(rest, me)
        what = AskKind.GIVE_UP
    if in_the_way:
        return _deal_with(in_the_way, what, standings)
    if wanted is LockMode.EXCLUSIVE:
        return Take(new=rest.taken_exclusive(me, now), stale=stale)
    if len(others(rest, me)) >= HOLDER_COUNT_MAX:
        # Most of them merely keep it; only open files and operations have a claim to their place.
        return _deal_with(others(rest, me), AskKind.GIVE_UP, standings, one_suffices=True)
    return Take(new=rest.taken_shared(me, now), stale=stale)


def give_up(record: DiskLock, *, me: Holder, to_mode: LockMode) -> DiskLock | None:
    """The record after `me` has fallen to `to_mode`; None when `me` does not stand in it."""
    mine = mode_of(record, me)
    if mine is LockMode.FREE:
        return None
    if to_mode is LockMode.FREE:
        return record.without(me)
    assert to_mode is LockMode.SHARED, f"nothing is given up to {to_mode!r}"
    return record.downgraded() if mine is LockMode.EXCLUSIVE else record


def mode_of(record: DiskLock, holder: Holder) -> LockMode:
    """In which mode `holder` stands in the record."""
    return record.mode if record.is_held_by(holder) else LockMode.FREE


def others(record: DiskLock, me: Holder) -> tuple[Holder, ...]:
    """Every holder but `me`."""
    return tuple(holder for holder in record.all_holders if holder != me)


def whose(record: DiskLock, *, me: Holder, standings: Mapping[Holder, Standing]) -> HolderIs:
    """Whose the lock is, in a word."""
    if record.is_held_by(me):
        return HolderIs.MINE
    if record.is_free:
        return HolderIs.FREE
    if record.all_holders and all(standings[h] is Standing.STALE for h in record.all_holders):
        return HolderIs.STALE
    return HolderIs.LIVE_OTHER


def _without(record: DiskLock, gone: Iterable[Holder]) -> DiskLock:
    for holder in gone:
        record = record.without(holder)
    return record


def _deal_with(
    in_the_way: tuple[Holder, ...],
    what: AskKind,
    standings: Mapping[Holder, Standing],
    *,
    one_suffices: bool = False,
) -> Ask | Wait:
    for holder in in_the_way:
        if standings[holder] is Standing.REPLAYED:
            return Wait(holder=holder)
    return Ask(holders=in_the_way, what=what, one_suffices=one_suffices)
