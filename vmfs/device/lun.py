"""What an image file and a block device have in common: the descriptor, flushes, the bulk verbs.

How bytes get in and out is the difference: through the page cache of this kernel
(`vmfs.device.image`), or past it (`vmfs.device.direct`).
"""

import errno
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio

from vmfs.device import linux
from vmfs.device.base import Buffer, assert_range
from vmfs.device.turn import Turn
from vmfs.errors import DeviceError, Unsupported
from vmfs.units import GIB, MIB, SECTOR_SIZE

T = TypeVar("T")

ZEROES_WRITTEN_MAX: Final = 32 * 1024
"""Up to this many bytes zeroes are simply written: cheaper than a change of the file's extents."""

OFFLOAD_CHUNK: Final = GIB
"""Bytes per call of a bulk verb that the layer below does: a bound for one uninterruptible wait."""

FALLBACK_CHUNK: Final = MIB
"""Bytes per step where the bytes must go through this process; other tasks run in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatistics:
    """What a device has done since it was opened, in bytes where it does not say otherwise.

    *offloaded* was done by the layer below; the counterpart went through this process.
    """

    read_count: int = 0
    read_size: int = 0
    write_count: int = 0
    write_size: int = 0
    flush_count: int = 0
    zeroes_offloaded_size: int = 0
    zeroes_written_size: int = 0
    unmap_offloaded_size: int = 0
    unmap_zeroed_size: int = 0
    copy_offloaded_size: int = 0
    copy_through_size: int = 0


class LunDevice(ABC):
    """A regular file or block device. See `vmfs.device.base` for what the verbs promise."""

    def __init__(self, fd: int, path: Path, *, size: int, offload_inline_max: int) -> None:
        """Own `fd` from here on.

        Args:
            fd: open for what will be done.
            path: for messages.
            size: in bytes.
            offload_inline_max: bulk verbs on more bytes than this go to a thread.
        """
        self._fd = fd
        self._path = path
        self._size = size
        self._offload_inline_max = offload_inline_max
        self._read_count = self._read_size = 0
        self._write_count = self._write_size = 0
        self._counts: Counter[str] = Counter()  # of what is not done thousands of times a second
        self._unable: set[str] = set()
        self._flush_turn = Turn()
        self._flushes_begun = 0
        self._flushes_ended = 0  # number of the last one that has ended well
        self._flush_error: str | None = None

    @property
    def size(self) -> int:
        """Bytes, in whole sectors, as they were when it was opened."""
        return self._size

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return str(self._path)

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`.

        Raises:
            DeviceError: the medium answered with an error, or the file was cut short under us.
        """

    @abstractmethod
    async def _pwrite(self, verb: str, offset: int, view: memoryview) -> None:
        """Write all of `view` for `verb`, or raise DeviceError."""

    @abstractmethod
    async def _fdatasync(self) -> None:
        """Flush the file, or raise OSError."""

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`; durable after the next `flush`.

        Raises:
            DeviceError: the medium answered with an error; some of the sectors may be written.
        """
        view = memoryview(data).cast("B")
        assert_range(self._size, offset, len(view))
        await self._pwrite("write", offset, view)
        self._count_write(len(view))

    async def flush(self) -> None:
        """Make every completed write durable (fdatasync), without blocking the loop.

        Callers that come while one is under way share the next.

        Raises:
            DeviceError: it failed, now or ever before: the kernel reports a lost page only once,
                so that a later flush that succeeds would be a lie.
        """
        wanted = self._flushes_begun + 1
        async with self._flush_turn:
            if self._flushes_ended < wanted and self._flush_error is None:
                await self._flush_now()
        if self._flush_error is not None:
            raise self._error("flush", 0, self._size, self._flush_error)

    async def _flush_now(self) -> None:
        self._flushes_begun += 1
        try:
            await self._fdatasync()
        except OSError as error:
            self._flush_error = reason_of(error)
        else:
            self._flushes_ended = self._flushes_begun
            self._counts["flush_count"] += 1

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zero: fallocate(ZERO_RANGE, else PUNCH_HOLE), else written.

        Raises:
            DeviceError: the medium answered with an error.
        """
        assert_range(self._size, offset, length)
        if length > ZEROES_WRITTEN_MAX:
            for mode in (linux.FALLOC_ZERO_RANGE, linux.FALLOC_PUNCH_HOLE):
                if await self._fallocate("write_zeroes", mode, offset, length):
                    self._counts["zeroes_offloaded_size"] += length
                    return
        await self._write_zeroes_through("write_zeroes", offset, length)
        self._counts["zeroes_written_size"] += length

    async def unmap(self, offset: int, length: int) -> None:
        """Give the range back: fallocate(PUNCH_HOLE), else `write_zeroes`.

        Raises:
            DeviceError: the medium answered with an error.
        """
        assert_range(self._size, offset, length)
        if await self._fallocate("unmap", linux.FALLOC_PUNCH_HOLE, offset, length):
            self._counts["unmap_offloaded_size"] += length
            return
        await self._write_zeroes_through("unmap", offset, length)
        self._counts["unmap_zeroed_size"] += length

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the device: copy_file_range, else through this process.

        Raises:
            DeviceError: the medium answered with an error; part of the target may be written.
        """
        assert_range(self._size, source, length)
        assert_range(self._size, target, length)
        assert abs(source - target) >= length, "copy: the ranges overlap"
        done = await self._copy_offloaded(source, target, length)
        self._counts["copy_offloaded_size"] += done
        while done < length:
            count = min(FALLBACK_CHUNK, length - done)
            data = await self.read(source + done, count)
            await self._pwrite("copy", target + done, memoryview(data))
            self._counts["copy_through_size"] += count
            done += count
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the descriptor. Does not flush."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def statistics(self) -> DeviceStatistics:
        """What has been done so far, and by whom."""
        return DeviceStatistics(
            read_count=self._read_count,
            read_size=self._read_size,
            write_count=self._write_count,
            write_size=self._write_size,
            **self._counts,
        )

    def _count_read(self, length: int) -> None:
        self._read_count += 1
        self._read_size += length

    def _count_write(self, length: int) -> None:
        self._write_count += 1
        self._write_size += length

    async def _write_zeroes_through(self, verb: str, offset: int, length: int) -> None:
        zeroes = memoryview(bytes(min(length, FALLBACK_CHUNK)))
        for start in range(offset, offset + length, FALLBACK_CHUNK):
            count = min(FALLBACK_CHUNK, offset + length - start)
            await self._pwrite(verb, start, zeroes[:count])
            if length > FALLBACK_CHUNK:
                await trio.lowlevel.checkpoint()

    async def _fallocate(self, verb: str, mode: int, offset: int, length: int) -> bool:
        """Whether the layer below did it. Asked again only until it first says that it cannot."""
        method = f"fallocate {mode:#x}"
        if method in self._unable or offset % SECTOR_SIZE or length % SECTOR_SIZE:
            return False
        try:
            for start in range(offset, offset + length, OFFLOAD_CHUNK):
                count = min(OFFLOAD_CHUNK, offset + length - start)
                await self._offload(count, self._fallocate_now, mode, start, count)
        except OSError as error:
            if error.errno not in linux.UNSUPPORTED:
                raise self._error(verb, offset, length, reason_of(error)) from error
            self._unable.add(method)
            return False
        return True

    def _fallocate_now(self, mode: int, offset: int, length: int) -> None:
        linux.fallocate(self._fd, mode | linux.FALLOC_KEEP_SIZE, offset, length)

    async def _copy_offloaded(self, source: int, target: int, length: int) -> int:
        """How many bytes, from the front, the layer below has copied."""
        done = 0
        while done < length and "copy_file_range" not in self._unable:
            count = min(OFFLOAD_CHUNK, length - done)
            try:
                copied = await self._offload(
                    count, self._copy_now, source + done, target + done, count
                )
            except OSError as error:
                if error.errno not in linux.UNSUPPORTED:
                    raise self._error("copy", target, length, reason_of(error)) from error
                self._unable.add("copy_file_range")
                break
            if copied == 0:
                break
            done += copied
        return done

    def _copy_now(self, source: int, target: int, length: int) -> int:
        return os.copy_file_range(self._fd, self._fd, length, source, target)

    async def _offload(self, length: int, call: Callable[..., T], *arguments: int) -> T:
        if length <= self._offload_inline_max:
            return call(*arguments)
        return await trio.to_thread.run_sync(call, *arguments)

    def _error(self, verb: str, offset: int, length: int, reason: str) -> DeviceError:
        return DeviceError(
            f"{verb} of {length:#x} bytes at {offset:#x} of {self._path} failed: {reason}"
        )


def open_lun(path: Path, *, writable: bool, direct: bool) -> int:
    """A descriptor of the LUN at `path`, for `LunDevice` or what is derived from it.

    It is not inherited by children (a child that outlives this process could still write, and then
    an exit would prove nothing).

    Raises:
        DeviceError: it cannot be opened, is neither a regular file nor a block device, or is
            read-only.
        Unsupported: its sectors are larger than the 512 bytes of a lock record, and it would be
            written or is to be opened past the page cache.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {reason_of(error)}") from error
    try:
        linux.size_of(fd)
        if writable and linux.is_read_only(fd):
            raise DeviceError(f"cannot open {path}: the device is read-only")
        sector_size = linux.logical_sector_size(fd)
        if sector_size != SECTOR_SIZE and (writable or direct):
            raise Unsupported(
                f"{path} has sectors of {sector_size} bytes; a VMFS-5 lock record is a sector of "
                f"{SECTOR_SIZE}, and must be written without its neighbours"
            )
    except OSError as error:
        os.close(fd)
        raise DeviceError(f"cannot open {path}: {reason_of(error)}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def reason_of(error: OSError) -> str:
    """What the kernel said, for people and for those who search."""
    name = errno.errorcode.get(error.errno or 0, "?")
    return f"{error.strerror} ({name})"
