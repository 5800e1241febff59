"""Finishing what outlived its transaction: large truncations, and files without names.

The entries stand in the host's orphan table, in the same transaction as the change that made them
necessary. They are finished at once where possible, else by `finish_all` (the volume's background
task, and the mount after a crash). What an entry asks for is decided by the descriptor, not by the
entry: link count 0 means that everything goes; otherwise what lies behind the present length goes.
So it may be carried out any number of times, and by another host than the one that wrote it.
"""

import logging

from vmfs.errors import StaleHandle, VmfsError
from vmfs.files.ground import Ground
from vmfs.files.inode import Inode
from vmfs.files.inode_table import InodeTable
from vmfs.files.removal import Removals
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.orphan_rec import OrphanEntry

_log = logging.getLogger("vmfs.files")


class Orphans:
    """The orphans of this host."""

    def __init__(self, ground: Ground, table: InodeTable, removals: Removals) -> None:
        """Stand on `ground`; nodes come from `table`."""
        self._ground = ground
        self._table = table
        self._removals = removals

    @property
    def count(self) -> int:
        """Entries in the table, those of files that are still open included."""
        return len(self._ground.orphans.entries())

    async def last_close(self, inode: Inode) -> None:
        """Free a file without names; it was closed by the last who had it open here.

        Raises:
            LockBusy: a cluster is in another host's hands; the entry stays.
        """
        entry = self._ground.orphans.find(inode.address)
        if entry is not None and inode.orphaned and not inode.is_open:
            await self.finish(entry)

    async def finish_all(self) -> int:
        """Finish every entry that can be finished now; the others stay, and are logged.

        Returns:
            Entries left, those of open files not counted.
        """
        left = 0
        for entry in self._ground.orphans.entries():
            inode = self._table.find(entry.fd_address)
            if inode is not None and inode.is_open and inode.orphaned:
                continue
            try:
                await self.finish(entry)
            except VmfsError as error:
                left += 1
                _log.warning("orphan left address=%#x error=%s", entry.fd_address, error)
        return left

    async def finish(self, entry: OrphanEntry) -> None:
        """Do what one entry says, and take it out of the table.

        Raises:
            LockBusy: the file or a cluster is in another host's hands; the entry stays.
            CorruptRecord: what it needs is damaged; the entry stays.
        """
        inode = self._table.expect(entry.fd_address, entry.generation)
        inode.orphaned = True  # a link count of 0 is no reason to call it deleted
        try:
            async with self._table.held({inode.address: LockMode.EXCLUSIVE}, label="orphan"):
                if self._ground.orphans.find(inode.address) != entry:
                    return  # somebody was faster
                inode.orphaned = inode.desc.link_count == 0
                if not inode.orphaned:
                    await self._removals.cut_behind_end(inode)
                elif not inode.is_open:
                    await self._removals.free_orphan(inode)
        except StaleHandle:
            await self._ground.room()
            if self._ground.orphans.find(entry.fd_address) == entry:
                self._ground.orphans.remove(entry)
        finally:
            left = self._ground.orphans.find(entry.fd_address) == entry
            contents = inode.contents
            inode.orphaned = left and contents is not None and contents.desc.link_count == 0
