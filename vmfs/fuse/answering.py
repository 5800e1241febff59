"""What stands between a handler and pyfuse3: only `FUSEError` leaves.

pyfuse3 ends the mount, for everybody, when a handler raises anything else. So an error on purpose
becomes its errno, and anything unexpected a traceback in the log and EIO for this one caller.
"""

import functools
import logging
from collections.abc import Callable, Coroutine
from errno import EIO
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from vmfs.errors import LockBusy
from vmfs.fuse.errnos import answer_to, errno_of, is_loud

log = logging.getLogger("vmfs.fuse")


class HasPaths(Protocol):
    """Whoever can say, for a message, what a request is about."""

    def path_of(self, inode: object) -> str:
        """The path by which a node was last seen."""
        ...

    def path_of_file(self, handle: object) -> str:
        """The path of an open file."""
        ...


S = TypeVar("S", bound=HasPaths)
P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]
Subject = Callable[[HasPaths, tuple[object, ...]], str]


def of_inode(paths: HasPaths, args: tuple[object, ...]) -> str:
    """The subject of requests whose first argument is an inode."""
    return paths.path_of(args[0])


def of_name(paths: HasPaths, args: tuple[object, ...]) -> str:
    """The subject of requests that begin with a directory and a name."""
    parent, name = paths.path_of(args[0]), args[1]
    assert isinstance(name, bytes)
    return f"{parent.rstrip('/')}/{name.decode('utf-8', 'replace')}"


def of_file(paths: HasPaths, args: tuple[object, ...]) -> str:
    """The subject of requests that begin with the handle of a file."""
    return paths.path_of_file(args[0])


def of_volume(paths: HasPaths, args: tuple[object, ...]) -> str:
    """The subject of everything else."""
    return "the volume"


def answered(subject: Subject) -> Callable[[Handler[S, P, R]], Handler[S, P, R]]:
    """Let nothing but `FUSEError` leave a handler; `subject` says in the log what it was about."""

    def wrap(handler: Handler[S, P, R]) -> Handler[S, P, R]:
        verb = handler.__name__.strip("_")

        @functools.wraps(handler)
        async def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await handler(self, *args, **kwargs)
            except FUSEError:
                raise
            except Exception as error:
                raise refused(verb, subject(self, args), error) from None

        return wrapped

    return wrap


def refused(verb: str, on: str, error: Exception) -> FUSEError:
    """The answer to a request that ended in `error`; a line in the log where it deserves one."""
    return error if isinstance(error, FUSEError) else FUSEError(_refusal(verb, on, error))


def _refusal(verb: str, on: str, error: Exception) -> int:
    answer = answer_to(error)
    if answer is None:
        log.error("bug: verb=%s path=%s", verb, on, exc_info=error)
        return EIO
    if isinstance(answer, LockBusy):
        holder = answer.holder or "another host"
        log.warning("busy: verb=%s path=%s holder=%s: %s", verb, on, holder, answer)
    elif is_loud(answer):
        log.error("failed: verb=%s path=%s: %s", verb, on, answer)
    return errno_of(answer)
