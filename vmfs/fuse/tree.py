# ruff: noqa: D102 (what each method means is said where it is implemented)
"""What the edge asks of the floor below: `vmfs.files.namespace.Namespace` is the real one.

Stated as protocols, so that the edge can be tested on a tree in memory. The meaning of each method,
and which errors it raises, is documented there; the edge passes all of them on.
"""

from collections.abc import Sequence
from typing import Protocol

from vmfs.device.base import Buffer
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


class TreeFile(Protocol):
    """An open regular file."""

    @property
    def address(self) -> FdAddress: ...

    @property
    def attributes(self) -> Attributes: ...

    @property
    def mode(self) -> int: ...

    def read_now(self, offset: int, length: int) -> Buffer | None: ...

    def write_now(self, offset: int, data: bytes) -> bool: ...

    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes) -> int: ...

    async def fsync(self, *, data_only: bool = False) -> None: ...

    async def release(self) -> None: ...


class TreeDirectory(Protocol):
    """An open directory."""

    async def read(self, start: int) -> Sequence[tuple[int, ListedName]]: ...

    async def release(self) -> None: ...


class NamedNode(Protocol):
    """What a name stands for."""

    @property
    def address(self) -> FdAddress: ...

    @property
    def generation(self) -> int: ...


class TreeEntries(Protocol):
    """The names of a directory, at hand."""

    def find(self, name: bytes) -> NamedNode | None: ...


class Tree(Protocol):
    """The tree of one volume."""

    async def lookup(self, parent: FdAddress, name: bytes) -> Attributes: ...

    async def getattr(self, address: FdAddress) -> Attributes: ...

    async def setattr(self, address: FdAddress, changes: AttributeChanges) -> Attributes: ...

    async def create(
        self, parent: FdAddress, name: bytes, creation: Creation, *, append: bool = False
    ) -> tuple[Attributes, TreeFile]: ...

    async def mknod(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes: ...

    async def mkdir(self, parent: FdAddress, name: bytes, creation: Creation) -> Attributes: ...

    async def symlink(
        self, parent: FdAddress, name: bytes, target: bytes, creation: Creation
    ) -> Attributes: ...

    async def readlink(self, address: FdAddress) -> bytes: ...

    async def link(self, address: FdAddress, parent: FdAddress, name: bytes) -> Attributes: ...

    async def unlink(self, parent: FdAddress, name: bytes) -> None: ...

    async def rmdir(self, parent: FdAddress, name: bytes) -> None: ...

    async def rename(
        self,
        source_parent: FdAddress,
        source_name: bytes,
        target_parent: FdAddress,
        target_name: bytes,
        flags: RenameFlag,
    ) -> None: ...

    async def open(
        self, address: FdAddress, *, writing: bool, append: bool = False, truncate: bool = False
    ) -> TreeFile: ...

    async def open_directory(self, address: FdAddress) -> TreeDirectory: ...

    async def sync_directory(self, address: FdAddress) -> None: ...

    def statistics(self) -> VolumeStatistics: ...

    def forget(self, address: FdAddress) -> None: ...

    async def hold(self, address: FdAddress) -> None: ...

    def is_looked_at(self, address: FdAddress) -> bool: ...

    def entries_held(self, address: FdAddress) -> TreeEntries | None: ...

    def attributes_held(self, address: FdAddress, generation: int) -> Attributes | None: ...

    def tenure(self, address: FdAddress) -> int: ...

    def watch(self, watcher: Watcher) -> None: ...
