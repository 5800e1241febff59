"""File descriptors, the inodes of VMFS-5: 2048 bytes = lock, metadata, data area.

    0      lock record           512 bytes  (`disk_lock`)
    512    metadata              512 bytes  (`FileDesc`)
    1024   data area            1024 bytes  256 addresses, or the file itself (resident)

The metadata has no magic; it repeats its own address. The generation tells a descriptor from
earlier files that had the same one; directory entries repeat it. A descriptor that no file uses
has link count 0; one that no file ever used is all zero, behind an initialised lock.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from struct import Struct
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress
from vmfs.ondisk.address import AddressType, address_type
from vmfs.ondisk.record import (
    Buffer,
    require,
    require_length,
    require_one_of,
    require_power_of_two,
    require_within,
)

FD_SIZE: Final = 2048
LOCK_SIZE: Final = 512
META_OFFSET: Final = 512
DATA_OFFSET: Final = 1024
DATA_SIZE: Final = 1024
POINTER_COUNT: Final = 256
RESIDENT_MAX: Final = DATA_SIZE

FILE_SIZE_MAX: Final = 1 << 46
"""64 TiB: the volume's own limit."""

ROOT_FD: Final = FdAddress(0x00000004)
FBB_FD: Final = FdAddress(0x00400004)
FDC_FD: Final = FdAddress(0x00800004)
PBC_FD: Final = FdAddress(0x00C00004)
SBC_FD: Final = FdAddress(0x01000004)
VH_FD: Final = FdAddress(0x01400004)
PB2_FD: Final = FdAddress(0x01800004)
SDD_FD: Final = FdAddress(0x01C00004)
VLJ_FD: Final = FdAddress(0x02000004)
"""Where our mkfs puts .vlj.sf; the FS descriptor's private block names it."""


class FileType(IntEnum):
    """The type in a descriptor and in directory entries."""

    NONE = 0  # only in descriptors that no file uses
    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4
    SYSTEM = 5
    RDM = 6


class Zla(IntEnum):
    """Zero level address: what stands in the data area."""

    NONE = 0  # raw device mappings, and descriptors that no file uses
    FB = 1
    SB = 2
    PB = 3
    PB2 = 5
    DOUBLE = 0x10D0
    RESIDENT = 0x10D1


_TYPES: Final = tuple(FileType)
_TYPES_IN_USE: Final = tuple(file_type for file_type in FileType if file_type)
_ZLAS: Final = tuple(Zla)
_ZLAS_IN_USE: Final = tuple(zla for zla in Zla if zla)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDesc:
    """The metadata sector."""

    address: FdAddress  # own address; 0 only where no file has ever been
    generation: int = 0  # counts files of the volume; directory entries must agree
    link_count: int = 0  # 0: no file uses the descriptor. Directories: 2 + sub-directories
    type: FileType = FileType.NONE
    flags: int = 0
    length: int = 0  # bytes
    block_size: int = 0  # bytes: sub-block, file block, or 512 for RDM
    allocated_blocks: int = 0  # in units of block_size
    mtime: int = 0  # seconds since 1970, as the other two
    ctime: int = 0
    atime: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0  # permission bits; type bits are normally absent
    zla: Zla = Zla.NONE
    tbz_blocks: int = 0  # allocated blocks that read as zero
    cow_blocks: int = 0
    new_blocks: int = 0  # blocks new since the epoch; equals allocated on fresh ESXi files
    pointer_blocks: int = 0  # VMFS-6; 0 on VMFS-5
    signature: int = 0  # VMFS-6; 0 on VMFS-5
    affinity_fd: int = 0  # own address
    tbz_shift: int = 0  # log2 of the TBZ granularity
    reserved_70: bytes = bytes(25)
    block_shift: int = 0  # log2 of block_size: foreign readers index with it
    tail: bytes = bytes(374)  # 8A..1FF

    NAME: ClassVar[str] = "file descriptor"
    LAYOUT: ClassVar[Struct] = Struct("<5I3Q17I25sB374s")
    SIZE: ClassVar[int] = 512

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            self.address,
            self.generation,
            self.link_count,
            self.type,
            self.flags,
            self.length,
            self.block_size,
            self.allocated_blocks,
            self.mtime,
            self.ctime,
            self.atime,
            self.uid,
            self.gid,
            self.mode,
            self.zla,
            self.tbz_blocks & 0xFFFFFFFF,
            self.cow_blocks & 0xFFFFFFFF,
            self.new_blocks & 0xFFFFFFFF,
            self.tbz_blocks >> 32,
            self.cow_blocks >> 32,
            self.pointer_blocks,
            self.new_blocks >> 32,
            self.signature,
            self.affinity_fd,
            self.tbz_shift,
            self.reserved_70,
            self.block_shift,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int, expected: FdAddress | None = None) -> Self:
        """Read the metadata of a descriptor, used or not.

        Args:
            data: its sector.
            address: LV offset that it was read from.
            expected: the FD address that it must have, when the reader knows. (A descriptor that
                no file ever used has address 0; that passes too, as free.)

        Raises:
            CorruptRecord: another file's, or a field that no file can have.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        f = cls.LAYOUT.unpack(data)
        link_count = f[2]
        if expected is not None and (link_count or f[0]):
            require(cls.NAME, address, "own address", f[0], expected)
        types = _TYPES_IN_USE if link_count else _TYPES
        require_one_of(cls.NAME, address, "type", f[3], types)
        # A raw device mapping has no block list: its data area names a SCSI disk (ESXi: zla 0).
        zlas = _ZLAS_IN_USE if link_count and f[3] != FileType.RDM else _ZLAS
        require_one_of(cls.NAME, address, "zla", f[14], zlas)
        desc = cls(
            address=FdAddress(f[0]),
            generation=f[1],
            link_count=link_count,
            type=FileType(f[3]),
            flags=f[4],
            length=f[5],
            block_size=f[6],
            allocated_blocks=f[7],
            mtime=f[8],
            ctime=f[9],
            atime=f[10],
            uid=f[11],
            gid=f[12],
            mode=f[13],
            zla=Zla(f[14]),
            tbz_blocks=f[15] | f[18] << 32,
            cow_blocks=f[16] | f[19] << 32,
            new_blocks=f[17] | f[21] << 32,
            pointer_blocks=f[20],
            signature=f[22],
            affinity_fd=f[23],
            tbz_shift=f[24],
            reserved_70=f[25],
            block_shift=f[26],
            tail=f[27],
        )
        if link_count:
            desc._require_plausible(address)
        return desc

    @classmethod
    def last_generation(cls, data: Buffer, *, address: int, expected: FdAddress) -> int:
        """The generation of the last file that had a descriptor which is free; 0 if none had it.

        Args:
            data: its sector.
            address: LV offset that it was read from.
            expected: its FD address.

        Raises:
            CorruptRecord: a file has it, though the bitmap calls it free; or it is another one.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        own, generation, link_count = _IDENTITY.unpack_from(data)
        require_one_of(cls.NAME, address, "own address", own, (0, expected))
        if link_count:
            free = "0, since the bitmap calls it free"
            raise CorruptRecord(cls.NAME, address, "link count", link_count, free)
        return int(generation)

    def _require_plausible(self, at: int) -> None:
        if address_type(self.address) != AddressType.FD:
            raise CorruptRecord(self.NAME, at, "own address", self.address, "a low digit of 4")
        require_within(self.NAME, at, "length", self.length, range(FILE_SIZE_MAX + 1))
        require_power_of_two(self.NAME, at, "block size", self.block_size, range(512, 1 << 27))
        require(self.NAME, at, "block shift", self.block_shift, self.block_size.bit_length() - 1)
        if self.zla == Zla.RESIDENT:
            require_within(self.NAME, at, "length", self.length, range(RESIDENT_MAX + 1))

    def changed(self, fields: Mapping[str, object]) -> Self:
        """As `dataclasses.replace`, twice as fast: a descriptor changes with every write."""
        other = object.__new__(type(self))
        for store, value in zip(_STORES, _VALUES(self), strict=True):
            store(other, value)
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other

    @property
    def is_used(self) -> bool:
        """A file has this descriptor."""
        return self.link_count > 0

    @property
    def is_directory(self) -> bool:
        """Also for .sdd.sf, which is a system file that holds entries."""
        return self.type == FileType.DIRECTORY


assert FileDesc.LAYOUT.size == FileDesc.SIZE

_IDENTITY: Final = Struct("<3I")  # the first fields: own address, generation, link count

_NAMES: Final = tuple(field.name for field in dataclasses.fields(FileDesc))
_VALUES: Final = attrgetter(*_NAMES)
_STORES: Final = tuple(getattr(FileDesc, name).__set__ for name in _NAMES)  # of its slots


def unpack_pointers(data: Buffer) -> NDArray[np.uint32]:
    """The data area as 256 addresses (a copy, writable)."""
    assert len(data) == DATA_SIZE, f"a data area of {len(data)} bytes"
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)


def pack_pointers(pointers: NDArray[np.uint32]) -> bytes:
    """Up to 256 addresses as a data area; the rest is zero."""
    assert len(pointers) <= POINTER_COUNT, f"{len(pointers)} addresses in a file descriptor"
    return pointers.astype("<u4").tobytes().ljust(DATA_SIZE, b"\0")
