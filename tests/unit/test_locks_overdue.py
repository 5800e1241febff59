"""Holders that hang: waited for while they may be alive, fenced after their own lease."""

import dataclasses
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lockd.protocol.messages import AskAnswer
from lockd.protocol.terms import AnswerKind, AskKind
from tests.support.lockservice import LEASES, Cluster, LockHost, cluster
from vmfs.errors import LockBusy
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.heartbeat import HostInfo

EXCLUSIVE, SHARED = LockMode.EXCLUSIVE, LockMode.SHARED


async def visit(host: LockHost, lock: LockId, mode: LockMode = EXCLUSIVE) -> None:
    (await host.locks.acquire(lock, mode)).release()


async def beating(lab: Cluster, *names: str) -> list[LockHost]:
    hosts = [await lab.host(name) for name in names]
    for host in hosts:
        await host.beat()
    return hosts


async def test_hung_holder_is_fenced_after_its_lease_and_the_waiter_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        lock = lab.lock(0)
        await visit(a, lock)
        a.freeze()
        before = trio.current_time()

        await visit(b, lock)

        assert LEASES.lease <= trio.current_time() - before <= LEASES.lease + 2 * LEASES.interval
        assert lab.lockd.sessions.killed == [a.process]
        assert b.recovered == [a.slot.index]
        assert (await lab.record(lock)).exclusive_holder == b.slot.holder


async def test_holder_stopped_for_less_than_its_lease_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        lock = lab.lock(0)
        await visit(a, lock)
        thaw = a.freeze()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lock)
            await trio.sleep(LEASES.lease - LEASES.interval)
            (waiting,) = b.locks.waiting()
            assert "heartbeat has stood still" in waiting.waits_for
            assert "it is fenced in" in waiting.waits_for
            thaw()

        assert lab.lockd.sessions.killed == []
        assert a.revoked == [(lock, LockMode.FREE)]
        assert a.lost == b.lost == []
        await visit(a, lock)


async def test_time_in_which_the_holder_was_stopped_does_not_count_against_its_answer(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        lock = lab.lock(0)
        await visit(a, lock)

        async with trio.open_nursery() as nursery:
            thaw = a.freeze()
            nursery.start_soon(visit, b, lock)
            await trio.sleep(15)
            thaw()
            a.during_revoke = partial(trio.sleep, 0)
            await trio.sleep(1)
        assert lab.lockd.sessions.killed == []


async def test_silent_holder_that_beats_is_never_fenced(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        a.during_revoke = trio.sleep_forever
        await visit(a, lab.lock(0))

        with pytest.raises(LockBusy, match="has not answered for 30 s"):
            await visit(b, lab.lock(0))

        assert lab.lockd.sessions.killed == []


async def test_holder_that_cannot_be_killed_keeps_its_lock(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        a.freeze()
        lab.lockd.sessions.unkillable.add(a.process)

        with pytest.raises(LockBusy, match=r"cannot be fenced \(alive\).*stood still for 1"):
            await visit(b, lab.lock(0))

        assert b.recovered == []
        assert (await lab.record(lab.lock(0))).exclusive_holder == a.slot.holder


async def test_holder_that_lockd_has_forgotten_and_that_comes_back_is_not_fenced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        ask, asked = b.client.ask, 0

        async def before_it_is_back(
            lba: int, what: AskKind, holder: bytes, *, label: str
        ) -> AskAnswer:
            nonlocal asked
            asked += 1
            if asked > 2:
                return await ask(lba, what, holder, label=label)
            return AskAnswer(kind=AnswerKind.UNREACHABLE, payload=b"", who="", proof="never seen")

        monkeypatch.setattr(b.client, "ask", before_it_is_back)

        await visit(b, lab.lock(0))

        assert lab.lockd.sessions.killed == []
        assert a.revoked == [(lab.lock(0), LockMode.FREE)]


async def test_holder_that_lockd_has_forgotten_is_fenced_after_its_lease(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        a.kill()
        await a.ended.wait()
        del lab.lockd.state.hosts["ds1", a.slot.holder.owner.raw]
        before = trio.current_time()

        await visit(b, lab.lock(0))

        assert LEASES.lease <= trio.current_time() - before <= LEASES.lease + 2 * LEASES.interval
        assert b.recovered == [a.slot.index]


async def test_holder_without_our_tail_is_never_fenced(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        a.freeze()
        slot = await lab.slot(a.slot.index)
        await lab.write_slot(dataclasses.replace(slot, tail=bytes(len(slot.tail))))

        with pytest.raises(LockBusy):
            with trio.fail_after(100):
                await visit(b, lab.lock(0))

        assert lab.lockd.sessions.killed == []


async def test_lease_is_the_holders_own(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        a.freeze()
        slot = await lab.slot(a.slot.index)
        assert slot.host is not None
        tail = dataclasses.replace(slot.host, interval_ms=100, lease_ms=800).pack()
        await lab.write_slot(dataclasses.replace(slot, tail=tail + slot.tail[HostInfo.SIZE :]))
        before = trio.current_time()

        await visit(b, lab.lock(0))

        assert 0.8 <= trio.current_time() - before <= 1.1


async def test_no_lease_ends_while_the_lun_is_reserved(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b, c = await beating(lab, "a", "b", "c")
        await visit(a, lab.lock(0))
        a.freeze()
        await c.client.reserve()
        before = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lab.lock(0))
            await trio.sleep(100)
            assert lab.lockd.sessions.killed == []
            await c.client.release()

        assert trio.current_time() - before >= 100 + LEASES.lease
        assert lab.lockd.sessions.killed == [a.process]


async def test_healthy_hosts_survive_a_long_reservation(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b, c = await beating(lab, "a", "b", "c")
        a.during_revoke = partial(trio.sleep, 25)
        await visit(a, lab.lock(0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lab.lock(0))
            await trio.sleep(1)
            await c.client.reserve()
            await trio.sleep(20)
            await c.client.release()

        assert lab.lockd.sessions.killed == []
        assert a.lost == b.lost == []


async def test_several_waiters_fence_once_and_recover_once(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b, c = await beating(lab, "a", "b", "c")
        locks = [lab.lock(number) for number in range(3)]
        for lock in locks:
            await visit(a, lock)
        a.freeze()

        async with trio.open_nursery() as nursery:
            for host in (b, c):
                for lock in locks:
                    nursery.start_soon(visit, host, lock)

        assert len(b.recovered) + len(c.recovered) == 1
        assert set(lab.lockd.sessions.killed) == {a.process}
        lab.check_invariants()


async def test_host_that_hangs_while_it_recovers_another_is_fenced_too(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b, c = await beating(lab, "a", "b", "c")
        lock = lab.lock(0)
        await visit(a, lock)
        b.during_replay = trio.sleep_forever
        a.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lock)
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            assert (await lab.slot(a.slot.index)).replayer == b.slot.holder.owner
            b.freeze()
            before = trio.current_time()

            await visit(c, lock)

            assert trio.current_time() - before <= LEASES.lease + 4 * LEASES.interval
            nursery.cancel_scope.cancel()

        assert lab.lockd.sessions.killed == [b.process]
        assert c.recovered == [b.slot.index, a.slot.index]


async def test_host_that_has_stopped_itself_judges_nobody(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await beating(lab, "a", "b")
        await visit(a, lab.lock(0))
        a.freeze()
        assert b.beats is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, b, lab.lock(0))
            await trio.sleep(1)
            b.beats.cancel()  # its own beats fail as well: the fault may be on this side
            await trio.sleep(100)
            assert lab.lockd.sessions.killed == []
            nursery.start_soon(b.beat)
        assert lab.lockd.sessions.killed == [a.process]


async def test_shared_holders_that_hang_are_fenced_the_others_asked(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b, c = await beating(lab, "a", "b", "c")
        for host in (a, b):
            await visit(host, lab.lock(0), SHARED)
        a.freeze()

        await visit(c, lab.lock(0))

        assert lab.lockd.sessions.killed == [a.process]
        assert b.revoked == [(lab.lock(0), LockMode.FREE)]
