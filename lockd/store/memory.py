"""The memory twin: the same contract, and it outlives a `State` as a disk would."""

from collections.abc import Sequence

from lockd.protocol.limits import AUDIT_ENTRIES_MAX
from lockd.protocol.messages import AuditEntry
from lockd.state import (
    HostForgotten,
    HostKey,
    HostRecord,
    LunRecord,
    Record,
    ReservationEnded,
    ReservationRecord,
    Snapshot,
)


class MemoryStore:
    """A store for tests. `close` keeps everything, so that a restart can be played."""

    def __init__(self, *, audit_entries_max: int = AUDIT_ENTRIES_MAX) -> None:
        self._audit_entries_max = audit_entries_max
        self._incarnation = 0
        self._luns: dict[str, LunRecord] = {}
        self._hosts: dict[HostKey, HostRecord] = {}
        self._reservations: dict[str, ReservationRecord] = {}
        self._audit: list[AuditEntry] = []
        self.full = ""

    def start(self, *, above: int = 0) -> Snapshot:
        """Begin a new incarnation, above the last one and `above`, and give back what is kept."""
        self._incarnation = max(self._incarnation, above) + 1
        return Snapshot(
            incarnation=self._incarnation,
            audit_sequence=self._audit[-1].sequence if self._audit else 0,
            luns=tuple(self._luns.values()),
            hosts=tuple(sorted(self._hosts.values(), key=lambda record: record.generation)),
            reservations=tuple(self._reservations.values()),
        )

    def commit(self, records: Sequence[Record]) -> None:
        """Keep the records, all or none, durably on return. A record replaces its predecessor."""
        for record in records:
            match record:
                case LunRecord():
                    self._luns[record.lun] = record
                case HostRecord():
                    self._hosts[record.key] = record
                case HostForgotten():
                    self._hosts.pop((record.lun, record.host_uuid), None)
                case ReservationRecord():
                    self._reservations[record.lun] = record
                case ReservationEnded():
                    self._reservations.pop(record.lun, None)

    def room(self) -> str:
        """Why nothing new should be taken in, or "": what is kept can still be changed then."""
        return self.full

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Add to the audit trail; the oldest entries beyond the bound are dropped. Not durable."""
        self._audit += entries
        del self._audit[: -self._audit_entries_max]

    def audit(self, *, count: int, before: int) -> tuple[AuditEntry, ...]:
        """The newest `count` entries with a sequence below `before` (0: all), oldest first."""
        older = [entry for entry in self._audit if not before or entry.sequence < before]
        return tuple(older[-count:])

    def close(self) -> None:
        """Release what the store holds: nothing."""
