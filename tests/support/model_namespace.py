"""A tree in memory, so that the FUSE edge can be tested without the floors below it.

The tree is `tests.support.model.Model`, with the async interface of `vmfs.fuse.tree` around it.
`trip` is called with the name of each method before it does anything, and may raise.
"""

import stat
from collections.abc import Callable, Sequence

from tests.support.model import NAME_MAX, ROOT, Model, Node
from vmfs.errors import (
    Exists,
    FileTooBig,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    StaleHandle,
)
from vmfs.files.attributes import (
    AttributeChanges,
    Attributes,
    Creation,
    ListedName,
    RenameFlag,
    VolumeStatistics,
)
from vmfs.files.watcher import Watcher
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType
from vmfs.units import MIB, TIB

Trip = Callable[[str], None]

_TYPES = {
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFREG: FileType.FILE,
    stat.S_IFLNK: FileType.SYMLINK,
}


def address_of(number: int) -> FdAddress:
    """Model numbers count from 1, FD addresses end in binary 100; the root is 4."""
    return FdAddress((number - ROOT) * 8 + 4)


def number_of(address: FdAddress) -> int:
    return (address - 4) // 8 + ROOT


class ModelNamespace:
    """The tree."""

    def __init__(self, model: Model | None = None, trip: Trip = lambda _verb: None) -> None:
        self.model = Model() if model is None else model
        self.trip = trip
        self.forgotten: list[FdAddress] = []
        self.now = 1_700_000_000
        self._times: dict[int, tuple[int, int]] = {}

    async def lookup(self, parent: FdAddress, name: bytes) -> Attributes:
        self.trip("lookup")
        node = self._node(parent)
        if name == b".":
            return self.attributes(number_of(parent))
        if name == b"..":
            return self.attributes(node.parent)
        return self.attributes(self.model.lookup(number_of(parent), name))

    async def getattr(self, address: FdAddress) -> Attributes:
        self.trip("getattr")
        return self.attributes(number_of(address))

    async def setattr(self, address: FdAddress, changes: AttributeChanges) -> Attributes:
        self.trip("setattr")
        node = self._node(address)
        if changes.size is not None:
            if node.kind == stat.S_IFDIR:
                raise IsADirectory("a directory")
            if changes.size > 64 * TIB:
                raise FileTooBig("too big")
            node.data.truncate(changes.size)
        node.mode = node.mode if changes.mode is None else changes.mode
        node.uid = node.uid if changes.uid is None else changes.uid
        node.gid = node.gid if changes.gid is None else changes.gid
        mtime, atime = self._times.get(number_of(address), (self.now, self.now))
        self._times[number_of(address)] = (
            mtime if changes.mtime is None else changes.mtime,
            atime if changes.atime is None else changes.atime,
        )
        return self.attributes(number_of(address))

    async def create(
        self, parent: FdAddress, name: bytes, creation: Creation, *, append: bool = False
    ) -> tuple[Attributes, "ModelFile"]:
        self.trip("create")
        number = self._make(parent, name, stat.S_IFREG, creation)
        return self.attributes(number), self._open(number, append=append)

    async def mknod(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes:
        self.trip("mknod")
        return self.attributes(self._make(parent, name, stat.S_IFREG, creation))

    async def mkdir(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes:
        self.trip("mkdir")
        return self.attributes(self._make(parent, name, stat.S_IFDIR, creation))

    async def symlink(
        self, parent: FdAddress, name: bytes, target: bytes, creation: Creation
    ) -> Attributes:
        self.trip("symlink")
        self._node(parent)
        return self.attributes(self.model.symlink(number_of(parent), name, target))

    async def readlink(self, address: FdAddress) -> bytes:
        self.trip("readlink")
        node = self._node(address)
        if node.kind != stat.S_IFLNK:
            raise InvalidArgument("no link")
        return node.target

    async def link(self, address: FdAddress, parent: FdAddress, name: bytes) -> Attributes:
        self.trip("link")
        self.model.link(number_of(address), number_of(parent), name)
        return self.attributes(number_of(address))

    async def unlink(self, parent: FdAddress, name: bytes) -> None:
        self.trip("unlink")
        self.model.unlink(number_of(parent), name)

    async def rmdir(self, parent: FdAddress, name: bytes) -> None:
        self.trip("rmdir")
        self.model.rmdir(number_of(parent), name)

    async def rename(
        self,
        source_parent: FdAddress,
        source_name: bytes,
        target_parent: FdAddress,
        target_name: bytes,
        flags: RenameFlag,
    ) -> None:
        self.trip("rename")
        self.model.rename(
            number_of(source_parent),
            source_name,
            number_of(target_parent),
            target_name,
            noreplace=RenameFlag.NOREPLACE in flags,
            exchange=RenameFlag.EXCHANGE in flags,
        )

    async def open(
        self, address: FdAddress, *, writing: bool, append: bool = False, truncate: bool = False
    ) -> "ModelFile":
        self.trip("open")
        node = self._node(address)
        if node.kind == stat.S_IFDIR:
            raise IsADirectory("a directory")
        if truncate:
            node.data.truncate(0)
        return self._open(number_of(address), append=append)

    async def open_directory(self, address: FdAddress) -> "ModelDirectory":
        self.trip("open_directory")
        if self._node(address).kind != stat.S_IFDIR:
            raise NotADirectory("no directory")
        return ModelDirectory(self, number_of(address))

    async def sync_directory(self, address: FdAddress) -> None:
        self.trip("sync_directory")

    def statistics(self) -> VolumeStatistics:
        self.trip("statistics")
        return VolumeStatistics(
            block_size=MIB,
            blocks_total=1024,
            blocks_free=512,
            files_total=4096,
            files_free=4000,
            name_length_max=NAME_MAX,
        )

    def forget(self, address: FdAddress) -> None:
        self.trip("forget")
        self.forgotten.append(address)

    async def hold(self, address: FdAddress) -> None:
        """Nothing is held."""

    def is_looked_at(self, address: FdAddress) -> bool:
        return False

    def entries_held(self, address: FdAddress) -> None:
        """Nothing is held."""

    def attributes_held(self, address: FdAddress, generation: int) -> None:
        """Nothing is held."""

    def tenure(self, address: FdAddress) -> int:
        return 0

    def watch(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def attributes(self, number: int) -> Attributes:
        node = self._node(address_of(number))
        size = len(node.target) if node.kind == stat.S_IFLNK else node.data.size
        mtime, atime = self._times.get(number, (self.now, self.now))
        return Attributes(
            address=address_of(number),
            generation=7,
            type=_TYPES[node.kind],
            mode=node.mode,
            link_count=node.links,
            uid=node.uid,
            gid=node.gid,
            size=size,
            blocks_512=len(node.data.pages) * 8,
            mtime=mtime,
            ctime=self.now,
            atime=atime,
            block_size=MIB,
        )

    def _make(self, parent: FdAddress, name: bytes, kind: int, creation: Creation) -> int:
        self._node(parent)
        return self.model.make(
            number_of(parent), name, kind, creation.mode, uid=creation.uid, gid=creation.gid
        )

    def _open(self, number: int, *, append: bool = False) -> "ModelFile":
        self.model.nodes[number].open_count += 1
        return ModelFile(self, number, append=append)

    def _node(self, address: FdAddress) -> Node:
        node = self.model.nodes.get(number_of(address))
        if node is None:
            raise StaleHandle("deleted")
        return node


class ModelFile:
    """One open file."""

    def __init__(self, namespace: ModelNamespace, number: int, *, append: bool) -> None:
        self._namespace = namespace
        self._number = number
        self._append = append

    @property
    def address(self) -> FdAddress:
        return address_of(self._number)

    @property
    def attributes(self) -> Attributes:
        return self._namespace.attributes(self._number)

    @property
    def mode(self) -> int:
        return self.attributes.mode

    def read_now(self, offset: int, length: int) -> bytes | None:
        self._namespace.trip("read_now")
        return None

    def write_now(self, offset: int, data: bytes) -> bool:
        self._namespace.trip("write_now")
        return False

    async def read(self, offset: int, length: int) -> bytes:
        self._namespace.trip("read")
        return self._namespace.model.nodes[self._number].data.read(offset, length)

    async def write(self, offset: int, data: bytes) -> int:
        self._namespace.trip("write")
        content = self._namespace.model.nodes[self._number].data
        content.write(content.size if self._append else offset, data)
        return len(data)

    async def fsync(self, *, data_only: bool = False) -> None:
        self._namespace.trip("fsync")

    async def release(self) -> None:
        self._namespace.model.release(self._number)
        self._namespace.trip("release")


class ModelDirectory:
    """One open directory; position 0 takes a new snapshot."""

    def __init__(self, namespace: ModelNamespace, number: int) -> None:
        self._namespace = namespace
        self._number = number
        self._names: list[ListedName] = []

    async def read(self, start: int) -> Sequence[tuple[int, ListedName]]:
        self._namespace.trip("read_directory")
        nodes = self._namespace.model.nodes
        if start == 0:
            self._names = [
                ListedName(
                    name=name,
                    address=address_of(number),
                    generation=7,
                    type=_TYPES[nodes[number].kind],
                )
                for name, number in nodes[self._number].names.items()
            ]
        return [(at + 1, name) for at, name in enumerate(self._names)][start:]

    async def release(self) -> None:
        self._namespace.trip("release_directory")


def exists_once(error: Exists) -> Callable[[str], None]:
    """A trip that fails the first create only."""
    left = [error]

    def trip(verb: str) -> None:
        if verb == "create" and left:
            raise left.pop()

    return trip
