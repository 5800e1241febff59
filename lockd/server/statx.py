"""statx(2): what the kernel knows of an open file, without a question to its filesystem.

`os.stat` asks a FUSE or network filesystem whenever its cached attributes are old, and waits for
the answer. AT_STATX_DONT_SYNC takes what is cached; which inode it is, and which device, never
changes. The layout is that of `struct statx` in linux/stat.h.
"""

import ctypes
import os
import stat
import struct
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE_INO: Final = 0x001 | 0x100
_SIZE: Final = 256
_MODE_INO: Final = struct.Struct("<28xH2xQ")
_DEVICES: Final = struct.Struct("<4I")  # rdev major and minor, then those of the filesystem
_DEVICES_OFFSET: Final = 128


def identity(path: Path) -> tuple[int, int]:
    """What makes it this file: the device number of a block device, else filesystem and inode.

    Raises:
        OSError: as of statx(2).
    """
    buffer = ctypes.create_string_buffer(_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    name = os.fsencode(path)
    if libc.statx(_AT_FDCWD, name, _AT_STATX_DONT_SYNC, _STATX_TYPE_INO, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    mode, inode = _MODE_INO.unpack_from(buffer)
    devices = _DEVICES.unpack_from(buffer, _DEVICES_OFFSET)
    if stat.S_ISBLK(mode):
        return 0, os.makedev(*devices[:2])
    return os.makedev(*devices[2:]), inode
