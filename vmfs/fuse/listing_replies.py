"""The replies to READDIRPLUS: what goes in, what it counts, and what the kernel may keep of it.

What is at hand goes out at once, without awaiting, and may be kept; what is not is looked at first
(`listing`). Of what even then is not sure only the names are told: a listing that is taken in gives
a name the epoch of that moment, and the reply to a LOOKUP from before may still come to say that it
may be kept. So such an entry is made so that the kernel tells its reader and takes nothing in.
"""

import stat
from collections.abc import Callable

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from vmfs.errors import NotFound, StaleHandle
from vmfs.files.attributes import ROOT_ADDRESS, Attributes, ListedName
from vmfs.fuse import known_nodes
from vmfs.fuse.kernel_cache import KernelCache
from vmfs.fuse.known_nodes import KnownNodes
from vmfs.fuse.listing import Listing, Names
from vmfs.fuse.translate import bare_entry, entry_of
from vmfs.fuse.tree import Tree
from vmfs.ids import FdAddress

_DOT, _DOT_DOT, _FIRST_NAME = 0, 1, 2
"""Positions in a listing: `.`, `..`, and from 2 on the directory's own, moved up by 2."""


class ListingReplies:
    """Makes the replies of one mount's listings."""

    def __init__(
        self,
        tree: Tree,
        known: KnownNodes,
        cache: KernelCache,
        see: Callable[[Attributes], None],
    ) -> None:
        """Everything belongs to the mount.

        Args:
            tree: what is listed.
            known: where each name that is told counts as a lookup.
            cache: says how long the kernel may keep what it is told.
            see: called with the attributes that are told.
        """
        self._tree = tree
        self._known = known
        self._cache = cache
        self._see = see

    async def reply(self, fh: int, listing: Listing, start: int, token: ReaddirToken) -> None:
        """List names with their attributes; each entry that fits counts as a lookup.

        Args:
            fh: the handle of `listing`.
            listing: the open directory.
            start: the position to go on at, as an earlier reply said; 0 at first.
            token: pyfuse3's, for the reply.
        """
        if start <= _DOT_DOT and not await self._dots(listing.address, start, token):
            return
        names = await listing.names(max(start - _FIRST_NAME, 0))
        if self._at_hand(fh, listing, names, token):
            return
        await listing.look_ahead(names)
        if not self._at_hand(fh, listing, names, token):
            await self._names_only(listing, names, token)

    async def _dots(self, directory: FdAddress, start: int, token: ReaddirToken) -> bool:
        """Reply with `.` and `..`, as far as they are still to come. Whether all of them fitted."""
        own = known_nodes.inode_of(directory, root=ROOT_ADDRESS)
        if start == _DOT and not pyfuse3.readdir_reply(
            token, b".", bare_entry(own, stat.S_IFDIR), _DOT_DOT
        ):
            return False
        try:
            above = (await self._tree.lookup(directory, b"..")).address
        except (NotFound, StaleHandle):
            above = directory  # removed while it is being listed
        inode = known_nodes.inode_of(above, root=ROOT_ADDRESS)
        return pyfuse3.readdir_reply(token, b"..", bare_entry(inode, stat.S_IFDIR), _FIRST_NAME)

    def _at_hand(self, fh: int, listing: Listing, names: Names, token: ReaddirToken) -> bool:
        """Reply with the first of `names`, as far as all is known of them.

        Returns:
            Whether there is anything in the reply, which then must go out at once.
        """
        directory = listing.address
        lasting = self._cache.name_seconds(directory, self._tree.tenure(directory))
        replied = False
        for following, listed, node in listing.at_hand(names):
            if node is None:
                continue  # deleted since
            entry = self._cache.entry(node) if lasting else None
            if entry is None:
                looked = listing.looked_at(listed.name, node)
                if looked is None:
                    break
                entry = self._entry_of(looked, lasting)
            if not pyfuse3.readdir_reply(token, listed.name, entry, following + _FIRST_NAME):
                break
            self._known.add(
                node.address, parent=directory, name=listed.name, generation=node.generation
            )
            if not replied:
                listing.told(node.address)
            replied = True
        if replied and lasting:
            self._cache.listing_sent(fh, directory, reader=listing.reader)
        return replied

    async def _names_only(self, listing: Listing, names: Names, token: ReaddirToken) -> None:
        """Reply with names and types; the kernel gives each node back at once (FORGET)."""
        while names:
            for following, listed in names:
                inode = known_nodes.inode_of(listed.address, root=ROOT_ADDRESS)
                entry = bare_entry(inode, listed.type_bits)
                if not pyfuse3.readdir_reply(token, listed.name, entry, following + _FIRST_NAME):
                    return
                self._known.lend(
                    listed.address,
                    parent=listing.address,
                    name=listed.name,
                    generation=listed.generation,
                )
            names = await listing.names(names[-1][0])

    def _entry_of(self, looked: Attributes | ListedName, lasting: float) -> EntryAttributes:
        """What a listing says of a name, which may be kept for so long."""
        if isinstance(looked, ListedName):
            inode = known_nodes.inode_of(looked.address, root=ROOT_ADDRESS)
            return bare_entry(inode, looked.type_bits)
        self._see(looked)
        attribute_seconds = self._cache.attribute_seconds(looked)
        entry = entry_of(looked, name_seconds=lasting, attribute_seconds=attribute_seconds)
        if lasting and attribute_seconds:
            self._cache.remember(looked.address, entry)
        return entry
