"""What the world asks about a file, and what it may change about it: values only, no I/O.

`Attributes` is what stat(2) shows. `AttributeChanges` is what chmod, chown, truncate and utimens
ask for. `VolumeStatistics` is what statfs(2) shows. `ListedName` is one line of a directory.
"""

import stat
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final

from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType

ROOT_ADDRESS: Final = FdAddress(0x00000004)
"""The root directory's file descriptor: cluster 0, resource 0 (vmfs5-format.md section 5)."""

PERMISSION_BITS: Final = 0o7777

_TYPE_BITS: Final = {
    FileType.DIRECTORY: stat.S_IFDIR,
    FileType.FILE: stat.S_IFREG,
    FileType.SYMLINK: stat.S_IFLNK,
    FileType.SYSTEM: stat.S_IFREG,
    FileType.RDM: stat.S_IFREG,
}


class RenameFlag(IntFlag):
    """The flags of renameat2(2), with the kernel's values."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """One file descriptor as stat(2) shows it.

    `mode` has the permission bits only; `st_mode` adds the type. Times are whole seconds since
    1970, as the format keeps them. `blocks_512` counts what the file takes on the volume.

    `tenure` is that of the node's lock when this was seen under it (`Locks.tenure`); 0: it was seen
    in passing, or is not known to hold still.
    """

    address: FdAddress
    generation: int
    type: FileType
    mode: int
    link_count: int
    uid: int
    gid: int
    size: int
    blocks_512: int
    mtime: int
    ctime: int
    atime: int
    block_size: int
    tenure: int = field(default=0, compare=False)

    @property
    def st_mode(self) -> int:
        """Type and permission bits together, as in `struct stat`."""
        return _TYPE_BITS[self.type] | self.mode

    @property
    def is_directory(self) -> bool:
        """Whether names can be looked up in it."""
        return self.type is FileType.DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChanges:
    """What setattr is asked to change; None leaves a field as it is.

    `mode` has permission bits (anything else is ignored), times are whole seconds, `size` is
    bytes. ctime is set by the volume whenever anything changes.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    mtime: int | None = None
    atime: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """Whose a new object is: `mode` (permission bits, umask applied), `uid`, `gid`.

    A parent directory with the set-group-ID bit overrides `gid`, as on ext4.
    """

    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedName:
    """One name of a directory: enough for readdir(3), not yet the attributes."""

    name: bytes
    address: FdAddress
    generation: int
    type: FileType

    @property
    def type_bits(self) -> int:
        """The type as in `st_mode`, without permissions."""
        return _TYPE_BITS[self.type]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStatistics:
    """What statfs(2) shows; taken from counters, so that it never waits for anything."""

    block_size: int
    blocks_total: int
    blocks_free: int
    files_total: int
    files_free: int
    name_length_max: int
