"""Whoever keeps copies of what this floor has told: for a mount, the kernel's caches.

A copy made under a node's lock stays true for as long as this host stands in the lock's record
(`Namespace.tenure`) and changes nothing itself. A `Watcher` is told when either ends.
"""

from typing import Protocol

from vmfs.ids import FdAddress


class Watcher(Protocol):
    """Told about nodes, by the task that is at work on them."""

    def changed(self, address: FdAddress) -> None:
        """This host has changed the node in this very step. Must not await, fail, or be slow."""
        ...

    async def give_up(self, address: FdAddress) -> None:
        """The node's lock is about to be written free: drop what was copied under it, then return.

        Nothing is copied under it meanwhile, as its tenure is 0 already. Every host that wants
        the lock waits for this.
        """
        ...

    def lost(self) -> None:
        """This host may not touch the LUN any more: nothing that was copied is sure."""
        ...


class Unwatched:
    """`Watcher` where nothing is copied."""

    def changed(self, address: FdAddress) -> None:
        """Nothing to drop."""

    async def give_up(self, address: FdAddress) -> None:
        """Nothing to drop."""

    def lost(self) -> None:
        """Nothing to drop."""
