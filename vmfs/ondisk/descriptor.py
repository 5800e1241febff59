"""The FS descriptor: one sector at LV 0x200000 that says what the volume is.

`VolumeParameters` is our own: what VMFS-5 has no field for. It stands in the last 112 bytes of the
sector, where no VMFS-5 reader looks, under a magic, a version and a checksum of its own. A volume
without it was made by somebody else (ESXi), and is never written by us.
"""

import dataclasses
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import Unsupported
from vmfs.ids import FdAddress, LvOffset, VmfsUuid
from vmfs.ondisk.record import (
    Buffer,
    pack_text,
    require,
    require_length,
    require_one_of,
    require_power_of_two,
    require_within,
    require_zero,
    unpack_text,
)
from vmfs.units import MIB

DESCRIPTOR_OFFSET: Final = LvOffset(0x200000)
MAGIC: Final = 0x2FABF15E
MAGIC_VMFS_L: Final = 0x2FABF15F
MAJOR_VMFS3: Final = 4
MAJOR_VMFS5: Final = 14
MAJOR_VMFS6: Final = 24
MINOR: Final = 81
LABEL_MAX: Final = 127

_TAIL_SIZE: Final = 239
_PARAMETERS_AT: Final = 0x190 - 0x111


class Config(IntFlag):
    """Bits of `config` that we know."""

    PUBLIC = 2
    DENSE_SUB_BLOCKS = 4
    MAINTENANCE = 8
    LOCAL = 0x100
    SHARED = 0x400


class LockProtocol(IntEnum):
    """How lock records are changed: chosen once for a volume (`vmfs lockmode`)."""

    ATS = 1
    RESERVATION = 2


class VolumeFlag(IntFlag):
    """Switches of a volume that are ours."""

    NONE = 0
    NO_RESIDENT = 1  # no file keeps its data in its descriptor: fsck.vmfs stays silent


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeParameters:
    """What we need to know of a volume and VMFS-5 has no field for."""

    lock_protocol: LockProtocol
    flags: VolumeFlag
    journal_fd: FdAddress  # .vlj.sf
    journal_count: int  # journal regions in it, so also usable heartbeat slots, 1..2048
    journal_size: int  # bytes of one region; a multiple of the block size

    NAME: ClassVar[str] = "volume parameters"
    MAGIC: ClassVar[int] = 0x50464D56  # "VMFP"
    VERSION: ClassVar[int] = 1
    LAYOUT: ClassVar[Struct] = Struct("<IHBBIIIQ80sI")
    SIZE: ClassVar[int] = 112

    def pack(self) -> bytes:
        """The 112 bytes at 0x190 of the descriptor's sector."""
        body = self.LAYOUT.pack(
            self.MAGIC,
            self.VERSION,
            self.lock_protocol,
            0,
            self.flags,
            self.journal_fd,
            self.journal_count,
            self.journal_size,
            bytes(80),
            0,
        )[:-4]
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read them.

        Raises:
            CorruptRecord: length, magic, version, checksum or a range is wrong.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        magic, version, protocol, pad, flags, fd, count, size, reserved, crc = cls.LAYOUT.unpack(
            data
        )
        require(cls.NAME, address, "magic", magic, cls.MAGIC)
        require(cls.NAME, address, "version", version, cls.VERSION)
        require(cls.NAME, address, "checksum", crc, zlib.crc32(bytes(data[:-4])))
        require_one_of(cls.NAME, address, "lock protocol", protocol, tuple(LockProtocol))
        require_within(cls.NAME, address, "flags", flags, range(sum(VolumeFlag) + 1))
        require_within(cls.NAME, address, "journal count", count, range(1, 2049))
        require_within(cls.NAME, address, "journal size", size, range(MIB, 256 * MIB + 1))
        require_zero(cls.NAME, address, "reserved", bytes([pad]) + reserved)
        return cls(
            lock_protocol=LockProtocol(protocol),
            flags=VolumeFlag(flags),
            journal_fd=FdAddress(fd),
            journal_count=count,
            journal_size=size,
        )


assert VolumeParameters.LAYOUT.size == VolumeParameters.SIZE
assert _PARAMETERS_AT + VolumeParameters.SIZE == _TAIL_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class FsDescriptor:
    """The sector at LV 0x200000."""

    uuid: VmfsUuid  # of the filesystem
    label: str  # UTF-8, up to 127 bytes
    block_size: int  # bytes of a file block
    created: int  # seconds since 1970
    lv_uuid: VmfsUuid  # must equal the LVM volume entry's
    sub_block_size: int  # bytes
    fdc_clusters_per_group: int
    pb2_fd_offset: LvOffset  # of the .pb2.sf descriptor: readers open it from here
    pb2_fd: FdAddress
    sdd_fd_offset: LvOffset
    sdd_fd: FdAddress
    host_uuid: VmfsUuid = VmfsUuid.NIL  # host that created the volume
    minor: int = MINOR
    config: int = Config.PUBLIC | Config.DENSE_SUB_BLOCKS
    sector_size: int = 512
    snapshot_id: int = 1
    lv_snapshot_id: int = 1
    reserved_c5: bytes = bytes(12)
    fdc_header_size: int = 0x10000
    journal_slot_max: int = 8  # journal slots a transaction of ESXi may use
    global_generation: int = 1
    tail: bytes = bytes(_TAIL_SIZE)  # 111..1FF; our parameters are its last 112 bytes

    NAME: ClassVar[str] = "FS descriptor"
    LAYOUT: ClassVar[Struct] = Struct("<IIB16sI128sIQII16sI12sIIIIQI16sQQI239s")
    SIZE: ClassVar[int] = 512

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            MAGIC,
            MAJOR_VMFS5,
            self.minor,
            self.uuid.raw,
            self.config,
            pack_text(self.label, 128),
            self.sector_size,
            self.block_size,
            self.created,
            self.snapshot_id,
            self.lv_uuid.raw,
            self.lv_snapshot_id,
            self.reserved_c5,
            self.fdc_header_size,
            self.fdc_clusters_per_group,
            self.sub_block_size,
            self.journal_slot_max,
            self.pb2_fd_offset,
            self.pb2_fd,
            self.host_uuid.raw,
            self.global_generation,
            self.sdd_fd_offset,
            self.sdd_fd,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read the descriptor.

        Args:
            data: its sector.
            address: LV offset that it was read from.

        Raises:
            Unsupported: it is a VMFS, but not VMFS-5.
            CorruptRecord: it is none, or a field is out of range.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        f = cls.LAYOUT.unpack(data)
        if f[0] == MAGIC_VMFS_L:
            raise Unsupported("this is a VMFS-L volume; vmfs reads VMFS-5")
        require(cls.NAME, address, "magic", f[0], MAGIC)
        other = {MAJOR_VMFS3: "VMFS-3", MAJOR_VMFS6: "VMFS-6"}.get(f[1])
        if other is not None:
            raise Unsupported(f"this is a {other} volume; vmfs reads VMFS-5")
        require(cls.NAME, address, "version", f[1], MAJOR_VMFS5)
        require_power_of_two(cls.NAME, address, "block size", f[7], range(64 << 10, 8 * MIB + 1))
        require(cls.NAME, address, "sector size", f[6], 512)
        require_power_of_two(cls.NAME, address, "sub-block size", f[15], range(512, 64 * 1024 + 1))
        require_within(cls.NAME, address, "FDC header size", f[13], range(512, MIB))
        require_within(cls.NAME, address, "FDC clusters per group", f[14], range(1, 1 << 16))
        return cls(
            minor=f[2],
            uuid=VmfsUuid(f[3]),
            config=f[4],
            label=unpack_text(cls.NAME, address, "label", f[5]),
            sector_size=f[6],
            block_size=f[7],
            created=f[8],
            snapshot_id=f[9],
            lv_uuid=VmfsUuid(f[10]),
            lv_snapshot_id=f[11],
            reserved_c5=f[12],
            fdc_header_size=f[13],
            fdc_clusters_per_group=f[14],
            sub_block_size=f[15],
            journal_slot_max=f[16],
            pb2_fd_offset=LvOffset(f[17]),
            pb2_fd=FdAddress(f[18]),
            host_uuid=VmfsUuid(f[19]),
            global_generation=f[20],
            sdd_fd_offset=LvOffset(f[21]),
            sdd_fd=FdAddress(f[22]),
            tail=f[23],
        )

    @property
    def is_dense(self) -> bool:
        """64 sub-blocks to a cluster instead of 16."""
        return bool(self.config & Config.DENSE_SUB_BLOCKS)

    @property
    def fdc_offset(self) -> LvOffset:
        """LV offset of byte 0 of .fdc.sf, from which everything else is found."""
        return LvOffset(-(-0x400000 // self.block_size) * self.block_size)

    def parameters(self) -> VolumeParameters | None:
        """What our mkfs recorded; None on a volume that we did not make.

        Raises:
            CorruptRecord: they are there (their magic is), but damaged.
        """
        data = self.tail[_PARAMETERS_AT:]
        if int.from_bytes(data[:4], "little") != VolumeParameters.MAGIC:
            return None
        at = DESCRIPTOR_OFFSET + 0x190
        return VolumeParameters.unpack(data, address=at)

    def with_parameters(self, parameters: VolumeParameters) -> Self:
        """The same descriptor with these parameters in its tail."""
        return dataclasses.replace(self, tail=self.tail[:_PARAMETERS_AT] + parameters.pack())

    def must_be_ours(self) -> VolumeParameters:
        """The parameters of a volume that is to be written.

        Raises:
            Unsupported: there are none.
            CorruptRecord: they are damaged.
        """
        parameters = self.parameters()
        if parameters is None:
            raise Unsupported(
                f"volume {self.label!r} was not made by vmfs mkfs: it has no journals of ours, "
                "and can only be opened read-only"
            )
        return parameters


assert FsDescriptor.LAYOUT.size == FsDescriptor.SIZE
