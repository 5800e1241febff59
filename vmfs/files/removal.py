"""Giving back what a file has: shrinking it, and removing it with its last name.

What fits one transaction is done in the transaction of the operation itself. What does not, is
begun there (the length or the link count says how it ends, and the orphan table that it is not
done yet), then done in batches, each a transaction of its own; the last one takes the entry out.
After a crash `vmfs.files.orphans` goes on from the table.

A file that was unlinked while open here goes the same way: its entry stands in the table until
the last close.
"""

import dataclasses
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import numpy as np

from vmfs.files.ground import Ground
from vmfs.files.inode import Contents, Inode
from vmfs.ondisk.file_desc import DATA_SIZE, META_OFFSET, FileDesc, FileType, Zla
from vmfs.ondisk.orphan_rec import OrphanEntry
from vmfs.space.grant import Grant
from vmfs.space.system_file import Addresses
from vmfs.space.truncation import Tail

_NOTHING: Final = np.empty(0, dtype=np.uint32)


class Fate(Enum):
    """What becomes of a file that loses a name."""

    NOBODY = auto()  # no file was there
    STAYS = auto()  # it has another name
    GOES = auto()  # freed in the same transaction
    WAITS = auto()  # it is open, or large: an orphan first


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """How a name's removal ends for the file."""

    fate: Fate
    tail: Tail | None = None
    frees: Addresses = dataclasses.field(default_factory=lambda: _NOTHING)

    @property
    def room(self) -> int:
        """Bytes that `Removals.stage` stages at most, clusters not counted."""
        return self.tail.room if self.tail is not None else 0


class Removals:
    """Shrinking and removing, for files that are held exclusively."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground

    async def plan(self, inode: Inode | None) -> Removal:
        """What losing one name (a directory: its only one) will mean. Nothing is changed."""
        if inode is None:
            return Removal(fate=Fate.NOBODY)
        if not inode.is_directory and inode.desc.link_count > 1:
            return Removal(fate=Fate.STAYS)
        if inode.is_open or self._ground.orphans.find(inode.address) is not None:
            return Removal(fate=Fate.WAITS)
        own = np.array([inode.address], dtype=np.uint32)
        if inode.loaded.is_resident:
            return Removal(fate=Fate.GOES, frees=own)
        tail = await inode.loaded.map.tail(0)
        if not tail.done:
            return Removal(fate=Fate.WAITS)
        return Removal(fate=Fate.GOES, tail=tail, frees=np.concatenate((tail.addresses, own)))

    def stage(self, inode: Inode | None, removal: Removal, grant: Grant) -> None:
        """Let the file lose one name. Plain; staged.

        Raises:
            NoSpace: the orphan table is full. Nothing is staged.
        """
        if removal.fate is Fate.NOBODY:
            return
        assert inode is not None
        if removal.fate is Fate.GOES:
            self._free(inode, removal.tail, grant)
            return
        contents = inode.loaded
        links = contents.desc.link_count - 1 if removal.fate is Fate.STAYS else 0
        if removal.fate is Fate.WAITS:
            self._add_orphan(inode, target_size=0)
            inode.orphaned = True
        contents.change(link_count=links, ctime=self._ground.now())
        inode.stage(self._ground.metadata, area=False)

    async def finish(self, inode: Inode | None, removal: Removal) -> None:
        """After the transaction: free what did not fit it, unless the file is still open."""
        if removal.fate is Fate.WAITS:
            assert inode is not None
            if not inode.is_open:
                await self.free_orphan(inode)

    async def free_orphan(self, inode: Inode) -> None:
        """Free everything that an orphan without names has, and its descriptor.

        Raises:
            LockBusy: a cluster is in another host's hands. What is left stays in the table.
        """
        own = np.array([inode.address], dtype=np.uint32)
        done = False
        while not done:
            tail = None if inode.loaded.is_resident else await inode.loaded.map.tail(0)
            done = tail is None or tail.done
            cut = _NOTHING if tail is None else tail.addresses
            frees = np.concatenate((cut, own)) if done else cut
            async with self._ground.allocator.reserve(free=frees, label=str(inode)) as grant:
                await self._ground.room(grant.room + (tail.room if tail is not None else 0))
                if done:
                    self._remove_orphan(inode)
                    self._free(inode, tail, grant)
                elif tail is not None:
                    inode.loaded.map.cut(tail, grant)
                    inode.stage(self._ground.metadata)

    async def shrink(self, inode: Inode, length: int, *, touch: bool = True) -> None:
        """Cut a file to `length` bytes, which is not more than it has.

        Args:
            inode: the file.
            length: bytes.
            touch: whether its times change.

        Raises:
            LockBusy: a cluster is in another host's hands. The length may be the new one already;
                what is left to free stands in the orphan table then.
        """
        contents, now = inode.loaded, self._ground.now()
        times = {"mtime": now, "ctime": now} if touch else {}
        if contents.is_resident:
            await self._ground.room()
            if not inode.orphaned:
                self._remove_orphan(inode)
            contents.cut_resident(length)
            contents.change(length=length, **times)
            inode.stage(self._ground.metadata)
            return
        done = False
        while not done:
            tail = await contents.map.tail(contents.map.blocks_for(length))
            done = tail.done
            async with self._ground.allocator.reserve(
                free=tail.addresses, label=str(inode)
            ) as grant:
                await self._ground.room(grant.room + tail.room)
                if not done:
                    self._add_orphan(inode, target_size=length)
                elif not inode.orphaned:
                    self._remove_orphan(inode)
                contents.map.cut(tail, grant)
                if length == 0 and contents.map.empty and done:
                    contents.map.restart(self._ground.first_level)
                    contents.cut_resident(0)
                contents.change(length=length, **times)
                inode.stage(self._ground.metadata)

    async def cut_behind_end(self, inode: Inode) -> None:
        """Finish a truncation that was begun: free what lies behind the present length.

        Raises:
            LockBusy: as `shrink`.
        """
        await self.shrink(inode, inode.desc.length, touch=False)

    def _free(self, inode: Inode, tail: Tail | None, grant: Grant) -> None:
        if tail is not None:
            inode.loaded.map.cut(tail, grant)
        grant.free(np.array([inode.address], dtype=np.uint32))
        unused = Contents(
            desc=unused_desc(inode.desc),
            area=bytes(DATA_SIZE),
            staging=self._ground.metadata,
            files=self._ground.resources,
        )
        self._ground.metadata.stage(
            inode.lock.lv_offset + META_OFFSET, unused.desc.pack() + unused.area()
        )
        inode.contents = unused  # the truth, should another host ask before it is in place
        inode.remembered = None
        inode.orphaned = False

    def _add_orphan(self, inode: Inode, *, target_size: int) -> None:
        if inode.orphaned:
            return  # it is there, and stays until everything is freed
        generation = inode.desc.generation
        self._ground.orphans.add(
            OrphanEntry(fd_address=inode.address, generation=generation, target_size=target_size)
        )

    def _remove_orphan(self, inode: Inode) -> None:
        entry = self._ground.orphans.find(inode.address)
        if entry is not None:
            self._ground.orphans.remove(entry)


def unused_desc(desc: FileDesc) -> FileDesc:
    """A descriptor after its file: link count 0; the generation stays, the next one counts on."""
    return FileDesc(
        address=desc.address, generation=desc.generation, type=FileType.NONE, zla=Zla.NONE
    )
