"""What can go wrong between a host and lockd, as a small tree of its own."""

from lockd.protocol.terms import ErrorCode


class LockdError(Exception):
    """Base of what this module raises on purpose."""


class LockdUnreachable(LockdError):
    """No connection could be made: lockd is not running, or not at this path."""


class LockdDisconnected(LockdError):
    """The connection was lost while the request was under way, or before."""


class CompareAndWriteUnknown(LockdDisconnected):
    """A compare-and-write may or may not have happened: re-read the block, do not repeat it."""


class LockdProtocolError(LockdError):
    """lockd said something that is not in the protocol, or speaks another version of it."""


class LockdRefused(LockdError):
    """lockd did not carry out the request; `code` and the text say why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Fenced(LockdRefused):
    """This nexus was fenced: nothing it held is its own any more."""
