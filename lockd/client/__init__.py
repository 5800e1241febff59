"""How a host, or a tool, talks to lockd: one connection, requests pipelined by number.

    async with connect(path, host, "ds1", on_event) as client:
        outcome = await client.compare_and_write(lba, old, new, durable=True, label="vm1.vmdk")

`connect` opens a nexus (a registered host on one LUN); `observe` opens a connection without one,
for status, history, watching, reset and fencing. Any number of tasks may have requests under way.

What lockd says unasked arrives at `on_event`, called in the task that reads the socket, in the
order of arrival, before any reply that was sent later is delivered. It must not block nor raise.

A lost connection is final for the client object: `on_event(Lost())`, and everybody who waits gets
`LockdDisconnected`; whoever waits for a compare-and-write gets `CompareAndWriteUnknown`, because
it may have been carried out: re-read the block, never send it again. Connecting anew with the same
host uuid and nonce is adopted by lockd under the same generation (`client.adopted`). That is what
`connect_lasting` does by itself: its client goes on over as many connections as it takes.

The caller's duties about reservations: on `UnitAttention` a reservation of yours is gone, whatever
you believed; start the operation again. On `PermitRecalled` start no I/O, drain, then `returned()`.
On `Lost` start no I/O either. `UnitAttention` always comes before the `PermitGranted` that follows.
"""

from lockd.client.connection import connect, connect_stream, observe, observe_stream
from lockd.client.errors import (
    CompareAndWriteUnknown,
    Fenced,
    LockdDisconnected,
    LockdError,
    LockdProtocolError,
    LockdRefused,
    LockdUnreachable,
)
from lockd.client.reconnect import (
    Dial,
    Disconnected,
    LastingClient,
    LastingEvent,
    Reconnected,
    connect_lasting,
)
from lockd.client.session import Event, HostIdentity, LockClient, Lost, Observer
from lockd.protocol.messages import (
    AskAnswer,
    Asked,
    AuditEntry,
    Conflict,
    EventNotice,
    FenceAnswer,
    FencedNotice,
    Good,
    Miscompare,
    PermitGranted,
    PermitRecalled,
    StatusReport,
    UnitAttention,
)
from lockd.protocol.terms import AnswerKind, AskKind, Attention, ErrorCode, FenceResult

__all__ = [
    "AnswerKind",
    "AskAnswer",
    "AskKind",
    "Asked",
    "Attention",
    "AuditEntry",
    "CompareAndWriteUnknown",
    "Conflict",
    "Dial",
    "Disconnected",
    "ErrorCode",
    "Event",
    "EventNotice",
    "FenceAnswer",
    "FenceResult",
    "Fenced",
    "FencedNotice",
    "Good",
    "HostIdentity",
    "LastingClient",
    "LastingEvent",
    "LockClient",
    "LockdDisconnected",
    "LockdError",
    "LockdProtocolError",
    "LockdRefused",
    "LockdUnreachable",
    "Lost",
    "Miscompare",
    "Observer",
    "PermitGranted",
    "PermitRecalled",
    "Reconnected",
    "StatusReport",
    "UnitAttention",
    "connect",
    "connect_lasting",
    "connect_stream",
    "observe",
    "observe_stream",
]
