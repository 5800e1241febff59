"""rename(2): one name moves, replaces, or changes places with another, in one step.

A directory that moves to another parent takes part of the tree along, and must not end up below
itself. Whether it would is a question about directories that this operation does not hold. So
such moves follow one another on the whole cluster, under the *tree lock* (that of `.vh.sf`): while
it is held no directory gets another parent, and the way from the new parent up to the root can be
walked one directory at a time.
"""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from vmfs.errors import (
    CorruptRecord,
    Exists,
    InvalidArgument,
    IsADirectory,
    LockBusy,
    NotEmpty,
    NotFound,
    NotPermitted,
    StaleHandle,
    TooManyLinks,
)
from vmfs.files.attributes import ROOT_ADDRESS, RenameFlag
from vmfs.files.dir_block import DOT, DOT_DOT
from vmfs.files.directory import ATTEMPTS_MAX, Directories, Growth, text
from vmfs.files.ground import Ground
from vmfs.files.inode import LINK_MAX, Inode
from vmfs.files.inode_table import InodeTable
from vmfs.files.removal import Removals
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import VH_FD, FileType

DEPTH_MAX: Final = 1 << 17
"""Directories between a directory and the root; as many as there are descriptors is a circle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is asked for."""

    source_parent: FdAddress
    source_name: bytes
    target_parent: FdAddress
    target_name: bytes
    flags: RenameFlag

    @property
    def label(self) -> str:
        """For people."""
        return f"rename {text(self.source_name)} to {text(self.target_name)}"

    @property
    def within_one(self) -> bool:
        """Both names are in the same directory."""
        return self.source_parent == self.target_parent

    @property
    def exchanges(self) -> bool:
        """Each name gets what the other one stood for."""
        return RenameFlag.EXCHANGE in self.flags

    def check(self, target: DirEntry | None) -> None:
        """Hold the flags against what the new name stands for.

        Raises:
            Exists: it must not stand for anything.
            NotFound: there is nothing to exchange with.
        """
        if target is not None and RenameFlag.NOREPLACE in self.flags:
            raise Exists(f"{text(self.target_name)!r} is there already")
        if target is None and self.exchanges:
            raise NotFound(f"{text(self.target_name)!r} is not there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the two names stand for."""

    source: DirEntry
    target: DirEntry | None

    def directories_moved(self, move: Move) -> list[tuple[FdAddress, FdAddress]]:
        """Directories that get another parent, each with that parent."""
        if move.within_one:
            return []
        moved = [(self.source, move.target_parent)]
        if move.exchanges and self.target is not None:
            moved.append((self.target, move.source_parent))
        return [(e.address, parent) for e, parent in moved if e.type is FileType.DIRECTORY]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The nodes of a rename, held exclusively."""

    move: Move
    found: Found
    source_parent: Inode
    target_parent: Inode
    source: Inode
    target: Inode | None

    @property
    def source_is_directory(self) -> bool:
        """What moves is a directory."""
        return self.found.source.type is FileType.DIRECTORY

    @property
    def target_is_directory(self) -> bool:
        """What is replaced, or moves the other way, is a directory."""
        target = self.found.target
        return target is not None and target.type is FileType.DIRECTORY

    @property
    def entry(self) -> DirEntry:
        """The entry that the new name gets."""
        return dataclasses.replace(self.found.source, name=self.move.target_name)

    def link_changes(self) -> tuple[int, int]:
        """Sub-directories that source parent and target parent gain (or lose)."""
        source, target = self.source_is_directory, self.target_is_directory
        if self.move.exchanges:
            gained = 0 if self.move.within_one else source - target
            return -gained, gained
        moved = 0 if self.move.within_one else int(source)
        return -moved, moved - target


class Renamer:
    """The rename of one open volume."""

    def __init__(
        self, ground: Ground, table: InodeTable, directories: Directories, removals: Removals
    ) -> None:
        """Stand on `ground`; the rest is shared with the namespace."""
        self._ground = ground
        self._table = table
        self._directories = directories
        self._removals = removals

    async def rename(self, move: Move) -> None:
        """Do it. Raises: as `Namespace.rename`."""
        self._ground.must_be_writable()
        if {DOT, DOT_DOT} & {move.source_name, move.target_name}:
            raise InvalidArgument("'.' and '..' cannot be renamed")
        if RenameFlag.NOREPLACE in move.flags and move.exchanges:
            raise InvalidArgument("NOREPLACE and EXCHANGE contradict each other")
        for _ in range(ATTEMPTS_MAX):
            found = await self._look(move)
            moved = found.directories_moved(move)
            async with self._still_tree(needed=bool(moved)):
                for directory, parent in moved:
                    await self._must_not_be_above(directory, parent)
                try:
                    if await self._try(move, found):
                        return
                except StaleHandle:
                    if found == await self._look(move):
                        raise
        raise LockBusy(f"{move.label}: the directories change all the time")

    async def _look(self, move: Move) -> Found:
        look = self._directories.look
        source = await self._directories.must_look(
            move.source_parent, move.source_name, LockMode.EXCLUSIVE
        )
        target = await look(move.target_parent, move.target_name, LockMode.EXCLUSIVE)
        move.check(target)
        for entry in (source, target):
            # Here already, before the tree lock is taken: that is the lock of such a file.
            if entry is not None and entry.type in (FileType.SYSTEM, FileType.RDM):
                raise NotPermitted(f"{text(entry.name)!r} is a file of the volume itself")
        return Found(source=source, target=target)

    @asynccontextmanager
    async def _still_tree(self, *, needed: bool) -> AsyncIterator[None]:
        """Let no directory of the volume get another parent inside the block."""
        if not needed:
            yield
            return
        lock = self._ground.tree_lock
        with await self._ground.locks.acquire(lock, LockMode.EXCLUSIVE, label="move a directory"):
            async with self._table.get(VH_FD).guard.exclusive():
                yield

    async def _must_not_be_above(self, directory: FdAddress, below: FdAddress) -> None:
        """Walk from `below` up to the root.

        Raises:
            InvalidArgument: the way leads through `directory`.
            CorruptRecord: it leads nowhere.
        """
        here = below
        for _ in range(DEPTH_MAX):
            if here == directory:
                raise InvalidArgument("a directory cannot be moved into itself")
            if here == ROOT_ADDRESS:
                return
            async with self._table.held({here: LockMode.SHARED}) as nodes:
                here = (await self._directories.entries(nodes[here])).dot_dot.address
        raise CorruptRecord("directory", below, "way to the root", "a circle", "an end")

    async def _try(self, move: Move, found: Found) -> bool:
        """Take the locks, look again, and do it; False when the names changed meanwhile."""
        wanted = {move.source_parent, move.target_parent, found.source.address}
        if found.target is not None:
            wanted.add(found.target.address)
            self._table.expect(found.target.address, found.target.generation)
        self._table.expect(found.source.address, found.source.generation)
        modes = dict.fromkeys(wanted, LockMode.EXCLUSIVE)
        async with self._table.held(modes, label=move.label) as nodes:
            held = Held(
                move=move,
                found=found,
                source_parent=nodes[move.source_parent],
                target_parent=nodes[move.target_parent],
                source=nodes[found.source.address],
                target=None if found.target is None else nodes[found.target.address],
            )
            source_entries = await self._directories.entries(held.source_parent)
            target_entries = await self._directories.entries(held.target_parent)
            if source_entries.find(move.source_name) != found.source:
                return False
            if target_entries.find(move.target_name) != found.target:
                return False
            if held.target is not held.source:  # else: two names of one file, nothing to do
                await self._check(held)
                await self._do(held)
            return True

    async def _check(self, held: Held) -> None:
        """Whether what is there may be moved, and be replaced. Loads what `_stage` needs."""
        for node, entry in ((held.source, held.found.source), (held.target, held.found.target)):
            if node is not None and entry is not None:
                node.must_be(entry.type)
                node.must_not_be_system()
                if node.is_directory:
                    await self._directories.entries(node)
        parents = (held.source_parent, held.target_parent)
        for parent, gained in zip(parents, held.link_changes(), strict=True):
            if gained > 0 and parent.desc.link_count >= LINK_MAX:
                raise TooManyLinks(f"{parent} has {LINK_MAX} links")
        if held.target is not None and not held.move.exchanges:
            await self._must_be_replaceable(held, held.target)

    async def _must_be_replaceable(self, held: Held, target: Inode) -> None:
        if held.source_is_directory:
            if not (await self._directories.entries(target)).is_empty:
                raise NotEmpty(f"{target} is not empty")
        elif held.target_is_directory:
            raise IsADirectory(f"{target} is a directory, and {held.source} is none")

    async def _do(self, held: Held) -> None:
        replaced = None if held.move.exchanges else held.target
        removal = await self._removals.plan(replaced)
        added = held.target is None and not held.move.within_one
        growth = await self._directories.growth(held.target_parent, added=int(added))
        async with self._ground.allocator.reserve(
            want=growth.want,
            free=[*growth.free, *removal.frees],
            near=growth.near,
            label=held.move.label,
        ) as grant:
            await self._directories.fill(held.target_parent, growth, grant)
            await self._ground.room(grant.room + growth.room + removal.room)
            # Plain from here: everything falls into one transaction.
            self._removals.stage(replaced, removal, grant)
            self._directories.grow(held.target_parent, growth, grant)
            self._stage_names(held)
            self._stage_nodes(held, growth)
        await self._removals.finish(replaced, removal)

    def _stage_names(self, held: Held) -> None:
        move, names = held.move, self._directories
        if move.exchanges:
            assert held.found.target is not None
            names.replace(held.target_parent, held.entry)
            back = dataclasses.replace(held.found.target, name=move.source_name)
            names.replace(held.source_parent, back)
        elif held.target is not None:
            names.replace(held.target_parent, held.entry)
            names.remove(held.source_parent, move.source_name)
        elif move.within_one:
            names.rename(held.source_parent, move.source_name, held.entry)
        else:
            names.add(held.target_parent, held.entry)
            names.remove(held.source_parent, move.source_name)

    def _stage_nodes(self, held: Held, growth: Growth) -> None:
        now = self._ground.now()
        moved = [(held.source, held.target_parent)]
        if held.move.exchanges and held.target is not None:
            moved.append((held.target, held.source_parent))
        for node, parent in moved:
            if node.is_directory and not held.move.within_one:
                self._directories.adopt(node, parent)
            node.loaded.change(ctime=now)
            node.stage(self._ground.metadata)
        lost, gained = held.link_changes()
        if held.move.within_one:
            self._directories.stage(held.source_parent, links=lost + gained)
        else:
            self._directories.stage(held.source_parent, links=lost)
            self._directories.stage(held.target_parent, links=gained, grown=growth)
