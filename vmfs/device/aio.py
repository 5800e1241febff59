"""Waiting for the kernel without a thread: requests of one file, and who is told that they ended.

What carries them is Linux AIO, or io_uring where it is only to read (`vmfs.device.linux_uring`).

There is no task in the background. Of those who wait, one (the *leader*) waits for the eventfd; it
collects whatever has completed, wakes whose it is, and hands the lead on when its own is done. So
a lone request costs one wake-up, and a queue has no life of its own that somebody must end.

A request that was started is waited for, whatever is cancelled meanwhile: the kernel still reads or
writes its memory. So whoever counts I/O around it (the permit) counts it until it has ended.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio

from vmfs.device.linux_aio import AioContext

DEPTH: Final = 64
"""Requests in flight per device; what more there are wait here, in their order."""

RETRY_SECONDS: Final = 0.001
"""Until the next try when the layer below has no room and nothing of ours is in flight."""


class Context(Protocol):
    """Room for requests in the kernel: an `AioContext` or a `UringContext`."""

    event_fd: int

    def submit(  # noqa: PLR0913 - the fields of one request
        self, slot: int, opcode: int, fd: int, *, address: int, length: int, offset: int
    ) -> None:
        """Start a request in a slot of the caller's choice."""
        ...

    def completed(self) -> list[tuple[int, int]]:
        """Slot and result of what has ended since the last call."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class AioQueue:
    """Requests to one file descriptor, which is not owned."""

    def __init__(
        self, fd: int, *, depth: int = DEPTH, context: Callable[[int], Context] | None = None
    ) -> None:
        """Make room for `depth` requests, with `context` (Linux AIO).

        Raises:
            OSError: the machine has no room for them, or nothing of the kind.
            Unsupported: a kind of machine that we do not know.
        """
        self._fd = fd
        self._context = (context or AioContext)(depth)
        self._free = deque(range(depth))
        self._results: list[int | None] = [None] * depth
        self._sleepers: dict[int, trio.lowlevel.Task] = {}  # by slot: who waits for what
        self._room = trio.Semaphore(depth)  # who came first is first, also before who comes back
        self._ended = trio.lowlevel.ParkingLot()
        self._is_led = False

    @property
    def in_flight(self) -> int:
        """Requests that the kernel has."""
        return len(self._results) - len(self._free)

    @trio.lowlevel.enable_ki_protection
    async def transfer(
        self, opcode: int, *, address: int = 0, length: int = 0, offset: int = 0
    ) -> int:
        """Do one request. The memory must stay until this returns, which no cancellation hastens.

        Returns:
            Bytes moved; they may be fewer than `length`.

        Raises:
            OSError: the request failed.
            trio.Cancelled: it was not started.
        """
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        try:
            slot = await self._start(opcode, address, length, offset)
            try:
                result = await self._result(slot)
            finally:
                self._free.append(slot)
                self._ended.unpark_all()
        finally:
            self._room.release()
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    async def transfer_all(self, opcode: int, *, address: int, length: int, offset: int) -> int:
        """As `transfer`, but what the kernel leaves over is asked for again.

        Returns:
            Bytes moved; fewer than `length` only where the file ends.
        """
        done = 0
        while done < length:
            moved = await self.transfer(
                opcode, address=address + done, length=length - done, offset=offset + done
            )
            if moved == 0:
                break
            done += moved
        return done

    def close(self) -> None:
        """Give the context back; nothing may be in flight."""
        assert not self.in_flight, "closed with requests in flight"
        self._context.close()

    async def _start(self, opcode: int, address: int, length: int, offset: int) -> int:
        """Submit, as soon as there is room below; the slot it is in."""
        while True:
            slot = self._free.popleft()
            self._results[slot] = None
            try:
                self._context.submit(
                    slot, opcode, self._fd, address=address, length=length, offset=offset
                )
            except OSError as error:
                self._free.append(slot)
                if error.errno != errno.EAGAIN:
                    raise
            else:
                return slot
            if self.in_flight:
                await self._ended.park()
            else:
                await trio.sleep(RETRY_SECONDS)

    async def _result(self, slot: int) -> int:
        """Wait until the request in `slot` has ended. Never raises, cannot be cancelled."""
        while (result := self._results[slot]) is None:
            if self._is_led:
                self._sleepers[slot] = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(_not_aborted)
            else:
                await self._lead()
        if not self._is_led and self._sleepers:
            _, successor = self._sleepers.popitem()
            trio.lowlevel.reschedule(successor)
        return result

    async def _lead(self) -> None:
        """Wait for completions, and tell those whose they are."""
        self._is_led = True
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._context.event_fd)
        self._is_led = False
        for slot, result in self._context.completed():
            self._results[slot] = result
            sleeper = self._sleepers.pop(slot, None)
            if sleeper is not None:
                trio.lowlevel.reschedule(sleeper)


def _not_aborted(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
