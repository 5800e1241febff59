"""Between the kernel's words and ours: attributes, changes, statistics, flags.

Time-outs are 0 unless the caller knows better (`kernel_cache`): the kernel then asks at each use.
"""

import os
import stat
from typing import Final

import pyfuse3

from vmfs.errors import InvalidArgument
from vmfs.files.attributes import (
    ROOT_ADDRESS,
    AttributeChanges,
    Attributes,
    RenameFlag,
    VolumeStatistics,
)
from vmfs.fuse.known_nodes import inode_of
from vmfs.units import MIB

_NANOSECONDS: Final = 1_000_000_000
_SECONDS_MAX: Final = (1 << 32) - 1  # the format keeps times as u32 seconds
_RENAME_FLAGS: Final = int(
    RenameFlag.NOREPLACE | RenameFlag.EXCHANGE
)  # ~ of a Flag is not ~ of its number

_NO_SIZE: Final = -1

PREFERRED_SIZE: Final = MIB
"""`st_blksize`: cp and its like then write in pieces as large as a request can be."""


def entry_of(
    attributes: Attributes, *, name_seconds: float = 0, attribute_seconds: float = 0
) -> pyfuse3.EntryAttributes:
    """Attributes as the kernel takes them, valid for this one look unless said otherwise."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode_of(attributes.address, root=ROOT_ADDRESS)
    entry.generation = attributes.generation
    entry.entry_timeout = name_seconds
    entry.attr_timeout = attribute_seconds
    entry.st_mode = attributes.st_mode
    entry.st_nlink = attributes.link_count
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = 0
    entry.st_size = attributes.size
    entry.st_blksize = PREFERRED_SIZE
    entry.st_blocks = attributes.blocks_512
    entry.st_atime_ns = attributes.atime * _NANOSECONDS
    entry.st_mtime_ns = attributes.mtime * _NANOSECONDS
    entry.st_ctime_ns = attributes.ctime * _NANOSECONDS
    return entry


def bare_entry(inode: int, st_mode: int) -> pyfuse3.EntryAttributes:
    """An entry of a listing that has only number and type, and that the kernel takes nothing in of.

    It does not believe that there is a file of such a size: it tells its reader what it lists, and
    forgets the node at once (Linux 5.5, `fuse_direntplus_link`).
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.entry_timeout = 0
    entry.attr_timeout = 0
    entry.st_mode = st_mode
    entry.st_size = _NO_SIZE
    return entry


def no_entry(name_seconds: float) -> pyfuse3.EntryAttributes:
    """That there is no such name, which the kernel may keep for so long."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = name_seconds
    return entry


def changes_of(entry: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> AttributeChanges:
    """What setattr asks for. Times are cut to what the format can keep (1970 to 2106)."""
    return AttributeChanges(
        mode=stat.S_IMODE(entry.st_mode) if fields.update_mode else None,
        uid=entry.st_uid if fields.update_uid else None,
        gid=entry.st_gid if fields.update_gid else None,
        size=entry.st_size if fields.update_size else None,
        mtime=_seconds(entry.st_mtime_ns) if fields.update_mtime else None,
        atime=_seconds(entry.st_atime_ns) if fields.update_atime else None,
    )


def without_privileges(mode: int) -> int:
    """The mode after the file was written, truncated or given away.

    Set-user-ID goes, and set-group-ID where it means that (with group execution; without, it is
    the mark of mandatory locking). The kernel leaves this to us: libfuse asks for
    FUSE_HANDLE_KILLPRIV, and man fuse_lowlevel says what that obliges to.
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def is_for_writing(flags: int) -> bool:
    """Whether open(2) flags allow to change the file (O_TRUNC alone changes it, too)."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def rename_flags_of(flags: int) -> RenameFlag:
    """The flags of renameat2(2).

    Raises:
        InvalidArgument: RENAME_WHITEOUT, or one that came after this was written.
    """
    if flags & ~_RENAME_FLAGS:
        raise InvalidArgument(f"rename flags {flags:#x}: only NOREPLACE and EXCHANGE are known")
    return RenameFlag(flags)


def statvfs_of(statistics: VolumeStatistics) -> pyfuse3.StatvfsData:
    """What statfs(2) and df show."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = statistics.block_size
    data.f_frsize = statistics.block_size
    data.f_blocks = statistics.blocks_total
    data.f_bfree = statistics.blocks_free
    data.f_bavail = statistics.blocks_free
    data.f_files = statistics.files_total
    data.f_ffree = statistics.files_free
    data.f_favail = statistics.files_free
    data.f_namemax = statistics.name_length_max
    return data


def _seconds(nanoseconds: int) -> int:
    return min(max(nanoseconds // _NANOSECONDS, 0), _SECONDS_MAX)
