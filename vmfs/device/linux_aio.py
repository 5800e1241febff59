"""Linux AIO: the four system calls and their two records, as `linux/aio_abi.h` has them.

glibc has no wrappers for them, and a library for four calls is a dependency too many
(docs/decisions/009). Everything here is synchronous and raises `OSError`; `vmfs.device.aio` makes
it wait without blocking.

The kernel waits in exit(2) for every request in flight (`exit_aio`), so a process whose exit was
seen on its pidfd writes nothing any more. io_uring makes no such promise.
"""

import ctypes
import os
import platform
import struct
from enum import IntEnum
from typing import Final

from vmfs.device.linux import system_call
from vmfs.errors import Unsupported

_RESULT_FD: Final = 1  # IOCB_FLAG_RESFD: count the completion on an eventfd

_GENERIC_NUMBERS: Final = (0, 1, 2, 4)  # asm-generic/unistd.h
_NUMBERS: Final = {
    "x86_64": (206, 207, 209, 208),
    "aarch64": _GENERIC_NUMBERS,
    "riscv64": _GENERIC_NUMBERS,
}
"""Of io_setup, io_destroy, io_submit, io_getevents, per machine (`uname -m`)."""


class Opcode(IntEnum):
    """What a request does: IOCB_CMD_* of `linux/aio_abi.h`."""

    PREAD = 0
    PWRITE = 1
    FDSYNC = 3  # fdatasync, for regular files and block devices alike (Linux 4.18)


_IOCB: Final = struct.Struct("<QIiHhIQQqQII")
"""`struct iocb` of a little-endian machine: data, key, rw_flags, opcode, priority, file, address,
length, offset, reserved, flags, eventfd."""

_EVENT: Final = struct.Struct("<QQqq")
"""`struct io_event`: data, address of the iocb, result, second result."""


class AioContext:
    """Room for `depth` requests in flight, each in a slot from 0 on, which the caller chooses.

    `event_fd` is readable when something has completed.
    """

    def __init__(self, depth: int) -> None:
        """Make the context.

        Raises:
            OSError: EAGAIN, the machine's `fs.aio-max-nr` is used up; ENOSYS, no AIO here.
            Unsupported: the numbers of the calls on this kind of machine are not known.
        """
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise Unsupported(f"no asynchronous I/O on {platform.machine()} machines")
        setup, destroy, submit, get_events = numbers
        self._destroy = system_call(destroy, 1)
        self._submit = system_call(submit, 3)
        self._get_events = system_call(get_events, 5)
        self._depth = depth
        self._iocbs = ctypes.create_string_buffer(depth * _IOCB.size)
        first = ctypes.addressof(self._iocbs)
        addresses = range(first, first + depth * _IOCB.size, _IOCB.size)
        self._pointers = ctypes.create_string_buffer(struct.pack(f"<{depth}Q", *addresses))
        self._events = ctypes.create_string_buffer(depth * _EVENT.size)
        self._no_time = (ctypes.c_int64 * 2)()  # struct timespec of 0 s
        handle = ctypes.c_uint64(0)
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            system_call(setup, 2)(depth, ctypes.addressof(handle))
        except OSError:
            os.close(self.event_fd)
            raise
        self._handle = handle.value

    def submit(  # noqa: PLR0913 - the fields of one request
        self, slot: int, opcode: int, fd: int, *, address: int, length: int, offset: int
    ) -> None:
        """Start one request; its slot and memory are the kernel's until `completed` names it.

        Raises:
            OSError: it was not started. EAGAIN: the layer below has no room for it just now.
        """
        _IOCB.pack_into(
            self._iocbs,
            slot * _IOCB.size,
            slot, 0, 0, opcode, 0, fd, address, length, offset, 0, _RESULT_FD, self.event_fd,
        )  # fmt: skip
        self._submit(self._handle, 1, ctypes.addressof(self._pointers) + slot * 8)

    def completed(self) -> list[tuple[int, int]]:
        """Slot and result (bytes, or minus errno) of all that has completed since the last call."""
        try:
            os.eventfd_read(self.event_fd)  # first: what completes after it makes it readable again
        except BlockingIOError:
            return []
        count = self._get_events(
            self._handle,
            0,
            self._depth,
            ctypes.addressof(self._events),
            ctypes.addressof(self._no_time),
        )
        events = _EVENT.iter_unpack(memoryview(self._events)[: count * _EVENT.size])
        return [(slot, result) for slot, _iocb, result, _result in events]

    def close(self) -> None:
        """Give it back; waits for what is in flight."""
        self._destroy(self._handle)
        os.close(self.event_fd)
