"""Names of what is there already: one more, one less.

An operation looks up first, holding nothing; then it takes all the locks it turned out to need, in
order; then it looks again. If the directory says something else by then, it starts over.
"""

from collections.abc import Awaitable, Callable

from vmfs.errors import (
    CorruptRecord,
    InvalidArgument,
    IsADirectory,
    LockBusy,
    NotEmpty,
    NotFound,
    NotPermitted,
    StaleHandle,
    TooManyLinks,
)
from vmfs.files.attributes import Attributes
from vmfs.files.dir_block import DOT, DOT_DOT
from vmfs.files.directory import ATTEMPTS_MAX, Directories, check_name, text
from vmfs.files.ground import Ground
from vmfs.files.inode import LINK_MAX, Inode
from vmfs.files.inode_table import InodeTable
from vmfs.files.removal import Removals
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import LockMode

_Act = Callable[[Inode, Inode], Awaitable[None]]
"""What to do with a directory and what a name stands for in it, both held exclusively."""


class Names:
    """link, unlink and rmdir of one open volume. Errors: as the same methods of `Namespace`."""

    def __init__(
        self, ground: Ground, table: InodeTable, directories: Directories, removals: Removals
    ) -> None:
        """Stand on `ground`; the rest is shared with the namespace."""
        self._ground = ground
        self._table = table
        self._directories = directories
        self._removals = removals

    async def link(self, address: FdAddress, parent: FdAddress, name: bytes) -> Attributes:
        """Give a file one more name."""
        self._ground.must_be_writable()
        check_name(name)
        wanted = {address: LockMode.EXCLUSIVE, parent: LockMode.EXCLUSIVE}
        async with self._table.held(wanted, label=text(name)) as nodes:
            inode, directory = nodes[address], nodes[parent]
            entries = await self._directories.entries(directory)
            if inode.is_directory:
                raise NotPermitted(f"{inode} is a directory")
            inode.must_not_be_system()
            entries.must_not_have(name)
            if inode.desc.link_count == 0:
                raise NotFound(f"{inode} has no name any more")
            if inode.desc.link_count >= LINK_MAX:
                raise TooManyLinks(f"{inode} has {LINK_MAX} names")
            growth = await self._directories.growth(directory)
            async with self._ground.allocator.reserve(
                want=growth.want, free=growth.free, near=growth.near, label=text(name)
            ) as grant:
                await self._directories.fill(directory, growth, grant)
                await self._ground.room(grant.room + growth.room)
                self._directories.grow(directory, growth, grant)
                self._directories.add(directory, _entry(inode, name))
                links = inode.desc.link_count + 1
                inode.loaded.change(link_count=links, ctime=self._ground.now())
                inode.stage(self._ground.metadata, area=False)
                self._directories.stage(directory, grown=growth)
            return inode.attributes()

    async def unlink(self, parent: FdAddress, name: bytes) -> None:
        """Remove a name of a file, and the file with its last name."""

        async def act(directory: Inode, inode: Inode) -> None:
            if inode.is_directory:
                raise IsADirectory(f"{text(name)!r} is a directory")
            inode.must_not_be_system()
            await self._remove(directory, name, inode)

        await self._on_named(parent, name, act)

    async def rmdir(self, parent: FdAddress, name: bytes) -> None:
        """Remove an empty directory."""
        if name == DOT:
            raise InvalidArgument("'.' cannot be removed")
        if name == DOT_DOT:
            raise NotEmpty("'..' cannot be removed")

        async def act(directory: Inode, inode: Inode) -> None:
            if not (await self._directories.entries(inode)).is_empty:
                raise NotEmpty(f"{text(name)!r} is not empty")
            await self._remove(directory, name, inode)

        await self._on_named(parent, name, act)

    async def _on_named(self, parent: FdAddress, name: bytes, act: _Act) -> None:
        """Hold a directory and what a name stands for there, and act on the two."""
        self._ground.must_be_writable()
        last: DirEntry | None = None
        for _ in range(ATTEMPTS_MAX):
            entry = await self._directories.must_look(parent, name, LockMode.EXCLUSIVE)
            inode = self._table.of_entry(entry)
            wanted = dict.fromkeys((parent, inode.address), LockMode.EXCLUSIVE)
            try:
                async with self._table.held(wanted, label=text(name)) as nodes:
                    directory, inode = nodes[parent], nodes[entry.address]
                    if (await self._directories.entries(directory)).find(name) == entry:
                        inode.must_be(entry.type)
                        await act(directory, inode)
                        return
            except StaleHandle as stale:
                if entry == last:
                    raise dangling(entry) from stale
                last = entry
        raise LockBusy(f"{text(name)!r}: the directory changes all the time")

    async def _remove(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """Take a name out of a directory, and what it stood for with it. Both are held."""
        removal = await self._removals.plan(inode)
        is_directory = inode.is_directory
        async with self._ground.allocator.reserve(free=removal.frees, label=text(name)) as grant:
            await self._ground.room(grant.room + removal.room)
            self._removals.stage(inode, removal, grant)
            self._directories.remove(directory, name)
            self._directories.stage(directory, links=-int(is_directory))
        await self._removals.finish(inode, removal)


def _entry(inode: Inode, name: bytes) -> DirEntry:
    desc = inode.desc
    return DirEntry(type=desc.type, address=desc.address, generation=desc.generation, name=name)


def dangling(entry: DirEntry) -> CorruptRecord:
    """What a name is whose file is gone though the name still stands there."""
    return CorruptRecord(
        DirEntry.NAME, entry.address, f"{text(entry.name)!r}", "a deleted file", "a file"
    )
