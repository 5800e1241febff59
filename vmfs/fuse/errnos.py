"""Which errno answers which error: the only place where an error becomes a number.

The number itself is a class attribute of every error (`vmfs.errors`). An exception that is none of
ours has no errno: it is a bug, and its answer (EIO, and a traceback in the log) is the business of
`vmfs.fuse.operations`.
"""

from typing import Final

from vmfs.errors import (
    CorruptRecord,
    DeviceError,
    LeaseLost,
    LockServiceError,
    ReservationConflict,
    VmfsError,
)

LOUD: Final = (CorruptRecord, DeviceError, LeaseLost, LockServiceError, ReservationConflict)
"""Errors that the caller cannot have caused: the log says them too, not only the errno."""


def answer_to(error: BaseException) -> VmfsError | None:
    """The error on purpose that `error` is, or that it carries; None when it is a bug.

    A nursery below may have wrapped what was raised in it. A group is an answer only when
    everything in it is one; the first then speaks for all.
    """
    if isinstance(error, VmfsError):
        return error
    if isinstance(error, BaseExceptionGroup):
        answers = [answer_to(inner) for inner in error.exceptions]
        return None if None in answers else answers[0]
    return None


def errno_of(error: VmfsError) -> int:
    """The errno that the caller of the system call sees."""
    return error.errno


def is_loud(error: VmfsError) -> bool:
    """Whether the log should have it: the volume, the LUN or lockd is at fault."""
    return isinstance(error, LOUD)
