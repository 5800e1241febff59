"""The table of open handles: the number that the kernel sends back, and what it stands for.

Pure. Numbers start at 1, grow by one and are never used twice in the life of a mount, so a late or
doubled request can never reach somebody else's file.
"""

from collections.abc import Iterator
from typing import Generic, NewType, TypeVar

Handle = NewType("Handle", int)
"""A FUSE file handle (`fh`)."""

T = TypeVar("T")


class Handles(Generic[T]):
    """Handles of one kind (files, or directories)."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._open.values()))

    def __getitem__(self, handle: int) -> T:
        """What `handle` stands for.

        Raises:
            KeyError: it was never given out, or is closed; the kernel does not do that.
        """
        return self._open[handle]

    def add(self, item: T) -> Handle:
        """Give `item` a number."""
        self._last += 1
        self._open[self._last] = item
        return Handle(self._last)

    def remove(self, handle: int) -> T:
        """Close `handle` and return what it stood for.

        Raises:
            KeyError: as for reading it.
        """
        return self._open.pop(handle)

    def check_invariants(self) -> None:
        """No number is above the last one given out, or below the first."""
        assert all(1 <= handle <= self._last for handle in self._open), "a handle nobody gave out"
