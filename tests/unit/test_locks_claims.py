"""Claims: locks of new objects that no record names, until something is given up."""

import pytest
import trio
from trio.testing import MockClock

from tests.support.lockservice import Cluster, LockHost, cluster
from vmfs.errors import DeviceError, LockBusy
from vmfs.locks.claims import LONG_OPEN_SECONDS
from vmfs.locks.manager import LOCKS_KEPT_MAX
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import LockMode

EXCLUSIVE, SHARED, FREE = LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.FREE


async def claim(host: LockHost, lock: LockId) -> int:
    """Claim and let go of the pin; returns the token."""
    pin = await host.locks.try_claim(lock, label="/new")
    assert pin is not None
    with pin:
        return pin.token


async def visit(host: LockHost, lock: LockId, mode: LockMode = EXCLUSIVE) -> int:
    with await host.locks.acquire(lock, mode, label="/dir") as pin:
        return pin.token


async def is_free(lab: Cluster, lock: LockId) -> bool:
    return (await lab.record(lock)).is_free


async def test_claim_is_exclusive_here_and_writes_nothing(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        before = await lab.record(lock)

        token = await claim(a, lock)

        assert token == before.token + 1
        assert a.locks.mode_held(lock) is EXCLUSIVE
        assert a.locks.tenure(lock) == token
        assert await visit(a, lock) == token  # cached
        assert await lab.record(lock) == before
        lab.check_invariants()


async def test_idle_claim_is_dropped_before_another_lock_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        directory, new = lab.lock(0), lab.lock(1)
        await visit(a, directory)
        await claim(a, new)
        seen: list[tuple[bool, LockMode]] = []

        async def look() -> None:
            seen.append((await is_free(lab, directory), a.locks.mode_held(new)))
            assert a.locks.tenure(new) == 0
            assert a.locks.try_cached(new, SHARED) is None

        a.during_revoke = look
        await visit(b, directory)

        assert seen == [(False, EXCLUSIVE)]  # put in place first, while nobody gets in
        assert a.dropped == [new]
        assert a.locks.mode_held(new) is FREE
        assert await is_free(lab, new)
        assert await visit(b, new) == 1  # b has it without a question
        lab.check_invariants()


@pytest.mark.parametrize("how", ["open", "pinned"])
async def test_claim_in_use_is_written_before_another_lock_is_given_up(
    autojump_clock: MockClock, how: str
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        directory, new = lab.lock(0), lab.lock(1)
        await visit(a, directory)
        pin = await a.locks.try_claim(new, label="/new")
        assert pin is not None
        a.locks.hold_open(new, EXCLUSIVE, label="/new")
        if how == "open":
            pin.release()

        await visit(b, directory, SHARED)

        assert (await lab.record(new)).exclusive_holder == a.slot.holder
        with pytest.raises(LockBusy, match="open for writing"):
            await visit(b, new, SHARED)
        pin.release()
        a.locks.drop_open(new, EXCLUSIVE, label="/new")
        assert await visit(b, new) == 2
        lab.check_invariants()


async def test_claim_is_kept_when_the_other_lock_cannot_be_given_up(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        directory, new = lab.lock(0), lab.lock(1)
        await visit(a, directory)
        await claim(a, new)

        async def fail() -> None:
            raise DeviceError("the disk is gone")

        a.during_revoke = fail
        with pytest.raises(LockBusy, match="the disk is gone"):
            await visit(b, directory)

        assert a.locks.mode_held(new) is EXCLUSIVE
        assert await visit(a, new) == 1
        lab.check_invariants()


async def test_claim_is_refused_where_the_record_is_not_free(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(b, lock)

        assert await a.locks.try_claim(lock) is None
        assert a.locks.mode_held(lock) is FREE
        lab.check_invariants()


async def test_directory_is_kept_while_a_stranger_stands_in_the_record_of_an_open_claim(
    autojump_clock: MockClock,
) -> None:
    """The other host waits with that very pin: it must hear no, not wait for us for ever."""
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        new, directory = lab.lock(0), lab.lock(1)
        await visit(a, directory)
        await claim(a, new)
        pin = await a.locks.acquire(new, EXCLUSIVE)
        a.locks.hold_open(new, EXCLUSIVE, label="/new")
        pin.release()

        stranger = await b.locks.acquire(new, SHARED)  # by a handle of what was there before
        with pytest.raises(LockBusy, match="in its record"):
            await b.locks.acquire(directory, EXCLUSIVE)
        stranger.release()

        a.locks.drop_open(new, EXCLUSIVE, label="/new")
        await visit(b, directory)
        lab.check_invariants()


async def test_open_claim_is_written_after_a_while(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        new, idle = lab.lock(0), lab.lock(1)
        pin = await a.locks.try_claim(new, label="/new")
        assert pin is not None
        a.locks.hold_open(new, EXCLUSIVE, label="/new")
        pin.release()
        await claim(a, idle)

        await trio.sleep(LONG_OPEN_SECONDS * 2.5)

        assert (await lab.record(new)).exclusive_holder == a.slot.holder
        assert await is_free(lab, idle)
        lab.check_invariants()


async def test_unmount_writes_no_claim(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        locks = [lab.lock(index) for index in range(8)]
        before = [await lab.record(lock) for lock in locks]
        for lock in locks:
            await claim(a, lock)

        await a.locks.release_all()

        assert [await lab.record(lock) for lock in locks] == before
        assert sorted(a.dropped) == locks
        assert a.locks.snapshot() == []
        lab.check_invariants()


async def test_too_many_claims_are_dropped_with_one_revocation(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfs.locks.manager.LOCKS_KEPT_MAX", 16)
    assert LOCKS_KEPT_MAX > 16
    async with cluster() as lab:
        a = await lab.host("a")
        locks = [lab.lock(index) for index in range(20)]
        for lock in locks:
            await claim(a, lock)
        await trio.testing.wait_all_tasks_blocked()

        assert len(a.revoked) == 1
        assert len(a.locks.snapshot()) == len(locks) - len(a.dropped)
        assert 12 <= len(a.locks.snapshot()) <= 16
        lab.check_invariants()


async def test_a_directory_in_use_stays_locked_when_claims_are_dropped(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfs.locks.manager.LOCKS_KEPT_MAX", 16)
    async with cluster() as lab:
        a = await lab.host("a")
        directory, *new = (lab.lock(index) for index in range(20))
        late = [new.pop(), new.pop()]

        async def go_on() -> None:
            a.during_revoke = None
            for lock in late:
                await visit(a, directory)
                await claim(a, lock)

        a.during_revoke = go_on  # whoever makes files does not wait for it
        for lock in new[:16]:
            await visit(a, directory)
            await claim(a, lock)
        await trio.sleep(1)  # of the mock clock: all is done that is to be done

        assert a.locks.mode_held(directory) is EXCLUSIVE
        assert a.dropped == new[:5]  # the oldest of seventeen, to three quarters of sixteen
        assert all(a.locks.mode_held(lock) is EXCLUSIVE for lock in (*new[5:16], *late))
        lab.check_invariants()


async def test_too_many_locks_are_given_up_by_their_last_use(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfs.locks.manager.LOCKS_KEPT_MAX", 16)
    async with cluster() as lab:
        a = await lab.host("a")
        directory, *files = (lab.lock(index) for index in range(17))
        for lock in files:
            await visit(a, directory)
            await visit(a, lock)
        await trio.sleep(1)  # of the mock clock: all is done that is to be done

        assert [lock for lock, _ in a.revoked] == files[:5]
        assert a.locks.mode_held(directory) is EXCLUSIVE
        lab.check_invariants()
