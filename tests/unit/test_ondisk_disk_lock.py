"""Lock records: every transition, and every state that must not pass for a free lock."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import HOST_A, HOST_B, LOCK_AT, holder, lock_free
from vmfs.errors import CorruptRecord
from vmfs.ids import VmfsUuid
from vmfs.ondisk.disk_lock import HOLDER_COUNT_MAX, DiskLock, LockMode
from vmfs.ondisk.heartbeat import slot_offset

A, B = holder(HOST_A, 5, 7), holder(HOST_B, 6, 3)


def read(lock: DiskLock) -> DiskLock:
    return DiskLock.unpack(lock.pack(), address=LOCK_AT)


def test_free_lock_is_never_all_zero() -> None:
    assert any(lock_free().pack())
    assert any(lock_free().taken_exclusive(A, 1).freed().pack())


def test_zero_sector_is_no_lock() -> None:
    with pytest.raises(CorruptRecord, match="type"):
        DiskLock.unpack(bytes(512), address=0)


def test_exclusive_lock_names_its_holder_and_counts_the_acquisition() -> None:
    taken = lock_free().taken_exclusive(A, 77)

    assert read(taken) == taken
    assert taken.mode == LockMode.EXCLUSIVE
    assert taken.exclusive_holder == A
    assert taken.all_holders == (A,)
    assert taken.is_held_by(A)
    assert not taken.is_held_by(dataclasses.replace(A, generation=8))
    assert (taken.token, taken.acquired_at, taken.owner) == (1, 77, HOST_A)


def test_freed_lock_keeps_its_history() -> None:
    freed = lock_free().taken_exclusive(A, 77).freed()

    assert read(freed).is_free
    assert freed.all_holders == ()
    assert (freed.heartbeat_offset, freed.generation, freed.token) == (slot_offset(5), 7, 1)
    assert freed.owner == VmfsUuid.NIL


def test_shared_lock_is_joined_and_left() -> None:
    both = lock_free().taken_shared(A, 1).taken_shared(B, 2)

    assert read(both).holders == (A, B)
    assert both.owner == VmfsUuid.NIL
    assert both.exclusive_holder is None
    assert both.token == 2
    assert both.without(A).holders == (B,)
    assert both.without(A).mode == LockMode.SHARED
    assert both.without(A).without(B).is_free
    assert read(both.without(A)) == both.without(A)


def test_shared_lock_taken_twice_names_its_holder_once() -> None:
    assert lock_free().taken_shared(A, 1).taken_shared(A, 2).holders == (A,)


def test_lock_without_a_stranger_is_unchanged() -> None:
    taken = lock_free().taken_exclusive(A, 1)

    assert taken.without(B) is taken
    assert taken.without(A).is_free


def test_exclusive_lock_goes_down_to_shared_without_an_acquisition() -> None:
    shared = lock_free().taken_exclusive(A, 1).downgraded()

    assert read(shared).holders == (A,)
    assert shared.mode == LockMode.SHARED
    assert shared.token == 1


def test_sole_shared_holder_goes_up_to_exclusive() -> None:
    taken = lock_free().taken_shared(A, 1).taken_exclusive(A, 2)

    assert read(taken).exclusive_holder == A
    assert taken.holders == ()


def test_lock_is_never_taken_from_somebody_else() -> None:
    exclusive, shared = lock_free().taken_exclusive(A, 1), lock_free().taken_shared(A, 1)

    with pytest.raises(AssertionError):
        exclusive.taken_exclusive(B, 2)
    with pytest.raises(AssertionError):
        exclusive.taken_shared(B, 2)
    with pytest.raises(AssertionError):
        shared.taken_exclusive(B, 2)
    with pytest.raises(AssertionError):
        lock_free().downgraded()


def test_ninth_shared_holder_does_not_fit() -> None:
    lock = lock_free()
    for slot in range(HOLDER_COUNT_MAX):
        assert not lock.is_full
        lock = lock.taken_shared(holder(HOST_A, slot, 1), 1)

    assert lock.is_full
    assert read(lock) == lock
    with pytest.raises(AssertionError):
        lock.taken_shared(holder(HOST_B, 100, 1), 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": LockMode.FREE}, "owner"),
        ({"owner": VmfsUuid.NIL}, "owner"),
        ({"heartbeat_offset": 0}, "heartbeat"),
        ({"heartbeat_offset": slot_offset(5) + 8}, "heartbeat"),
        ({"holders": (A,)}, "holder count"),
        ({"mode": LockMode.SHARED}, "holder count"),
        ({"mode": LockMode.MULTI_WRITER}, "holder count"),
        ({"lv_offset": 0x420800}, "own address"),
    ],
)
def test_exclusive_lock_that_cannot_be_is_corrupt(change: dict[str, object], field: str) -> None:
    damaged = dataclasses.replace(
        lock_free().taken_exclusive(A, 1),
        **change,  # type: ignore[arg-type]
    )

    with pytest.raises(CorruptRecord) as caught:
        read(damaged)

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [(0x00, 7, "type"), (0x24, 4, "mode"), (0x40, 9, "holder count")],
)
def test_lock_with_a_field_out_of_range_is_corrupt(offset: int, value: int, field: str) -> None:
    data = bytearray(lock_free().pack())
    data[offset] = value

    with pytest.raises(CorruptRecord) as caught:
        DiskLock.unpack(bytes(data), address=LOCK_AT)

    assert caught.value.field == field


def test_free_lock_with_holders_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="holder count"):
        read(dataclasses.replace(lock_free(), holders=(A,)))


def test_shared_holder_that_is_nobody_is_corrupt() -> None:
    nobody = dataclasses.replace(A, owner=VmfsUuid.NIL)

    with pytest.raises(CorruptRecord, match="holder"):
        read(dataclasses.replace(lock_free(), mode=LockMode.SHARED, holders=(nobody,)))


def test_bytes_behind_the_holder_list_are_kept_until_the_list_changes() -> None:
    data = bytearray(lock_free().taken_shared(A, 1).pack())
    data[0x64:0x68] = b"OLD!"

    lock = DiskLock.unpack(bytes(data), address=LOCK_AT)

    assert lock.pack() == bytes(data)
    assert b"OLD!" not in lock.taken_shared(B, 2).pack()


@given(st.lists(st.tuples(st.sampled_from("xsfdl"), st.integers(0, 3)), min_size=1, max_size=30))
def test_lock_keeps_its_rules_through_any_history(steps: list[tuple[str, int]]) -> None:
    """Whatever hosts do in turn: tokens never go down, and what is written can be read back."""
    hosts = [holder(HOST_A, slot, slot + 1) for slot in range(4)]
    lock = lock_free()
    for verb, index in steps:
        who, before = hosts[index], lock
        others = [h for h in lock.all_holders if h != who]
        if verb == "x" and not others:
            lock = lock.taken_exclusive(who, 1)
        elif verb == "s" and lock.exclusive_holder in (None, who):
            lock = lock.taken_shared(who, 1)
        elif verb == "f":
            lock = lock.freed()
        elif verb == "d" and lock.exclusive_holder is not None:
            lock = lock.downgraded()
        elif verb == "l":
            lock = lock.without(who)

        assert lock.token >= before.token
        assert read(lock) == lock
        assert lock.is_free == (not lock.all_holders)
