"""The u32 addresses by which VMFS-5 names its resources (bits of each kind: docs/format.md).

The low three bits say the kind; 0 as a whole is no address (a hole). File block addresses name a
block of the volume itself; all others name a resource (cluster, index in it) of a system file.
Block maps hold thousands of file block addresses, so those also come in bulk, as numpy arrays.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress

BLOCK_COUNT_MAX: Final = 1 << 26
"""File blocks that an address can name: 64 TiB of 1 MiB blocks."""

FB_TBZ: Final = 1 << 5
"""The flag of a file block that is allocated, and reads as zero until it is written."""

_RESOURCE_CLUSTER_MAX: Final = 1 << 22
_FD_CLUSTER_MAX: Final = 1 << 16
_FD_RESOURCE_MAX: Final = 1 << 10
_FB_COW: Final = 1 << 4
_OTHER_COW: Final = 1 << 5
_KIND_MASK: Final = 7


class AddressType(IntEnum):
    """The low three bits of an address."""

    NONE = 0
    FB = 1
    SB = 2
    PB = 3
    FD = 4
    PB2 = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FbAddress:
    """A file block. TBZ: allocated, but reads as zero until it is written."""

    block: int
    tbz: bool = False
    cow: bool = False

    def __post_init__(self) -> None:
        assert 0 <= self.block < BLOCK_COUNT_MAX, f"block {self.block}"

    def pack(self) -> int:
        """The u32 as it stands on disk."""
        flags = (FB_TBZ if self.tbz else 0) | (_FB_COW if self.cow else 0)
        return self.block << 6 | flags | AddressType.FB


@dataclass(frozen=True, slots=True, kw_only=True)
class SbAddress:
    """A sub-block. Six bits of resource, split in two, so dense volumes (64 per cluster) fit."""

    cluster: int
    resource: int
    cow: bool = False

    def __post_init__(self) -> None:
        assert 0 <= self.cluster < _RESOURCE_CLUSTER_MAX, f"cluster {self.cluster}"
        assert 0 <= self.resource < 64, f"resource {self.resource}"

    def pack(self) -> int:
        """The u32 as it stands on disk."""
        low, high = self.resource & 15, self.resource >> 4
        cow = _OTHER_COW if self.cow else 0
        return low << 28 | self.cluster << 6 | cow | high << 3 | AddressType.SB


@dataclass(frozen=True, slots=True, kw_only=True)
class _PointerBlockAddress:
    """A pointer block of either level: they differ in the low digit alone."""

    cluster: int
    resource: int
    cow: bool = False

    KIND: ClassVar[AddressType]

    def __post_init__(self) -> None:
        assert 0 <= self.cluster < _RESOURCE_CLUSTER_MAX, f"cluster {self.cluster}"
        assert 0 <= self.resource < 16, f"resource {self.resource}"

    def pack(self) -> int:
        """The u32 as it stands on disk."""
        cow = _OTHER_COW if self.cow else 0
        return self.resource << 28 | self.cluster << 6 | cow | self.KIND


class PbAddress(_PointerBlockAddress):
    """A pointer block."""

    __slots__ = ()
    KIND: ClassVar[AddressType] = AddressType.PB


class Pb2Address(_PointerBlockAddress):
    """A pointer block of the second level."""

    __slots__ = ()
    KIND: ClassVar[AddressType] = AddressType.PB2


@dataclass(frozen=True, slots=True, kw_only=True)
class FdAddr:
    """A file descriptor, taken apart; packed it is a `vmfs.ids.FdAddress`."""

    cluster: int
    resource: int

    def __post_init__(self) -> None:
        assert 0 <= self.cluster < _FD_CLUSTER_MAX, f"cluster {self.cluster}"
        assert 0 <= self.resource < _FD_RESOURCE_MAX, f"resource {self.resource}"

    def pack(self) -> FdAddress:
        """The u32 as it stands on disk."""
        return FdAddress(self.resource << 22 | self.cluster << 6 | AddressType.FD)


Address = FbAddress | SbAddress | PbAddress | Pb2Address | FdAddr


def address_type(value: int) -> int:
    """The kind in the low bits; 6 and 7 are not VMFS-5's."""
    return value & _KIND_MASK


def parse(value: int, *, at: int = 0) -> Address | None:
    """Take an address apart; None for 0, the hole.

    Args:
        value: the u32 as it stands on disk.
        at: LV offset where it was read, for the message.

    Raises:
        CorruptRecord: no kind of VMFS-5, or a bit is set that no kind uses.
    """
    if value == 0:
        return None
    address: Address
    cluster, resource = value >> 6 & 0x3FFFFF, value >> 28 & 15
    cow = bool(value & _OTHER_COW)
    match value & _KIND_MASK:
        case AddressType.FB:
            address = FbAddress(
                block=value >> 6, tbz=bool(value & FB_TBZ), cow=bool(value & _FB_COW)
            )
        case AddressType.SB:
            address = SbAddress(cluster=cluster, resource=resource | (value >> 3 & 3) << 4, cow=cow)
        case AddressType.PB:
            address = PbAddress(cluster=cluster, resource=resource, cow=cow)
        case AddressType.PB2:
            address = Pb2Address(cluster=cluster, resource=resource, cow=cow)
        case AddressType.FD:
            address = FdAddr(cluster=value >> 6 & 0xFFFF, resource=value >> 22)
        case _:
            raise CorruptRecord("address", at, "type", value, "a low digit of 1 to 5")
    if address.pack() != value:
        raise CorruptRecord("address", at, "unused bits", value, address.pack())
    return address


def parse_fd(value: int, *, at: int = 0) -> FdAddr:
    """Take the address of a file descriptor apart, where nothing else can stand.

    Raises:
        CorruptRecord: it is not one.
    """
    address = parse(value, at=at)
    if not isinstance(address, FdAddr):
        raise CorruptRecord("address", at, "type", value, "a file descriptor (low digit 4)")
    return address


def fb_addresses(start: int, count: int) -> NDArray[np.uint32]:
    """Addresses of `count` adjacent file blocks, without flags."""
    assert 0 <= start <= start + count <= BLOCK_COUNT_MAX
    blocks = np.arange(start, start + count, dtype=np.uint32)
    return (blocks << np.uint32(6)) | np.uint32(AddressType.FB)


def fb_blocks(addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Block numbers of file block addresses (meaningless where `fb_mask` is False)."""
    return addresses >> np.uint32(6)


def fb_mask(addresses: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Where a file block address stands, with or without flags."""
    mask: NDArray[np.bool_] = (addresses & np.uint32(_KIND_MASK)) == np.uint32(AddressType.FB)
    return mask


def tbz_mask(addresses: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Where an allocated file block stands that reads as zero."""
    wanted = np.uint32(FB_TBZ | AddressType.FB)
    mask: NDArray[np.bool_] = (addresses & np.uint32(FB_TBZ | _KIND_MASK)) == wanted
    return mask
