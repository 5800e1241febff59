"""Dead holders: proof, take-over, replay once, waiting, and the death of who recovers."""

import dataclasses

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.lockservice import Cluster, LockHost, cluster
from vmfs.errors import LeaseLost, LockBusy, LockServiceError
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import LockMode

EXCLUSIVE, SHARED = LockMode.EXCLUSIVE, LockMode.SHARED


async def visit(host: LockHost, lock: LockId, mode: LockMode = EXCLUSIVE) -> None:
    (await host.locks.acquire(lock, mode)).release()


async def dead_with_locks(lab: Cluster, *numbers: int) -> LockHost:
    """A host that was killed while it had these locks."""
    dead = await lab.host("dead")
    for number in numbers:
        await visit(dead, lab.lock(number))
    dead.kill()
    await dead.ended.wait()
    return dead


async def test_dead_holder_is_recovered_and_its_lock_taken(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        before = trio.current_time()

        await visit(a, lab.lock(0))

        assert a.recovered == [dead.slot.index]
        slot = await lab.slot(dead.slot.index)
        assert not slot.is_in_use
        assert slot.generation == dead.slot.record.generation + 1
        assert (await lab.record(lab.lock(0))).exclusive_holder == a.slot.holder
        assert trio.current_time() - before < 0.1


async def test_death_while_asked_is_noticed_at_once(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        b.during_revoke = trio.sleep_forever
        await visit(b, lock)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, lock)
            await wait_all_tasks_blocked()
            b.kill()

        assert a.recovered == [b.slot.index]


async def test_two_waiters_on_one_host_recover_once(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, lab.lock(0))
            nursery.start_soon(visit, a, lab.lock(1))

        assert a.recovered == [dead.slot.index]


async def test_two_hosts_race_and_one_replays(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        dead = await dead_with_locks(lab, 0, 1)

        async def slowly() -> None:
            await trio.sleep(2)

        a.during_replay = b.during_replay = slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, lab.lock(0))
            nursery.start_soon(visit, b, lab.lock(1))

        assert a.recovered + b.recovered == [dead.slot.index]
        assert trio.current_time() < 4


async def test_while_replayed_the_lock_is_not_stale(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        await dead_with_locks(lab, 0)
        gate = trio.Event()
        a.during_replay = gate.wait

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, a, lab.lock(0))
            await wait_all_tasks_blocked()
            with trio.move_on_after(5) as scope:
                await visit(b, lab.lock(0))
            assert scope.cancelled_caught
            assert b.recovered == []
            gate.set()


async def test_death_of_who_recovers_is_recovered_too(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        dead = await dead_with_locks(lab, 0)
        b.during_replay = trio.sleep_forever

        async with trio.open_nursery() as nursery:
            doomed = trio.CancelScope()

            async def b_tries() -> None:
                with doomed:
                    await visit(b, lab.lock(0))

            nursery.start_soon(b_tries)
            await wait_all_tasks_blocked()
            assert (await lab.slot(dead.slot.index)).replayer == b.slot.holder.owner
            doomed.cancel()
            b.kill()
            await b.ended.wait()
            await visit(a, lab.lock(0))

        # b first: its journal may hold what it did to the slot of the dead.
        assert a.recovered == [b.slot.index, dead.slot.index]


async def test_slot_is_not_taken_from_a_dead_replayer_that_is_not_recovered(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        dead = await dead_with_locks(lab, 0)
        await b.recovery.take_over(dead.slot.record)
        b.kill()
        await b.ended.wait()

        with pytest.raises(LockBusy, match="or died at it"):
            await a.recovery.take_over(dead.slot.record)

        taken = await a.recovery.take_over(b.slot.record)
        assert taken is not None
        await a.recovery.finish(taken)
        assert await a.recovery.take_over(dead.slot.record) is not None


async def test_interrupted_recovery_is_taken_up_again_by_the_same_host(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        a.during_replay = trio.sleep_forever
        with trio.move_on_after(1):
            await visit(a, lab.lock(0))
        assert a.recovered == []

        a.during_replay = None
        await visit(a, lab.lock(0))

        assert a.recovered == [dead.slot.index]


async def test_holder_that_lockd_never_heard_of_is_fenced_or_busy(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        lab.lockd.state.hosts.pop(("ds1", dead.slot.holder.owner.raw))
        lab.lockd.sessions.strangers = ("pid 4711 (vmfs)",)

        with pytest.raises(LockBusy, match="cannot be fenced"):
            await visit(a, lab.lock(0))
        assert a.recovered == []

        lab.lockd.sessions.strangers = ()
        await visit(a, lab.lock(0))
        assert a.recovered == [dead.slot.index]


async def test_slot_without_our_tail_is_never_fenced(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        slot = await lab.slot(dead.slot.index)
        esxi = dataclasses.replace(slot, tail=bytes(len(slot.tail)))
        await lab.write_slot(esxi)

        with pytest.raises(LockBusy, match="cannot be fenced from here"):
            await a.recovery.take_over(esxi)


async def test_live_host_is_not_taken_over(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lab.lockd.sessions.unkillable.add(b.process)

        with pytest.raises(LockBusy, match="not proved dead"):
            await a.recovery.take_over(b.slot.record)

        assert not (await lab.slot(b.slot.index)).replayer


async def test_host_never_takes_over_its_own_slot(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")

        with pytest.raises(LockServiceError, match="does not fence itself"):
            await a.recovery.take_over(a.slot.record)

        assert await lab.slot(a.slot.index) == a.slot.record


async def test_slot_that_moved_on_needs_no_take_over(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        seen = dead.slot.record
        taken = await a.recovery.take_over(seen)
        assert taken is not None
        await a.recovery.finish(taken)
        await a.recovery.finish(taken)  # as after an unheard outcome

        assert await a.recovery.take_over(seen) is None


async def test_finish_after_being_overtaken_is_lost(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)
        taken = await a.recovery.take_over(dead.slot.record)
        assert taken is not None
        other = a.slot.holder
        await lab.write_slot(
            taken.replaying(by=other.owner, by_offset=other.heartbeat_offset, by_generation=999)
        )

        with pytest.raises(LeaseLost, match="another host goes on"):
            await a.recovery.finish(taken)


async def test_remounted_host_recovers_its_own_earlier_start(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        dead = await dead_with_locks(lab, 0)
        twice = await lab.host("dead")
        await visit(twice, lab.lock(1))
        twice.kill()
        await twice.ended.wait()
        # Not even a process that lockd knows nothing of makes it doubt what it saw itself.
        lab.lockd.sessions.strangers = ("pid 4711 (dd)",)
        again = await lab.host("dead")

        await visit(again, lab.lock(0))
        await visit(again, lab.lock(1))

        assert again.recovered == [dead.slot.index, twice.slot.index]
        assert again.slot.index not in again.recovered


async def test_dead_shared_holders_do_not_stand_in_the_way_of_readers(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await lab.host("dead")
        await visit(dead, lab.lock(0), SHARED)
        dead.kill()
        await dead.ended.wait()

        await visit(a, lab.lock(0), SHARED)
        assert a.recovered == []
        await visit(a, lab.lock(0), EXCLUSIVE)
        assert a.recovered == [dead.slot.index]


async def test_attributes_of_a_dead_holder_come_from_the_lun(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        dead = await dead_with_locks(lab, 0)

        assert await a.locks.ask_attributes(lab.lock(0), dead.slot.holder) is None

        assert a.recovered == [dead.slot.index]
