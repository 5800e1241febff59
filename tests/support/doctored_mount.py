"""`vmfs mount` with one of the rules of `vmfs.fuse.kernel_cache` broken on purpose.

    python -m tests.support.doctored_mount FAULT mount ...

So that a test of the rule can be seen to fail without it.
"""

import sys
from typing import Final

from vmfs.cli.main import main
from vmfs.fuse import kernel_cache, notify

FAULTS: Final = ("attributes are kept", "names are kept", "pages are kept", "no lock is needed")


def doctor(fault: str) -> None:
    """Break one rule in this process."""
    session, cache = notify.Session, kernel_cache.KernelCache
    if fault == "attributes are kept":
        session.attributes = lambda self, inode: True  # type: ignore[method-assign]
    elif fault == "names are kept":
        session.names = lambda self: None  # type: ignore[method-assign]
    elif fault == "pages are kept":
        cache.has_pages_of = lambda self, address, tenure: True  # type: ignore[method-assign]
    elif fault == "no lock is needed":
        kernel_cache.seconds = lambda *, seen, now: kernel_cache.UNLIMITED
    else:
        raise ValueError(fault)


if __name__ == "__main__":
    doctor(sys.argv.pop(1))
    main()
