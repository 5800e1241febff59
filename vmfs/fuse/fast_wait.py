"""Waiting for the next request with one poll(2) where that is enough.

pyfuse3 goes through trio's scheduler and two epoll calls for every request. `FastWait` looks first
whether a request is there already; and where no other task could run, it waits for the next one
itself, in a poll(2) that anything the scheduler waits for ends as well. It stands in for
`pyfuse3._wait_fuse_readable`, a module global that pyfuse3 looks up at each call, and hands on to
it whenever that finds nothing.

Three rules:

* The loop belongs to everybody. After `TURN_SECONDS` without a pass through the scheduler, one is
  taken, whatever is waiting: lock renewals must not wait behind a stream of writes. A time-out of
  another task can be late by that much.
* Never wait while another task can run (`OtherTasks` knows). A worker that would only wait for
  the next request, too, does not count: pyfuse3 wakes one for each request that was waited for in
  the scheduler. If it were given the turn, the two would take turns for ever, each request through
  the scheduler and a processor that fell asleep there.
* Never let libfuse read when there is nothing: its read(2) blocks the whole loop until the next
  request. Between the scheduler's "readable" and the read, another worker may have taken the
  request, or its caller was killed. So the last look is always one that nothing comes after.
"""

import math
import select
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pyfuse3
import trio

from vmfs.errors import NotSupported
from vmfs.fuse.descriptors import descriptors_of

TURN_SECONDS: Final = 0.002
"""Longest time between two passes through the scheduler; one request of 1 MiB takes 0.3 ms."""

_WAIT: Final = "_wait_fuse_readable"
_SCHEDULER: Final = "anon_inode:[eventpoll]"


class OtherTasks(trio.abc.Instrument):
    """Which tasks could run now; and the descriptor that is readable when more of them can.

    trio's epoll descriptor is that: input and output, what threads and signals have to say.
    """

    def __init__(self, fd: int) -> None:
        """`fd` is the scheduler's epoll descriptor."""
        self.fd = fd
        self.understudies: set[trio.lowlevel.Task] = set()
        """Tasks that would do no more than who asks: those are not counted."""
        self._runnable: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """`task` waits for its turn."""
        if task not in self.understudies:
            self._runnable.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """It is its turn."""
        self._runnable.discard(task)

    @property
    def can_run(self) -> bool:
        """A task besides the running one waits for its turn."""
        return bool(self._runnable)


class FastWait:
    """Called by pyfuse3's workers: True when a request can be read, False when it is all over."""

    def __init__(
        self,
        fd: int,
        wait: Callable[[], Awaitable[bool]],
        clock: Callable[[], float],
        *,
        others: OtherTasks | None = None,
        spin_seconds: float = 0.0,
    ) -> None:
        """Stand in for `wait`.

        Args:
            fd: of the session.
            wait: pyfuse3's own function.
            clock: monotonic seconds.
            others: None where nobody can tell; then the scheduler does all the waiting.
            spin_seconds: how long to look again and again before going to sleep, as long as
                requests come within that time. It saves the wake-up of a sleeping processor, and
                costs that much of one whenever requests stop.
        """
        self._fd = fd
        self._wait = wait
        self._clock = clock
        self._others = others
        self._spin_seconds = spin_seconds
        self._turn_ends = 0.0
        self._came_soon = False  # the last request that was waited for, within the time of a spin
        self._session = select.poll()
        self._session.register(fd, select.POLLIN)
        self._anything = select.poll()
        self._anything.register(fd, select.POLLIN)
        if others is not None:
            self._anything.register(others.fd, select.POLLIN)

    async def __call__(self) -> bool:
        """Wait for a request, or for the end of the session."""
        if self._clock() >= self._turn_ends:
            await trio.lowlevel.checkpoint()
            self._turn_ends = self._clock() + TURN_SECONDS
        if self._is_readable() or self._comes_soon():
            return True
        while await self._wait_in_scheduler():
            self._turn_ends = self._clock() + TURN_SECONDS
            if self._is_readable():
                return True
        return False

    async def _wait_in_scheduler(self) -> bool:
        if self._others is None:
            return await self._wait()
        task = trio.lowlevel.current_task()
        self._others.understudies.add(task)
        try:
            return await self._wait()
        finally:
            self._others.understudies.discard(task)

    def _is_readable(self) -> bool:
        events = self._session.poll(0)
        return bool(events) and not events[0][1] & select.POLLNVAL

    def _comes_soon(self) -> bool:
        """Wait in place of the scheduler for the rest of the turn, if it had nothing else to do."""
        if self._others is None or self._others.can_run:
            return False
        began = self._clock()
        came = (self._came_soon and self._spin(began)) or self._sleep(began)
        self._came_soon = came and self._clock() < began + self._spin_seconds
        return came

    def _spin(self, began: float) -> bool:
        ends = min(began + self._spin_seconds, self._turn_ends)
        while self._clock() < ends:
            if self._is_readable():
                return True
        return False

    def _sleep(self, began: float) -> bool:
        left = math.ceil((self._turn_ends - began) * 1000)  # poll(2) counts milliseconds
        return any(
            fd == self._fd and not event & select.POLLNVAL
            for fd, event in self._anything.poll(max(left, 0))
        )


def install(
    fd: int, clock: Callable[[], float], *, spin_seconds: float = 0.0
) -> Callable[[], None]:
    """Put it into pyfuse3, after `pyfuse3.init` and inside trio. Returns what takes it out again.

    Args:
        fd: the session's.
        clock: monotonic seconds.
        spin_seconds: see `FastWait`.

    Raises:
        NotSupported: this pyfuse3 is built otherwise.
    """
    module: Any = pyfuse3
    original = getattr(module, _WAIT, None)
    if original is None:
        raise NotSupported(f"pyfuse3 {pyfuse3.__version__} cannot be waited for with poll")
    schedulers = descriptors_of(_SCHEDULER)
    others = OtherTasks(schedulers.pop()) if len(schedulers) == 1 else None
    if others is not None:
        trio.lowlevel.add_instrument(others)
    wait = FastWait(fd, original, clock, others=others, spin_seconds=spin_seconds)
    setattr(module, _WAIT, wait)

    def restore() -> None:
        setattr(module, _WAIT, original)
        if others is not None:
            trio.lowlevel.remove_instrument(others)

    return restore
