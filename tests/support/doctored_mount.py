"""`vmfs mount` with one of its rules broken on purpose, most of `vmfs.fuse.kernel_cache`.

    python -m tests.support.doctored_mount FAULT mount ...

So that a test of the rule can be seen to fail without it.
"""

import sys
from typing import Final

from vmfs.cli.main import main
from vmfs.fuse import kernel_cache, notify
from vmfs.volume import lockd_session

FAULTS: Final = ("attributes are kept", "names are kept", "pages are kept", "no lock is needed")

NO_PACE: Final = "no pace is said"  # lockd judges this mount by its own --lease-seconds then


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
    elif fault == NO_PACE:
        lockd_session.pace_of = lambda timing: (0, 0)
    else:
        raise ValueError(fault)


if __name__ == "__main__":
    doctor(sys.argv.pop(1))
    main()
