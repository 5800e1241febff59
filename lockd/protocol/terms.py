"""The small words: kinds, results, states and reasons, as numbers with names."""

from enum import IntEnum


class AskKind(IntEnum):
    """What one host wants of another."""

    ATTRIBUTES = 1  # say what you know of it; nothing is written, nothing is given up
    WRITE_BACK = 2  # commit it, and keep the lock
    GIVE_UP_TO_SHARED = 3  # commit it, and keep no more than a shared lock
    GIVE_UP = 4  # commit it, and set the lock free


class AnswerKind(IntEnum):
    """How an ask ended."""

    DONE = 1  # as asked; the payload is the holder's
    IN_USE = 2  # the holder needs it just now
    NOT_HELD = 3  # the holder has no such lock (any more)
    GONE = 4  # the holder can never write again; `proof` says why lockd is sure. Said by lockd only
    UNREACHABLE = (
        5  # lockd knows no such host on this LUN: fence it to find out. Said by lockd only
    )


class FenceResult(IntEnum):
    """What is known after a fence. Only FENCED allows to touch what the host held."""

    FENCED = 1  # it can never write again, and the refusal is durable
    ALIVE = 2  # it was told to die and still exists (stuck in the kernel): not safe yet
    UNKNOWN = 3  # there is no way to tell from here: not safe


class Attention(IntEnum):
    """Why a unit attention was raised (SPC-2 calls these 29h/03h, 29h/07h and 29h/00h)."""

    RESET = 1  # the LUN was reset: a reservation of yours is gone
    NEXUS_LOSS = 2  # your connection was lost and came back: a reservation of yours is gone
    POWER_ON = 3  # lockd was restarted: a reservation of yours is gone


class HostEnd(IntEnum):
    """Whether a nexus may still write, and if not, how it ended."""

    OPEN = 0  # registered; connected or not, it may be writing
    LEFT = 1  # it said goodbye, with nothing in flight
    EXITED = 2  # its process was seen to exit
    FENCED = 3  # lockd refused it, durably, and then saw it exit


class PermitState(IntEnum):
    """The right to do direct I/O on the LUN."""

    HELD = 0
    RECALLED = 1  # asked back, not returned yet: I/O may be in flight
    RETURNED = 2  # no I/O in flight, and none will start


class ErrorCode(IntEnum):
    """Why a request was refused. Below 100 the request was wrong, from 100 on lockd could not."""

    PROTOCOL = 1  # not a message, or not one for lockd; the session ends
    VERSION = 2  # the two sides speak different versions; the session ends
    BAD_REQUEST = 3  # a message, but it makes no sense now
    NOT_REGISTERED = 4  # the verb needs a nexus
    NO_SUCH_LUN = 5
    OUT_OF_RANGE = 6  # the block is not on the LUN
    FENCED = 7  # this nexus was fenced; nothing it says is heard any more
    STILL_ALIVE = 8  # the host is registered by another process that has not ended
    TOO_MANY = 9  # a bound was reached; the message names it
    IO_ERROR = 100  # the LUN answered with an error; the outcome of a write is unknown
    NOT_DRAINED = 101  # a reset waited for the reservation holder's I/O, in vain
    STATE_FULL = 102  # nothing new can be kept; what ends is still taken note of


class AuditKind(IntEnum):
    """What an audit entry tells of."""

    STARTED = 1
    REGISTERED = 2
    ADOPTED = 3
    LEFT = 4
    NEXUS_LOST = 5
    EXITED = 6
    FENCE_BEGUN = 7
    FENCED = 8
    FENCE_FAILED = 9
    RESERVED = 10
    RELEASED = 11
    RESERVATION_LOST = 12
    RECALL_FAILED = 13
    RESET = 14
    LOCK_CHANGED = 15
    ASKED = 16
    SESSION_ENDED = 17
