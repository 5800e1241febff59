"""What can be locked, in which order, and how strong a mode is.

A lock is named by what it protects (kind and index) and by where its record stands. The order of
two locks is (kind, index): the tree lock, under which directories move, before all; then file
descriptors before resource clusters, because every operation knows its files before it knows where
their blocks come from; clusters in the order FDC, SBC, PBC, PB2, FBC. Whoever holds a lock and
wants a second one wants a higher one. That, and nothing else, is why no two operations ever wait
for each other (docs/host-locking.md has the argument).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk.disk_lock import LockMode, LockType
from vmfs.ondisk.file_desc import VH_FD


class LockKind(IntEnum):
    """What a lock protects. The numbers are the order."""

    TREE = 0  # the shape of the directory tree; its record is that of .vh.sf
    FILE_DESC = 1  # one file, directory or symlink: descriptor, pointer blocks, contents
    FD_CLUSTER = 2
    SB_CLUSTER = 3
    PB_CLUSTER = 4
    PB2_CLUSTER = 5
    FB_CLUSTER = 6

    @property
    def lock_type(self) -> LockType:
        """The magic of such a lock's record."""
        return _TYPES[self]


_TYPES: Final = MappingProxyType(
    {
        LockKind.TREE: LockType.FILE_DESC,
        LockKind.FILE_DESC: LockType.FILE_DESC,
        LockKind.FD_CLUSTER: LockType.FD_CLUSTER,
        LockKind.SB_CLUSTER: LockType.SB_CLUSTER,
        LockKind.PB_CLUSTER: LockType.PB_CLUSTER,
        LockKind.PB2_CLUSTER: LockType.PB2_CLUSTER,
        LockKind.FB_CLUSTER: LockType.FB_CLUSTER,
    }
)


@dataclass(frozen=True, slots=True, order=True)
class LockId:
    """One lock. `index` is the FD address, or the number of the resource cluster."""

    kind: LockKind
    index: int
    lv_offset: LvOffset  # of its record

    def __str__(self) -> str:
        if self.kind is LockKind.TREE:
            return "directory tree"
        if self.kind is LockKind.FILE_DESC:
            return f"file descriptor {self.index:#010x}"
        return f"{self.kind.name.removesuffix('_CLUSTER')} cluster {self.index}"


def file_lock(address: FdAddress, lv_offset: LvOffset) -> LockId:
    """The lock of a file descriptor; its record is the descriptor's first sector.

    That of `.vh.sf`, which nobody ever opens, is the tree lock and comes first in the order.
    """
    kind = LockKind.TREE if address == VH_FD else LockKind.FILE_DESC
    return LockId(kind, address, lv_offset)


def in_order(wanted: Mapping[LockId, LockMode]) -> list[tuple[LockId, LockMode]]:
    """The locks of one operation in the order in which they must be taken."""
    return sorted(wanted.items())


def is_in_order(held: Iterable[LockId], wanted: LockId) -> bool:
    """Whether an operation that holds `held` may wait for `wanted`."""
    return all(lock < wanted for lock in held)


def covers(held: LockMode, wanted: LockMode) -> bool:
    """Whether whoever holds a lock in mode `held` may do what `wanted` allows."""
    return _STRENGTH[held] >= _STRENGTH[wanted]


def exceeds(mode: LockMode, limit: LockMode) -> bool:
    """Whether `mode` is too strong to go on beside a lock that is reduced to `limit`."""
    return _STRENGTH[mode] > _STRENGTH[limit]


_STRENGTH: Final = MappingProxyType(
    {
        LockMode.FREE: 0,
        LockMode.SHARED: 1,
        LockMode.EXCLUSIVE: 2,
        LockMode.MULTI_WRITER: 2,  # never taken by us; a record that has it counts as busy
    }
)
