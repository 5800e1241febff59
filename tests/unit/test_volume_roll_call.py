"""Before a mount takes a lock: who lives is left alone, who is dead is recovered, or it refuses."""

import dataclasses
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.lockservice import LEASES, Cluster, LockHost, cluster
from tests.support.volumes import VolumeLab, cat, put, volume_lab
from vmfs.device.locate import find_lv
from vmfs.errors import LockBusy
from vmfs.ids import VmfsUuid
from vmfs.locks.heartbeat import Mount, read_slots
from vmfs.locks.overdue import Overdue
from vmfs.locks.takeover import RECOVERY_SECONDS_MAX, Takeovers
from vmfs.ondisk.heartbeat import Heartbeat, HostInfo, slot_offset
from vmfs.volume.roll_call import RollCall

GHOST = 12
"""Slot of a host that only its heartbeat slot tells of."""


def roll_call(host: LockHost) -> RollCall:
    """As a mount makes it."""
    record = host.slot.record
    assert record.host is not None
    overdue = Overdue(
        service=host.client,
        records=host.records,
        leases=LEASES,
        lease_time=host.permit.lease_time,
    )
    takeovers = Takeovers(
        records=host.records,
        service=host.client,
        overdue=overdue,
        recover=host.on_recover,
        rng=Random(1),
    )
    return RollCall(
        device=host.device,
        service=host.client,
        mount=Mount(host_uuid=record.owner, info=record.host),
        overdue=overdue,
        takeovers=takeovers,
    )


async def killed(lab: Cluster, name: str) -> LockHost:
    """A host that died while it had the volume open."""
    host = await lab.host(name)
    host.kill()
    await host.ended.wait()
    return host


async def killed_recovering(lab: Cluster, dead: LockHost) -> LockHost:
    """A host that died while it recovered another."""
    host = await lab.host("b")
    host.during_replay = trio.sleep_forever
    with trio.move_on_after(1):
        await host.on_recover(dead.slot.index, dead.slot.record)
    assert (await lab.slot(dead.slot.index)).replayer == host.slot.holder.owner
    host.kill()
    await host.ended.wait()
    return host


def forget_everybody_but(lab: Cluster, host: LockHost) -> None:
    """Lockd's database is lost; `host` has registered again."""
    for key in [key for key in lab.lockd.state.hosts if key[1] != host.slot.holder.owner.raw]:
        del lab.lockd.state.hosts[key]


async def haunt(lab: Cluster, *, replayer: Heartbeat | None = None) -> Heartbeat:
    """A slot in use by a host that lockd never heard of."""
    slot = Heartbeat(lv_offset=slot_offset(GHOST)).acquired(
        owner=VmfsUuid(b"the ghost host.."),
        stamp_us=1,
        journal_fb=0,
        journal_offset=0,
        host=HostInfo(name="ghost", pid=13, nonce=77, interval_ms=3000, lease_ms=16000),
    )
    if replayer is not None:
        slot = slot.replaying(
            by=replayer.owner,
            by_offset=replayer.lv_offset,
            by_generation=replayer.generation,
        )
    await lab.write_slot(slot)
    return slot


async def test_nobody_is_missing(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")

        await roll_call(a).settle()

        assert a.recovered == lab.lockd.sessions.killed == []
        assert (await lab.slot(b.slot.index)).is_in_use


async def test_whose_end_lockd_has_seen_is_recovered_at_once(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a = await lab.host("a")
        before = trio.current_time()

        await roll_call(a).settle()

        assert a.recovered == [dead.slot.index]
        assert trio.current_time() - before < 0.1


async def test_who_died_recovering_another_is_recovered_first(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        b = await killed_recovering(lab, dead)
        a = await lab.host("a")

        await roll_call(a).settle()

        assert a.recovered == [b.slot.index, dead.slot.index]


async def test_after_a_power_cut_and_without_lockds_memory_all_are_recovered_after_a_lease(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        b = await killed_recovering(lab, dead)
        c = await killed(lab, "c")
        a = await lab.host("a")
        await a.beat()
        forget_everybody_but(lab, a)
        before = trio.current_time()

        await roll_call(a).settle()

        assert sorted(a.recovered) == sorted([dead.slot.index, b.slot.index, c.slot.index])
        assert a.recovered.index(b.slot.index) < a.recovered.index(dead.slot.index)
        assert LEASES.lease <= trio.current_time() - before <= LEASES.lease + 2 * LEASES.interval


async def test_a_living_hosts_recovery_is_waited_for(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a, b = await lab.host("a"), await lab.host("b")
        await a.beat()
        await b.beat()

        async def slowly() -> None:
            await trio.sleep(40)

        b.during_replay = slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.on_recover, dead.slot.index, dead.slot.record)
            await wait_all_tasks_blocked()

            await roll_call(a).settle()

            assert b.recovered == [dead.slot.index]
        assert not (await lab.slot(dead.slot.index)).is_in_use
        assert a.recovered == lab.lockd.sessions.killed == []


async def test_a_living_hosts_recovery_that_never_ends_is_named(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a, b = await lab.host("a"), await lab.host("b")
        await a.beat()
        await b.beat()
        b.during_replay = trio.sleep_forever
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.on_recover, dead.slot.index, dead.slot.record)
            await wait_all_tasks_blocked()
            before = trio.current_time()

            with pytest.raises(LockBusy, match=r"host-b .* is recovering host-dead") as caught:
                await roll_call(a).settle()

            assert "host-b" in caught.value.holder
            assert trio.current_time() - before >= RECOVERY_SECONDS_MAX
            nursery.cancel_scope.cancel()
        assert lab.lockd.sessions.killed == []


async def test_a_host_that_hangs_recovering_another_is_fenced_after_its_lease(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a, b = await lab.host("a"), await lab.host("b")
        await a.beat()
        await b.beat()
        b.during_replay = trio.sleep_forever
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.on_recover, dead.slot.index, dead.slot.record)
            await wait_all_tasks_blocked()
            b.freeze()
            before = trio.current_time()

            await roll_call(a).settle()

            assert trio.current_time() - before >= LEASES.lease
            nursery.cancel_scope.cancel()
        assert lab.lockd.sessions.killed == [b.process]
        assert a.recovered == [b.slot.index, dead.slot.index]


async def test_a_host_that_lockd_does_not_know_and_that_beats_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        await a.beat()
        ghost = await haunt(lab)

        async def beat() -> None:
            await trio.sleep(LEASES.lease - 1)
            await lab.write_slot(ghost.beaten(2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            await roll_call(a).settle()

        assert (await lab.slot(GHOST)).is_in_use
        assert a.recovered == []


async def test_who_cannot_be_told_dead_is_named_and_why(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        await a.beat()
        await haunt(lab)
        lab.lockd.sessions.strangers = ("pid 4711 (dd)",)

        with pytest.raises(LockBusy, match=r"slot 12 .*ghost \(pid 13\).*pid 4711 \(dd\)"):
            await roll_call(a).settle()

        assert a.recovered == []
        lab.lockd.sessions.strangers = ()
        await roll_call(a).settle()
        assert a.recovered == [GHOST]


async def test_slots_said_to_be_replayed_by_each_other_end_in_an_error(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a = await lab.host("a")
        ghost = await haunt(lab, replayer=dead.slot.record)
        await lab.write_slot(
            dead.slot.record.replaying(
                by=ghost.owner, by_offset=ghost.lv_offset, by_generation=ghost.generation
            )
        )

        with pytest.raises(LockBusy, match="replayed by each other"):
            await roll_call(a).settle()


async def test_a_replayer_that_left_its_slot_stands_in_nobodys_way(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        dead = await killed(lab, "dead")
        a = await lab.host("a")
        gone = dataclasses.replace(a.slot.record, lv_offset=slot_offset(GHOST), generation=5)
        await lab.write_slot(
            dead.slot.record.replaying(
                by=gone.owner, by_offset=gone.lv_offset, by_generation=gone.generation
            )
        )

        await roll_call(a).settle()

        assert a.recovered == [dead.slot.index]


# --- the mount ------------------------------------------------------------------------------------


async def in_use(lab: VolumeLab) -> int:
    return sum(slot.is_in_use for slot in await read_slots(await find_lv(lab.device), 64))


async def test_a_mount_is_refused_while_a_journal_may_have_to_be_replayed(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f", b"committed")
            await a.sync()
            lab.kill(a)
        lab.lockd.state.hosts.clear()  # the power was cut, and lockd's database is lost
        lab.lockd.sessions.strangers = ("pid 4711 (dd)",)

        with pytest.raises(LockBusy, match=r"a \(pid .*pid 4711 \(dd\)"):
            async with lab.host("b"):
                pass

        assert await in_use(lab) == 1  # of the dead; b has given its own back
        lab.lockd.sessions.strangers = ()
        async with lab.host("c") as c:
            assert await cat(c, b"f") == b"committed"
        assert await in_use(lab) == 0
        await lab.assert_clean()
