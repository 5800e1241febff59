"""Acquiring locks: over real records, a real lockd engine, and two or three hosts."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from lockd.client import AskKind
from tests.support.lockservice import Cluster, LockHost, cluster
from vmfs.errors import CorruptRecord, LeaseLost, LockBusy
from vmfs.locks.base import HolderIs
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.disk_lock import HOLDER_COUNT_MAX, DiskLock, Holder, LockMode, LockType
from vmfs.ondisk.heartbeat import slot_offset

EXCLUSIVE, SHARED, FREE = LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.FREE


async def visit(host: LockHost, lock: LockId, mode: LockMode, label: str = "") -> int:
    """Acquire and release; returns the token."""
    with await host.locks.acquire(lock, mode, label=label) as pin:
        return pin.token


def writes_of(lab: Cluster) -> int:
    """How many lock changes lockd has carried out."""
    return sum(entry.text != "" for entry in lab.lockd.store.audit(count=500, before=0))


async def test_acquire_free_lock_writes_the_record(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)

        with await a.locks.acquire(lock, EXCLUSIVE, label="/disk.vmdk") as pin:
            assert pin.token == 1
            assert pin.lock == lock
            assert (await lab.record(lock)).exclusive_holder == a.slot.holder


async def test_acquire_again_is_served_without_io(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)
        before = lab.lockd.state.last_ask, a.permit.statistics(), writes_of(lab)

        token = await visit(a, lock, SHARED)

        assert token == 1
        assert (lab.lockd.state.last_ask, a.permit.statistics(), writes_of(lab)) == before


async def test_pin_released_twice_counts_once(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        one = await a.locks.acquire(lab.lock(0), EXCLUSIVE)
        two = await a.locks.acquire(lab.lock(0), EXCLUSIVE)

        one.release()
        one.release()

        assert [held.users for held in a.locks.snapshot()] == [("",)]
        two.release()


async def test_cached_exclusive_is_handed_over(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        await visit(b, lock, EXCLUSIVE)

        assert a.revoked == [(lock, FREE)]
        assert a.locks.mode_held(lock) is FREE
        assert a.locks.tenure(lock) == 0
        assert (await lab.record(lock)).exclusive_holder == b.slot.holder


async def test_token_grows_with_every_acquisition(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")

        tokens = [
            await visit(host, lab.lock(0), mode)
            for host, mode in ((a, EXCLUSIVE), (b, EXCLUSIVE), (a, SHARED), (b, SHARED))
        ]

        assert tokens == [1, 2, 3, 2]  # b never left the record: what it caches since 2 is valid


async def test_shared_by_both_asks_nobody(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)

        await visit(a, lock, SHARED)
        await visit(b, lock, SHARED)

        assert (await lab.record(lock)).holders == (a.slot.holder, b.slot.holder)
        assert lab.lockd.state.last_ask == 0


async def test_reader_takes_cached_exclusive_down_to_shared(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        await visit(b, lock, SHARED)

        assert a.revoked == [(lock, SHARED)]
        assert a.locks.mode_held(lock) is SHARED
        assert (await lab.record(lock)).holders == (a.slot.holder, b.slot.holder)


async def test_sole_shared_holder_upgrades_without_asking(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        await visit(a, lock, SHARED)

        await visit(a, lock, EXCLUSIVE)

        assert (await lab.record(lock)).exclusive_holder == a.slot.holder
        assert a.revoked == []


async def test_upgrade_asks_the_other_shared_holders(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        hosts = [await lab.host(name) for name in "abc"]
        lock = lab.lock(0)
        for host in hosts:
            await visit(host, lock, SHARED)

        await visit(hosts[0], lock, EXCLUSIVE)

        assert [host.revoked for host in hosts] == [[], [(lock, FREE)], [(lock, FREE)]]


async def test_both_upgrade_at_once_and_both_get_it_in_turn(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, SHARED)
        await visit(b, lock, SHARED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, lock, EXCLUSIVE)
            nursery.start_soon(visit, b, lock, EXCLUSIVE)

        record = await lab.record(lock)
        assert record.token == 4
        assert record.exclusive_holder in (a.slot.holder, b.slot.holder)


async def test_ninth_reader_gets_the_place_of_one_that_merely_keeps_the_lock(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        lock = lab.lock(0)
        for number in range(HOLDER_COUNT_MAX):
            host = await lab.host(f"h{number}")
            pin = await host.locks.acquire(lock, SHARED)
            if number != 3:
                host.locks.hold_open(lock, SHARED, label="/iso")
            pin.release()
        last = await lab.host("last")

        await visit(last, lock, SHARED)

        assert last.slot.holder in (await lab.record(lock)).all_holders
        assert lab.hosts[3].locks.mode_held(lock) is LockMode.FREE


async def test_ninth_reader_is_refused_while_eight_read(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        lock = lab.lock(0)
        for number in range(HOLDER_COUNT_MAX):
            host = await lab.host(f"h{number}")
            with await host.locks.acquire(lock, SHARED):
                host.locks.hold_open(lock, SHARED, label="/iso")
        last = await lab.host("last")

        with pytest.raises(LockBusy, match=r"8 hosts share it.*/iso is open for reading") as caught:
            await visit(last, lock, SHARED)

        assert "host-h0" in caught.value.holder


async def test_open_elsewhere_is_busy_after_the_grace(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        with await a.locks.acquire(lock, EXCLUSIVE):
            a.locks.hold_open(lock, EXCLUSIVE, label="/vm1.vmdk")
        before = trio.current_time()

        with pytest.raises(LockBusy, match=r"vm1\.vmdk is open for writing") as caught:
            await visit(b, lock, EXCLUSIVE)

        assert caught.value.holder == f"host-a (pid {a.process.pid})"
        assert 0.1 <= trio.current_time() - before < 0.2
        assert a.locks.mode_held(lock) is EXCLUSIVE


async def test_close_within_the_grace_hands_over(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        with await a.locks.acquire(lock, EXCLUSIVE):
            a.locks.hold_open(lock, EXCLUSIVE, label="/vm1.vmdk")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lock, EXCLUSIVE)
            await trio.sleep(0.05)
            a.locks.drop_open(lock, EXCLUSIVE, label="/vm1.vmdk")

        assert (await lab.record(lock)).exclusive_holder == b.slot.holder


async def test_open_for_reading_is_shared_with_a_reader(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        with await a.locks.acquire(lock, EXCLUSIVE):
            a.locks.hold_open(lock, SHARED, label="/iso")

        await visit(b, lock, SHARED)

        assert a.locks.mode_held(lock) is SHARED
        with pytest.raises(LockBusy, match="open for reading"):
            await visit(b, lock, EXCLUSIVE)


async def test_acquirers_of_one_host_coalesce(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(visit, b, lock, EXCLUSIVE)

        assert lab.lockd.state.last_ask == 1
        assert (await lab.record(lock)).token == 2


async def test_followers_share_the_refusal(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        with await a.locks.acquire(lock, EXCLUSIVE):
            a.locks.hold_open(lock, EXCLUSIVE)
        busy = []

        async def try_it() -> None:
            with pytest.raises(LockBusy) as caught:
                await visit(b, lock, EXCLUSIVE)
            busy.append(caught.value.holder)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(try_it)

        assert lab.lockd.state.last_ask == 1
        assert busy == [f"host-a (pid {a.process.pid})"] * 10


async def test_cancelled_leader_leaves_the_others_to_try(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        gate = trio.Event()
        a.during_revoke = gate.wait
        await visit(a, lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            leader = trio.CancelScope()

            async def lead() -> None:
                with leader:
                    await visit(b, lock, EXCLUSIVE)

            nursery.start_soon(lead)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(visit, b, lock, EXCLUSIVE)
            await trio.testing.wait_all_tasks_blocked()
            leader.cancel()
            await trio.testing.wait_all_tasks_blocked()
            gate.set()

        assert (await lab.record(lock)).exclusive_holder == b.slot.holder


async def test_two_hosts_alternate_and_none_starves(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        order: list[str] = []

        async def work(host: LockHost) -> None:
            for _ in range(20):
                with await host.locks.acquire(lock, EXCLUSIVE):
                    order.append(host.name)
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, a)
            nursery.start_soon(work, b)

        half = order[: len(order) // 2]
        assert min(half.count("a"), half.count("b")) >= 5


async def test_sixteen_hosts_on_one_lock_all_get_it(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        hosts = [await lab.host(f"h{number}") for number in range(16)]
        lock = lab.lock(0)

        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(visit, host, lock, EXCLUSIVE)

        assert (await lab.record(lock)).token == 16


async def test_try_acquire_takes_what_is_free_and_waits_for_nobody(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        free, taken = lab.lock(0, LockKind.FB_CLUSTER), lab.lock(1, LockKind.FB_CLUSTER)
        await visit(a, taken, EXCLUSIVE)

        pin = await b.locks.try_acquire(free, EXCLUSIVE)
        none = await b.locks.try_acquire(taken, EXCLUSIVE)

        assert pin is not None
        assert none is None
        assert lab.lockd.state.last_ask == 0
        pin.release()


async def test_try_acquire_leaves_what_was_just_given_up_to_who_asked(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)
        record = await lab.record(lock)
        answer = await b.client.ask(
            lab.lba(lock), AskKind.GIVE_UP, a.slot.holder.owner.raw, label="then it dawdles"
        )

        assert answer.kind.name == "DONE"
        assert await a.locks.try_acquire(lock, EXCLUSIVE) is None
        await trio.sleep(0.05)
        pin = await a.locks.try_acquire(lock, EXCLUSIVE)
        assert pin is not None
        assert pin.token == record.token + 1


async def test_pinned_takes_all_in_order(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        wanted = {
            lab.lock(3, LockKind.FB_CLUSTER): EXCLUSIVE,
            lab.lock(2): EXCLUSIVE,
            lab.lock(1): SHARED,
        }

        async with a.locks.pinned(wanted, label="create") as pins:
            assert sorted(wanted) == list(pins)
            held = {entry.lock: entry.mode for entry in a.locks.snapshot()}
            assert held == wanted

        assert all(not entry.users for entry in a.locks.snapshot())


async def test_pinned_releases_what_it_has_when_one_is_busy(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        with await a.locks.acquire(lab.lock(2), EXCLUSIVE):
            a.locks.hold_open(lab.lock(2), EXCLUSIVE)

        with pytest.raises(LockBusy):
            async with b.locks.pinned({lab.lock(1): EXCLUSIVE, lab.lock(2): EXCLUSIVE}):
                pass

        assert [entry.users for entry in b.locks.snapshot()] == [()]


async def test_out_of_order_is_our_mistake(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        with (
            await a.locks.acquire(lab.lock(2), EXCLUSIVE),
            pytest.raises(AssertionError, match="taken in order"),
        ):
            await a.locks.acquire(lab.lock(1), EXCLUSIVE)


async def test_strengthening_a_pinned_lock_is_our_mistake(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        with (
            await a.locks.acquire(lab.lock(1), SHARED),
            pytest.raises(AssertionError, match="strengthened"),
        ):
            await a.locks.acquire(lab.lock(1), EXCLUSIVE)


async def test_corrupt_record_is_never_taken_for_free(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        await lab.lv.write(lock.lv_offset, bytes(512))

        with pytest.raises(CorruptRecord, match="lock record"):
            await visit(a, lock, EXCLUSIVE)
        with pytest.raises(CorruptRecord):
            await a.locks.try_acquire(lock, SHARED)
        with pytest.raises(CorruptRecord):
            await a.locks.peek(lock)

        assert await lab.lv.read(lock.lv_offset, 512) == bytes(512)
        assert a.locks.snapshot() == []


async def test_record_of_another_kind_is_corrupt(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        await lab.write_record(DiskLock(type=LockType.SB_CLUSTER, lv_offset=lock.lv_offset))

        with pytest.raises(CorruptRecord, match="type"):
            await visit(a, lock, EXCLUSIVE)


async def test_corrupt_slot_of_the_holder_is_not_a_dead_holder(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)
        await lab.lv.write(a.slot.record.lv_offset, b"\xff" * 512)

        with pytest.raises(CorruptRecord, match="heartbeat"):
            await visit(b, lock, EXCLUSIVE)


async def test_stale_lock_is_simply_taken(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        ghost = Holder(heartbeat_offset=slot_offset(9), generation=7, owner=a.slot.holder.owner)
        record = await lab.record(lock)
        await lab.write_record(record.taken_exclusive(ghost, 5))

        assert (await a.locks.peek(lock)).holder_is is HolderIs.STALE
        assert await visit(a, lock, EXCLUSIVE) == 2

        assert (await lab.record(lock)).exclusive_holder == a.slot.holder
        assert lab.lockd.state.last_ask == 0


async def test_peek_says_whose_it_is(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)

        free = await b.locks.peek(lock)
        await visit(a, lock, EXCLUSIVE)
        other, mine = await b.locks.peek(lock), await a.locks.peek(lock)

        assert [free.holder_is, other.holder_is, mine.holder_is] == [
            HolderIs.FREE,
            HolderIs.LIVE_OTHER,
            HolderIs.MINE,
        ]
        assert other.record.exclusive_holder == a.slot.holder


async def test_peek_again_is_the_same_look_until_the_record_changes(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        seen = await b.locks.peek(lock)

        assert await b.locks.peek(lock, seen=seen) is seen
        await visit(a, lock, EXCLUSIVE)
        again = await b.locks.peek(lock, seen=seen)

        assert again.holder_is is HolderIs.LIVE_OTHER
        assert again.record.token == seen.record.token + 1


async def test_waiting_names_for_whom(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        gate = trio.Event()
        a.during_revoke = gate.wait
        await visit(a, lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(visit, b, lock, EXCLUSIVE, "/vm1.vmdk"))
            await trio.testing.wait_all_tasks_blocked()
            (waiting,) = b.locks.waiting()
            gate.set()

        assert waiting.lock == lock
        assert waiting.label == "/vm1.vmdk"
        assert f"host-a (pid {a.process.pid})" in waiting.waits_for
        assert b.locks.waiting() == []


async def test_silent_holder_makes_busy_after_the_limit(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        await a.beat()
        lock = lab.lock(0)
        a.during_revoke = trio.sleep_forever
        await visit(a, lock, EXCLUSIVE)
        before = trio.current_time()

        with pytest.raises(LockBusy, match="has not answered for 30 s"):
            await visit(b, lock, EXCLUSIVE)

        assert trio.current_time() - before == pytest.approx(30, abs=1)
        await trio.testing.wait_all_tasks_blocked()
        assert not lab.lockd.state.asks


async def test_lockd_gone_is_an_error_and_not_a_hang(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        await visit(a, lab.lock(0), EXCLUSIVE)
        for link in lab.lockd.sessions.links[a.process]:
            link.close()
        await trio.testing.wait_all_tasks_blocked()

        with pytest.raises(LeaseLost, match="connection to lockd was lost"):
            await visit(a, lab.lock(1), EXCLUSIVE)

        assert a.lost


async def test_hold_open_without_a_pin_is_our_mistake(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        with pytest.raises(AssertionError, match="without a pin"):
            a.locks.hold_open(lab.lock(0), SHARED)
        await visit(a, lab.lock(0), SHARED)
        with pytest.raises(AssertionError, match="without a pin"):
            a.locks.hold_open(lab.lock(0), SHARED)
        with pytest.raises(AssertionError, match="more often"):
            a.locks.drop_open(lab.lock(0), SHARED)
