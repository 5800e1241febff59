"""A LUN past the page cache of this kernel: O_DIRECT, by Linux AIO.

For a block device that is shared, because what a page cache holds is neither on the LUN nor gone
when the process is: the pages of a host that was killed would be written after its fence. A write
that this device has started is on the LUN when the process is seen to be gone, or never will be
(`vmfs.device.linux_aio`).

Nothing blocks the loop, and nothing takes a thread except the bulk verbs. (io_submit(2) itself
waits when the queue of a block device is full, and for an image file when the filesystem has to
read its own metadata or to allocate.)

A range that does not begin and end on a sector is widened to sectors: read, changed, written.
Writes that touch the same sector wait for each other, so nothing is lost by it.
"""

import errno
import os
from pathlib import Path
from typing import Final, Self

import trio

from vmfs.device import linux
from vmfs.device.aio import AioQueue
from vmfs.device.base import Buffer, assert_range
from vmfs.device.buffers import AlignedBuffer, BufferPool
from vmfs.device.linux_aio import Opcode
from vmfs.device.lun import LunDevice, open_lun, reason_of
from vmfs.errors import DeviceError
from vmfs.units import MIB, SECTOR_SIZE, align_down, align_up

TRANSFER_MAX: Final = MIB
"""Bytes of one request; longer ranges are moved piece by piece."""


class DirectDevice(LunDevice):
    """A block device, or a regular file on a filesystem that has O_DIRECT."""

    def __init__(self, fd: int, path: Path, *, size: int) -> None:
        """Own `fd` from here on; use `open`."""
        super().__init__(fd, path, size=size, offload_inline_max=0)
        self._queue = AioQueue(fd)
        self._pool = BufferPool()
        self._writes: list[tuple[int, int]] = []  # sectors of the writes in flight
        self._write_ended = trio.lowlevel.ParkingLot()

    @classmethod
    def open(cls, path: str | Path, *, writable: bool) -> Self:
        """Open `path`; the caller closes it with `aclose`.

        Raises:
            DeviceError: it cannot be opened so, or is neither a regular file nor a block device.
            Unsupported: its sectors are larger than the 512 bytes of a lock record.
        """
        path = Path(path)
        fd = open_lun(path, writable=writable, direct=True)
        try:
            return cls(fd, path, size=linux.size_of(fd))
        except OSError as error:
            os.close(fd)
            hint = "; is fs.aio-max-nr used up?" if error.errno == errno.EAGAIN else ""
            raise DeviceError(f"no asynchronous I/O on {path}: {reason_of(error)}{hint}") from error
        except BaseException:
            os.close(fd)
            raise

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`.

        Raises:
            DeviceError: the medium answered with an error, or the file was cut short under us.
        """
        assert_range(self._size, offset, length)
        if length == 0:
            return b""
        pieces = []
        end = offset + length
        for start in range(align_down(offset, SECTOR_SIZE), end, TRANSFER_MAX):
            stop = min(start + TRANSFER_MAX, align_up(end, SECTOR_SIZE))
            buffer = self._pool.take(stop - start)
            try:
                await self._transfer(Opcode.PREAD, "read", buffer.address, start, stop - start)
                first, last = max(offset, start) - start, min(end, stop) - start
                pieces.append(bytes(buffer.view[first:last]))
            finally:
                self._pool.give(buffer)
        self._count_read(length)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Not without waiting for the disk."""
        assert_range(self._size, offset, length)
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Not without waiting for the disk."""
        assert_range(self._size, offset, memoryview(data).nbytes)
        return False

    async def _pwrite(self, verb: str, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        if end == offset:
            return
        for start in range(align_down(offset, SECTOR_SIZE), end, TRANSFER_MAX):
            stop = min(start + TRANSFER_MAX, align_up(end, SECTOR_SIZE))
            first, last = max(offset, start), min(end, stop)
            await self._write_sectors(
                verb, start, stop, first, view[first - offset : last - offset]
            )

    async def _write_sectors(
        self, verb: str, start: int, stop: int, first: int, data: memoryview
    ) -> None:
        """Write `data` at `first`, which is in the sectors from `start` to `stop`."""
        sectors = (start, stop)
        while any(begin < stop and start < end for begin, end in self._writes):
            await self._write_ended.park()
        self._writes.append(sectors)
        buffer = self._pool.take(stop - start)
        try:
            at = first - start
            await self._fill_edges(verb, buffer, start, stop, at, len(data))
            buffer.view[at : at + len(data)] = data
            await self._transfer(Opcode.PWRITE, verb, buffer.address, start, stop - start)
        finally:
            self._pool.give(buffer)
            self._writes.remove(sectors)
            self._write_ended.unpark_all()

    async def _fill_edges(  # noqa: PLR0913 - as above
        self, verb: str, buffer: AlignedBuffer, start: int, stop: int, at: int, length: int
    ) -> None:
        """Read the first and the last sector, where the data leaves something of them."""
        last = stop - start - SECTOR_SIZE
        edges = {0} if at else set()
        if at + length != stop - start:
            edges.add(last)
        for edge in edges:
            await self._transfer(
                Opcode.PREAD, verb, buffer.address + edge, start + edge, SECTOR_SIZE
            )

    async def _transfer(
        self, opcode: Opcode, verb: str, address: int, offset: int, length: int
    ) -> None:
        """Move all of it; what the kernel leaves over is asked for again."""
        done = 0
        while done < length:
            try:
                moved = await self._queue.transfer(
                    opcode, address=address + done, length=length - done, offset=offset + done
                )
            except OSError as error:
                raise self._error(verb, offset, length, reason_of(error)) from error
            if moved == 0:
                raise self._error(verb, offset, length, f"ends after {done} bytes")
            done += moved

    async def _fdatasync(self) -> None:
        await self._queue.transfer(Opcode.FDSYNC)

    async def aclose(self) -> None:
        """Close the descriptor. Does not flush; nothing may be in flight."""
        if self._fd >= 0:
            self._queue.close()
        await super().aclose()
