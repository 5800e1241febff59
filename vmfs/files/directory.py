"""Directories on the volume: loading their entries, changing them, and listing them.

A directory's content is metadata: read through the running transaction's overlay, changed only by
staging whole sectors. It grows from one sub-block to file blocks, of which the descriptor itself
names 256; the root has file blocks from the start (mkfs), because readers open it before they know
sub-blocks. It never shrinks but in length: what is behind the length means nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vmfs.errors import CorruptRecord, NameTooLong, NoSpace, NotFound
from vmfs.files.attributes import ListedName
from vmfs.files.dir_block import DOT_DOT, EntryArray, Range
from vmfs.files.ground import Ground
from vmfs.files.inode import Inode
from vmfs.files.inode_table import InodeTable
from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.dirent import NAME_MAX, DirEntry
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import FileDesc
from vmfs.space.extent import ExtentKind
from vmfs.space.grant import Grant
from vmfs.space.missing import Missing

BLOCKS_MAX: Final = 256
"""File blocks of a directory: those its descriptor names itself, room for 1.9 million names."""

LISTED_MAX: Final = 512
"""Names that one `OpenDirectory.read` returns: more than the kernel takes at once."""

ATTEMPTS_MAX: Final = 64
"""Times that an operation starts over because a directory changed under it. Every round means
that somebody else got something done; after so many, the caller is told that it is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a directory needs before it can take more entries; `missing` is None for nothing."""

    missing: Missing | None = None
    carried: bytes = b""  # its content, when that moves from a sub-block to a file block

    @property
    def want(self) -> Mapping[AddressType, int]:
        """What to reserve."""
        return self.missing.want if self.missing is not None else {}

    @property
    def free(self) -> tuple[int, ...]:
        """What to reserve for being freed."""
        return self.missing.free if self.missing is not None else ()

    @property
    def near(self) -> tuple[int, ...]:
        """Where to reserve it, best."""
        return self.missing.near if self.missing is not None else ()

    @property
    def room(self) -> int:
        """Bytes that `Directories.grow` stages at most."""
        return len(self.carried) + (self.missing.room if self.missing is not None else 0)


NO_GROWTH: Final = Growth()


class Directories:
    """What can be done with the entries of a directory that is held (`InodeTable.held`).

    `add`, `replace`, `rename` and `remove` are plain: they change the entries in memory, and stage
    their sectors. `stage` ends every such change, in the same step.
    """

    def __init__(self, ground: Ground, table: InodeTable) -> None:
        """Stand on `ground`; look directories up in `table`."""
        self._ground = ground
        self._table = table

    async def look(
        self, parent: FdAddress, name: bytes, mode: LockMode = LockMode.SHARED
    ) -> DirEntry | None:
        """What a name stands for right now; nothing is held when this returns.

        To look only, never waits for a lock that this host still has: not even for one that is
        being given up, which may itself be waiting for the reply (`vmfs.fuse.kernel_cache`).

        Args:
            parent: the directory.
            name: checked here.
            mode: of the lock to look under: EXCLUSIVE when a change is to follow, so that the lock
                is taken once.

        Raises:
            NameTooLong: no name of VMFS-5.
            NotADirectory: `parent` is none.
            StaleHandle: `parent` was deleted.
        """
        check_name(name)
        at_hand = self.at_hand(parent) if mode is LockMode.SHARED else None
        if at_hand is not None:
            return at_hand.find(name)
        async with self._table.held({parent: mode}, label=text(name)) as nodes:
            return (await self.entries(nodes[parent])).find(name)

    async def listed(self, address: FdAddress) -> tuple[ListedName, ...]:
        """All names of a directory; it waits for a lock only where `look` does.

        Raises:
            NotADirectory, StaleHandle, CorruptRecord: as `look`.
        """
        entries = self.at_hand(address)
        if entries is not None:
            return self._listed(entries)
        async with self._table.held({address: LockMode.SHARED}) as nodes:
            return self._listed(await self.entries(nodes[address]))

    def at_hand(self, address: FdAddress) -> EntryArray | None:
        """The entries of a directory, if they are known, and this host stands in its lock record.

        Nobody else can change them then, and this host does so between two awaits only. Good until
        the caller awaits anything. None as well when it was deleted.
        """
        inode = self._table.find(address)
        contents = None if inode is None else self._table.known(inode)
        if inode is None or contents is None or not inode.is_meant(contents.desc):
            return None
        return contents.entries

    async def must_look(
        self, parent: FdAddress, name: bytes, mode: LockMode = LockMode.SHARED
    ) -> DirEntry:
        """As `look`.

        Raises:
            NotFound: there is no such name.
        """
        entry = await self.look(parent, name, mode)
        if entry is None:
            raise NotFound(f"{text(name)!r} is not there")
        return entry

    async def entries(self, inode: Inode) -> EntryArray:
        """The entries of a directory that is held.

        Raises:
            NotADirectory: it is none.
            CorruptRecord: its content is damaged.
        """
        inode.must_be_directory()
        contents = inode.loaded
        if contents.entries is not None:
            return contents.entries
        data = await self._read(inode)
        if inode.loaded.entries is not None:
            return inode.loaded.entries  # another reader loaded them meanwhile
        remembered = inode.remembered
        if remembered is None or not remembered.has_content(data):
            remembered = EntryArray(data, address=inode.lock.lv_offset)
        inode.remembered = contents.entries = remembered
        return remembered

    async def growth(self, inode: Inode, *, added: int = 1) -> Growth:
        """What has to be reserved before so many entries are added to a loaded directory.

        Raises:
            NoSpace: the directory is as large as it can get.
        """
        if not added:
            return NO_GROWTH
        block_map = inode.loaded.map
        length = inode.desc.length
        size = added * DirEntry.SIZE
        if length + size > BLOCKS_MAX * self._ground.block_size:
            raise NoSpace(f"{inode} has no room for more names")
        if block_map.place(length, size) is not None:
            return NO_GROWTH
        await block_map.load(length, size)
        missing = block_map.missing(length, size, file_length=length)
        if missing.nothing:
            return NO_GROWTH
        entries = await self.entries(inode)
        carried = entries.sectors((0, length))[1] if missing.carried else b""
        return Growth(missing=missing, carried=carried)

    async def fill(self, inode: Inode, growth: Growth, grant: Grant) -> None:
        """Clean the new block, so that nobody's old data ever stands in a directory."""
        if growth.missing is not None:
            for extent in inode.loaded.map.fresh(growth.missing, grant):
                await self._ground.device.write_zeroes(extent.lv_offset, extent.length)

    def grow(self, inode: Inode, growth: Growth, grant: Grant) -> None:
        """Give the directory what it lacked, and its content its new place. Plain; staged."""
        if growth.missing is None:
            return
        inode.loaded.map.install(growth.missing, grant)
        if growth.carried:
            self._stage(inode, 0, growth.carried)

    def add(self, inode: Inode, entry: DirEntry) -> None:
        """Add a name; there is room for it, and it is not taken."""
        self._changed(inode, self._loaded(inode).add(entry))

    def adopt(self, inode: Inode, parent: Inode) -> None:
        """Let `..` of a directory mean another parent."""
        self.replace(inode, dataclasses.replace(self._loaded(parent).dot, name=DOT_DOT))

    def replace(self, inode: Inode, entry: DirEntry) -> None:
        """Let a name that is there stand for something else."""
        self._changed(inode, self._loaded(inode).replace(entry))

    def rename(self, inode: Inode, old: bytes, entry: DirEntry) -> None:
        """Give an entry another name in the same directory; it is not taken."""
        self._changed(inode, self._loaded(inode).rename(old, entry))

    def remove(self, inode: Inode, name: bytes) -> None:
        """Take a name out; it is there."""
        self._changed(inode, self._loaded(inode).remove(name))

    def stage(self, inode: Inode, *, grown: Growth = NO_GROWTH, links: int = 0) -> None:
        """Stage the descriptor of a directory whose entries have changed. Plain.

        Args:
            inode: the directory; its times are now.
            grown: what `grow` gave it.
            links: sub-directories that it gained, or lost.
        """
        contents, now = inode.loaded, self._ground.now()
        contents.change(
            length=self._loaded(inode).length,
            link_count=contents.desc.link_count + links,
            mtime=now,
            ctime=now,
        )
        inode.stage(self._ground.metadata, area=grown.missing is not None)

    def begin(self, inode: Inode, parent: Inode) -> None:
        """Write the first content of a new directory, which has a block already."""
        desc = inode.desc
        entries = EntryArray.empty(
            own=desc.address, own_generation=desc.generation, parent=self._loaded(parent).dot
        )
        inode.loaded.entries = inode.remembered = entries
        inode.loaded.change(length=entries.length)
        self._changed(inode, (0, entries.length))

    def _listed(self, entries: EntryArray) -> tuple[ListedName, ...]:
        names = entries.listed()
        self._table.listed(names)
        return names

    def _loaded(self, inode: Inode) -> EntryArray:
        entries = inode.loaded.entries
        assert entries is not None, f"the entries of {inode} are not loaded"
        return entries

    def _changed(self, inode: Inode, changed: Range) -> None:
        if changed[0] < changed[1]:
            self._stage(inode, *self._loaded(inode).sectors(changed))

    def _stage(self, inode: Inode, offset: int, data: bytes) -> None:
        place = inode.loaded.map.place(offset, len(data))
        if place is not None:
            self._ground.metadata.stage(place, data)
            return
        for extent in inode.loaded.map.extents(offset, len(data)):
            assert extent.kind is ExtentKind.DATA, f"{inode} has no block at {extent.file_offset}"
            start = extent.file_offset - offset
            self._ground.metadata.stage(extent.lv_offset, data[start : start + extent.length])

    async def _read(self, inode: Inode) -> bytes:
        desc, block_map = inode.desc, inode.loaded.map
        if desc.length > BLOCKS_MAX * self._ground.block_size:
            raise self._corrupt(inode, "length", desc.length, "at most 256 blocks")
        await block_map.load(0, desc.length)
        parts: list[bytes] = []
        for extent in block_map.extents(0, desc.length):
            if extent.kind is ExtentKind.RESIDENT:
                return inode.loaded.resident(0, desc.length)
            if extent.kind is not ExtentKind.DATA:
                raise self._corrupt(inode, "content", extent.kind.value, "blocks")
            parts.append(await self._ground.metadata.read(extent.lv_offset, extent.length))
        return b"".join(parts)

    def _corrupt(self, inode: Inode, field: str, found: object, expected: str) -> CorruptRecord:
        at = LvOffset(inode.lock.lv_offset)
        return CorruptRecord(FileDesc.NAME, at, f"{field} of directory {inode}", found, expected)


class OpenDirectory:
    """One open directory, from `Namespace.open_directory`."""

    def __init__(self, directories: Directories, table: InodeTable, address: FdAddress) -> None:
        """Nothing is read before the first `read`."""
        self._directories = directories
        self._table = table
        self._address = address
        self._snapshot: tuple[ListedName, ...] | None = None

    @property
    def address(self) -> FdAddress:
        """The directory's node."""
        return self._address

    async def read(self, start: int) -> Sequence[tuple[int, ListedName]]:
        """Some names from position `start` on, each with the position to continue after it.

        No names mean the end. Position 0 takes a new snapshot (so rewinddir shows news); later
        positions read the same snapshot, so that no name is skipped or doubled by changes
        meanwhile. `.` and `..` are not among them.

        Raises:
            StaleHandle: the directory was deleted.
            CorruptRecord: it is damaged.
        """
        if start == 0 or self._snapshot is None:
            self._snapshot = await self._directories.listed(self._address)
        return list(enumerate(self._snapshot[start : start + LISTED_MAX], start + 1))

    async def release(self) -> None:
        """Close."""
        self._snapshot = ()


def check_name(name: bytes) -> None:
    """Refuse what can be no name.

    Raises:
        NameTooLong: more than 127 bytes.
        NotFound: empty, or with a slash or NUL in it: there can be no such name.
    """
    if len(name) > NAME_MAX:
        raise NameTooLong(f"{text(name)!r} has {len(name)} bytes; VMFS-5 has room for {NAME_MAX}")
    if not name or b"/" in name or b"\0" in name:
        raise NotFound(f"{name!r} can be no name")


def text(name: bytes) -> str:
    """A name for messages and labels."""
    return name.decode("utf-8", "replace")
