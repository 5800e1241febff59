"""One node that this host knows, and what it knows of it.

An `Inode` lives as long as anybody refers to it: the kernel, an open file, an operation. Its
`Contents` live only while this host stands in the node's lock record: they are loaded under a pin
and dropped by the revoke hook, then loaded again at the next use. So whoever looks at `contents`
holds a pin, or has the file open (which keeps the lock in use), or does it without awaiting.

Contents change only together with the running transaction, in one step that does not await, under
the guard (exclusive) and an exclusive pin. `stage` is the end of every such step.
"""

from collections.abc import Callable
from typing import Final

from vmfs.errors import CorruptRecord, NotADirectory, NotPermitted, StaleHandle
from vmfs.files.attributes import PERMISSION_BITS, Attributes
from vmfs.files.dir_block import EntryArray
from vmfs.files.guard import Guard
from vmfs.ids import FdAddress
from vmfs.locks.order import LockId
from vmfs.ondisk.file_desc import (
    DATA_SIZE,
    META_OFFSET,
    FileDesc,
    FileType,
    Zla,
    pack_pointers,
    unpack_pointers,
)
from vmfs.space.block_map import BlockMap
from vmfs.space.preallocation import Preallocation
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFiles
from vmfs.units import SECTOR_SIZE

LINK_MAX: Final = 65_000
"""As on ext4; the format's field has 32 bits."""


class Contents:
    """What a descriptor says, as this host sees it (changes staged but not in place included)."""

    __slots__ = ("_resident", "desc", "entries", "map")

    def __init__(
        self, *, desc: FileDesc, area: bytes, staging: Staging, files: ResourceFiles
    ) -> None:
        """Take metadata and data area as they were read.

        Args:
            desc: the metadata.
            area: the 1024 bytes of the data area.
            staging: the running transaction, and
            files: the volume's resource files: to follow the pointers.
        """
        self.desc = desc
        self.map = BlockMap(desc=desc, pointers=unpack_pointers(area), staging=staging, files=files)
        self._resident = bytes(area[: desc.length]) if self.is_resident else b""
        self.entries: EntryArray | None = None  # of a directory, from its first use on

    @property
    def is_resident(self) -> bool:
        """The file's bytes stand in its descriptor."""
        return self.map.zla is Zla.RESIDENT

    def change(self, **fields: int) -> None:
        """Replace fields of the metadata in memory; `stage` follows in the same step."""
        self.desc = self.desc.changed(fields)

    def resident(self, offset: int, count: int) -> bytes:
        """That many of the file's bytes, at level RESIDENT; the caller has looked at its length."""
        return self._resident[offset : offset + count].ljust(count, b"\0")

    def put_resident(self, offset: int, data: memoryview) -> None:
        """Write file bytes, at level RESIDENT; `change` of the length follows in the same step."""
        end = offset + len(data)
        behind = self.resident(end, max(0, self.desc.length - end))
        self._resident = b"".join((self.resident(0, offset), data, behind))

    def cut_resident(self, length: int) -> None:
        """Lose the file bytes behind `length`, which `change` will make the file's."""
        self._resident = self._resident[:length]

    def area(self) -> bytes:
        """The data area as the descriptor must have it."""
        if self.is_resident:
            return self._resident.ljust(DATA_SIZE, b"\0")
        return pack_pointers(self.map.pointers)


class Inode:
    """One node: its identity, its guard, who has it open here, and its contents if known."""

    __slots__ = (
        "address", "changed", "contents", "generation", "guard", "lock", "looks", "name",
        "orphaned", "preallocation", "readers", "remembered", "writers",
    )  # fmt: skip

    def __init__(
        self, address: FdAddress, lock: LockId, *, changed: Callable[[FdAddress], None]
    ) -> None:
        """Nothing is known but where it is; `changed` is called at every step that changes it."""
        self.address = address
        self.lock = lock
        self.changed = changed
        self.guard = Guard()
        self.generation: int | None = None  # None: whatever the descriptor says first
        self.contents: Contents | None = None
        self.remembered: EntryArray | None = None  # entries of a directory whose lock was lost
        self.looks = 0  # at its attributes, without its lock, since it was last given up
        self.readers = 0  # open files of this host
        self.writers = 0
        self.preallocation: Preallocation | None = None  # while a file is open for writing here
        self.orphaned = False  # link count 0, and still to be freed by this host
        self.name = b""  # by which it was last looked up, for messages

    @property
    def is_open(self) -> bool:
        """A file of this host is open on it."""
        return self.readers + self.writers > 0

    @property
    def loaded(self) -> Contents:
        """The contents, where the caller knows that they are there."""
        assert self.contents is not None, f"{self} is not loaded"
        return self.contents

    @property
    def desc(self) -> FileDesc:
        """The metadata, where the caller knows that they are loaded."""
        return self.loaded.desc

    def attributes(self) -> Attributes:
        """As stat(2) shows it."""
        return attributes_of(self.desc)

    def check_generation(self, desc: FileDesc) -> None:
        """Learn the generation, or hold the descriptor to it.

        Raises:
            StaleHandle: the file that was meant is gone.
        """
        if self.generation is None:
            if not desc.is_used:
                raise StaleHandle(f"{self} belongs to no file")
            self.generation = desc.generation
        elif not self.is_meant(desc):
            raise StaleHandle(f"{self} was deleted")

    def is_meant(self, desc: FileDesc) -> bool:
        """Whether a descriptor is still, or at last, that of this node."""
        return desc.generation == self.generation and (desc.is_used or self.orphaned)

    @property
    def is_directory(self) -> bool:
        """Names can be looked up in it."""
        return self.desc.type is FileType.DIRECTORY

    def must_be(self, file_type: FileType) -> None:
        """Hold the descriptor to the type that a directory entry gives it.

        Raises:
            CorruptRecord: they contradict each other.
        """
        if self.desc.type is not file_type:
            raise CorruptRecord(
                FileDesc.NAME,
                self.lock.lv_offset + META_OFFSET,
                "type",
                self.desc.type.name,
                f"{file_type.name}, as its directory entry says",
            )

    def give_back_preallocation(self) -> None:
        """Blocks that were promised to it and not used are for everybody again."""
        if self.preallocation is not None:
            self.preallocation.give_back()
            self.preallocation = None

    def must_be_directory(self) -> None:
        """Raises: NotADirectory."""
        if self.desc.type is not FileType.DIRECTORY:
            raise NotADirectory(f"{self} is no directory")

    def must_not_be_system(self) -> None:
        """Raises: NotPermitted (the volume's own files never change, by name or content)."""
        if self.desc.type in (FileType.SYSTEM, FileType.RDM):
            raise NotPermitted(f"{self} is a file of the volume itself")

    def stage(self, metadata: Staging, *, area: bool = True) -> None:
        """Put the descriptor, as it is in memory now, into the running transaction.

        Args:
            metadata: the running transaction.
            area: the data area too; only when neither blocks nor resident bytes have changed can
                it be left out.
        """
        contents = self.loaded
        if area:
            contents.desc = contents.map.describe(contents.desc)
        data = contents.desc.pack()
        metadata.stage(self.lock.lv_offset + META_OFFSET, data + contents.area() if area else data)
        self.changed(self.address)

    def __str__(self) -> str:
        name = self.name.decode("utf-8", "replace")
        return f"{name!r} ({self.address:#010x})" if name else f"{self.address:#010x}"


def attributes_of(desc: FileDesc, *, tenure: int = 0) -> Attributes:
    """What stat(2) shows of a descriptor, and the tenure of its lock that it was seen in."""
    return Attributes(
        address=desc.address,
        generation=desc.generation,
        type=desc.type,
        mode=desc.mode & PERMISSION_BITS,
        link_count=desc.link_count,
        uid=desc.uid,
        gid=desc.gid,
        size=desc.length,
        blocks_512=desc.allocated_blocks * desc.block_size // SECTOR_SIZE,
        mtime=desc.mtime,
        ctime=desc.ctime,
        atime=desc.atime,
        block_size=desc.block_size,
        tenure=tenure,
    )
