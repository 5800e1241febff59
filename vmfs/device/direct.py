"""A LUN past the page cache of this kernel: O_DIRECT, by Linux AIO.

For block devices, because what a page cache holds is neither on the LUN nor gone when the process
is: the pages of a host that was killed would be written after its fence. A write that this device
has started is on the LUN when the process is seen to be gone, or never will be
(`vmfs.device.linux_aio`). Why all who write a LUN go the same way: `vmfs.device.opening`.

Nothing blocks the loop, and nothing takes a thread except the bulk verbs. (io_submit(2) itself
waits when the queue of a block device is full; on a regular file also for its block map.)

A range that does not begin and end on a sector is widened to sectors: read, changed, written.
Writes that touch the same sector wait for each other, so nothing is lost by it.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import trio

from vmfs.device import linux
from vmfs.device.aio import AioQueue
from vmfs.device.base import Buffer, assert_range
from vmfs.device.buffers import BufferPool
from vmfs.device.linux_aio import Opcode
from vmfs.device.lun import LunDevice, open_lun, reason_of
from vmfs.errors import DeviceError
from vmfs.units import MIB, SECTOR_SIZE, align_down, align_up

TRANSFER_MAX: Final = MIB
"""Bytes of one request; longer ranges are moved piece by piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one request moves: the bytes from `first` to `last`, in sectors, `start` to `stop`."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Of the sectors, in bytes."""
        return self.stop - self.start

    @property
    def head(self) -> int:
        """Where in the sectors the bytes begin."""
        return self.first - self.start

    @property
    def tail(self) -> int:
        """Where in the sectors the bytes end."""
        return self.last - self.start

    def touches(self, other: "Piece") -> bool:
        """Whether a sector belongs to both."""
        return self.start < other.stop and other.start < self.stop

    def edges(self) -> set[int]:
        """Where in the sectors those are of which only a part is wanted: the first, the last."""
        edges = set()
        if self.first != self.start:
            edges.add(0)
        if self.last != self.stop:
            edges.add(self.size - SECTOR_SIZE)
        return edges


def pieces(offset: int, length: int) -> Iterator[Piece]:
    """Cut a range of bytes into requests of whole sectors, `TRANSFER_MAX` at most."""
    end = offset + length
    for start in range(align_down(offset, SECTOR_SIZE), end, TRANSFER_MAX) if length else ():
        stop = min(start + TRANSFER_MAX, align_up(end, SECTOR_SIZE))
        yield Piece(start=start, stop=stop, first=max(offset, start), last=min(end, stop))


class DirectDevice(LunDevice):
    """A block device, or a regular file on a filesystem that has O_DIRECT."""

    def __init__(self, fd: int, path: Path, *, size: int) -> None:
        """Own `fd` from here on; use `open`."""
        super().__init__(fd, path, size=size, offload_inline_max=0)
        self._queue = AioQueue(fd)
        self._pool = BufferPool()
        self._writes: list[Piece] = []  # in flight; no two of them touch the same sector
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
        parts = []
        for piece in pieces(offset, length):
            buffer = self._pool.take(piece.size)
            try:
                await self._transfer(Opcode.PREAD, "read", buffer.address, piece.start, piece.size)
                parts.append(bytes(buffer.view[piece.head : piece.tail]))
            finally:
                self._pool.give(buffer)
        self._count_read(length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Not without waiting for the disk."""
        assert_range(self._size, offset, length)
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Not without waiting for the disk."""
        assert_range(self._size, offset, memoryview(data).nbytes)
        return False

    async def _pwrite(self, verb: str, offset: int, view: memoryview) -> None:
        for piece in pieces(offset, len(view)):
            await self._write_piece(verb, piece, view[piece.first - offset : piece.last - offset])

    async def _write_piece(self, verb: str, piece: Piece, data: memoryview) -> None:
        """Write `data`, the bytes of `piece`, and leave the rest of its sectors as it is."""
        while any(piece.touches(other) for other in self._writes):
            await self._write_ended.park()
        self._writes.append(piece)
        buffer = self._pool.take(piece.size)
        try:
            for edge in piece.edges():
                await self._transfer(
                    Opcode.PREAD, verb, buffer.address + edge, piece.start + edge, SECTOR_SIZE
                )
            buffer.view[piece.head : piece.tail] = data
            await self._transfer(Opcode.PWRITE, verb, buffer.address, piece.start, piece.size)
        finally:
            self._pool.give(buffer)
            self._writes.remove(piece)
            self._write_ended.unpark_all()

    async def _transfer(
        self, opcode: Opcode, verb: str, address: int, offset: int, length: int
    ) -> None:
        """Move all of it."""
        try:
            done = await self._queue.transfer_all(
                opcode, address=address, length=length, offset=offset
            )
        except OSError as error:
            raise self._error(verb, offset, length, reason_of(error)) from error
        if done < length:
            raise self._error(verb, offset, length, f"ends after {done} bytes")

    async def _fdatasync(self) -> None:
        await self._queue.transfer(Opcode.FDSYNC)

    async def aclose(self) -> None:
        """Close the descriptor. Does not flush; nothing may be in flight."""
        if self._fd >= 0:
            self._queue.close()
        await super().aclose()
