"""The pure decisions about lock records and slots."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.client import AskKind
from vmfs.ids import LvOffset, VmfsUuid
from vmfs.locks.base import HolderIs
from vmfs.locks.decide import (
    Ask,
    Refuse,
    Standing,
    Take,
    Wait,
    decide,
    give_up,
    judge,
    mode_of,
    others,
    replayer_of,
    whose,
)
from vmfs.locks.order import covers
from vmfs.ondisk.disk_lock import HOLDER_COUNT_MAX, DiskLock, Holder, LockMode, LockType
from vmfs.ondisk.heartbeat import Heartbeat, HeartbeatState, slot_offset

EXCLUSIVE, SHARED, FREE = LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.FREE
STANDS, REPLAYED, STALE = Standing.STANDS, Standing.REPLAYED, Standing.STALE
AT = LvOffset(0x420000)


def host(number: int, generation: int = 1) -> Holder:
    owner = VmfsUuid(bytes([number + 1]) * 16)
    return Holder(heartbeat_offset=slot_offset(number), generation=generation, owner=owner)


ME, B, C = host(0), host(1), host(2)
NEW = DiskLock(type=LockType.FILE_DESC, lv_offset=AT)


def shared(*holders: Holder) -> DiskLock:
    record = NEW
    for holder in holders:
        record = record.taken_shared(holder, 1)
    return record


@st.composite
def records(draw: st.DrawFn) -> tuple[DiskLock, dict[Holder, Standing]]:
    """A record that hosts 0..9 have, and what their slots say."""
    who = draw(st.lists(st.integers(0, 9), unique=True, max_size=HOLDER_COUNT_MAX))
    holders = [host(number) for number in who]
    if len(holders) == 1 and draw(st.booleans()):
        record = NEW.taken_exclusive(holders[0], 1)
    else:
        record = shared(*holders)
    return record, {h: draw(st.sampled_from(Standing)) for h in holders if h != ME}


@given(records(), st.sampled_from([SHARED, EXCLUSIVE]))
def test_whatever_stands_in_the_record_is_respected(
    case: tuple[DiskLock, dict[Holder, Standing]], wanted: LockMode
) -> None:
    record, standings = case

    decision = decide(record, me=ME, wanted=wanted, standings=standings, now=9)

    living = {h for h in record.all_holders if h != ME and standings[h] is not STALE}
    match decision:
        case Take(new=new):
            assert covers(mode_of(new, ME), wanted)
            assert covers(mode_of(new, ME), mode_of(record, ME))
            assert new.token == record.token + 1
            assert living <= set(new.all_holders)
            assert set(new.all_holders) == living | {ME}
            assert new.mode is not EXCLUSIVE or not living
            assert DiskLock.unpack(new.pack(), address=AT) == new
        case Ask(holders=holders, one_suffices=one_suffices):
            assert set(holders) <= living
            assert not one_suffices or (wanted is SHARED and len(living) == HOLDER_COUNT_MAX)
            assert holders
            assert all(standings[h] is STANDS for h in holders)
        case Wait(holder=holder):
            assert standings[holder] is REPLAYED
        case Refuse():
            raise AssertionError("there is always somebody to ask")


def test_free_is_taken() -> None:
    decision = decide(NEW, me=ME, wanted=EXCLUSIVE, standings={}, now=9)

    assert isinstance(decision, Take)
    assert decision.new.exclusive_holder == ME
    assert decision.new.acquired_at == 9


def test_exclusive_holder_is_asked_for_what_is_needed() -> None:
    record = NEW.taken_exclusive(B, 1)

    for wanted, what in ((EXCLUSIVE, AskKind.GIVE_UP), (SHARED, AskKind.GIVE_UP_TO_SHARED)):
        decision = decide(record, me=ME, wanted=wanted, standings={B: STANDS}, now=9)
        assert decision == Ask(holders=(B,), what=what)


def test_upgrade_asks_only_the_others_that_stand() -> None:
    record = shared(ME, B, C)

    decision = decide(record, me=ME, wanted=EXCLUSIVE, standings={B: STANDS, C: STALE}, now=9)

    assert decision == Ask(holders=(B,), what=AskKind.GIVE_UP)


def test_name_of_ours_in_the_record_is_written_anew_and_not_weaker() -> None:
    decision = decide(NEW.taken_exclusive(ME, 1), me=ME, wanted=SHARED, standings={}, now=9)

    assert isinstance(decision, Take)
    assert decision.new.exclusive_holder == ME
    assert decision.new.token == 2


def test_full_record_needs_one_of_its_holders_to_go_and_the_dead_are_none() -> None:
    everybody = [host(number) for number in range(1, HOLDER_COUNT_MAX + 1)]
    record = shared(*everybody)
    standings = dict.fromkeys(everybody, STANDS)

    full = decide(record, me=ME, wanted=SHARED, standings=standings, now=9)
    one_dead = decide(record, me=ME, wanted=SHARED, standings={**standings, B: STALE}, now=9)

    assert full == Ask(holders=tuple(everybody), what=AskKind.GIVE_UP, one_suffices=True)
    assert isinstance(one_dead, Take)
    assert one_dead.stale == (B,)


def test_modes_that_we_do_not_know_how_to_share_are_refused() -> None:
    several = dataclasses.replace(shared(B), mode=LockMode.MULTI_WRITER)
    many = dataclasses.replace(shared(B), global_holder_count=9)

    for record in (several, many):
        for wanted in (SHARED, EXCLUSIVE):
            decision = decide(record, me=ME, wanted=wanted, standings={B: STANDS}, now=9)
            assert isinstance(decision, Refuse)


def test_multi_writer_of_the_dead_is_free() -> None:
    record = dataclasses.replace(shared(B), mode=LockMode.MULTI_WRITER)

    decision = decide(record, me=ME, wanted=EXCLUSIVE, standings={B: STALE}, now=9)

    assert isinstance(decision, Take)


def test_free_is_not_for_taking() -> None:
    with pytest.raises(AssertionError):
        decide(NEW, me=ME, wanted=FREE, standings={}, now=9)


def test_give_up() -> None:
    exclusive, both = NEW.taken_exclusive(ME, 1), shared(ME, B)

    freed = give_up(exclusive, me=ME, to_mode=FREE)
    down = give_up(exclusive, me=ME, to_mode=SHARED)
    left = give_up(both, me=ME, to_mode=FREE)

    assert freed is not None
    assert freed.is_free
    assert down is not None
    assert (down.mode, down.holders, down.token) == (SHARED, (ME,), exclusive.token)
    assert left is not None
    assert left.holders == (B,)
    assert give_up(both, me=ME, to_mode=SHARED) == both
    assert give_up(shared(B), me=ME, to_mode=FREE) is None
    assert give_up(NEW, me=ME, to_mode=SHARED) is None


def slot_of(holder: Holder) -> Heartbeat:
    return Heartbeat(
        lv_offset=holder.heartbeat_offset,
        state=HeartbeatState.IN_USE,
        generation=holder.generation,
        owner=holder.owner,
        driver_major=14,
    )


def test_judge_knows_only_this_very_mount() -> None:
    slot = slot_of(B)
    replayed = slot.replaying(by=C.owner, by_offset=C.heartbeat_offset, by_generation=C.generation)

    assert judge(slot, B) is STANDS
    assert judge(replayed, B) is REPLAYED
    assert replayer_of(replayed) == C
    assert replayer_of(slot) is None
    assert judge(slot.released(), B) is STALE
    assert judge(slot.recovered(), B) is STALE
    assert judge(dataclasses.replace(slot, generation=2), B) is STALE
    assert judge(dataclasses.replace(slot, owner=C.owner), B) is STALE


def test_whose() -> None:
    assert whose(NEW, me=ME, standings={}) is HolderIs.FREE
    assert whose(shared(ME, B), me=ME, standings={B: STANDS}) is HolderIs.MINE
    assert whose(shared(B, C), me=ME, standings={B: STALE, C: STANDS}) is HolderIs.LIVE_OTHER
    assert whose(shared(B, C), me=ME, standings={B: STALE, C: STALE}) is HolderIs.STALE
    assert whose(shared(B), me=ME, standings={B: REPLAYED}) is HolderIs.LIVE_OTHER
    assert others(shared(ME, B), ME) == (B,)
