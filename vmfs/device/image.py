"""A LUN through the page cache of this kernel: an image file.

Hosts that share it must run on one kernel: they share its page cache. A LUN that another kernel
writes too needs `vmfs.device.direct`. (Readers may open a block device so.)

What the page cache has is read inline: without a checkpoint, and without a thread (a hop costs more
than the I/O, docs/decisions/009). What it has not is looked for again for 0.3 ms (a fast disk has
brought it by then); if that was in vain io_uring reads it, so that a slow disk holds up neither a
heartbeat nor other requests (docs/decisions/016). Where there is no io_uring, a thread does that. A
filesystem that cannot say what it has (tmpfs, which has everything) is read inline. Writes are
inline: they go to memory, until the kernel slows down who writes faster than the disk, by 0.2 s per
call at most (`balance_dirty_pages`). A flush waits without a thread, as AIO does.
"""

import errno
import logging
import os
import time
from pathlib import Path
from typing import Final, Self

import trio

from vmfs.device import linux
from vmfs.device.aio import AioQueue
from vmfs.device.base import Buffer, assert_range
from vmfs.device.buffers import AlignedBuffer, BufferPool
from vmfs.device.linux_aio import Opcode
from vmfs.device.linux_uring import DEPTH_MAX, UringContext, UringOpcode
from vmfs.device.lun import LunDevice, open_lun, reason_of
from vmfs.device.patience import Patience
from vmfs.errors import Unsupported
from vmfs.units import KIB, MIB

_log = logging.getLogger("vmfs.device")

INLINE_BYTES_MAX: Final = MIB
"""Bulk verbs on more than this go to a thread: freeing many extents takes long in the kernel."""

LOOKED_FOR_BYTES_MAX: Final = 64 * KIB
"""Of a read that is looked for again at once; more takes longer than that anyway."""

MISS: Final = -1
"""In place of a number of bytes."""


class ImageDevice(LunDevice):
    """A regular file or block device, with the page cache between."""

    def __init__(self, fd: int, path: Path, *, size: int) -> None:
        """Own `fd` from here on; use `open`."""
        super().__init__(fd, path, size=size, offload_inline_max=INLINE_BYTES_MAX)
        self._tells_misses = True  # until the filesystem says that it cannot
        self._missed: tuple[int, int] | None = None  # by `read_now`: `read` need not try again
        self._scratch = AlignedBuffer(MIB)
        self._patience = Patience(time.monotonic)
        self._pool = BufferPool()
        self._misses: AioQueue | None = None  # made with the first
        self._has_uring = True
        self._flushes: AioQueue | None = None  # made with the first
        self._has_aio = True

    @classmethod
    def open(cls, path: str | Path, *, writable: bool) -> Self:
        """Open `path`; the caller closes it with `aclose`.

        Raises:
            DeviceError: it cannot be opened, or is neither a regular file nor a block device.
            Unsupported: it is to be written, and its sectors are larger than a lock record.
        """
        path = Path(path)
        fd = open_lun(path, writable=writable, direct=False)
        return cls(fd, path, size=linux.size_of(fd))

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`: inline what is in the page cache.

        Raises:
            DeviceError: the medium answered with an error, or the file was cut short under us.
        """
        missed, self._missed = self._missed, None
        if missed != (offset, length):
            view = self.read_now(offset, length)
            if view is not None:
                return bytes(view)
        try:
            data = await self._pread(offset, length)
        except OSError as error:
            raise self._error("read", offset, length, reason_of(error)) from error
        if len(data) != length:
            raise self._error("read", offset, length, f"ends after {len(data)} bytes")
        self._count_read(length)
        return data

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read exactly `length` bytes at `offset` if the page cache has them, else None.

        Returns:
            Memory that is good until the next call: of somebody who does not await in between.

        Raises:
            DeviceError: the medium answered with an error.
        """
        assert_range(self._size, offset, length)
        view = self._scratch.view[:length] if length <= MIB else memoryview(bytearray(length))
        got = self._look(view, offset)
        if got != length and not (got == MISS and self._comes_soon(view, offset)):
            self._missed = offset, length  # some of it, or all: `read` finds out
            return None
        self._count_read(length)
        return view

    def _comes_soon(self, view: memoryview, offset: int) -> bool:
        """Fill `view` with what the disk has just been asked for, if it is a fast one."""
        length = len(view)
        return length <= LOOKED_FOR_BYTES_MAX and self._patience.wait_for(
            lambda: self._look(view, offset) == length
        )

    def _look(self, view: memoryview, offset: int) -> int:
        """Fill `view` with what the page cache has, and have the kernel begin to read the rest.

        Returns:
            How many bytes, from the front; `MISS` for none, 0 behind the end of the file.

        Raises:
            DeviceError: the medium answered with an error.
        """
        flags = os.RWF_NOWAIT if self._tells_misses else 0
        try:
            return os.preadv(self._fd, [view], offset, flags)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return MISS
            if error.errno == errno.EOPNOTSUPP and self._tells_misses:
                self._tells_misses = False
                return self._look(view, offset)
            raise self._error("read", offset, len(view), reason_of(error)) from error

    async def _pread(self, offset: int, length: int) -> bytes:
        """Wait for the disk; fewer bytes only where the file ends.

        Raises:
            OSError: the medium answered with an error.
        """
        queue = self._queue_of_misses()
        if queue is None:
            return await trio.to_thread.run_sync(linux.pread, self._fd, offset, length)
        parts = []
        for start in range(offset, offset + length, MIB):
            count = min(MIB, offset + length - start)
            parts.append(await self._pread_piece(queue, start, count))
            if len(parts[-1]) < count:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _pread_piece(self, queue: AioQueue, offset: int, length: int) -> bytes:
        buffer = self._pool.take(length)
        try:
            done = await queue.transfer_all(
                UringOpcode.READ, address=buffer.address, length=length, offset=offset
            )
            return bytes(buffer.view[:done])
        finally:
            self._pool.give(buffer)  # the kernel is done with it, however this has ended

    def _queue_of_misses(self) -> AioQueue | None:
        """Made with the first miss, in the thread that uses it; None where there is no io_uring."""
        if self._misses is None and self._has_uring:
            try:
                self._misses = AioQueue(self._fd, depth=DEPTH_MAX, context=UringContext)
            except OSError as error:
                self._has_uring = False  # an old kernel, or a container or sysctl that forbids it
                _log.info("no io_uring, cold reads take threads: %s", reason_of(error))
        return self._misses

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write `data` at `offset`, inline: it always goes to memory first.

        Raises:
            DeviceError: the medium answered with an error; some of the sectors may be written.
        """
        view = memoryview(data).cast("B")
        assert_range(self._size, offset, len(view))
        self._pwrite_now("write", offset, view)
        self._count_write(len(view))
        return True

    async def _pwrite(self, verb: str, offset: int, view: memoryview) -> None:
        self._pwrite_now(verb, offset, view)

    def _pwrite_now(self, verb: str, offset: int, view: memoryview) -> None:
        try:
            linux.pwrite(self._fd, offset, view)
        except OSError as error:
            raise self._error(verb, offset, len(view), reason_of(error)) from error

    async def _fdatasync(self) -> None:
        if self._flushes is None and self._has_aio:
            try:
                self._flushes = AioQueue(self._fd, depth=1)
            except (OSError, Unsupported):
                self._has_aio = False  # not here, or the machine's room for it is used up
        if self._flushes is None:
            await trio.to_thread.run_sync(os.fdatasync, self._fd)
        else:
            await self._flushes.transfer(Opcode.FDSYNC)

    async def aclose(self) -> None:
        """Close the descriptor. Does not flush; nothing may be in flight."""
        if self._misses is not None:
            self._misses.close()
            self._misses = None
        if self._flushes is not None:
            self._flushes.close()
            self._flushes = None
        await super().aclose()
