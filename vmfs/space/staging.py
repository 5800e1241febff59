"""What this floor needs of the two below it: the running transaction, and the locks of clusters.

`vmfs.txn.transaction.Transactions` is a `Staging`, every `vmfs.locks.base.Locks` a `ClusterLocks`.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from vmfs.locks.base import Pin
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import LockMode


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


class ClusterLocks(Protocol):
    """The locks of resource clusters, on this host."""

    def try_cached(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """Pin the lock if this host has it and is not giving it up."""
        ...

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin:
        """Have the lock and pin it; another host that merely caches it is asked for it.

        Raises:
            LockBusy: another host has it in use.
        """
        ...

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """As `acquire`, but None wherever another host would have to be waited for."""
        ...
