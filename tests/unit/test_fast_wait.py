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


async def test_fast_wait_goes_through_the_scheduler_first(pipe):
    waits = Waits(put_and_true(pipe))

    assert await FastWait(pipe.reader, waits, lambda: 1.0)()

    assert waits.count == 1


async def test_fast_wait_within_a_turn_polls_only(pipe):
    waits = Waits(put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, lambda: 1.0)
    await wait()

    assert await wait()

    assert waits.count == 1


async def test_fast_wait_after_a_turn_lets_the_scheduler_run_even_when_readable(pipe):
    now = [1.0]
    waits = Waits(put_and_true(pipe), lambda: True)
    wait = FastWait(pipe.reader, waits, lambda: now[0])
    await wait()

    now[0] += TURN_SECONDS
    assert await wait()

    assert waits.count == 2


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

    waits = Waits(put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, lambda: 1.0, others=JustBefore(scheduler))
    await wait()
    pipe.take()

    assert await wait()

    assert waits.count == 1


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


async def test_fast_wait_spins_when_told_to(pipe, scheduler):
    now = [1.0]

    def clock():
        now[0] += 0.00001
        if now[0] > 1.0004 and waits.count == 1:
            pipe.put()
        return now[0]

    waits = Waits(put_and_true(pipe), put_and_true(pipe))
    wait = FastWait(pipe.reader, waits, clock, others=Others(scheduler), spin_seconds=0.001)
    await wait()
    pipe.take()
    scheduler.put()  # looked at only after the spin

    assert await wait()

    assert waits.count == 1


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
