"""Whether a task that lists a directory has taken in what it was sent, seen from outside.

A reply is sent, and the task that asked has to be run before its names are in the kernel's cache.
Nobody tells us when; but once it is out of that getdents(2), they are. proc(5): `/proc/TID/syscall`
has the number of the call that a task waits in, or `running` for one that runs or could;
`/proc/TID/schedstat` the nanoseconds that it has been run.
"""

import os
from pathlib import Path
from typing import Final

TAKEN_NS: Final = 20_000_000
"""Who has been run for so long is out of the call: taking 100 names in takes a tenth of a ms."""

_LISTING_CALLS: Final = {"x86_64": ("217", "78"), "aarch64": ("61",)}
"""The numbers of getdents64(2), and getdents(2), by machine."""

_RUNNABLE: Final = "running"


def look_at_run(thread: int) -> int | None:
    """The nanoseconds that a task has been run; None when it ended, or is not ours to see."""
    try:
        with open(f"/proc/{thread}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123 (cheaper)
            return int(file.read(64).split()[0])
    except (OSError, ValueError, IndexError):
        return None


def look_at_call(thread: int) -> str | None:
    """The number of the system call that a task waits in, or `running`; -1: in none."""
    try:
        return Path(f"/proc/{thread}/syscall").read_text().split()[0]
    except (OSError, IndexError):
        return None


def has_taken(
    before: int | None, now: int | None, call: str | None, *, machine: str = os.uname().machine
) -> bool:
    """Whether a task is out of the call that it was in when its listing was sent.

    Args:
        before: how long it had been run when the listing was about to be sent, in ns.
        now: and now.
        call: what it is in now, looked at before `now` was.
        machine: as uname(2) calls it.

    Returns:
        True as well when nothing can be said.
    """
    if before is None or now is None or call is None or machine not in _LISTING_CALLS:
        return True
    if call == _RUNNABLE:
        return now - before >= TAKEN_NS
    return call not in _LISTING_CALLS[machine]
