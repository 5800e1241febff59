"""The I/O permit, and the device behind it."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vmfs.device.memory import MemoryDevice
from vmfs.errors import LeaseLost
from vmfs.locks.permit import GuardedDevice, Permit, PermitState


class Told:
    """Counts how often the permit was returned."""

    def __init__(self) -> None:
        self.returned = 0

    def __call__(self) -> None:
        self.returned += 1


async def test_recall_of_an_idle_permit_is_answered_at_once() -> None:
    told = Told()
    permit = Permit(returned=told)

    permit.recall()

    assert told.returned == 1
    assert permit.state is PermitState.RETURNED


async def test_recall_waits_for_the_last_io_in_flight() -> None:
    told = Told()
    permit = Permit(returned=told)
    await permit.enter()
    await permit.enter()

    permit.recall()
    permit.exit()
    assert told.returned == 0
    permit.exit()

    assert told.returned == 1
    assert permit.state is PermitState.RETURNED


async def test_recalled_permit_keeps_new_io_waiting_until_granted() -> None:
    permit = Permit(returned=Told())
    permit.recall()
    done = []

    async def io() -> None:
        await permit.enter()
        done.append(True)
        permit.exit()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(io)
        await wait_all_tasks_blocked()
        assert not done
        assert permit.statistics().waiting == 1
        permit.grant()

    assert done
    assert permit.statistics().in_flight == 0


async def test_grant_before_the_drain_takes_the_recall_back() -> None:
    told = Told()
    permit = Permit(returned=told)
    await permit.enter()
    permit.recall()

    permit.grant()
    permit.exit()

    assert told.returned == 0
    assert permit.state is PermitState.GRANTED


async def test_second_recall_while_returned_is_answered_too() -> None:
    told = Told()
    permit = Permit(returned=told)
    permit.recall()

    permit.recall()

    assert told.returned == 2


async def test_permit_not_held_at_registration_waits() -> None:
    permit = Permit(returned=Told(), granted=False)
    with trio.move_on_after(0):
        await permit.enter()
    assert permit.statistics().in_flight == 0
    permit.grant()
    await permit.enter()


async def test_stop_fails_those_who_wait_and_those_who_come() -> None:
    permit = Permit(returned=Told())
    permit.recall()
    failed = []

    async def io() -> None:
        with pytest.raises(LeaseLost, match="fenced"):
            await permit.enter()
        failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(io)
        await wait_all_tasks_blocked()
        permit.stop("this host was fenced")

    assert failed
    with pytest.raises(LeaseLost):
        await permit.enter()
    with pytest.raises(LeaseLost):
        permit.check()


async def test_stop_is_final_and_its_first_reason_stays() -> None:
    permit = Permit(returned=Told())
    permit.check()
    permit.stop("one")
    permit.stop("two")
    permit.grant()

    assert permit.statistics().stop_reason == "one"
    assert permit.state is PermitState.STOPPED


async def test_stopped_permit_is_still_returned_when_drained() -> None:
    told = Told()
    permit = Permit(returned=told)
    await permit.enter()
    permit.stop("slot lost")

    permit.recall()
    assert told.returned == 0
    permit.exit()

    assert told.returned == 1
    assert permit.state is PermitState.STOPPED


async def test_exit_without_enter_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Permit(returned=Told()).exit()


async def test_every_verb_of_the_guarded_device_passes_the_permit(
    autojump_clock: MockClock,
) -> None:
    memory = MemoryDevice(1 << 20, name="lun")
    permit = Permit(returned=Told())
    device = GuardedDevice(memory, permit)
    await device.write(0, b"x" * 512)
    verbs = [
        lambda: device.read(0, 512),
        lambda: device.write(0, b"y" * 512),
        lambda: device.flush(),
        lambda: device.write_zeroes(0, 512),
        lambda: device.unmap(0, 512),
        lambda: device.copy(0, 4096, 512),
    ]

    permit.recall()
    for verb in verbs:
        with trio.move_on_after(1) as scope:
            await verb()
        assert scope.cancelled_caught

    assert await memory.read(0, 512) == b"x" * 512
    permit.grant()
    for verb in verbs:
        await verb()
    assert (device.size, device.name) == (1 << 20, "lun")
    assert permit.statistics().in_flight == 0
    permit.stop("fenced")
    for verb in verbs:
        with pytest.raises(LeaseLost):
            await verb()
    await device.aclose()


async def test_what_is_done_at_once_needs_the_permit_too() -> None:
    now = 0.0
    memory = MemoryDevice(1 << 20)
    permit = Permit(returned=Told(), clock=lambda: now)
    device = GuardedDevice(memory, permit)

    def is_done() -> bool:
        written = device.write_now(0, b"y" * 512)
        return written or device.read_now(0, 512) is not None

    permit.acknowledged(good_until=10.0)
    assert is_done()
    await memory.write(0, b"x" * 512)
    now = 10.0
    assert not is_done()  # the lease is over
    permit.acknowledged(good_until=20.0)
    permit.recall()
    assert not is_done()
    permit.grant()
    permit.stop("fenced")
    assert not is_done()
    assert await memory.read(0, 512) == b"x" * 512


async def test_failing_io_is_counted_out() -> None:
    class Broken(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes:
            raise OSError("no")

    permit = Permit(returned=Told())
    device = GuardedDevice(Broken(512), permit)

    with pytest.raises(OSError, match="no"):
        await device.read(0, 512)

    assert permit.statistics().in_flight == 0


async def test_io_waits_when_the_lease_is_over_and_goes_on_with_the_next_beat() -> None:
    now = 0.0
    permit = Permit(returned=Told(), clock=lambda: now)
    permit.acknowledged(good_until=10.0)
    await permit.enter()
    done = []

    async def io() -> None:
        await permit.enter()
        done.append(now)
        permit.exit()

    now = 10.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(io)
        await wait_all_tasks_blocked()
        assert permit.is_late
        assert permit.statistics().waiting == 1
        now = 12.0
        permit.acknowledged(good_until=22.0)
    permit.exit()

    assert done == [12.0]
    assert not permit.is_late


async def test_lease_that_is_over_does_not_keep_a_recall_from_its_answer() -> None:
    told, now = Told(), 0.0
    permit = Permit(returned=told, clock=lambda: now)
    permit.acknowledged(good_until=10.0)
    await permit.enter()
    now = 11.0

    permit.recall()
    permit.exit()

    assert told.returned == 1
    with trio.move_on_after(0) as scope:
        await permit.enter()
    assert scope.cancelled_caught


async def test_grant_alone_does_not_end_the_wait_for_a_beat() -> None:
    now = 0.0
    permit = Permit(returned=Told(), clock=lambda: now)
    permit.acknowledged(good_until=10.0)
    permit.recall()
    done = []

    async def io() -> None:
        await permit.enter()
        done.append(now)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(io)
        await wait_all_tasks_blocked()
        now = 11.0
        permit.grant()
        await wait_all_tasks_blocked()
        assert done == []
        await permit.enter_for_beat()
        permit.exit()
        permit.acknowledged(good_until=21.0)
    assert done == [11.0]


async def test_fence_ends_the_wait_for_a_beat() -> None:
    permit = Permit(returned=Told(), clock=lambda: 1.0)
    permit.acknowledged(good_until=0.5)

    async def io() -> None:
        with pytest.raises(LeaseLost, match="fenced"):
            await permit.enter()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(io)
        await wait_all_tasks_blocked()
        permit.stop("fenced")


def test_lease_clock_stands_still_without_the_permit_and_under_our_own_reservation() -> None:
    now = 0.0
    permit = Permit(returned=Told(), clock=lambda: now, interval=3.0)
    now = 5.0
    permit.recall()
    now = 20.0
    assert permit.lease_clock.read(now) == 5.0
    permit.grant()
    now = 24.0
    assert permit.lease_clock.read(now) == 6.0
    permit.reserve(held=True)
    now = 30.0
    permit.reserve(held=False)
    assert permit.lease_clock.read(now) == 6.0
