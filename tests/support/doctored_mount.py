"""`vmfs mount` with one of its rules broken on purpose, most of `vmfs.fuse.kernel_cache`.

    python -m tests.support.doctored_mount FAULT mount ...

So that a test of the rule can be seen to fail without it. `COUNTED` breaks none: the mount says
what the kernel asks for, a line `asked: VERB` before each answer.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from vmfs.cli.main import main
from vmfs.fuse import kernel_cache, notify
from vmfs.fuse.operations import Operations
from vmfs.volume import lockd_session

FAULTS: Final = ("attributes are kept", "names are kept", "pages are kept", "no lock is needed")

NO_PACE: Final = "no pace is said"  # lockd judges this mount by its own --lease-seconds then

COUNTED: Final = "requests are said"

_SAID: Final = ("getattr", "symlink", "unlink")


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
    elif fault == COUNTED:
        for verb in _SAID:
            setattr(Operations, verb, said(verb, getattr(Operations, verb)))
    else:
        raise ValueError(fault)


def said(verb: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler`, which says so when it is asked."""

    async def saying(*args: Any) -> Any:
        print(f"asked: {verb}", flush=True)
        return await handler(*args)

    return saying


if __name__ == "__main__":
    doctor(sys.argv.pop(1))
    main()
