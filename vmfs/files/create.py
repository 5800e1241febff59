"""New objects: a descriptor, its first content, and its name, in one transaction.

The descriptor's lock comes out of order: which descriptor it will be is known only once its
cluster is locked, and clusters come last. So its lock is only tried, never waited for. That fails
when another host still has the lock of its last file cached; then everything is let go, that lock
is fetched by itself, and the operation starts over.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass

from vmfs.errors import LockBusy, NameTooLong, TooManyLinks
from vmfs.files.attributes import PERMISSION_BITS, Creation
from vmfs.files.directory import ATTEMPTS_MAX, Directories, Growth, check_name, text
from vmfs.files.ground import Ground
from vmfs.files.inode import LINK_MAX, Contents, Inode
from vmfs.files.inode_table import InodeTable
from vmfs.ids import FdAddress
from vmfs.locks.base import Pin
from vmfs.locks.order import LockId
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import DATA_SIZE, META_OFFSET, RESIDENT_MAX, FileDesc, FileType, Zla
from vmfs.space.grant import Grant
from vmfs.space.missing import Missing

TARGET_MAX = 4095
"""Bytes of a symbolic link's target, as on Linux (PATH_MAX less the NUL)."""

_GENERATION_LIMIT = 1 << 32


Then = Callable[[Inode], None]
"""What to do with the new object while its lock is pinned; plain."""


class LockElsewhere(Exception):
    """Another host has the lock of the descriptor that was chosen."""

    def __init__(self, lock: LockId) -> None:
        """`lock` is to be fetched before the next try."""
        super().__init__(str(lock))
        self.lock = lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What is to be made."""

    type: FileType
    creation: Creation
    target: bytes = b""  # of a symbolic link


class Creator:
    """Makes files, directories and symbolic links."""

    def __init__(self, ground: Ground, table: InodeTable, directories: Directories) -> None:
        """Stand on `ground`; the rest is shared with the namespace."""
        self._ground = ground
        self._table = table
        self._directories = directories

    async def make(self, parent: FdAddress, name: bytes, birth: Birth, then: Then) -> Inode:
        """Make it, and call `then` while its lock is still pinned.

        Raises:
            Exists: the name is taken.
            NameTooLong: the name, or the link's target.
            NoSpace: no free descriptor or block; nothing has changed.
            TooManyLinks: the parent directory has too many sub-directories.
            LockBusy: another host has the directory in use.
        """
        self._ground.must_be_writable()
        check_name(name)
        if len(birth.target) > TARGET_MAX:
            raise NameTooLong(f"a link target of {len(birth.target)} bytes")
        for _ in range(ATTEMPTS_MAX):
            try:
                return await self._try(parent, name, birth, then)
            except LockElsewhere as elsewhere:
                pin = await self._ground.locks.acquire(
                    elsewhere.lock, LockMode.EXCLUSIVE, label=text(name)
                )
                pin.release()
        raise LockBusy(f"no file descriptor stays free long enough for {text(name)!r}")

    async def _try(self, parent: FdAddress, name: bytes, birth: Birth, then: Then) -> Inode:
        label = text(name)
        async with self._table.held({parent: LockMode.EXCLUSIVE}, label=label) as nodes:
            directory = nodes[parent]
            entries = await self._directories.entries(directory)
            entries.must_not_have(name)
            is_directory = birth.type is FileType.DIRECTORY
            if is_directory and directory.desc.link_count >= LINK_MAX:
                raise TooManyLinks(f"{directory} has {LINK_MAX} links")
            growth = await self._directories.growth(directory)
            want = {AddressType.FD: 1, AddressType.SB: int(self._needs_block(birth))}
            for kind, count in growth.want.items():
                want[kind] = want.get(kind, 0) + count
            async with self._ground.allocator.reserve(
                want=want, free=growth.free, near=(parent, *growth.near), label=label
            ) as grant:
                address = FdAddress(grant.first(AddressType.FD))
                lock = self._ground.lock_of(address)
                pin = await self._lock_new(lock, label)
                if pin is None:
                    raise LockElsewhere(lock)
                with pin:
                    inode = await self._bear(directory, name, birth, growth, grant)
                    then(inode)
                    return inode

    async def _lock_new(self, lock: LockId, label: str) -> Pin | None:
        """Lock a free descriptor: all that will refer to it is under locks that are pinned."""
        locks = self._ground.locks
        pin = await locks.try_claim(lock, label=label)
        return pin or await locks.try_acquire(lock, LockMode.EXCLUSIVE, label=label)

    async def _bear(
        self, directory: Inode, name: bytes, birth: Birth, growth: Growth, grant: Grant
    ) -> Inode:
        address = FdAddress(grant.first(AddressType.FD))
        generation = await self._next_generation(address)
        contents = self._contents(self._desc(address, generation, birth, directory), birth)
        missing = await self._first_block(contents, birth, grant)
        await self._directories.fill(directory, growth, grant)
        room = growth.room + (missing.room if missing is not None else 0)
        await self._ground.room(grant.room + room)
        # Plain from here: the descriptor, its content and its name fall into one transaction.
        grant.take(AddressType.FD, 1)
        self._directories.grow(directory, growth, grant)
        inode = self._table.expect(address, generation, name=name)
        inode.contents = contents
        if missing is not None:
            contents.map.install(missing, grant)
        if birth.type is FileType.DIRECTORY:
            self._directories.begin(inode, directory)
        entry = DirEntry(type=birth.type, address=address, generation=generation, name=name)
        self._directories.add(directory, entry)
        inode.stage(self._ground.metadata)
        links = int(birth.type is FileType.DIRECTORY)
        self._directories.stage(directory, grown=growth, links=links)
        return inode

    def _needs_block(self, birth: Birth) -> bool:
        """Whether the new object has a sub-block from the start."""
        if birth.type is FileType.DIRECTORY:
            return True
        return bool(birth.target) and not self._is_resident(birth)

    def _is_resident(self, birth: Birth) -> bool:
        if birth.type is FileType.DIRECTORY:
            return False
        return self._ground.resident_data and len(birth.target) <= RESIDENT_MAX

    def _desc(
        self, address: FdAddress, generation: int, birth: Birth, directory: Inode
    ) -> FileDesc:
        now = self._ground.now()
        mode, gid = birth.creation.mode & PERMISSION_BITS, birth.creation.gid
        is_directory = birth.type is FileType.DIRECTORY
        if directory.desc.mode & stat.S_ISGID:
            gid = directory.desc.gid
            mode |= stat.S_ISGID if is_directory else 0
        return FileDesc(
            address=address,
            generation=generation,
            link_count=2 if is_directory else 1,
            type=birth.type,
            length=len(birth.target),
            mtime=now,
            ctime=now,
            atime=now,
            uid=birth.creation.uid,
            gid=gid,
            mode=mode,
            zla=Zla.RESIDENT if self._is_resident(birth) else Zla.SB,
            affinity_fd=address,
        )

    def _contents(self, desc: FileDesc, birth: Birth) -> Contents:
        ground = self._ground
        resident = birth.target if desc.zla is Zla.RESIDENT else b""
        return Contents(
            desc=desc,
            area=resident.ljust(DATA_SIZE, b"\0"),
            staging=ground.metadata,
            files=ground.resources,
        )

    async def _first_block(self, contents: Contents, birth: Birth, grant: Grant) -> Missing | None:
        """Fill the sub-block of a new directory or long link; it is nobody's yet."""
        if not self._needs_block(birth):
            return None
        size = contents.map.block_size
        missing = contents.map.missing(0, size, file_length=0)
        for extent in contents.map.fresh(missing, grant):
            data = birth.target[extent.file_offset :].ljust(extent.length, b"\0")
            await self._ground.device.write(extent.lv_offset, data[: extent.length])
        return missing

    async def _next_generation(self, address: FdAddress) -> int:
        """One more than the descriptor's last file had.

        Raises:
            CorruptRecord: it has a file, though the bitmap calls it free.
        """
        at = self._ground.desc_offset(address) + META_OFFSET
        data = await self._ground.metadata.read(at, FileDesc.SIZE)
        last = FileDesc.last_generation(data, address=at, expected=address)
        return (last + 1) % _GENERATION_LIMIT or 1
