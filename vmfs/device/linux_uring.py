"""io_uring: three system calls and the memory shared with the kernel, as in `linux/io_uring.h`.

**For reads only.** What io_uring has begun may go on after the process is gone, so a write could
come after the fence (docs/decisions/009); a read harms nobody then. `UringOpcode` sees to that.

The ring is one that only its own thread uses (SINGLE_ISSUER), and the kernel does what is left to
do of a request in that thread, when it calls (DEFER_TASKRUN, Linux 6.1). So nothing is interrupted,
and the kernel never touches the shared memory while we do: no barriers, which Python has not.

Everything here is synchronous and raises `OSError`. `vmfs.device.aio` makes it wait without
blocking; to it, a `UringContext` is what an `AioContext` is.
"""

import ctypes
import mmap
import os
import struct
from contextlib import ExitStack
from enum import IntEnum
from typing import Final

from vmfs.device.linux import system_call

_SETUP: Final = 425
_ENTER: Final = 426
_REGISTER: Final = 427
"""The same on every kind of machine: they are younger than the common table of numbers."""

_SINGLE_ISSUER: Final = 1 << 12
_DEFER_TASKRUN: Final = 1 << 13
_GET_EVENTS: Final = 1  # IORING_ENTER_GETEVENTS
_REGISTER_EVENTFD: Final = 4
_REQUESTS_OFFSET: Final = 0x10000000  # IORING_OFF_SQES; both rings are mapped at 0 (Linux 5.4)

_PARAMS: Final = struct.Struct("<10I 8IQ 8IQ")
"""`struct io_uring_params`: what is asked for, and where each of the two rings has its parts."""
_FLAGS: Final = 2 * 4  # where in it
_SUBMISSIONS: Final = 10  # the first of the fields that `_PARAMS` gives for the ring of requests
_COMPLETIONS: Final = 19

_REQUEST: Final = struct.Struct("<BBHiQQIIQ24x")
"""`struct io_uring_sqe`: opcode, flags, priority, file, offset, address, length, flags of the
opcode, data; what follows is not for reads."""

_COMPLETION: Final = struct.Struct("<QiI")
"""`struct io_uring_cqe`: data, result, flags."""

_COUNTER_MASK: Final = 0xFFFF_FFFF


DEPTH_MAX: Final = 16
"""In flight. In one call the kernel does what is left to do of 20 (IO_LOCAL_TW_DEFAULT_MAX,
Linux 6.13), and signals nothing about the rest: so there must not be more."""


class UringOpcode(IntEnum):
    """What a request does: IORING_OP_*. Nothing that changes a file belongs here."""

    READ = 22


class UringContext:
    """Room for `depth` requests in flight, each in a slot from 0 on, which the caller chooses.

    `event_fd` is readable when something has completed.
    """

    def __init__(self, depth: int) -> None:
        """Make the ring. Only the thread that makes it can use it.

        Args:
            depth: a power of two, `DEPTH_MAX` at most.

        Raises:
            OSError: EPERM or ENOSYS, no io_uring here; EINVAL, the kernel is older than 6.1.
        """
        assert depth <= DEPTH_MAX, f"{depth} requests may leave some forgotten"
        self._enter = system_call(_ENTER, 6)
        params = bytearray(_PARAMS.size)
        struct.pack_into("<I", params, _FLAGS, _SINGLE_ISSUER | _DEFER_TASKRUN)
        memory = (ctypes.c_char * len(params)).from_buffer(params)
        with ExitStack() as undo:
            self._fd = system_call(_SETUP, 2)(depth, ctypes.addressof(memory))
            undo.callback(os.close, self._fd)
            # Not the ring's own descriptor: that one wakes nobody before the work is called for.
            self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self.event_fd)
            event_fd = ctypes.c_int(self.event_fd)
            register = system_call(_REGISTER, 4)
            register(self._fd, _REGISTER_EVENTFD, ctypes.addressof(event_fd), 1)
            self._map(_PARAMS.unpack(params))
            undo.pop_all()

    def _map(self, params: tuple[int, ...]) -> None:
        """Map both rings and the requests, and let each place in the ring mean its request."""
        request_count, completion_count = params[:2]
        _, tail, _, _, _, _, array = params[_SUBMISSIONS : _SUBMISSIONS + 7]
        done_head, done_tail, _, _, _, first_done = params[_COMPLETIONS : _COMPLETIONS + 6]
        size = max(array + request_count * 4, first_done + completion_count * _COMPLETION.size)
        requests_size = request_count * _REQUEST.size
        self._requests = mmap.mmap(self._fd, requests_size, offset=_REQUESTS_OFFSET)
        self._rings = mmap.mmap(self._fd, size)
        self._words = memoryview(self._rings)[: size & ~3].cast("I")
        self._words[array // 4 : array // 4 + request_count] = memoryview(
            struct.pack(f"<{request_count}I", *range(request_count))
        ).cast("I")
        self._tail, self._done_head, self._done_tail = tail // 4, done_head // 4, done_tail // 4
        self._first_done = first_done
        self._request_mask, self._done_mask = request_count - 1, completion_count - 1

    def submit(  # noqa: PLR0913 - the fields of one request
        self, slot: int, opcode: int, fd: int, *, address: int, length: int, offset: int
    ) -> None:
        """Start one request; its slot and memory are the kernel's until `completed` names it.

        Raises:
            OSError: it was not started. EAGAIN: the kernel has no room for it just now.
        """
        words, tail = self._words, self._words[self._tail]
        _REQUEST.pack_into(
            self._requests,
            (tail & self._request_mask) * _REQUEST.size,
            opcode, 0, 0, fd, offset, address, length, 0, slot,
        )  # fmt: skip
        words[self._tail] = (tail + 1) & _COUNTER_MASK
        try:
            self._enter(self._fd, 1, 0, 0, 0, 0)
        except OSError:
            words[self._tail] = tail  # it was left where it is
            raise

    def completed(self) -> list[tuple[int, int]]:
        """Slot and result (bytes, or minus errno) of all that has completed since the last call."""
        found: list[tuple[int, int]] = []
        while self._is_signalled():
            self._enter(self._fd, 0, 0, _GET_EVENTS, 0, 0)
            self._take_completions(found)
        return found

    def _is_signalled(self) -> bool:
        """Whether there may be something to do: the signal is taken first, so none is lost.

        What a call completes signals, too. So there is another one after each that completed
        something, which also does what the kernel has put off (it does 20 at a time).
        """
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return False
        return True

    def _take_completions(self, found: list[tuple[int, int]]) -> None:
        words = self._words
        head, tail = words[self._done_head], words[self._done_tail]
        while head != tail:
            place = self._first_done + (head & self._done_mask) * _COMPLETION.size
            slot, result, _ = _COMPLETION.unpack_from(self._rings, place)
            found.append((slot, result))
            head = (head + 1) & _COUNTER_MASK
        words[self._done_head] = head

    def close(self) -> None:
        """Give it back; nothing may be in flight."""
        self._words.release()
        self._rings.close()
        self._requests.close()
        os.close(self.event_fd)
        os.close(self._fd)
