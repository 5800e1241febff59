"""One at a time, for who is mostly alone: a lock that costs nothing while nobody has it."""

from types import TracebackType

import trio


class Turn:
    """As `trio.Lock`, in the order of arrival, but taking it while it is free does not yield.

    `trio.Lock.acquire` always goes once round the loop, which costs more than what a lone `fsync`
    does itself. So it is for work that waits anyway: who takes it again and again, and never waits
    in between, keeps the loop for himself.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        """Nobody's."""
        self._lock = trio.Lock()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self._lock.locked()

    async def __aenter__(self) -> None:
        """Take it.

        Raises:
            trio.Cancelled: it was not taken.
        """
        if self._lock.locked():
            await self._lock.acquire()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._lock.acquire_nowait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give it to who waits longest; does not yield."""
        self._lock.release()
