"""Free memory that costs every variant the same.

Below a hypervisor free memory may have gone back to the host. Whoever touches it first pays for
getting it again, up to ten times the price of a page: then a row says who came first, not who is
fast. So before each load somebody else touches as much as the load will, and lets it go.
"""

import mmap
import os
from typing import Final

FREE_SHARE_MAX: Final = 0.5
"""Of what is free; nothing is to be pushed out of the page cache for this."""


def touch(size: int) -> int:
    """Have up to `size` bytes of free memory backed by real memory. Returns how many it were."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    size = min(size, int(free * FREE_SHARE_MAX))
    if size <= 0:
        return 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()
    return size
