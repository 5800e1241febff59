"""Descriptors of this process, by where they lead: pyfuse3 and trio do not give theirs away."""

from pathlib import Path
from typing import Final

SESSION: Final = "/dev/fuse"
"""Where the descriptor of a FUSE session leads."""


def descriptors_of(target: str) -> set[int]:
    """Those whose link in /proc says `target`."""
    found: set[int] = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()) == target:
                found.add(int(link.name))
        except OSError:
            continue  # closed since: that of the listing itself
    return found
