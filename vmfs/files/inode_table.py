"""Every node that this host knows, by FD address; and the ways to look at some of them.

    async with table.held({parent: EXCLUSIVE, child: EXCLUSIVE}, label=path) as nodes:
        ...            # pinned, guarded, loaded: check, decide, then stage without awaiting

`held` takes the cluster's locks in their total order, then this host's guards in the order of
addresses, then loads what is not known yet. `current` is the other way in: attributes without
taking any lock, as a passing stat does it.
"""

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final

from vmfs.errors import LockBusy, StaleHandle
from vmfs.files.attributes import Attributes, ListedName
from vmfs.files.dir_block import DOT, DOT_DOT
from vmfs.files.ground import Ground
from vmfs.files.guard import Guard
from vmfs.files.inode import Contents, Inode, attributes_of
from vmfs.files.watcher import Unwatched, Watcher
from vmfs.ids import FdAddress
from vmfs.locks.base import HolderIs, Locks
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import FD_SIZE, META_OFFSET, VH_FD, FileDesc

PEEK_ATTEMPTS: Final = 4
"""Looks without a lock before one is taken: a busy file changes under every look."""

LOOKS_WORTH_A_LOCK: Final = 2
"""A look in passing reads the lock record twice; taking the lock writes it, and whoever is to write
the file must then ask for it. A walk over all files (find, backup) looks at each once."""

LOOKS_LEFT_ALONE: Final = 16
"""Looks without asking a host again that has the lock in use: its answer takes 0.1 s."""

LOOKED_AT_MAX: Final = 4096
"""Locks kept for having been looked at. Bounded, as lockd has to know all of them."""


class _Held:
    """`InodeTable.held`. A class, because it is on the way of every operation."""

    __slots__ = ("_entered", "_label", "_locks", "_pins", "_table", "_wanted")

    def __init__(
        self, table: "InodeTable", locks: Locks, wanted: Mapping[FdAddress, LockMode], label: str
    ) -> None:
        self._table = table
        self._locks = locks
        self._wanted = wanted
        self._label = label
        self._entered: list[tuple[Guard, LockMode]] = []

    async def __aenter__(self) -> dict[FdAddress, Inode]:
        wanted = self._wanted
        inodes = {address: self._table.get(address) for address in sorted(wanted)}
        locks = {inode.lock: wanted[address] for address, inode in inodes.items()}
        self._pins = self._locks.pinned(locks, label=self._label)
        await self._pins.__aenter__()
        try:
            for address, inode in inodes.items():
                await self._enter(inode.guard, wanted[address])
            for inode in inodes.values():
                await self._table.load(inode)
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return inodes

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for guard, mode in reversed(self._entered):
            if mode is LockMode.EXCLUSIVE:
                guard.exit_exclusive()
            else:
                guard.exit_shared()
        await self._pins.__aexit__(kind, error, trace)

    async def _enter(self, guard: Guard, mode: LockMode) -> None:
        if mode is LockMode.EXCLUSIVE:
            await guard.enter_exclusive()
        else:
            await guard.enter_shared()
        self._entered.append((guard, mode))


class InodeTable:
    """The nodes of one open volume."""

    def __init__(self, ground: Ground) -> None:
        """Empty but for what is looked up."""
        self._ground = ground
        self._inodes: dict[FdAddress, Inode] = {}
        self._forgotten: set[FdAddress] = set()
        self._looked_at: set[LockId] = set()  # locks that were taken to look only
        self._changed = self._tell_changed  # one bound method for all nodes
        self.watcher: Watcher = Unwatched()

    def __len__(self) -> int:
        return len(self._inodes)

    def get(self, address: FdAddress) -> Inode:
        """The node of an address, known or not.

        Raises:
            StaleHandle: there is no such file descriptor on this volume.
        """
        inode = self._inodes.get(address)
        if inode is None:
            self._must_exist(address)
            inode = Inode(address, self._ground.lock_of(address), changed=self._changed)
            self._inodes[address] = inode
        return inode

    def find(self, address: FdAddress) -> Inode | None:
        """The node, if this host knows it."""
        return self._inodes.get(address)

    def expect(self, address: FdAddress, generation: int, *, name: bytes = b"") -> Inode:
        """The node that a directory entry names: from now on the address means this generation.

        Raises:
            StaleHandle: as `get`.
        """
        inode = self._inodes.get(address)
        if inode is not None and inode.generation not in (None, generation):
            if inode.is_open:
                raise StaleHandle(f"{inode} is open here, and was something else then")
            del self._inodes[address]
        self._forgotten.discard(address)
        inode = self.get(address)
        inode.generation = generation
        inode.name = name or inode.name
        return inode

    def of_entry(self, entry: DirEntry) -> Inode:
        """The node that an entry means; the dots say nothing new about generations.

        Raises:
            StaleHandle: as `get`.
        """
        if entry.name in (DOT, DOT_DOT):
            return self.get(entry.address)
        return self.expect(entry.address, entry.generation, name=entry.name)

    def listed(self, entries: Iterable[ListedName]) -> None:
        """What a directory lists now: addresses that meant other files before mean these."""
        for entry in entries:
            inode = self._inodes.get(entry.address)
            if inode is not None and inode.generation not in (None, entry.generation):
                self.expect(entry.address, entry.generation, name=entry.name)

    def forget(self, address: FdAddress) -> None:
        """Nobody outside refers to it any more: it goes, unless it is in use."""
        inode = self._inodes.get(address)
        if inode is None:
            return
        if self._is_needed(inode):
            self._forgotten.add(address)
        else:
            del self._inodes[address]

    def prune(self) -> None:
        """Let those go that were forgotten while they were still needed. After a commit."""
        forgotten, self._forgotten = self._forgotten, set()
        for address in forgotten:
            self.forget(address)

    def _is_needed(self, inode: Inode) -> bool:
        """Whether something would be lost: also the truth that another host's stat asks for."""
        if inode.is_open or inode.orphaned or not inode.guard.idle:
            return True
        return self._ground.metadata.is_live([(inode.lock.lv_offset, FD_SIZE)])

    async def drop(self, lock: LockId) -> None:
        """The lock is being given up: what was known under it is known no more, by nobody here."""
        if lock.kind is LockKind.FILE_DESC:
            await self.watcher.give_up(self._address_of(lock))
        self._looked_at.discard(lock)
        inode = self._of_lock(lock)
        if inode is not None:
            inode.contents = None
            inode.looks = 0

    def packed_attributes(self, lock: LockId) -> bytes | None:
        """What another host's stat may know of a file that this host has exclusively."""
        inode = self._of_lock(lock)
        if inode is None or inode.contents is None:
            return None
        return inode.contents.desc.pack()

    def held(
        self, wanted: Mapping[FdAddress, LockMode], *, label: str = ""
    ) -> AbstractAsyncContextManager[dict[FdAddress, Inode]]:
        """Hold some nodes: locks pinned, guards entered (as strongly), contents loaded.

        Raises:
            StaleHandle: one of them was deleted.
            LockBusy: another host has one of them in use.
            CorruptRecord: a descriptor or lock record is damaged.
        """
        return _Held(self, self._ground.locks, wanted, label)

    async def load(self, inode: Inode) -> Contents:
        """Know what the descriptor says. Under a pin of its lock.

        Raises:
            StaleHandle: it belongs to no file, or to another one than the inode means.
            CorruptRecord: it is damaged.
        """
        known = self.known(inode)
        if known is not None:
            inode.check_generation(known.desc)
            return known
        ground = self._ground
        offset = inode.lock.lv_offset + META_OFFSET
        data = await ground.metadata.read(offset, FD_SIZE - META_OFFSET)
        known = self.known(inode)
        if known is not None:
            return known  # somebody else loaded it meanwhile, and has perhaps changed it
        desc = FileDesc.unpack(data[: FileDesc.SIZE], address=offset, expected=inode.address)
        inode.check_generation(desc)
        inode.contents = Contents(
            desc=desc,
            area=data[FileDesc.SIZE :],
            staging=ground.metadata,
            files=ground.resources,
        )
        return inode.contents

    def known(self, inode: Inode) -> Contents | None:
        """The contents, if they are there and still covered by a lock."""
        if inode.contents is None:
            return None
        covered = inode.is_open or self._ground.locks.mode_held(inode.lock) is not LockMode.FREE
        return inode.contents if covered else None

    async def current(self, address: FdAddress) -> Attributes:
        """Attributes as they are now, without waiting for a lock where that can be avoided.

        Whoever looks a second time is likely to look again: then the lock is taken, shared, if no
        other host has it exclusively, so that the next looks cost nothing.

        What this host knows under a lock is current. Else the LUN is read like a seqlock: lock
        record, metadata, lock record. No live exclusive holder, and the same token before and
        after, means that what was read is whole and current; a live exclusive holder is asked.

        Raises:
            StaleHandle: it was deleted.
            LockBusy: the holder does not answer.
            CorruptRecord: the descriptor or its lock record is damaged.
        """
        inode = self.get(address)
        held = self.at_hand(inode)
        if held is not None:
            return held
        for _ in range(PEEK_ATTEMPTS):
            if self._ground.locks.mode_held(inode.lock) is not LockMode.FREE:
                break
            if await self._take_if_worth_it(inode):
                break
            desc = await self._look(inode)
            if desc is not None:
                inode.check_generation(desc)
                return attributes_of(desc)
        async with self.held({address: LockMode.SHARED}) as nodes:
            return self.attributes_now(nodes[address])

    def is_looked_at(self, address: FdAddress) -> bool:
        """Whether somebody here looks at the node again and again, or has it."""
        inode = self.find(address)
        if inode is None:
            return False
        return inode.looks >= LOOKS_WORTH_A_LOCK or self.known(inode) is not None

    def at_hand(self, inode: Inode) -> Attributes | None:
        """Attributes that are known under a lock.

        Raises:
            StaleHandle: it was deleted.
        """
        known = self.known(inode)
        if known is None:
            return None
        inode.check_generation(known.desc)
        return self.attributes_now(inode)

    def attributes_now(self, inode: Inode) -> Attributes:
        """Of a node whose contents are known under its lock."""
        return attributes_of(inode.desc, tenure=self._ground.locks.tenure(inode.lock))

    async def hold(self, address: FdAddress) -> None:
        """Take and keep the shared lock of a node that is being looked at again and again.

        Another host that merely keeps it is asked; one that has it in use is let alone, and not
        asked again for a while. Then nothing is held after this.

        Raises:
            StaleHandle, CorruptRecord: as `held`.
        """
        inode = self.get(address)
        if inode.looks < 0 or len(self._looked_at) >= LOOKED_AT_MAX or self._ground.read_only:
            inode.looks += 1
            return
        try:
            async with self.held({address: LockMode.SHARED}, label=str(inode)):
                self._looked_at.add(inode.lock)
        except LockBusy:
            inode.looks = -LOOKS_LEFT_ALONE

    async def _take_if_worth_it(self, inode: Inode) -> bool:
        """Take and keep the shared lock of a node that is looked at again, if it is to be had.

        Returns:
            Whether it is held now (it may be given up again before the caller uses it).
        """
        inode.looks += 1
        if not self.is_looked_at(inode.address) or self._ground.read_only:
            return False
        if len(self._looked_at) >= LOOKED_AT_MAX:
            return False
        pin = await self._ground.locks.try_acquire(inode.lock, LockMode.SHARED, label=str(inode))
        if pin is None:
            return False
        self._looked_at.add(inode.lock)
        pin.release()
        return True

    async def _look(self, inode: Inode) -> FileDesc | None:
        """One look without a lock; None when it was not conclusive."""
        locks, offset = self._ground.locks, inode.lock.lv_offset + META_OFFSET
        before = await locks.peek(inode.lock)
        holder = before.record.exclusive_holder
        if holder is not None and before.holder_is is HolderIs.LIVE_OTHER:
            try:
                told = await locks.ask_attributes(inode.lock, holder)
            except LockBusy:
                return None  # dead perhaps: taking the lock finds out, and recovers it
            if told is not None:
                return FileDesc.unpack(told, address=offset, expected=inode.address)
        data = await self._ground.device.read(offset, FileDesc.SIZE)
        after = await locks.peek(inode.lock, seen=before)
        same = after.record.token == before.record.token
        if not same or after.record.exclusive_holder not in (None, holder):
            return None
        return FileDesc.unpack(data, address=offset, expected=inode.address)

    def _of_lock(self, lock: LockId) -> Inode | None:
        if lock.kind is not LockKind.FILE_DESC:
            return None
        return self._inodes.get(self._address_of(lock))

    def _address_of(self, lock: LockId) -> FdAddress:
        return VH_FD if lock == self._ground.tree_lock else FdAddress(lock.index)

    def _tell_changed(self, address: FdAddress) -> None:
        self.watcher.changed(address)

    def _must_exist(self, address: FdAddress) -> None:
        if not self._ground.file_descs.contains(address):
            raise StaleHandle(f"{address:#x} is no file descriptor of this volume")
