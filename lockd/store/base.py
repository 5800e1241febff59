"""The contract of a store."""

from collections.abc import Sequence
from typing import Protocol

from lockd.protocol.messages import AuditEntry
from lockd.state import Record, Snapshot


class StoreError(Exception):
    """The store cannot be read or written. lockd stops: it must not say what it cannot keep."""


class Store(Protocol):
    """Records by key, and an audit trail. Not for use from several threads."""

    def start(self, *, above: int = 0) -> Snapshot:
        """Begin a new incarnation, above the last one and `above`, and give back what is kept.

        Durably.
        """
        ...

    def commit(self, records: Sequence[Record]) -> None:
        """Keep the records, all or none, durably on return. A record replaces its predecessor."""
        ...

    def room(self) -> str:
        """Why nothing new should be taken in, or "": what is kept can still be changed then."""
        ...

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Add to the audit trail; the oldest entries beyond the bound are dropped. Not durable."""
        ...

    def audit(self, *, count: int, before: int) -> tuple[AuditEntry, ...]:
        """The newest `count` entries with a sequence below `before` (0: all), oldest first."""
        ...

    def close(self) -> None:
        """Release what the store holds."""
        ...
