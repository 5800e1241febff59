"""What the files floor stands on: the lower floors of one open volume, and its parameters.

Made once, in `vmfs.volume`; nothing here changes while the volume is open.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from vmfs.device.base import Device
from vmfs.errors import ReadOnly, VmfsError
from vmfs.ids import FdAddress, LvOffset
from vmfs.locks.base import Locks
from vmfs.locks.order import LockId, file_lock
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.descriptor import FsDescriptor
from vmfs.ondisk.file_desc import VH_FD, Zla
from vmfs.ondisk.orphan_rec import OrphanEntry
from vmfs.space.allocator import Allocator
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFile, ResourceFiles

STAGE_ROOM: Final = 64 * 1024
"""Bytes of metadata that one step of an operation may stage: descriptors and pointer blocks of the
files involved, a few sectors of directories, and the cluster headers of small frees."""


class Metadata(Staging, Protocol):
    """The running transaction, as this floor uses it (`vmfs.txn.transaction.Transactions`)."""

    @property
    def failed(self) -> VmfsError | None:
        """Why nothing can be staged or committed any more."""
        ...

    @property
    def dirty(self) -> bool:
        """Something is staged that is not durable yet."""
        ...

    def has_room(self, size: int) -> bool:
        """Whether `room` would return at once."""
        ...

    async def room(self, size: int) -> None:
        """After it returns, `size` bytes can be staged as long as nothing is awaited."""
        ...

    async def sync(self) -> None:
        """Make all file data written, and everything staged so far, durable."""
        ...


class UnwrittenMetadata:
    """`Metadata` of a volume that is open read-only: reads the LUN, stages nothing."""

    def __init__(self, device: Device) -> None:
        """`device` is the logical volume."""
        self._device = device

    @property
    def failed(self) -> VmfsError | None:
        """Nothing is written, so nothing can fail."""
        return None

    @property
    def dirty(self) -> bool:
        """Nothing is ever staged."""
        return False

    async def read(self, offset: int, length: int) -> bytes:
        """What the LUN says."""
        return await self._device.read(offset, length)

    def stage(self, offset: int, data: bytes) -> None:
        """Refuse.

        Raises:
            ReadOnly: always.
        """
        raise ReadOnly("the volume is open read-only")

    def has_room(self, size: int) -> bool:
        """There is none."""
        return False

    async def room(self, size: int) -> None:
        """Refuse, as `stage`."""
        raise ReadOnly("the volume is open read-only")

    def discard(self, offset: int, length: int) -> None:
        """Nothing is staged."""

    def is_live(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Nothing is."""
        return False

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Nothing will commit."""

    async def commit(self) -> None:
        """Nothing to commit."""

    async def sync(self) -> None:
        """Nothing to commit."""

    async def checkpoint(self) -> None:
        """Nothing to commit."""


class OrphanEntries(Protocol):
    """The table of files that must still be freed (`vmfs.txn.orphans.OrphanTable`)."""

    def entries(self) -> list[OrphanEntry]:
        """Every orphan."""
        ...

    def find(self, fd_address: FdAddress) -> OrphanEntry | None:
        """The entry of a file descriptor, if it has one."""
        ...

    def add(self, entry: OrphanEntry) -> None:
        """Stage an entry, or replace the one of the same file. Raises: NoSpace (it is full)."""
        ...

    def remove(self, entry: OrphanEntry) -> None:
        """Stage the table without it."""
        ...


class NoOrphans:
    """`OrphanEntries` of a volume that is open read-only."""

    def entries(self) -> list[OrphanEntry]:
        """None."""
        return []

    def find(self, fd_address: FdAddress) -> OrphanEntry | None:
        """None."""
        return None

    def add(self, entry: OrphanEntry) -> None:
        """Refuse.

        Raises:
            ReadOnly: always.
        """
        raise ReadOnly("the volume is open read-only")

    def remove(self, entry: OrphanEntry) -> None:
        """Refuse, as `add`."""
        raise ReadOnly("the volume is open read-only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The floors below, and what the volume is."""

    device: Device  # the logical volume; every write passes the I/O permit
    metadata: Metadata
    locks: Locks
    allocator: Allocator
    orphans: OrphanEntries
    resources: ResourceFiles
    descriptor: FsDescriptor
    clock: Callable[[], float]  # wall time, seconds since 1970: for mtime and ctime only
    read_only: bool
    resident_data: bool  # small files keep their data in their descriptor

    @property
    def block_size(self) -> int:
        """Bytes of a file block."""
        return self.descriptor.block_size

    @property
    def sub_block_size(self) -> int:
        """Bytes of a sub-block."""
        return self.descriptor.sub_block_size

    @property
    def file_descs(self) -> ResourceFile:
        """The resource file of the file descriptors."""
        return self.resources[AddressType.FD]

    def now(self) -> int:
        """The time for mtime and ctime, whole seconds; the format has 32 bits for it."""
        return min(max(int(self.clock()), 0), 0xFFFFFFFF)

    def desc_offset(self, address: FdAddress) -> LvOffset:
        """Where a file descriptor (its lock sector) stands. `address` was checked before."""
        return self.file_descs.address_lv_offset(address)

    def lock_of(self, address: FdAddress) -> LockId:
        """The lock of a file, directory or symlink."""
        return self.tree_lock if address == VH_FD else file_lock(address, self.desc_offset(address))

    @property
    def tree_lock(self) -> LockId:
        """The lock under which directories move, all over the volume: that of `.vh.sf`.

        Who moves a directory takes it first, and looks at other directories under it. So it is
        ordered below all of them: it has index 0, which is no FD address.
        """
        return file_lock(FdAddress(0), self.desc_offset(VH_FD))

    @property
    def first_level(self) -> Zla:
        """The level at which an empty file or symbolic link begins."""
        return Zla.RESIDENT if self.resident_data else Zla.SB

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once."""
        return self.metadata.has_room(STAGE_ROOM)

    async def room(self, extra: int = 0) -> None:
        """Make room for one step of an operation, and for `extra` bytes: see `STAGE_ROOM`."""
        await self.metadata.room(STAGE_ROOM + extra)

    def must_be_writable(self) -> None:
        """Refuse a change on a read-only volume.

        Raises:
            ReadOnly: it is one.
        """
        if self.read_only:
            raise ReadOnly("the volume is open read-only")
