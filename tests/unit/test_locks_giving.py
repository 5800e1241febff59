"""Answering other hosts: grace, operations under way, closing, failures, lost names, unmount."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lockd.client import AnswerKind, AskAnswer, AskKind
from tests.support.lockservice import Cluster, LockHost, cluster
from vmfs.errors import DeviceError, LeaseLost, LockBusy, LockServiceError
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.disk_lock import LockMode

EXCLUSIVE, SHARED, FREE = LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.FREE


async def visit(host: LockHost, lock: LockId, mode: LockMode) -> None:
    (await host.locks.acquire(lock, mode)).release()


async def ask(
    lab: Cluster, asker: LockHost, lock: LockId, what: AskKind, holder: LockHost
) -> AskAnswer:
    owner = holder.slot.holder.owner.raw
    return await asker.client.ask(lab.lba(lock), what, owner, label="test")


async def test_ask_waits_for_the_operation_under_way(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        pin = await a.locks.acquire(lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lock, EXCLUSIVE)
            await wait_all_tasks_blocked()
            assert a.revoked == []
            assert a.locks.snapshot()[0].closing
            pin.release()

        assert a.revoked == [(lock, FREE)]


async def test_new_operations_wait_while_closing_and_come_after_the_asker(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        order: list[str] = []

        async def use(host: LockHost) -> None:
            with await host.locks.acquire(lock, EXCLUSIVE):
                order.append(host.name)

        pin = await a.locks.acquire(lock, EXCLUSIVE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, b)
            await wait_all_tasks_blocked()
            nursery.start_soon(use, a)
            await wait_all_tasks_blocked()
            assert order == []
            pin.release()

        assert order == ["b", "a"]


async def test_operation_may_pin_again_what_it_has_pinned_while_closing(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        async with trio.open_nursery() as nursery:
            with await a.locks.acquire(lock, EXCLUSIVE):
                nursery.start_soon(visit, b, lock, EXCLUSIVE)
                await wait_all_tasks_blocked()
                with await a.locks.acquire(lock, SHARED):
                    pass

        assert (await lab.record(lock)).exclusive_holder == b.slot.holder


async def test_operation_that_opens_the_file_keeps_it(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        pin = await a.locks.acquire(lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:

            async def busy() -> None:
                with pytest.raises(LockBusy, match="open for writing"):
                    await visit(b, lock, EXCLUSIVE)

            nursery.start_soon(busy)
            await wait_all_tasks_blocked()
            a.locks.hold_open(lock, EXCLUSIVE, label="/vm1.vmdk")
            pin.release()

        assert a.locks.mode_held(lock) is EXCLUSIVE
        assert a.revoked == []


async def test_shared_operation_does_not_hold_up_a_downgrade(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        with await a.locks.acquire(lock, SHARED):
            await visit(b, lock, SHARED)

        assert a.revoked == [(lock, SHARED)]


async def test_cached_lock_is_given_up_while_this_host_waits_for_another(
    autojump_clock: MockClock,
) -> None:
    """The deadlock that a single lane for asks would make."""
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        low, high = lab.lock(1), lab.lock(2)
        await visit(a, low, EXCLUSIVE)
        b_has_high = await b.locks.acquire(high, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, high, EXCLUSIVE)
            await wait_all_tasks_blocked()
            await visit_as_other_task(nursery, b, low)
            b_has_high.release()

        assert a.revoked[0] == (low, FREE)


async def visit_as_other_task(nursery: trio.Nursery, host: LockHost, lock: LockId) -> None:
    done = trio.Event()

    async def task() -> None:
        await visit(host, lock, EXCLUSIVE)
        done.set()

    nursery.start_soon(task)
    await done.wait()


async def test_many_blocked_asks_do_not_hold_up_another(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        pins = [await a.locks.acquire(lab.lock(number), EXCLUSIVE) for number in range(40)]
        free = lab.lock(50)
        await visit(a, free, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(visit, b, lab.lock(number), EXCLUSIVE)
            await wait_all_tasks_blocked()
            await visit(b, free, EXCLUSIVE)
            for pin in pins:
                pin.release()

        assert a.locks.snapshot() == []


async def test_failing_write_back_keeps_the_lock_and_says_why(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        async def fail() -> None:
            raise DeviceError("write of block 7: no space left on array")

        a.during_revoke = fail

        with pytest.raises(LockBusy, match="no space left on array"):
            await visit(b, lock, EXCLUSIVE)

        assert a.locks.mode_held(lock) is EXCLUSIVE
        assert not a.locks.snapshot()[0].closing
        await visit(a, lock, EXCLUSIVE)


async def test_written_out_of_the_record_by_somebody_stops_this_host(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)
        await lab.write_record((await lab.record(lock)).freed())

        with pytest.raises(LeaseLost, match="does not name this host"):
            await a.locks.forget(lock)

        with pytest.raises(LeaseLost):
            await a.device.read(0, 512)


async def test_name_left_by_an_unheard_acquisition_is_taken_back(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await lab.write_record((await lab.record(lock)).taken_exclusive(a.slot.holder, 1))

        await visit(b, lock, EXCLUSIVE)

        assert (await lab.record(lock)).exclusive_holder == b.slot.holder
        assert a.revoked == []


async def test_ask_for_what_is_no_lock_is_not_held(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        owner = a.slot.holder.owner.raw
        for lba in (0, lab.lba(lab.lock(0)) + 1):
            for what in AskKind:
                answer = await b.client.ask(lba, what, owner, label="")
                assert answer.kind is AnswerKind.NOT_HELD


async def test_attributes_are_answered_from_memory_also_in_the_middle(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        pin = await a.locks.acquire(lock, EXCLUSIVE)
        a.known[lock] = b"size 42"

        holder = (await b.locks.peek(lock)).record.exclusive_holder
        assert holder is not None
        assert await b.locks.ask_attributes(lock, holder) == b"size 42"
        del a.known[lock]
        assert await b.locks.ask_attributes(lock, holder) is None
        pin.release()
        await a.locks.forget(lock)
        assert await b.locks.ask_attributes(lock, holder) is None


async def test_write_back_keeps_the_lock(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        answer = await ask(lab, b, lock, AskKind.WRITE_BACK, a)

        assert answer.kind is AnswerKind.DONE
        assert a.written_back == [lock]
        assert a.locks.mode_held(lock) is EXCLUSIVE


async def test_asks_of_two_hosts_for_one_lock_share_one_revocation(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b, c = [await lab.host(name) for name in "abc"]
        lock = lab.lock(0)
        gate = trio.Event()
        a.during_revoke = gate.wait
        await visit(a, lock, EXCLUSIVE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lock, EXCLUSIVE)
            nursery.start_soon(visit, c, lock, EXCLUSIVE)
            await wait_all_tasks_blocked()
            gate.set()

        assert a.revoked == [(lock, FREE)]
        assert (await lab.record(lock)).token == 3


async def test_forget_gives_up_only_what_is_idle(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lock = lab.lock(0)

        assert await a.locks.forget(lock)
        with await a.locks.acquire(lock, EXCLUSIVE):
            assert not await a.locks.forget(lock)
        assert await a.locks.forget(lock)

        assert (await lab.record(lock)).is_free


async def test_release_all_frees_every_record(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        locks = [lab.lock(number, kind) for kind in LockKind for number in range(20)]
        for lock in locks:
            await visit(a, lock, EXCLUSIVE if lock.index % 2 else SHARED)
        with await a.locks.acquire(locks[1], EXCLUSIVE):
            a.locks.hold_open(locks[1], EXCLUSIVE, label="/left open")

        await a.locks.release_all()

        assert all([(await lab.record(lock)).is_free for lock in locks])
        assert len(a.revoked) == len(locks)
        assert a.locks.snapshot() == []
        with pytest.raises(LockServiceError, match="unmounted"):
            await visit(a, locks[0], SHARED)
        a.locks.drop_open(locks[1], EXCLUSIVE, label="/left open")


async def test_release_all_goes_on_after_a_failure_and_reports_it(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        good, bad = lab.lock(0), lab.lock(1)
        await visit(a, good, EXCLUSIVE)
        await visit(a, bad, EXCLUSIVE)
        fail_once = [True]

        async def fail() -> None:
            if fail_once:
                fail_once.clear()
                raise DeviceError("journal aborted")

        a.during_revoke = fail

        with pytest.raises(DeviceError, match="journal aborted"):
            await a.locks.release_all()

        assert len(a.revoked) == 1


async def test_unmounted_host_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        await visit(a, lock, EXCLUSIVE)

        await a.unmount()
        await visit(b, lock, EXCLUSIVE)

        assert lab.lockd.state.last_ask == 0
        assert not (await lab.slot(a.slot.index)).is_in_use


async def test_too_many_cached_locks_are_thinned_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfs.locks.manager.LOCKS_KEPT_MAX", 40)
    async with cluster() as lab:
        a = await lab.host("a")
        with await a.locks.acquire(lab.lock(0), EXCLUSIVE):
            for number in range(1, 60):
                await visit(a, lab.lock(number), EXCLUSIVE)
                await wait_all_tasks_blocked()

            kept = [held.lock.index for held in a.locks.snapshot()]

        assert len(kept) <= 41
        assert kept[0] == 0
        assert kept[-1] == 59
