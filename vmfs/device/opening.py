"""Which of the ways to a LUN is taken: through the page cache, or past it."""

import stat
from enum import Enum
from pathlib import Path

from vmfs.device.direct import DirectDevice
from vmfs.device.image import ImageDevice


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
        Unsupported: its sectors are larger than the 512 bytes of a lock record.
    """
    if mode is IoMode.AUTO:
        mode = IoMode.AIO if _is_block_device(path) else IoMode.INLINE
    if mode is IoMode.AIO:
        return DirectDevice.open(path, writable=writable)
    return ImageDevice.open(path, writable=writable)


def _is_block_device(path: str | Path) -> bool:
    """What cannot be looked at is not one: opening it says why."""
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False
