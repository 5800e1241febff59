"""FastWait: never says readable when nothing is, and lets the scheduler run."""

import os

import pytest

from vmfs.fuse.fast_wait import TURN_SECONDS, FastWait


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
