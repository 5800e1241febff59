"""Who on *this* host may look at one node, and who may change it: a reader/writer guard per node.

The cluster's locks decide between hosts; two tasks of one host share them. The guard decides
between those tasks: readers never see blocks freed under them, writes and truncations of one file
follow one another.

Order, without which two tasks could wait for each other for ever: cluster locks of file
descriptors first, then guards in the order of FD addresses, then resource clusters. A task that
waits for a guard may hold pins; a task that holds a guard waits only for resource clusters and for
the device.

Waiters are served in the order they came (readers that follow each other together), so neither
side starves. An uncontended guard costs no checkpoint: data operations are too frequent for one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(slots=True, eq=False)
class _Waiter:
    exclusive: bool
    event: trio.Event
    granted: bool = False


class Guard:
    """Many readers or one writer. Not reentrant."""

    __slots__ = ("_exclusive", "_readers", "_waiters")

    def __init__(self) -> None:
        self._readers = 0
        self._exclusive = False
        self._waiters: list[_Waiter] = []  # a deque has 600 bytes, and every known node a guard

    @property
    def idle(self) -> bool:
        """Nobody holds it and nobody waits for it."""
        return not (self._readers or self._exclusive or self._waiters)

    @property
    def free_to_read(self) -> bool:
        """A reader would not wait: no writer is in it, nobody waits. Until the next `await`."""
        return not (self._exclusive or self._waiters)

    def try_enter_shared(self) -> bool:
        """Enter as a reader if that needs no waiting."""
        if self._exclusive or self._waiters:
            return False
        self._readers += 1
        return True

    def try_enter_exclusive(self) -> bool:
        """Enter as the writer if that needs no waiting."""
        if self._exclusive or self._readers or self._waiters:
            return False
        self._exclusive = True
        return True

    async def enter_shared(self) -> None:
        """Enter as a reader; waits for a writer, and for those who came before."""
        if not self.try_enter_shared():
            await self._wait(exclusive=False)

    async def enter_exclusive(self) -> None:
        """Enter as the writer; waits for everybody who came before."""
        if not self.try_enter_exclusive():
            await self._wait(exclusive=True)

    def exit_shared(self) -> None:
        """Leave as a reader."""
        assert self._readers > 0
        self._readers -= 1
        self._serve()

    def exit_exclusive(self) -> None:
        """Leave as the writer."""
        assert self._exclusive
        self._exclusive = False
        self._serve()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Be a reader inside the block."""
        await self.enter_shared()
        try:
            yield
        finally:
            self.exit_shared()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Be the writer inside the block."""
        await self.enter_exclusive()
        try:
            yield
        finally:
            self.exit_exclusive()

    async def _wait(self, *, exclusive: bool) -> None:
        waiter = _Waiter(exclusive, trio.Event())
        self._waiters.append(waiter)
        try:
            await waiter.event.wait()
        except trio.Cancelled:
            if waiter.granted:
                self._leave(waiter)
            else:
                self._waiters.remove(waiter)
                self._serve()
            raise

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.exclusive:
            self.exit_exclusive()
        else:
            self.exit_shared()

    def _serve(self) -> None:
        """Grant to whoever is next: one writer, or all readers up to the next writer."""
        while self._waiters and not self._exclusive:
            waiter = self._waiters[0]
            if waiter.exclusive:
                if self._readers:
                    return
                self._exclusive = True
            else:
                self._readers += 1
            del self._waiters[0]
            waiter.granted = True
            waiter.event.set()
