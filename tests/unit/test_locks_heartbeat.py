"""Heartbeat slots: choosing, taking, beating, losing, releasing."""

import dataclasses
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from lockd.client import StatusReport
from lockd.protocol.messages import HostStatus
from lockd.protocol.terms import HostEnd, PermitState
from tests.support.lockservice import LEASES, LOCKS_AT, SLOTS, Cluster, LockHost, cluster
from vmfs.errors import CorruptRecord, LeaseLost, LockBusy
from vmfs.ids import SlotIndex, VmfsUuid
from vmfs.locks.heartbeat import (
    HeartbeatSlot,
    Mount,
    choose_slot,
    foreign,
    needs_recovery,
    read_slots,
    unknown_to,
)
from vmfs.locks.service import has_ended
from vmfs.ondisk.heartbeat import Heartbeat, HostInfo, slot_offset

A, B, C = (VmfsUuid(letter * 16) for letter in (b"a", b"b", b"c"))


def info(nonce: int) -> HostInfo:
    return HostInfo(name="esx", pid=1, nonce=nonce, interval_ms=3000, lease_ms=16000)


def slot(index: int, owner: VmfsUuid | None = None, nonce: int = 1) -> Heartbeat:
    free = Heartbeat(lv_offset=slot_offset(index), generation=4)
    if owner is None:
        return free
    return free.acquired(
        owner=owner, stamp_us=1, journal_fb=1, journal_offset=512, host=info(nonce)
    )


def report(*hosts: tuple[VmfsUuid, int, HostEnd]) -> StatusReport:
    return StatusReport(
        incarnation=1,
        uptime=1.0,
        sessions=0,
        luns=(),
        waits=(),
        hosts=tuple(
            HostStatus(
                lun="ds1",
                host_uuid=owner.raw,
                name="esx",
                generation=1,
                nonce=nonce,
                pid=1,
                end=end,
                connected=False,
                permit=PermitState.HELD,
                since=0.0,
                silent=0.0,
                blocked=False,
                proof="",
            )
            for owner, nonce, end in hosts
        ),
    )


def test_free_slot_is_chosen_by_hashing_and_the_same_each_time() -> None:
    free = [slot(index) for index in range(16)]
    chosen = choose_slot(free, A)
    assert chosen is not None
    assert choose_slot(free, A) == chosen
    taken = [slot(i, B) if i == chosen.index else slot(i) for i in range(16)]
    second = choose_slot(taken, A)
    assert second is not None
    assert second.index != chosen.index
    assert choose_slot([slot(index, B) for index in range(16)], A) is None


def test_foreign_is_a_slot_in_use_without_our_tail() -> None:
    esxi = dataclasses.replace(slot(3, C), tail=bytes(348))
    assert foreign([slot(1), slot(2, B), esxi]) == [esxi]


def names(slots: Sequence[Heartbeat]) -> list[SlotIndex]:
    return [found.index for found in slots]


def test_dead_slots_are_those_that_lockd_saw_end() -> None:
    me = Mount(host_uuid=A, info=info(7))
    known = report((A, 7, HostEnd.OPEN), (B, 2, HostEnd.EXITED), (C, 3, HostEnd.OPEN))
    slots = [
        slot(0),
        slot(1, A, nonce=6),  # an earlier start of ours
        slot(2, A, nonce=7),  # ours
        slot(3, B, nonce=2),  # seen to exit
        slot(4, C, nonce=3),  # alive
        slot(5, C, nonce=2),  # an earlier start of one that is alive
        slot(6, VmfsUuid(b"d" * 16)),  # never heard of
        dataclasses.replace(slot(7, B), tail=bytes(348)),  # ESXi's, by the same uuid
    ]

    assert names(needs_recovery(slots, me=me, report=known)) == [1, 3, 5]
    assert names(unknown_to(slots, known)) == [6]


def test_host_with_two_records_has_ended_only_if_both_have() -> None:
    two = report((A, 1, HostEnd.EXITED), (A, 1, HostEnd.OPEN))
    assert not has_ended(two, owner=A, nonce=1)
    assert not has_ended(report(), owner=A, nonce=1)


def test_mount_needs_a_uuid_and_a_nonce() -> None:
    with pytest.raises(AssertionError):
        Mount(host_uuid=VmfsUuid.NIL, info=info(1))
    with pytest.raises(AssertionError):
        Mount(host_uuid=A, info=info(0))


async def test_slot_is_taken_with_a_new_generation(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")

        found = await lab.slot(a.slot.index)

        assert found == a.slot.record
        assert found.is_in_use
        assert found.generation == 1
        assert found.host is not None
        assert found.host.name == "host-a"
        assert found.journal_fb == 0x41 + a.slot.index
        assert lab.lockd.blocks["ds1"].sync_count == 1  # durable


async def test_generation_grows_over_release_and_acquisition(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        for generation in (1, 2, 3):
            a = await lab.host("a")
            assert a.slot.record.generation == generation
            await a.unmount()
        assert not (await lab.slot(a.slot.index)).is_in_use


async def test_hosts_that_mount_at_once_get_different_slots(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        hosts: list[LockHost] = []

        async def mount(name: str) -> None:
            hosts.append(await lab.host(name))

        async with trio.open_nursery() as nursery:
            for number in range(SLOTS):
                nursery.start_soon(mount, f"h{number}")

        assert {host.slot.index for host in hosts} == set(range(SLOTS))
        with pytest.RaisesGroup(
            pytest.RaisesExc(LockBusy, match="all 16 heartbeat slots"), flatten_subgroups=True
        ):
            await lab.host("one too many")


async def test_slot_without_a_journal_serves_who_must_recover_first(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a", slots=range(SLOTS, 2048))
        assert a.slot.index >= SLOTS
        await a.unmount()


async def test_beat_moves_the_stamp_and_nothing_else(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        before = await lab.slot(a.slot.index)
        await trio.sleep(3)

        await a.slot.beat()

        after = await lab.slot(a.slot.index)
        assert after.stamp_us > before.stamp_us
        assert after == dataclasses.replace(before, stamp_us=after.stamp_us)
        assert a.slot.beats == 1


async def test_beat_needs_no_reservation(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        b = await lab.host("b", reservation=True)
        before = b.permit.statistics().recalls

        await a.slot.beat()

        assert (await lab.slot(a.slot.index)) == a.slot.record
        assert b.permit.statistics().recalls == before


async def test_earlier_beat_that_was_not_heard_of_is_no_miscompare(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        await lab.write_slot(a.slot.record.beaten(12345))

        await a.slot.beat()

        assert a.slot.record == await lab.slot(a.slot.index)


async def test_beats_go_on_every_interval(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        lost: list[str] = []
        with trio.move_on_after(30.5):
            await a.slot.beat_forever(timing=LEASES, on_acknowledged=ignore, on_lost=lost.append)
        assert a.slot.beats == 11
        assert lost == []


def ignore(_: float) -> None:
    pass


async def lose(lab: Cluster, a: LockHost, image: bytes) -> list[str]:
    await lab.lv.write(a.slot.record.lv_offset, image)
    lost: list[str] = []
    with trio.fail_after(10):
        await a.slot.beat_forever(timing=LEASES, on_acknowledged=ignore, on_lost=lost.append)
    return lost


async def test_slot_that_is_replayed_by_another_is_lost(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        replayed = a.slot.record.replaying(by=B, by_offset=slot_offset(9), by_generation=1)

        (reason,) = await lose(lab, a, replayed.pack())

        assert "fenced" in reason
        assert await lab.slot(a.slot.index) == replayed


async def test_slot_that_was_recovered_is_lost(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        (reason,) = await lose(lab, a, a.slot.record.recovered().pack())
        assert "recovered" in reason
        with pytest.raises(LeaseLost):
            await a.slot.release()


async def test_slot_that_is_corrupt_is_lost_and_not_overwritten(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        (reason,) = await lose(lab, a, b"\xff" * 512)
        assert "corrupt" in reason
        assert await lab.lv.read(a.slot.record.lv_offset, 512) == b"\xff" * 512


async def test_beat_that_does_not_get_through_is_given_up_and_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lost: list[str] = []
        await b.beat()
        async with trio.open_nursery() as nursery:
            await b.client.reserve()  # and sits on it: a's beats wait
            assert not a.permit.statistics().waiting
            nursery.start_soon(beats, a, lost)
            await trio.sleep(20)
            assert a.slot.beats == 0
            await b.client.release()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

        assert a.slot.beats >= 2
        assert lost == []


@pytest.mark.parametrize("reservation", [False, True])
async def test_beat_under_way_puts_no_limit_on_the_release(
    autojump_clock: MockClock, *, reservation: bool
) -> None:
    async with cluster() as lab:
        a, b = await lab.host("a", reservation=reservation), await lab.host("b")
        until: list[float] = []

        async def beat() -> None:
            await a.slot.beat_forever(
                timing=LEASES, on_acknowledged=until.append, on_lost=a.lost.append
            )

        await b.client.reserve()  # the beat waits, and the release behind it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            await trio.sleep(1)
            begun = list(until)
            nursery.start_soon(a.slot.release)
            await trio.sleep(1)
            await b.client.release()

        assert a.slot.beats == 1
        assert until == begun
        assert a.lost == []
        assert not (await lab.slot(a.slot.index)).is_in_use


async def beats(host: LockHost, lost: list[str]) -> None:
    await host.slot.beat_forever(timing=LEASES, on_acknowledged=ignore, on_lost=lost.append)


async def test_beats_say_until_when_io_may_begin_from_their_start(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        until: list[float] = []
        began = trio.current_time()
        with trio.move_on_after(7):
            await a.slot.beat_forever(
                timing=LEASES, on_acknowledged=until.append, on_lost=a.lost.append
            )
        assert until == [began + 10, began + 10, began + 13, began + 16]


async def test_stopped_host_waits_and_resumes_with_its_next_beat(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        a.permit.acknowledged(good_until=a.slot.acknowledged + LEASES.stop)
        await trio.sleep(12)
        done: list[float] = []

        async def io() -> None:
            await a.device.read(0, 512)
            done.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(io)
            await trio.sleep(30)
            assert done == []
            assert a.permit.is_late
            await a.slot.beat()
            a.permit.acknowledged(good_until=a.slot.acknowledged + LEASES.stop)
        assert done == [trio.current_time()]
        assert a.lost == []


async def test_stopped_host_in_reservation_mode_can_still_beat(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        a.permit.acknowledged(good_until=trio.current_time())
        await trio.sleep(1)
        with trio.fail_after(1):
            await a.slot.beat()
        assert a.slot.record == await lab.slot(a.slot.index)


async def test_stopped_host_that_was_recovered_meanwhile_never_writes_again(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        a.permit.acknowledged(good_until=trio.current_time())

        async def io() -> None:
            with pytest.raises(LeaseLost):
                await a.device.write(LOCKS_AT, bytes(512))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(io)
            await trio.sleep(20)
            await lab.lv.write(a.slot.record.lv_offset, a.slot.record.recovered().pack())
            await a.slot.beat_forever(timing=LEASES, on_acknowledged=ignore, on_lost=a.permit.stop)


async def test_corrupt_slot_is_never_taken(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a")
        await lab.lv.write(slot_offset(5), bytes(512))

        with pytest.raises(CorruptRecord):
            await read_slots(a.device)
        with pytest.raises(CorruptRecord):
            await HeartbeatSlot.acquire(
                device=a.device,
                writer=a.writer,
                clock=trio.current_time,
                mount=Mount(host_uuid=A, info=info(1)),
                slots=range(SLOTS),
                journal=lambda _: (0, slot_offset(0)),
            )
