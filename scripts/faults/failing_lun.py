"""A LUN over a path that breaks: every read, write and flush through it is EIO while it is broken.

    python scripts/faults/failing_lun.py LUN DIR SWITCH

Shows LUN as DIR/lun. While the file SWITCH exists, the path is broken; whoever uses LUN itself, or
another path, notices nothing. The kernel keeps no pages of its own for DIR/lun (direct I/O), so
both ways see the same bytes at any moment. Prints "failing_lun: ready" when DIR/lun is there; ends
when DIR is unmounted.
"""

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

NAME = b"lun"
INODE = pyfuse3.ROOT_INODE + 1


class FailingLun(pyfuse3.Operations):
    """A directory with one file in it."""

    def __init__(self, lun: Path, switch: Path) -> None:
        super().__init__()
        self._fd = os.open(lun, os.O_RDWR | os.O_CLOEXEC)
        self._switch = switch

    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Attributes of the directory, or of the file: those of the LUN."""
        found = os.fstat(self._fd)
        attributes = pyfuse3.EntryAttributes()
        is_lun = inode == INODE
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFREG | 0o600 if is_lun else stat.S_IFDIR | 0o700
        attributes.st_nlink = 1
        attributes.st_size = found.st_size if is_lun else 0
        return attributes

    async def lookup(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """There is one name."""
        if parent != pyfuse3.ROOT_INODE or name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(INODE)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the file; the kernel keeps none of its pages."""
        return pyfuse3.FileInfo(fh=INODE, direct_io=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Read from the LUN."""
        self._use_path()
        return os.pread(self._fd, size, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write to the LUN."""
        self._use_path()
        return os.pwrite(self._fd, data, offset)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Flush the LUN."""
        self._use_path()
        os.fdatasync(self._fd)

    async def release(self, fh: int) -> None:
        """Nothing is kept for an open file."""

    def _use_path(self) -> None:
        if self._switch.exists():
            raise pyfuse3.FUSEError(errno.EIO)


def main() -> None:
    """See the module."""
    lun, directory, switch = (Path(word) for word in sys.argv[1:])
    pyfuse3.init(FailingLun(lun, switch), str(directory), {"fsname=failing_lun"})
    print("failing_lun: ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
