"""Which of the two ways to a LUN is taken: through the page cache, or past it.

All who write one LUN take the same way, lockd included. A page of the cache is larger than a
sector: written back by one, it undoes what another wrote past the cache to its other sectors in the
meantime. So the kind of the LUN decides, and nobody needs to agree on it: block devices go past the
cache, image files through it. Readers do as the writers do, because what is written by AIO to a
block device may leave an older page in the cache behind.
"""

import logging
import os
import stat
from enum import Enum
from pathlib import Path

from vmfs.device import linux
from vmfs.device.direct import DirectDevice
from vmfs.device.image import ImageDevice
from vmfs.errors import Unsupported
from vmfs.units import SECTOR_SIZE

_log = logging.getLogger("vmfs.device")


class IoMode(Enum):
    """How a mount moves the bytes of its LUN (`-o io=`)."""

    AUTO = "auto"
    """AIO for a block device, INLINE for an image file."""

    INLINE = "inline"
    """Through the page cache: all hosts that share the LUN must run on this kernel."""

    AIO = "aio"
    """Past the page cache (O_DIRECT), by Linux AIO."""


def open_lun_device(
    path: str | Path, *, writable: bool, mode: IoMode = IoMode.AUTO
) -> ImageDevice | DirectDevice:
    """Open a LUN; the caller closes it with `aclose`.

    Raises:
        DeviceError: it cannot be opened, or is neither a regular file nor a block device.
        Unsupported: its sectors are larger than the 512 bytes of a lock record; or it is to be
            written in another way than lockd and the other hosts do it.
    """
    usual = IoMode.AIO if _is_past_cache(path) else IoMode.INLINE
    if mode is IoMode.AUTO:
        mode = usual
    if writable and mode is not usual:
        raise Unsupported(
            f"{path} is written by its hosts and lockd with io={usual.value}; io={mode.value} "
            "beside it would undo their writes, and is for read-only mounts"
        )
    _log.info("opening lun=%s io=%s writable=%s", path, mode.value, writable)
    if mode is IoMode.AIO:
        return DirectDevice.open(path, writable=writable)
    return ImageDevice.open(path, writable=writable)


def _is_past_cache(path: str | Path) -> bool:
    """Whether it is a block device with sectors of our size.

    One with larger sectors nobody writes, and past the cache nobody reads a part of a sector. What
    cannot be looked at is for who opens it to complain about.
    """
    try:
        if not stat.S_ISBLK(Path(path).stat().st_mode):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return linux.logical_sector_size(fd) == SECTOR_SIZE
    finally:
        os.close(fd)
