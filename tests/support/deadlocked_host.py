"""A host that waits for itself: `python -m tests.support.deadlocked_host SOCKET NAME MOUNT_POINT`.

It registers with lockd and serves one FUSE file, `file`, whose reads invalidate the very page that
they are to fill: the process then waits in the kernel, in D state, where SIGKILL does not reach it.
It prints `ready PID` before; who reads the file provokes it.
"""

import errno
import os
import stat
import sys

import pyfuse3
import trio

from lockd.client import Event, connect
from tests.support.lockd import identity

FILE = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)
SIZE = 4096


class Deadlock(pyfuse3.Operations):
    """A root directory with one file in it."""

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        attributes.st_size = SIZE if inode == FILE else 0
        attributes.st_nlink = 1
        return attributes

    async def lookup(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        ctx: pyfuse3.RequestContext | None = None,
    ) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(
        self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        pyfuse3.invalidate_inode(FILE)  # waits for the page that this READ holds
        return bytes(SIZE)


def ignore(_: Event) -> None:
    """Nothing is done about a recall or an ask."""


async def main(socket: str, name: str, mount_point: str) -> None:
    async with connect(socket, identity(name), "ds1", ignore):
        options = {"fsname=deadlock", "subtype=test"}
        pyfuse3.init(Deadlock(), mount_point, options)
        print("ready", os.getpid(), flush=True)
        await pyfuse3.main()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
