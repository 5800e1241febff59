"""Every request of the kernel, answered from a `Tree`.

Thin on purpose: numbers to nodes, handles to open files, errors to errnos (`translate`,
`known_nodes`, `handles`, `answering` do it), a listing's names to replies (`listing_replies`); what
an operation *means* is the business of `files`. Every handler is `answered`: see there why.

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

from vmfs.device.base import Buffer
from vmfs.errors import Exists, NotFound, NotPermitted, StaleHandle
from vmfs.files.attributes import (
    ROOT_ADDRESS,
    AttributeChanges,
    Attributes,
    Creation,
)
from vmfs.fuse import known_nodes
from vmfs.fuse.answering import answered, of_file, of_inode, of_name, of_volume, refused
from vmfs.fuse.handles import Handles
from vmfs.fuse.kernel_cache import KernelCache
from vmfs.fuse.known_nodes import KnownNodes
from vmfs.fuse.listing import Listing
from vmfs.fuse.listing_replies import ListingReplies
from vmfs.fuse.translate import (
    changes_of,
    entry_of,
    is_for_writing,
    no_entry,
    rename_flags_of,
    statvfs_of,
    without_privileges,
)
from vmfs.fuse.tree import Tree, TreeFile
from vmfs.ids import FdAddress

log = logging.getLogger("vmfs.fuse")

_CREATE_TRIES_MAX: Final = 8
"""open(O_CREAT) without O_EXCL against another host that creates and deletes the same name: how
often the name may appear and vanish between two looks before the caller gets ESTALE."""


@dataclass(slots=True)
class _FileHandle:
    """One open(2). A write by anybody but root takes set-user-ID and set-group-ID away."""

    file: TreeFile
    strips_privileges: bool
    dropped_in: int  # the tenure in which this open had older pages dropped; 0: not, or known


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
        self._directories: Handles[Listing] = Handles()
        self._directories_seen: dict[FdAddress, Attributes] = {}  # as long as the kernel knows them
        self.cache = KernelCache(namespace, self._known)
        self._listings = ListingReplies(namespace, self._known, self.cache, self._see)
        namespace.watch(self.cache)

    # --- names ---

    @answered(of_name)
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name; one lookup more is counted. That there is none is an answer, too."""
        parent = _address(parent_inode)
        seen = self._namespace.tenure(parent)
        try:
            found = await self._namespace.lookup(parent, name)
        except NotFound:
            lasting = self.cache.name_seconds(parent, seen)
            if not lasting:
                raise
            return no_entry(lasting)
        return self._told(found, parent, name, seen)

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
        parent = self._changing(parent_inode)
        seen = self._namespace.tenure(parent)
        made = await self._namespace.mknod(parent, name, _creation(mode, ctx))
        return self._told(made, parent, name, seen)

    @answered(of_name)
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make an empty directory."""
        parent = self._changing(parent_inode)
        seen = self._namespace.tenure(parent)
        made = await self._namespace.mkdir(parent, name, _creation(mode, ctx))
        return self._told(made, parent, name, seen)

    @answered(of_name)
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        parent = _address(parent_inode)
        seen = self._namespace.tenure(parent)
        creation = Creation(mode=0o777, uid=ctx.uid, gid=ctx.gid)
        made = await self._namespace.symlink(parent, name, target, creation)
        return self._told(made, parent, name, seen)

    @answered(of_name)
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a name."""
        await self._namespace.unlink(self._changing(parent_inode), name)

    @answered(of_name)
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._namespace.rmdir(self._changing(parent_inode), name)

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
            self._changing(parent_inode_old),
            name_old,
            self._changing(parent_inode_new),
            name_new,
            rename_flags_of(flags),
        )

    @answered(of_inode)
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file one more name."""
        parent = self._changing(new_parent_inode)
        seen = self._namespace.tenure(parent)
        linked = await self._namespace.link(_address(inode), parent, new_name)
        return self._shown(linked, parent, new_name, seen)

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
        return entry_of(attributes, attribute_seconds=self.cache.attribute_seconds(attributes))

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
        file = await self._open(_address(inode), flags)
        return self._opened(file, ctx, self.cache.opened(file.attributes))

    @answered(of_name)
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it; without O_EXCL, open what another host has made meanwhile."""
        parent = self._changing(parent_inode)
        for _ in range(_CREATE_TRIES_MAX):
            seen = self._namespace.tenure(parent)
            try:
                made, file = await self._namespace.create(
                    parent, name, _creation(mode, ctx), append=bool(flags & os.O_APPEND)
                )
            except Exists:
                if flags & os.O_EXCL:
                    raise
            else:
                opened = self._opened(file, ctx, self.cache.created(made))
                return opened, self._told(made, parent, name, seen)
            try:
                found = await self._namespace.lookup(parent, name)
                file = await self._open(found.address, flags)
            except (NotFound, StaleHandle):
                continue  # and gone again: make it
            now = file.attributes  # what was found is of before it was opened
            return self._opened(file, ctx, self.cache.opened(now)), self._shown(
                now, parent, name, 0
            )
        raise StaleHandle(f"{name!r} is created and deleted by another host all the time")

    async def read(  # type: ignore[override]  # it takes any buffer
        self, fh: int, off: int, size: int
    ) -> Buffer:
        """Up to `size` bytes; fewer only at the end of the file.

        They may be good only until the next `await`: pyfuse3 sends them before.
        """
        try:
            data = self._used(fh).file.read_now(off, size)
        except Exception as error:
            raise refused("read", self.path_of_file(fh), error) from None
        return await self._read(fh, off, size) if data is None else data

    @answered(of_file)
    async def _read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files[fh].file.read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """All of `buf`."""
        try:
            handle = self._used(fh)
            strips = handle.strips_privileges and _is_privileged(handle.file.mode)
            is_written = not strips and handle.file.write_now(off, buf)
        except Exception as error:
            raise refused("write", self.path_of_file(fh), error) from None
        return len(buf) if is_written else await self._write(fh, off, buf)

    @answered(of_file)
    async def _write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._files[fh]
        mode = handle.file.mode
        if handle.strips_privileges and _is_privileged(mode):
            changes = AttributeChanges(mode=without_privileges(mode))
            await self._namespace.setattr(handle.file.address, changes)
        return await handle.file.write(off, buf)

    @answered(of_file)
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable."""
        await self._files[fh].file.fsync(data_only=datasync)

    @answered(of_file)
    async def release(self, fh: int) -> None:
        """Close a file. The kernel tells us after close(2) has returned."""
        file = self._files.remove(fh).file
        self.cache.closed(file.address)
        await file.release()

    # --- directories ---

    @answered(of_inode)
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory for listing."""
        address = _address(inode)
        directory = await self._namespace.open_directory(address)
        listing = Listing(self._namespace, directory, address, reader=ctx.pid)
        return self._directories.add(listing)

    @answered(of_volume)
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List names with their attributes; each entry that fits counts as a lookup."""
        self.cache.listing_taken(fh)
        await self._listings.reply(fh, self._directories[fh], start_id, token)

    @answered(of_volume)
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make a directory durable."""
        await self._namespace.sync_directory(self._directories[fh].address)

    @answered(of_volume)
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        self.cache.listing_taken(fh)
        await self._directories.remove(fh).release()

    # --- the mount's own ---

    async def close_everything(self) -> None:
        """After the last request: close what is still open, forget what is still known.

        A forced or lazy unmount, and the end of the process, leave both behind.
        """
        left = [handle.file for handle in self._files]
        for file in left:
            self.cache.closed(file.address)
        left_directories = list(self._directories)
        self._files, self._directories = Handles(), Handles()
        items: list[TreeFile | Listing] = [*left, *left_directories]
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

    def _changing(self, directory: int) -> FdAddress:
        """The directory that a request is to change."""
        address = _address(directory)
        self.cache.changing(address)
        return address

    def _told(
        self, attributes: Attributes, parent: FdAddress, name: bytes, seen: int
    ) -> EntryAttributes:
        """Count the lookup that this reply is, and make the reply; `seen` as `name_seconds` has it.

        Right before it is sent: nothing may be awaited in between. In reply to LOOKUP, or of a node
        that was made just now, of which this is the first that the kernel hears.
        """
        lasting = self.cache.attribute_seconds(attributes)
        return self._counted(attributes, parent, name, seen, lasting)

    def _shown(
        self, attributes: Attributes, parent: FdAddress, name: bytes, seen: int
    ) -> EntryAttributes:
        """As `_told`, in reply to a change of a node that the kernel may know: good for one look.

        It would take these attributes in whatever it was told of the node since.
        """
        return self._counted(attributes, parent, name, seen, 0)

    def _counted(
        self,
        attributes: Attributes,
        parent: FdAddress,
        name: bytes,
        seen: int,
        attribute_seconds: float,
    ) -> EntryAttributes:
        self._known.add(
            attributes.address, parent=parent, name=name, generation=attributes.generation
        )
        self._see(attributes)
        return entry_of(
            attributes,
            name_seconds=self.cache.name_seconds(parent, seen),
            attribute_seconds=attribute_seconds,
        )

    def _see(self, attributes: Attributes) -> None:
        """Remember what a directory was like: removal frees its descriptor at once."""
        if attributes.is_directory:
            self._directories_seen[attributes.address] = attributes
        else:
            self._directories_seen.pop(attributes.address, None)

    def _opened(self, file: TreeFile, ctx: RequestContext, tenure: int) -> FileInfo:
        """A handle for `file`. The kernel drops its pages now unless all are of this tenure."""
        keep = self.cache.has_pages_of(file.address, tenure)
        handle = self._files.add(
            _FileHandle(file, strips_privileges=ctx.uid != 0, dropped_in=0 if keep else tenure)
        )
        return FileInfo(fh=handle, keep_cache=keep)

    def _used(self, fh: int) -> _FileHandle:
        """The handle of a request; its first tells that the kernel is through with opening it."""
        handle = self._files[fh]
        if handle.dropped_in:
            self.cache.pages_dropped(handle.file.address, handle.dropped_in)
            handle.dropped_in = 0
        return handle

    async def _open(self, address: FdAddress, flags: int) -> TreeFile:
        return await self._namespace.open(
            address,
            writing=is_for_writing(flags),
            append=bool(flags & os.O_APPEND),
            truncate=bool(flags & os.O_TRUNC),
        )

    def _forget_node(self, address: FdAddress) -> None:
        self._directories_seen.pop(address, None)
        self.cache.forget(address)
        try:
            self._namespace.forget(address)
        except Exception:
            log.exception("bug: verb=forget on=<%#010x>", address)

    async def _stripped(self, address: FdAddress, changes: AttributeChanges) -> AttributeChanges:
        """The same changes, and set-user-ID and set-group-ID taken away from a regular file."""
        now = await self._namespace.getattr(address)
        mode = without_privileges(now.mode)
        if now.is_directory or mode == now.mode:
            return changes
        return dataclasses.replace(changes, mode=mode)


def _address(inode: int) -> FdAddress:
    return known_nodes.address_of(inode, root=ROOT_ADDRESS)


def _is_privileged(mode: int) -> bool:
    return without_privileges(mode) != mode


def _creation(mode: int, ctx: RequestContext) -> Creation:
    return Creation(mode=stat.S_IMODE(mode) & ~ctx.umask, uid=ctx.uid, gid=ctx.gid)
