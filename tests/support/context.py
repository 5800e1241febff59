"""In place of the kernel's room for requests: they end when a test says so, as it says."""

import ctypes
import os


class Disk:
    """A `vmfs.device.aio.Context`."""

    def __init__(self, depth: int) -> None:
        """Nothing is in flight."""
        self.depth = depth
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requests: dict[int, tuple[int, int, int, int]] = {}
        """Opcode, address, length and offset of what is in flight, by slot."""
        self.refusals: list[int] = []  # errno of the next submissions
        self._ended: list[tuple[int, int]] = []

    def submit(
        self, slot: int, opcode: int, fd: int, *, address: int, length: int, offset: int
    ) -> None:
        """Start a request, or refuse it."""
        if self.refusals:
            raise OSError(self.refusals.pop(0), "refused")
        assert slot not in self.requests
        self.requests[slot] = (opcode, address, length, offset)

    @property
    def oldest(self) -> int:
        """The slot of what has been in flight for longest."""
        return next(iter(self.requests))

    def end(self, slot: int, result: int | None = None) -> None:
        """End a request: with all its bytes, or so many, or minus an errno."""
        length = self.requests.pop(slot)[2]
        self._ended.append((slot, length if result is None else result))
        os.eventfd_write(self.event_fd, 1)

    def bring(self, data: bytes) -> None:
        """End the oldest request, a read, with this in its memory."""
        _, address, length, _ = self.requests[self.oldest]
        assert len(data) <= length
        ctypes.memmove(address, data, len(data))
        self.end(self.oldest, len(data))

    def completed(self) -> list[tuple[int, int]]:
        """What has ended since the last call."""
        os.eventfd_read(self.event_fd)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Give it back."""
        os.close(self.event_fd)
