"""One opendir(3): its names with their attributes, looked at ahead of the reader.

A reply with names in it must be made without awaiting: what it lets the kernel keep has to hold
when it goes out. So attributes are fetched first, many names at once (each may be a question to
another host), and go into replies later, if the name still stands for the same node then.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from vmfs.errors import CorruptRecord, NotFound, StaleHandle, VmfsError
from vmfs.files.attributes import Attributes, ListedName
from vmfs.fuse.tree import NamedNode, Tree, TreeDirectory
from vmfs.ids import FdAddress

log = logging.getLogger("vmfs.fuse")

AHEAD_MAX: Final = 256
"""Names looked at ahead of the reader."""

HOLDS_SECONDS: Final = 0.25
"""How long locks are taken for a reader before it gets what is known without them."""

LOOKS_MAX: Final = 32
"""Looks under way at once, for one reader: enough to keep lockd and the LUN busy."""

Names = Sequence[tuple[int, ListedName]]
"""Names in their order, each with the position to go on at after it."""

Looked = Attributes | ListedName | None
"""Attributes; the name itself, when its descriptor is damaged; None, when it is gone.

One damaged descriptor must not hide all its neighbours: it is listed by number and type, and
stat(2) on it says what is wrong.
"""


class Listing:
    """Names of one directory, from any position on."""

    def __init__(
        self, tree: Tree, directory: TreeDirectory, address: FdAddress, *, reader: int
    ) -> None:
        """Nothing is read yet. `reader` is the thread id of who opened it; 0 if that is unknown."""
        self._tree = tree
        self._directory = directory
        self.address = address
        self.reader = reader
        self._ahead: dict[bytes, Attributes | ListedName] = {}  # looked at, not asked for yet
        self._told: FdAddress | None = None  # the first of the names that were told last

    async def names(self, position: int) -> Names:
        """Some names from a position on; none at the end. See `TreeDirectory.read`."""
        return await self._directory.read(position)

    def at_hand(self, names: Names) -> Iterator[tuple[int, ListedName, NamedNode | None]]:
        """What `names` stand for now (None: nothing), if this host knows. Await nothing meanwhile.

        Nothing at all comes of it when this host does not hold the directory.
        """
        entries = self._tree.entries_held(self.address)
        if entries is not None:
            for following, listed in names:
                yield following, listed, entries.find(listed.name)

    def looked_at(self, name: bytes, node: NamedNode) -> Looked:
        """What is known of the node that the name stands for; None: it was not looked at yet."""
        held = self._tree.attributes_held(node.address, node.generation)
        if held is not None:
            return held
        looked = self._ahead.get(name)
        same = looked and (looked.address, looked.generation) == (node.address, node.generation)
        return looked if same else None

    async def look_ahead(self, names: Names) -> None:
        """Look at the first of `names` that were not looked at, all at once.

        If the reader asks for the attributes of what it was told (as `ls -l` does) it will ask for
        these, too, and again: then this host takes their locks, where they are not in use; but no
        more of them for a directory that another host is waiting for, or after a while. What cannot
        be looked at now is left out: stat(2) will say why.
        """
        until = trio.current_time() + HOLDS_SECONDS
        takes = self._told is not None and self._tree.is_looked_at(self._told)
        queue = [
            listed
            for _, listed, node in self.at_hand(names[:AHEAD_MAX])
            if node is not None and self.looked_at(listed.name, node) is None
        ]
        queue.reverse()
        self._ahead.clear()

        async def look() -> None:
            while queue:
                name = queue[-1].name
                try:
                    looked = await self._look(queue.pop())
                    if takes and isinstance(looked, Attributes) and self._may_hold(until):
                        await self._tree.hold(looked.address)
                except VmfsError as error:
                    log.debug("not listed ahead: name=%r: %s", name, error)
                    continue
                if looked is not None:
                    self._ahead[name] = looked

        async with trio.open_nursery() as nursery:
            for _ in range(min(LOOKS_MAX, len(queue))):
                nursery.start_soon(look)

    def told(self, first: FdAddress) -> None:
        """A reply goes out; its first name stands for this node."""
        self._told = first

    async def release(self) -> None:
        """Close."""
        await self._directory.release()

    def _may_hold(self, until: float) -> bool:
        return trio.current_time() < until and self._tree.tenure(self.address) != 0

    async def _look(self, listed: ListedName) -> Looked:
        """By name, not by address: another host may have given the address to a new file.

        It is the look at the name that tells which of the two is meant from now on.
        """
        try:
            return await self._tree.lookup(self.address, listed.name)
        except (NotFound, StaleHandle):
            return None
        except CorruptRecord as error:
            log.error("failed: verb=readdir name=%r: %s", listed.name, error)
            return listed
