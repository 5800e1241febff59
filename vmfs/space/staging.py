"""What this floor needs of the running transaction; `vmfs.txn.transaction.Transactions` is it."""

from collections.abc import Callable, Iterable
from typing import Protocol


class Staging(Protocol):
    """Metadata as this host sees it: the LUN, overlaid by what is staged and not yet in place."""

    async def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at LV offset `offset`, staged changes included."""
        ...

    def stage(self, offset: int, data: bytes) -> None:
        """Put whole sectors into the running transaction."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Drop what the running transaction has staged in a range that is being freed."""
        ...

    def is_live(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether a sector of these (LV offset, length) ranges is staged or in the live journal."""
        ...

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back once, when the transaction that runs now has committed and is in place."""
        ...

    async def commit(self) -> None:
        """Make everything staged so far durable."""
        ...

    async def checkpoint(self) -> None:
        """Commit, and leave nothing in the journal that could be replayed."""
        ...
