"""Names: every operation that the kernel asks for by directory and name, or by address.

The front of the files floor. All methods raise `VmfsError`s only (besides bugs), take and return
plain values, and are safe to call concurrently from any number of tasks of one trio loop.

A *node* is named by its FD address; the root is `ROOT_ADDRESS`. The generation that comes with it
in `Attributes` tells two files apart that had the same descriptor one after the other: once a node
was returned by a lookup, operations on its address mean *that* generation, and fail with
`StaleHandle` when it has been deleted (by whichever host), until `forget(address)` is called or a
lookup returns the address with another generation.

What an operation decides under its locks it stages in one step, without awaiting: so on this host
it is atomic, and after a crash it happened as a whole or not at all.
"""

from typing import Final

from vmfs.errors import (
    InvalidArgument,
    IsADirectory,
    LockBusy,
    NotFound,
    NotSupported,
    StaleHandle,
)
from vmfs.files.attributes import (
    PERMISSION_BITS,
    AttributeChanges,
    Attributes,
    Creation,
    RenameFlag,
    VolumeStatistics,
)
from vmfs.files.create import Birth, Creator
from vmfs.files.data import FileData
from vmfs.files.dir_block import EntryArray
from vmfs.files.directory import ATTEMPTS_MAX, Directories, OpenDirectory, text
from vmfs.files.file import OpenFile
from vmfs.files.ground import Ground
from vmfs.files.inode import Inode
from vmfs.files.inode_table import InodeTable
from vmfs.files.names import Names, dangling
from vmfs.files.orphans import Orphans
from vmfs.files.removal import Removals
from vmfs.files.rename import Move, Renamer
from vmfs.files.watcher import Watcher
from vmfs.ids import FdAddress
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.dirent import NAME_MAX, DirEntry
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import FileType

_TIME_MAX: Final = 0xFFFFFFFF
"""The format has 32 bits for seconds since 1970: until 2106."""


class Namespace:
    """The tree of one open volume."""

    def __init__(self, ground: Ground, table: InodeTable) -> None:
        """Stand on `ground`; `table` is shared with whoever answers for revoked locks."""
        self._ground = ground
        self._table = table
        self._lost = False
        self._removals = Removals(ground)
        self._data = FileData(ground, self._removals)
        self._directories = Directories(ground, table)
        self._creator = Creator(ground, table, self._directories)
        self._names = Names(ground, table, self._directories, self._removals)
        self._renamer = Renamer(ground, table, self._directories, self._removals)
        self.orphans = Orphans(ground, table, self._removals)

    # Looking.

    async def lookup(self, parent: FdAddress, name: bytes) -> Attributes:
        """Find `name` in the directory `parent` (`.` and `..` work too).

        Raises:
            NotFound, NotADirectory, NameTooLong: as lookup always does.
            StaleHandle: the directory was deleted.
            LockBusy: a host that has changed it does not answer.
            CorruptRecord: the directory, or what the name stands for, is damaged.
        """
        last: DirEntry | None = None
        for _ in range(ATTEMPTS_MAX):
            entry = await self._directories.must_look(parent, name)
            try:
                return await self._table.current(self._table.of_entry(entry).address)
            except StaleHandle as stale:
                if entry == last:
                    raise dangling(entry) from stale
                last = entry  # deleted since: look again
        raise LockBusy(f"{text(name)!r}: the directory changes all the time")

    async def getattr(self, address: FdAddress) -> Attributes:
        """Attributes as they are now, on whichever host the file is being written.

        Raises:
            StaleHandle: it was deleted.
        """
        return await self._table.current(address)

    async def readlink(self, address: FdAddress) -> bytes:
        """The target of a symbolic link.

        Raises:
            InvalidArgument: it is none.
            StaleHandle: it was deleted.
        """
        async with self._table.held({address: LockMode.SHARED}) as nodes:
            inode = nodes[address]
            if inode.desc.type is not FileType.SYMLINK:
                raise InvalidArgument(f"{inode} is no symbolic link")
            return await self._data.read(inode, 0, inode.desc.length)

    async def open_directory(self, address: FdAddress) -> OpenDirectory:
        """Open a directory for listing.

        Raises:
            NotADirectory: it is none.
            StaleHandle: it was deleted.
        """
        async with self._table.held({address: LockMode.SHARED}) as nodes:
            nodes[address].must_be_directory()
        return OpenDirectory(self._directories, self._table, address)

    def statistics(self) -> VolumeStatistics:
        """statfs(2), from counters: never waits."""
        counts = self._ground.allocator.free_counts()
        blocks, files = counts[AddressType.FB], counts[AddressType.FD]
        return VolumeStatistics(
            block_size=self._ground.block_size,
            blocks_total=blocks.total,
            blocks_free=blocks.free,
            files_total=files.total,
            files_free=files.free,
            name_length_max=NAME_MAX,
        )

    async def hold(self, address: FdAddress) -> None:
        """Have the attributes of a node at hand from now on, if no other host has it in use.

        Raises:
            StaleHandle: it was deleted.
        """
        await self._table.hold(address)

    def is_looked_at(self, address: FdAddress) -> bool:
        """Whether attributes of the node were asked for more than once lately."""
        return self._table.is_looked_at(address)

    def entries_held(self, address: FdAddress) -> EntryArray | None:
        """The entries of a directory, if this host holds it, for now, and has them at hand.

        Good until the caller awaits anything.
        """
        return self._directories.at_hand(address) if self.tenure(address) else None

    def attributes_held(self, address: FdAddress, generation: int) -> Attributes | None:
        """The attributes of a node, if this host holds it and has them at hand.

        None also when the address means another generation to this host.
        """
        inode = self._table.find(address)
        if inode is None or inode.generation != generation or not self.tenure(address):
            return None
        return self._table.at_hand(inode)

    def tenure(self, address: FdAddress) -> int:
        """Since when this host has had the node's lock without a break: see `Locks.tenure`.

        What was told of a node, or listed of a directory, is true as long as this stays the same
        (and not 0) and this host changes nothing itself. Always 0 once this host was fenced.
        """
        inode = self._table.find(address)
        return 0 if inode is None or self._lost else self._ground.locks.tenure(inode.lock)

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` told when what was copied from here holds no more. One at most."""
        self._table.watcher = watcher

    def lost(self) -> None:
        """This host may not touch the LUN any more: nothing that was told from here is sure."""
        if not self._lost:
            self._lost = True
            self._table.watcher.lost()

    def forget(self, address: FdAddress) -> None:
        """The kernel's lookup count of this node fell to zero: its memory may go."""
        self._table.forget(address)

    # Files.

    async def open(
        self, address: FdAddress, *, writing: bool, append: bool = False, truncate: bool = False
    ) -> OpenFile:
        """Open a regular file: shared lock for reading, exclusive for writing, held *in use*.

        Raises:
            LockBusy: another host has it in use (`holder` says who).
            IsADirectory: it is a directory.
            NotPermitted: a file of the volume itself, for writing.
            NotSupported: a raw device mapping.
            ReadOnly: for writing, on a read-only volume.
            StaleHandle: it was deleted.
        """
        changing = writing or truncate
        if changing:
            self._ground.must_be_writable()
        mode = LockMode.EXCLUSIVE if changing else LockMode.SHARED
        label = str(self._table.get(address))
        async with self._table.held({address: mode}, label=label) as nodes:
            inode = nodes[address]
            if inode.is_directory:
                raise IsADirectory(f"{inode} is a directory")
            if inode.desc.type is FileType.SYMLINK:
                raise InvalidArgument(f"{inode} is a symbolic link")
            if inode.desc.type is FileType.RDM:
                raise NotSupported(f"{inode} is a raw device mapping: its data is elsewhere")
            if changing:
                inode.must_not_be_system()
            if truncate:
                await self._data.resize(inode, 0)
            return self._opened(inode, writing=writing, append=append)

    async def create(
        self, parent: FdAddress, name: bytes, creation: Creation, *, append: bool = False
    ) -> tuple[Attributes, OpenFile]:
        """Make an empty regular file and open it for reading and writing.

        Raises:
            Exists, NameTooLong, NoSpace, ReadOnly, NotADirectory: as open(2) with O_CREAT.
            StaleHandle: the directory was removed.
            LockBusy: another host has the directory in use.
        """
        files: list[OpenFile] = []

        def open_it(inode: Inode) -> None:
            files.append(self._opened(inode, writing=True, append=append))

        birth = Birth(type=FileType.FILE, creation=creation)
        made = await self._creator.make(parent, name, birth, open_it)
        [file] = files
        return self._table.attributes_now(made), file

    async def mknod(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes:
        """Make an empty regular file without opening it.

        Device nodes, FIFOs and sockets cannot be expressed: whoever is asked for one refuses.

        Raises:
            Exists, NameTooLong, NoSpace, ReadOnly, NotADirectory, StaleHandle, LockBusy: as
            `create`.
        """
        return await self._make(parent, name, Birth(type=FileType.FILE, creation=creation))

    async def mkdir(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes:
        """Make an empty directory. Raises: as `create`, and TooManyLinks."""
        return await self._make(parent, name, Birth(type=FileType.DIRECTORY, creation=creation))

    async def symlink(
        self, parent: FdAddress, name: bytes, target: bytes, creation: Creation
    ) -> Attributes:
        """Make a symbolic link (targets up to 4095 bytes). Raises: as `create`."""
        if not target:
            raise NotFound("a symbolic link needs a target")
        birth = Birth(type=FileType.SYMLINK, creation=creation, target=target)
        return await self._make(parent, name, birth)

    async def setattr(self, address: FdAddress, changes: AttributeChanges) -> Attributes:
        """Change mode, owner, times, size. Returns the attributes afterwards.

        Raises:
            LockBusy: another host has the file in use.
            ReadOnly, NotPermitted: the volume, or the file, cannot be changed.
            IsADirectory, InvalidArgument: the size of what is no regular file.
            FileTooBig, NoSpace: as truncate(2).
            StaleHandle: it was deleted.
        """
        self._ground.must_be_writable()
        label = str(self._table.get(address))
        async with self._table.held({address: LockMode.EXCLUSIVE}, label=label) as nodes:
            inode = nodes[address]
            inode.must_not_be_system()
            if changes.size is not None:
                if inode.is_directory:
                    raise IsADirectory(f"{inode} is a directory")
                if inode.desc.type is not FileType.FILE or changes.size < 0:
                    raise InvalidArgument(f"{inode} cannot be made {changes.size} bytes long")
                await self._data.resize(inode, changes.size)
            fields = _changed_fields(changes)
            if fields:
                await self._ground.room()
                inode.loaded.change(ctime=self._ground.now(), **fields)
                inode.stage(self._ground.metadata, area=False)
            return inode.attributes()

    # Names.

    async def link(self, address: FdAddress, parent: FdAddress, name: bytes) -> Attributes:
        """Give a file one more name.

        Raises:
            NotPermitted: a directory, or a file of the volume itself.
            TooManyLinks: it has 65,000 names.
            NotFound: it has none any more (it was unlinked while open).
            Exists, NameTooLong, NoSpace, ReadOnly, NotADirectory, StaleHandle, LockBusy: as
            `create`.
        """
        return await self._names.link(address, parent, name)

    async def unlink(self, parent: FdAddress, name: bytes) -> None:
        """Remove a name; the file goes with its last name, once nobody has it open.

        Raises:
            NotFound, NameTooLong, NotADirectory: as lookup.
            IsADirectory: rmdir is for those.
            NotPermitted: a file of the volume itself.
            ReadOnly: the volume.
            LockBusy: another host has the file open.
        """
        await self._names.unlink(parent, name)

    async def rmdir(self, parent: FdAddress, name: bytes) -> None:
        """Remove an empty directory.

        Raises:
            NotFound, NameTooLong, NotADirectory: as lookup.
            NotEmpty: it has names in it.
            InvalidArgument, NotEmpty: for `.` and `..`.
            ReadOnly: the volume.
            LockBusy: another host has it in use.
        """
        await self._names.rmdir(parent, name)

    async def rename(
        self,
        source_parent: FdAddress,
        source_name: bytes,
        target_parent: FdAddress,
        target_name: bytes,
        flags: RenameFlag = RenameFlag.NONE,
    ) -> None:
        """Move a name, replacing what the target names (or exchanging, or refusing to replace).

        Raises:
            NotFound, NameTooLong: as lookup; with EXCHANGE for the target too.
            Exists: NOREPLACE, and there is something.
            NotEmpty, NotADirectory, IsADirectory: what is there cannot be replaced by this.
            InvalidArgument: a directory into itself.
            NotPermitted: a file of the volume itself.
            NoSpace, ReadOnly, TooManyLinks, LockBusy: as the other operations.
        """
        await self._renamer.rename(
            Move(
                source_parent=source_parent,
                source_name=source_name,
                target_parent=target_parent,
                target_name=target_name,
                flags=flags,
            )
        )

    async def sync_directory(self, address: FdAddress) -> None:
        """fsync(2) on a directory.

        Durability: everything done on this host before the call.
        """
        await self._ground.metadata.sync()

    # Parts.

    def _opened(self, inode: Inode, *, writing: bool, append: bool) -> OpenFile:
        return OpenFile(
            ground=self._ground,
            data=self._data,
            inode=inode,
            writing=writing,
            append=append,
            last_close=self.orphans.last_close,
        )

    async def _make(self, parent: FdAddress, name: bytes, birth: Birth) -> Attributes:
        # As it was born: once its lock is let go, another host may delete it at any moment.
        born: list[Attributes] = []
        await self._creator.make(
            parent, name, birth, lambda inode: born.append(self._table.attributes_now(inode))
        )
        [attributes] = born
        return attributes


def _changed_fields(changes: AttributeChanges) -> dict[str, int]:
    """The fields of the descriptor that are to change, size left aside."""
    wanted = {
        "mode": None if changes.mode is None else changes.mode & PERMISSION_BITS,
        "uid": changes.uid,
        "gid": changes.gid,
        "mtime": None if changes.mtime is None else min(max(changes.mtime, 0), _TIME_MAX),
        "atime": None if changes.atime is None else min(max(changes.atime, 0), _TIME_MAX),
    }
    return {field: value for field, value in wanted.items() if value is not None}
