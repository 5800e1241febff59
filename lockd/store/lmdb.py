"""The store on disk: two LMDB files in lockd's state directory.

    state.mdb   meta: incarnation, schema · luns · hosts · reservations.   Every commit is synced.
    audit.mdb   the audit trail by sequence.                               Commits are not synced.

They are two files because an unsynced commit may, after a power cut, damage the file it went to:
the audit trail is then set aside and begun anew, and the records are as they were.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from lockd.protocol.codec import ProtocolError, pack_record, unpack_record
from lockd.protocol.limits import AUDIT_ENTRIES_MAX
from lockd.protocol.messages import AuditEntry
from lockd.state import (
    HostForgotten,
    HostRecord,
    LunRecord,
    Record,
    ReservationEnded,
    ReservationRecord,
    Snapshot,
)
from lockd.store.base import StoreError

log = logging.getLogger("lockd.store")

SCHEMA: Final = 1
"""Raised when a record changes its fields, but for optional ones that are added at its end; what an
older one means is said here then."""

STATE_SIZE_MAX: Final = 64 << 20
"""1024 ended hosts per LUN at 300 bytes, many LUNs, and LMDB's copies while it commits."""

STATE_SIZE_STEP: Final = 1 << 20
"""Disk space is allocated ahead in steps of this, so that a disk that others fill up does not keep
lockd from writing down what ends: releases, exits, fences. (Not on a copy-on-write filesystem.)"""

STATE_PAGES_SPARE: Final = 64
"""Pages that changes of what is there may still use when nothing new is taken in any more."""

AUDIT_SIZE_MAX: Final = 256 << 20
"""AUDIT_ENTRIES_MAX entries of up to 1.5 KiB, and LMDB's copies."""

AUDIT_PRUNE_COUNT: Final = 1000
"""The trail may pass its bound by so many before it is cut, so that cutting is rare."""

_Kind = TypeVar("_Kind")
_LUNS: Final = b"luns"
_HOSTS: Final = b"hosts"
_RESERVATIONS: Final = b"reservations"


class LmdbStore:
    """Records and audit trail in `directory`, which must exist and be this process's own."""

    def __init__(
        self,
        directory: Path,
        *,
        audit_entries_max: int = AUDIT_ENTRIES_MAX,
        state_size_max: int = STATE_SIZE_MAX,
    ) -> None:
        """Open or create.

        Raises:
            StoreError: it cannot be opened, or was written by a newer lockd.
        """
        self._audit_entries_max = audit_entries_max
        _need_space(directory)
        with _explained(f"open {directory / 'state.mdb'}"):
            self._state = lmdb.open(
                str(directory / "state.mdb"), subdir=False, max_dbs=8, map_size=state_size_max
            )
            self._path = directory / "state.mdb"
            self._size_max = state_size_max
            self._allocated = 0
            self._meta = self._state.open_db(b"meta")
            self._tables = {
                name: self._state.open_db(name) for name in (_LUNS, _HOSTS, _RESERVATIONS)
            }
        self._audit = _open_audit(directory / "audit.mdb")
        self._closed = False

    def start(self, *, above: int = 0) -> Snapshot:
        """Begin a new incarnation, above the last one and `above`, and give back what is kept."""
        with _explained("begin an incarnation"), self._state.begin(write=True) as txn:
            schema = _number(txn.get(b"schema", db=self._meta), SCHEMA)
            if schema != SCHEMA:
                raise StoreError(f"the state was written in schema {schema}; this is {SCHEMA}")
            last = _number(txn.get(b"incarnation", db=self._meta), 0)
            incarnation = max(last, above) + 1
            txn.put(b"schema", str(SCHEMA).encode(), db=self._meta)
            txn.put(b"incarnation", str(incarnation).encode(), db=self._meta)
            hosts = self._read(txn, _HOSTS, HostRecord)
            return Snapshot(
                incarnation=incarnation,
                audit_sequence=self._last_sequence(),
                luns=self._read(txn, _LUNS, LunRecord),
                hosts=tuple(sorted(hosts, key=lambda record: record.generation)),
                reservations=self._read(txn, _RESERVATIONS, ReservationRecord),
            )

    def commit(self, records: Sequence[Record]) -> None:
        """Keep the records, all or none, durably on return. A record replaces its predecessor."""
        with _explained("commit"), self._state.begin(write=True) as txn:
            for record in records:
                table, key = _place(record)
                if isinstance(record, HostForgotten | ReservationEnded):
                    txn.delete(key, db=self._tables[table])
                else:
                    txn.put(key, pack_record(record), db=self._tables[table])

    def room(self) -> str:
        """Why nothing new should be taken in, or "": what is kept can still be changed then."""
        page = int(self._state.stat()["psize"])
        wanted = (int(self._state.info()["last_pgno"]) + 1 + STATE_PAGES_SPARE) * page
        if wanted <= self._allocated:
            return ""
        if wanted > self._size_max:
            return f"lockd's state has reached its limit of {self._size_max} bytes"
        size = min(-(-wanted // STATE_SIZE_STEP) * STATE_SIZE_STEP, self._size_max)
        try:
            with self._path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            return f"no space for lockd's state: {self._path}: {error.strerror}"
        self._allocated = size
        return ""

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Add to the audit trail; the oldest entries beyond the bound are dropped. Not durable."""
        with _explained("write the audit trail"), self._audit.begin(write=True) as txn:
            for entry in entries:
                txn.put(entry.sequence.to_bytes(8, "big"), pack_record(entry))
            excess = txn.stat()["entries"] - self._audit_entries_max
            if excess > 0 and (
                excess >= AUDIT_PRUNE_COUNT or self._audit_entries_max < AUDIT_PRUNE_COUNT
            ):
                cursor = txn.cursor()
                cursor.first()
                for _ in range(excess):
                    cursor.delete()

    def audit(self, *, count: int, before: int) -> tuple[AuditEntry, ...]:
        """The newest `count` entries with a sequence below `before` (0: all), oldest first."""
        entries: list[AuditEntry] = []
        with _explained("read the audit trail"), self._audit.begin() as txn:
            cursor = txn.cursor()
            beyond = before and cursor.set_range(before.to_bytes(8, "big"))
            found = cursor.prev() if beyond else cursor.last()
            while found and len(entries) < count:
                entries.append(unpack_record(AuditEntry, bytes(cursor.value())))
                found = cursor.prev()
        entries.reverse()
        return tuple(entries)

    def close(self) -> None:
        """Release what the store holds. Again does nothing."""
        if not self._closed:
            self._closed = True
            self._audit.sync(True)
            self._audit.close()
            self._state.close()

    def _last_sequence(self) -> int:
        with self._audit.begin() as txn:
            cursor = txn.cursor()
            return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def _read(self, txn: lmdb.Transaction, table: bytes, kind: type[_Kind]) -> tuple[_Kind, ...]:
        cursor = txn.cursor(db=self._tables[table])
        return tuple(unpack_record(kind, bytes(value)) for _, value in cursor)


def _place(record: Record) -> tuple[bytes, bytes]:
    match record:
        case LunRecord():
            return _LUNS, record.lun.encode()
        case HostRecord() | HostForgotten():
            return _HOSTS, record.host_uuid + record.lun.encode()
        case ReservationRecord() | ReservationEnded():
            return _RESERVATIONS, record.lun.encode()


def _number(value: bytes | None, default: int) -> int:
    return default if value is None else int(value)


def set_aside_if_damaged(directory: Path) -> None:
    """Rename records that cannot be opened, so that the store begins anew.

    Raises:
        StoreError: it cannot be renamed.
    """
    path = directory / "state.mdb"
    try:
        LmdbStore(directory).close()
    except StoreError as error:
        aside = path.with_suffix(".damaged")
        log.warning("state damaged, set aside: path=%s error=%s", aside, error)
        with _explained(f"set {path} aside"):
            path.rename(aside)


def _need_space(directory: Path) -> None:
    """LMDB maps files that it makes; on a full disk touching those would end the process.

    Raises:
        StoreError: there is no space to make them.
    """
    if (directory / "audit.mdb-lock").exists():
        return
    with _explained(f"look at {directory}"):
        found = os.statvfs(directory)
    if found.f_bavail * found.f_frsize < STATE_SIZE_STEP:
        raise StoreError(
            f"lockd's state: no space in {directory}, which needs {STATE_SIZE_STEP} bytes to begin"
        )


def _open_audit(path: Path) -> lmdb.Environment:
    """The audit trail, begun anew if a power cut damaged it."""
    try:
        return _audit_environment(path)
    except lmdb.Error as error:
        aside = path.with_suffix(".damaged")
        log.warning("audit trail damaged, set aside: path=%s error=%s", aside, error)
        path.rename(aside)
    with _explained(f"open {path}"):
        return _audit_environment(path)


def _audit_environment(path: Path) -> lmdb.Environment:
    environment = lmdb.open(str(path), subdir=False, map_size=AUDIT_SIZE_MAX, sync=False)
    with environment.begin() as txn:
        txn.cursor().last()
    return environment


@contextmanager
def _explained(verb: str) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, OSError, ProtocolError, ValueError) as error:
        raise StoreError(f"lockd's state: cannot {verb}: {error}") from error
