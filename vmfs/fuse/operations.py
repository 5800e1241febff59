"""Every request of the kernel, answered from a `Tree`.

Thin on purpose: numbers to nodes, handles to open files, errors to errnos (`translate`,
`known_nodes`, `handles`, `answering` do it); what an operation *means* is the business of `files`.
Every handler is `answered`: see there why.

Not here, and therefore ENOSYS, once, after which the kernel does not ask again: access (the kernel
checks permissions itself, `default_permissions`), getxattr and its family (answering it costs a
request before every write), flush (close(2) promises nothing; fsync does).
"""

import dataclasses
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext

from vmfs.errors import CorruptRecord, Exists, NotFound, NotPermitted, StaleHandle
from vmfs.files.attributes import (
    ROOT_ADDRESS,
    AttributeChanges,
    Attributes,
    Creation,
    ListedName,
)
from vmfs.fuse import known_nodes
from vmfs.fuse.answering import answered, of_file, of_inode, of_name, of_volume
from vmfs.fuse.handles import Handles
from vmfs.fuse.known_nodes import KnownNodes
from vmfs.fuse.translate import (
    bare_entry,
    changes_of,
    entry_of,
    is_for_writing,
    rename_flags_of,
    statvfs_of,
    without_privileges,
)
from vmfs.fuse.tree import Tree, TreeDirectory, TreeFile
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType

log = logging.getLogger("vmfs.fuse")

_CREATE_TRIES_MAX: Final = 8
"""open(O_CREAT) without O_EXCL against another host that creates and deletes the same name: how
often the name may appear and vanish between two looks before the caller gets ESTALE."""

_DOT, _DOT_DOT, _FIRST_NAME = 0, 1, 2
"""Positions in a listing: `.`, `..`, and from 2 on the directory's own, moved up by 2."""


@dataclass(frozen=True, slots=True)
class _FileHandle:
    """One open(2). A write by anybody but root takes set-user-ID and set-group-ID away."""

    file: TreeFile
    strips_privileges: bool


@dataclass(frozen=True, slots=True)
class _DirectoryHandle:
    """One opendir(3)."""

    directory: TreeDirectory
    address: FdAddress


class Operations(pyfuse3.Operations):
    """The request handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # it makes the kernel ignore our size and mtime
    enable_acl = False

    def __init__(self, namespace: Tree) -> None:
        """`namespace` is the tree of one open volume."""
        super().__init__()
        self._namespace = namespace
        self._known = KnownNodes(ROOT_ADDRESS)
        self._files: Handles[_FileHandle] = Handles()
        self._directories: Handles[_DirectoryHandle] = Handles()
        self._directories_seen: dict[FdAddress, Attributes] = {}  # as long as the kernel knows them

    # --- names ---

    @answered(of_name)
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name; one lookup more is counted."""
        parent = _address(parent_inode)
        return self._found(await self._namespace.lookup(parent, name), parent, name)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take lookups back. There is nobody to answer, so nothing is raised."""
        for inode, count in inode_list:
            address = _address(inode)
            if self._known.forget(address, count):
                self._forget_node(address)

    @answered(of_name)
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make an empty regular file; device nodes, FIFOs and sockets are EPERM, as POSIX says."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise NotPermitted("VMFS-5 has no device nodes, FIFOs or sockets")
        parent = _address(parent_inode)
        made = await self._namespace.mknod(parent, name, _creation(mode, ctx))
        return self._found(made, parent, name)

    @answered(of_name)
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make an empty directory."""
        parent = _address(parent_inode)
        made = await self._namespace.mkdir(parent, name, _creation(mode, ctx))
        return self._found(made, parent, name)

    @answered(of_name)
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        parent = _address(parent_inode)
        creation = Creation(mode=0o777, uid=ctx.uid, gid=ctx.gid)
        made = await self._namespace.symlink(parent, name, target, creation)
        return self._found(made, parent, name)

    @answered(of_name)
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a name."""
        await self._namespace.unlink(_address(parent_inode), name)

    @answered(of_name)
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._namespace.rmdir(_address(parent_inode), name)

    @answered(of_name)
    async def rename(  # noqa: PLR0913 (the signature is pyfuse3's)
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move, replace or exchange names."""
        await self._namespace.rename(
            _address(parent_inode_old),
            name_old,
            _address(parent_inode_new),
            name_new,
            rename_flags_of(flags),
        )

    @answered(of_inode)
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file one more name."""
        parent = _address(new_parent_inode)
        linked = await self._namespace.link(_address(inode), parent, new_name)
        return self._found(linked, parent, new_name)

    # --- attributes ---

    @answered(of_inode)
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes as they are now.

        A directory that was removed while somebody is in it, or has it open, still has some.
        """
        address = _address(inode)
        try:
            attributes = await self._namespace.getattr(address)
        except StaleHandle:
            last = self._directories_seen.get(address)
            if last is None:
                raise
            return entry_of(dataclasses.replace(last, link_count=0))
        self._see(attributes)
        return entry_of(attributes)

    @answered(of_inode)
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """chmod, chown, truncate, utimens."""
        address = _address(inode)
        changes = changes_of(attr, fields)
        gives_away = changes.uid is not None or changes.gid is not None
        if changes.mode is None and (gives_away or (changes.size is not None and ctx.uid != 0)):
            changes = await self._stripped(address, changes)
        if changes == AttributeChanges():
            return entry_of(await self._namespace.getattr(address))
        return entry_of(await self._namespace.setattr(address, changes))

    @answered(of_inode)
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """The target of a symbolic link."""
        return await self._namespace.readlink(_address(inode))

    @answered(of_volume)
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """From counters: it never waits for a lock or the device, or every df would."""
        return statvfs_of(self._namespace.statistics())

    # --- files ---

    @answered(of_inode)
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file; EBUSY when another host has it in use."""
        return self._opened(await self._open(_address(inode), flags), ctx)

    @answered(of_name)
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it; without O_EXCL, open what another host has made meanwhile."""
        parent = _address(parent_inode)
        for _ in range(_CREATE_TRIES_MAX):
            try:
                made, file = await self._namespace.create(
                    parent, name, _creation(mode, ctx), append=bool(flags & os.O_APPEND)
                )
            except Exists:
                if flags & os.O_EXCL:
                    raise
            else:
                return self._opened(file, ctx), self._found(made, parent, name)
            try:
                found = await self._namespace.lookup(parent, name)
                file = await self._open(found.address, flags)
            except (NotFound, StaleHandle):
                continue  # and gone again: make it
            return self._opened(file, ctx), self._found(found, parent, name)
        raise StaleHandle(f"{name!r} is created and deleted by another host all the time")

    @answered(of_file)
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        return await self._files[fh].file.read(off, size)

    @answered(of_file)
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """All of `buf`."""
        handle = self._files[fh]
        if handle.strips_privileges:
            await self._strip(handle.file)
        return await handle.file.write(off, buf)

    @answered(of_file)
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable."""
        await self._files[fh].file.fsync(data_only=datasync)

    @answered(of_file)
    async def release(self, fh: int) -> None:
        """Close a file. The kernel tells us after close(2) has returned."""
        await self._files.remove(fh).file.release()

    # --- directories ---

    @answered(of_inode)
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory for listing."""
        address = _address(inode)
        directory = await self._namespace.open_directory(address)
        return self._directories.add(_DirectoryHandle(directory, address))

    @answered(of_volume)
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List names with their attributes; each entry that fits counts as a lookup."""
        handle = self._directories[fh]
        if start_id <= _DOT_DOT and not await self._reply_dots(handle, start_id, token):
            return
        position = max(start_id - _FIRST_NAME, 0)
        while True:
            names = await handle.directory.read(position)
            if not names:
                return
            for following, listed in names:
                position = following
                entry = await self._entry_of_name(handle.address, listed)
                if entry is None:
                    continue
                if not pyfuse3.readdir_reply(token, listed.name, entry, following + _FIRST_NAME):
                    return
                address = _address(entry.st_ino)
                self._known.add(address, parent=handle.address, name=listed.name)

    @answered(of_volume)
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make a directory durable."""
        await self._namespace.sync_directory(self._directories[fh].address)

    @answered(of_volume)
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        await self._directories.remove(fh).directory.release()

    # --- the mount's own ---

    async def close_everything(self) -> None:
        """After the last request: close what is still open, forget what is still known.

        A forced or lazy unmount, and the end of the process, leave both behind.
        """
        left = [handle.file for handle in self._files]
        left_directories = [handle.directory for handle in self._directories]
        self._files, self._directories = Handles(), Handles()
        items: list[TreeFile | TreeDirectory] = [*left, *left_directories]
        for item in items:
            try:
                await item.release()
            except Exception:  # one that fails must not keep the others open
                log.exception("bug: verb=release at the end of the mount")
        for address in self._known.clear():
            self._forget_node(address)

    @property
    def open_count(self) -> int:
        """Open files and directories."""
        return len(self._files) + len(self._directories)

    def path_of(self, inode: object) -> str:
        """The path by which a node was last seen, for messages."""
        assert isinstance(inode, int)
        return self._known.path(_address(inode))

    def path_of_file(self, fh: object) -> str:
        """The path of an open file, for messages."""
        assert isinstance(fh, int)
        try:
            return self._known.path(self._files[fh].file.address)
        except KeyError:
            return f"<handle {fh}>"

    def _found(self, attributes: Attributes, parent: FdAddress, name: bytes) -> EntryAttributes:
        """Count the lookup that this reply is, and make the reply."""
        self._known.add(attributes.address, parent=parent, name=name)
        self._see(attributes)
        return entry_of(attributes)

    def _see(self, attributes: Attributes) -> None:
        """Remember what a directory was like: removal frees its descriptor at once."""
        if attributes.is_directory:
            self._directories_seen[attributes.address] = attributes
        else:
            self._directories_seen.pop(attributes.address, None)

    def _opened(self, file: TreeFile, ctx: RequestContext) -> FileInfo:
        """A handle for `file`. Pages cached by an earlier open are dropped (keep_cache off)."""
        handle = self._files.add(_FileHandle(file, strips_privileges=ctx.uid != 0))
        return FileInfo(fh=handle, keep_cache=False)

    async def _open(self, address: FdAddress, flags: int) -> TreeFile:
        return await self._namespace.open(
            address,
            writing=is_for_writing(flags),
            append=bool(flags & os.O_APPEND),
            truncate=bool(flags & os.O_TRUNC),
        )

    def _forget_node(self, address: FdAddress) -> None:
        self._directories_seen.pop(address, None)
        try:
            self._namespace.forget(address)
        except Exception:
            log.exception("bug: verb=forget on=<%#010x>", address)

    async def _reply_dots(self, handle: _DirectoryHandle, start: int, token: ReaddirToken) -> bool:
        """Reply `.` and `..`, which count as no lookups. False when there is no more room."""
        own = known_nodes.inode_of(handle.address, root=ROOT_ADDRESS)
        if start == _DOT and not pyfuse3.readdir_reply(
            token, b".", bare_entry(own, stat.S_IFDIR), _DOT_DOT
        ):
            return False
        try:
            above = (await self._namespace.lookup(handle.address, b"..")).address
        except (NotFound, StaleHandle):
            above = handle.address  # removed while it is being listed
        inode = known_nodes.inode_of(above, root=ROOT_ADDRESS)
        return pyfuse3.readdir_reply(token, b"..", bare_entry(inode, stat.S_IFDIR), _FIRST_NAME)

    async def _entry_of_name(self, parent: FdAddress, listed: ListedName) -> EntryAttributes | None:
        """The attributes of a listed name; None when it was deleted since.

        By name, not by address: another host may have given the address to a new file, and it is
        the look at the name that tells which of the two is meant from now on.

        One damaged descriptor must not hide all its neighbours: it is listed by number and type,
        and stat(2) on it says what is wrong.
        """
        try:
            attributes = await self._namespace.lookup(parent, listed.name)
        except (NotFound, StaleHandle):
            return None
        except CorruptRecord as error:
            log.error("failed: verb=readdir name=%r: %s", listed.name, error)
            inode = known_nodes.inode_of(listed.address, root=ROOT_ADDRESS)
            is_directory = listed.type is FileType.DIRECTORY
            return bare_entry(inode, stat.S_IFDIR if is_directory else stat.S_IFREG)
        self._see(attributes)
        return entry_of(attributes)

    async def _stripped(self, address: FdAddress, changes: AttributeChanges) -> AttributeChanges:
        """The same changes, and set-user-ID and set-group-ID taken away from a regular file."""
        now = await self._namespace.getattr(address)
        mode = without_privileges(now.mode)
        if now.is_directory or mode == now.mode:
            return changes
        return dataclasses.replace(changes, mode=mode)

    async def _strip(self, file: TreeFile) -> None:
        now = file.attributes.mode
        mode = without_privileges(now)
        if mode != now:
            await self._namespace.setattr(file.address, AttributeChanges(mode=mode))


def _address(inode: int) -> FdAddress:
    return known_nodes.address_of(inode, root=ROOT_ADDRESS)


def _creation(mode: int, ctx: RequestContext) -> Creation:
    return Creation(mode=stat.S_IMODE(mode) & ~ctx.umask, uid=ctx.uid, gid=ctx.gid)
