"""Whether it is worth looking again at once for a page that the disk has been asked for.

A page comes from a fast disk within 0.1 ms, while going the long way round (a request of our own,
two passes of the scheduler) costs more processor time than looking for it that long. So a miss is
looked for again for a moment. A slow disk is found out by that, and then left alone more and more.
"""

from collections.abc import Callable
from typing import Final

LOOK_SECONDS: Final = 0.0003
"""How long a miss may hold up the loop; a pass of the FUSE floor over requests takes 2 ms."""

SKIPPED_MAX: Final = 255
"""Misses that are not looked for again, after one that was in vain on a disk that always is slow:
the loop is held up by less than a microsecond for each."""


class Patience:
    """Kept per device: what the last looks were good for."""

    __slots__ = ("_clock", "_penalty", "_skipped")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with trust; `clock` counts seconds, and never goes back."""
        self._clock = clock
        self._penalty = 0  # misses to skip after the last look that was in vain
        self._skipped = 0  # of those, still to come

    def wait_for(self, look: Callable[[], bool]) -> bool:
        """Look again and again, for `LOOK_SECONDS` if at all; whether a look was successful."""
        if self._skipped:
            self._skipped -= 1
            return False
        clock = self._clock
        end = clock() + LOOK_SECONDS
        while clock() < end:
            if look():
                self._penalty = 0
                return True
        self._penalty = min(2 * self._penalty + 1, SKIPPED_MAX)
        self._skipped = self._penalty
        return False
