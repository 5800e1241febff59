"""What every store promises, held against each of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockd.protocol.messages import AuditEntry
from lockd.protocol.terms import AuditKind, HostEnd
from lockd.state import (
    HostForgotten,
    HostRecord,
    LunRecord,
    ReservationEnded,
    ReservationRecord,
)
from lockd.store import LmdbStore, MemoryStore, Store, StoreError

Reopen = Callable[[Store], Store]
AUDIT_ENTRIES_MAX = 20


def host(lun: str = "ds1", uuid: bytes = b"a" * 16, **changes: object) -> HostRecord:
    values: dict[str, object] = {
        "lun": lun,
        "host_uuid": uuid,
        "name": "esx1",
        "generation": 1,
        "nonce": 2**64 - 1,
        "pid": 17,
        "start_ticks": 99,
        "boot_id": "b",
        "since": 1.5,
        "end": HostEnd.OPEN,
        "blocked": False,
        "proof": "",
    }
    return HostRecord(**{**values, **changes})  # type: ignore[arg-type]


def entry(sequence: int, text: str = "x") -> AuditEntry:
    return AuditEntry(
        sequence=sequence,
        wall=1.0,
        kind=AuditKind.REGISTERED,
        lun="ds1",
        host="esx1",
        generation=1,
        lba=0,
        text=text,
    )


@pytest.fixture(params=["memory", "lmdb"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Reopen]]:
    """A store, and how to close and open it again."""

    def open_store() -> Store:
        if request.param == "lmdb":
            return LmdbStore(tmp_path, audit_entries_max=AUDIT_ENTRIES_MAX)
        return memory

    def reopen(store: Store) -> Store:
        store.close()
        stores.append(open_store())
        return stores[-1]

    memory = MemoryStore(audit_entries_max=AUDIT_ENTRIES_MAX)
    stores = [open_store()]
    yield stores[0], reopen
    for store in stores:
        store.close()


def test_start_of_an_empty_store_is_incarnation_one(opened: tuple[Store, Reopen]) -> None:
    store, _ = opened

    snapshot = store.start()

    assert snapshot.incarnation == 1
    assert (snapshot.luns, snapshot.hosts, snapshot.reservations) == ((), (), ())
    assert snapshot.audit_sequence == 0


def test_incarnation_grows_with_every_start(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()

    store = reopen(store)

    assert store.start().incarnation == 2


def test_committed_records_come_back(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()
    records = (
        LunRecord(lun="ds1", generation=7),
        host(end=HostEnd.FENCED, blocked=True, proof="exit seen"),
        ReservationRecord(lun="ds1", host_uuid=b"a" * 16, generation=7),
    )

    store.commit(records)
    snapshot = reopen(store).start()

    assert snapshot.luns + snapshot.hosts + snapshot.reservations == records


def test_a_record_replaces_its_predecessor_and_no_other(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()
    store.commit([host(), host(lun="ds2", generation=2), host(uuid=b"b" * 16, generation=3)])

    store.commit([host(generation=9)])
    snapshot = reopen(store).start()

    assert [record.generation for record in snapshot.hosts] == [2, 3, 9]


def test_a_reservation_that_ended_is_gone(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()
    store.commit([ReservationRecord(lun="ds1", host_uuid=b"a" * 16, generation=1)])

    store.commit([ReservationEnded(lun="ds1"), ReservationEnded(lun="never")])

    assert reopen(store).start().reservations == ()


def test_a_forgotten_host_is_gone(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()
    store.commit([host(), host(uuid=b"b" * 16)])

    store.commit([HostForgotten(lun="ds1", host_uuid=b"a" * 16)])

    assert [record.host_uuid for record in reopen(store).start().hosts] == [b"b" * 16]


def test_audit_gives_the_newest_oldest_first(opened: tuple[Store, Reopen]) -> None:
    store, _ = opened
    store.start()
    store.append([entry(n) for n in range(1, 8)])

    assert [e.sequence for e in store.audit(count=3, before=0)] == [5, 6, 7]
    assert [e.sequence for e in store.audit(count=3, before=5)] == [2, 3, 4]
    assert [e.sequence for e in store.audit(count=9, before=3)] == [1, 2]
    assert [e.sequence for e in store.audit(count=9, before=100)] == list(range(1, 8))
    assert store.audit(count=9, before=1) == ()


def test_audit_goes_on_counting_after_a_restart(opened: tuple[Store, Reopen]) -> None:
    store, reopen = opened
    store.start()
    store.append([entry(41)])

    store = reopen(store)

    assert store.start().audit_sequence == 41
    assert store.audit(count=1, before=0) == (entry(41),)


def test_audit_drops_the_oldest_beyond_its_bound(opened: tuple[Store, Reopen]) -> None:
    store, _ = opened
    store.start()

    for n in range(1, AUDIT_ENTRIES_MAX + 11):
        store.append([entry(n)])

    kept = [e.sequence for e in store.audit(count=500, before=0)]
    assert kept == list(range(11, AUDIT_ENTRIES_MAX + 11))


def test_lmdb_sets_a_damaged_audit_trail_aside(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.start()
    store.commit([host()])
    store.append([entry(1)])
    store.close()
    (tmp_path / "audit.mdb").write_bytes(b"power cut" * 4096)

    store = LmdbStore(tmp_path)

    snapshot = store.start()
    assert snapshot.hosts == (host(),)
    assert snapshot.audit_sequence == 0
    assert (tmp_path / "audit.damaged").exists()
    store.close()


def test_lmdb_refuses_a_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "state.mdb").write_bytes(b"not a database" * 4096)

    with pytest.raises(StoreError, match=r"cannot open .*state\.mdb"):
        LmdbStore(tmp_path)


def test_lmdb_refuses_a_newer_schema(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.start()
    with store._state.begin(write=True) as txn:
        txn.put(b"schema", b"2", db=store._meta)

    with pytest.raises(StoreError, match="schema 2; this is 1"):
        store.start()
    store.close()
