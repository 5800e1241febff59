"""FastWait: never says readable when nothing is, and lets the scheduler run."""

import os

import pytest
import trio
import trio.testing

from vmfs.fuse.fast_wait import TURN_SECONDS, FastWait, OtherTasks


class Pipe:
    def __init__(self):
        self.reader, self.writer = os.pipe()

    def put(self):
        os.write(self.writer, b"x")

    def take(self):
        os.read(self.reader, 1)

    def close(self):
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


class Waits:
    """Stands in for pyfuse3's wait: runs the next of `steps`, then answers."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.count = 0

    async def __call__(self):
        self.count += 1
        return self.steps.pop(0)()


def put_and_true(pipe):
    def step():
        pipe.put()
        return True

    return step


async def test_fast_wait_waits_in_the_scheduler_for_what_is_not_there_yet(pipe):
    waits = Waits(put_and_true(pipe))

    assert await FastWait(pipe.reader, waits, lambda: 1.0)()

    assert waits.count == 1


async def test_fast_wait_within_a_turn_polls_only(pipe):
    waits = Waits(put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, lambda: 1.0)
    await wait()

    assert await wait()

    assert waits.count == 1


async def test_fast_wait_after_a_turn_lets_the_others_run_even_when_readable(pipe):
    now = [1.0]
    waits = Waits(put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, lambda: now[0])
    await wait()
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        turns = 0
        assert await wait()
        assert turns == 0  # the turn has not ended
        for _ in range(2):  # trio runs what can run in any order: once may be before the other
            now[0] += TURN_SECONDS
            assert await wait()
        assert turns > 0
        nursery.cancel_scope.cancel()

    assert waits.count == 1  # of pyfuse3's own waiting there was no need


async def test_fast_wait_waits_again_when_another_worker_took_the_request(pipe):
    waits = Waits(lambda: True, lambda: True, put_and_true(pipe))

    assert await FastWait(pipe.reader, waits, lambda: 1.0)()

    assert waits.count == 3


async def test_fast_wait_at_the_end_of_the_session_is_false(pipe):
    waits = Waits(lambda: True, lambda: False)

    assert not await FastWait(pipe.reader, waits, lambda: 1.0)()


async def test_fast_wait_on_an_aborted_session_lets_libfuse_see_it():
    reader, writer = os.pipe()
    os.close(writer)  # hang-up: poll reports it without POLLIN, as for an aborted connection

    assert await FastWait(reader, Waits(lambda: True), lambda: 1.0)()

    os.close(reader)


class Others:
    """Stands in for `OtherTasks`: a pipe that is readable when the scheduler has something."""

    def __init__(self, pipe):
        self.fd = pipe.reader
        self.can_run = False
        self.understudies = set()


@pytest.fixture
def scheduler():
    pipe = Pipe()
    yield pipe
    pipe.close()


async def test_fast_wait_waits_itself_where_nobody_else_could_run(pipe, scheduler):
    class JustBefore(Others):
        """A request that comes after the first look."""

        @property
        def can_run(self):
            pipe.put()
            return False

        @can_run.setter
        def can_run(self, value):
            pass

    waits = Waits()

    assert await FastWait(pipe.reader, waits, lambda: 1.0, others=JustBefore(scheduler))()

    assert waits.count == 0


@pytest.mark.parametrize("busy", [True, False])
async def test_fast_wait_leaves_to_the_scheduler_what_is_the_schedulers(pipe, scheduler, busy):
    """Another task can run, or something besides a request has come."""
    waits = Waits(put_and_true(pipe), put_and_true(pipe))
    others = Others(scheduler)
    wait = FastWait(pipe.reader, waits, lambda: 1.0, others=others)
    await wait()
    pipe.take()
    others.can_run = busy
    if not busy:
        scheduler.put()

    assert await wait()

    assert waits.count == 2


async def test_fast_wait_waits_no_longer_than_its_turn(pipe, scheduler):
    waits = Waits(put_and_true(pipe), put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, lambda: 1.0, others=Others(scheduler))
    await wait()
    pipe.take()

    assert await wait()  # nothing comes: 2 ms later it is the scheduler's turn

    assert waits.count == 2


class Clock:
    """Goes on by 10 us with each look; at `arrives_at` a request comes."""

    def __init__(self, pipe):
        self.now, self.arrives_at, self.pipe = 1.0, None, pipe

    def __call__(self):
        self.now += 0.00001
        if self.arrives_at is not None and self.now > self.arrives_at:
            self.arrives_at = None
            self.pipe.put()
        return self.now


class Sleeps:
    """Stands in for the poll that sleeps; the request comes while it does, so much later."""

    def __init__(self, clock, pipe, seconds):
        self.clock, self.pipe, self.seconds, self.count = clock, pipe, seconds, 0

    def __call__(self, began):
        self.count += 1
        self.clock.now += self.seconds
        self.pipe.put()
        return True


@pytest.mark.parametrize(("gap", "spins"), [(0.0001, True), (0.0009, False)])
async def test_fast_wait_spins_as_long_as_requests_come_within_that_time(
    pipe, scheduler, monkeypatch, gap, spins
):
    clock = Clock(pipe)
    wait = FastWait(pipe.reader, Waits(), clock, others=Others(scheduler), spin_seconds=0.0005)
    sleeps = Sleeps(clock, pipe, gap)
    monkeypatch.setattr(wait, "_sleep", sleeps)
    assert await wait()  # slept for: nothing was known yet
    pipe.take()

    clock.arrives_at = clock.now + 0.0002
    assert await wait()

    assert sleeps.count == (1 if spins else 2)


async def test_fast_wait_stops_spinning_with_the_first_that_is_late(pipe, scheduler, monkeypatch):
    clock = Clock(pipe)
    wait = FastWait(pipe.reader, Waits(), clock, others=Others(scheduler), spin_seconds=0.0002)
    sleeps = Sleeps(clock, pipe, 0.0001)
    monkeypatch.setattr(wait, "_sleep", sleeps)
    assert await wait()
    pipe.take()
    began = clock.now
    assert await wait()  # spins in vain, then sleeps
    pipe.take()
    assert (sleeps.count, clock.now - began >= 0.0003) == (2, True)

    began = clock.now
    assert await wait()

    assert sleeps.count == 3
    assert clock.now - began < 0.0002  # at once


async def test_fast_wait_spins_no_longer_than_its_turn(pipe, scheduler, monkeypatch):
    clock = Clock(pipe)
    wait = FastWait(
        pipe.reader, Waits(), clock, others=Others(scheduler), spin_seconds=10 * TURN_SECONDS
    )
    sleeps = Sleeps(clock, pipe, 0)
    monkeypatch.setattr(wait, "_sleep", sleeps)
    assert await wait()
    pipe.take()
    began = clock.now

    assert await wait()

    assert sleeps.count == 2
    assert clock.now - began < 1.1 * TURN_SECONDS


async def test_two_workers_of_one_session_do_not_take_turns(pipe, scheduler):
    """pyfuse3's wait wakes the next worker when it ends, who would only wait, too."""
    lock, waited = trio.Lock(), 0

    async def wait_as_pyfuse3_does():
        nonlocal waited
        async with lock:
            waited += 1
            await trio.lowlevel.wait_readable(pipe.reader)
            return True

    others = OtherTasks(scheduler.reader)
    wait = FastWait(pipe.reader, wait_as_pyfuse3_does, lambda: 1.0, others=others)
    sleep, answered = wait._sleep, 0

    def sleep_until_the_next(began):
        if answered:
            pipe.put()
        return sleep(began)

    wait._sleep = sleep_until_the_next

    async def work():
        nonlocal answered
        while answered < 20 and await wait():
            pipe.take()
            answered += 1
        nursery.cancel_scope.cancel()

    trio.lowlevel.add_instrument(others)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                nursery.start_soon(work)
                await trio.testing.wait_all_tasks_blocked()
                pipe.put()
    finally:
        trio.lowlevel.remove_instrument(others)

    assert answered == 20
    assert waited == 2  # each once: 18 requests were waited for without the scheduler


async def test_other_tasks_are_those_that_wait_for_their_turn(scheduler):
    others = OtherTasks(scheduler.reader)
    trio.lowlevel.add_instrument(others)
    try:
        assert not others.can_run
        async with trio.open_nursery() as nursery:
            event = trio.Event()
            nursery.start_soon(event.wait)
            assert others.can_run
            await trio.testing.wait_all_tasks_blocked()
            assert not others.can_run
            event.set()
            assert others.can_run
    finally:
        trio.lowlevel.remove_instrument(others)


async def test_another_worker_that_would_wait_too_is_no_other_task(scheduler):
    others = OtherTasks(scheduler.reader)
    trio.lowlevel.add_instrument(others)
    try:
        async with trio.open_nursery() as nursery:
            event = trio.Event()

            async def understudy():
                others.understudies.add(trio.lowlevel.current_task())
                await event.wait()

            nursery.start_soon(understudy)
            await trio.testing.wait_all_tasks_blocked()
            event.set()
            assert not others.can_run
    finally:
        trio.lowlevel.remove_instrument(others)
