"""The total order of locks, and the strength of modes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.ids import FdAddress, LvOffset
from vmfs.locks.order import LockId, LockKind, covers, exceeds, file_lock, in_order, is_in_order
from vmfs.ondisk.disk_lock import LockMode, LockType
from vmfs.ondisk.file_desc import VH_FD

EXCLUSIVE, SHARED, FREE = LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.FREE

locks = st.builds(
    lambda kind, index: LockId(kind, index, LvOffset(kind * 2**40 + index * 1024)),
    st.sampled_from(LockKind),
    st.integers(0, 50),
)


def test_kinds_are_ordered_as_the_format_document_says() -> None:
    kinds = [kind.name for kind in sorted(LockKind)]
    assert kinds == [
        "TREE",
        "FILE_DESC",
        "FD_CLUSTER",
        "SB_CLUSTER",
        "PB_CLUSTER",
        "PB2_CLUSTER",
        "FB_CLUSTER",
    ]


@given(st.sets(locks, min_size=1))
def test_locks_taken_in_order_may_each_be_waited_for(wanted: set[LockId]) -> None:
    taken = [lock for lock, _ in in_order(dict.fromkeys(wanted, SHARED))]

    assert set(taken) == wanted
    for position, lock in enumerate(taken):
        assert is_in_order(taken[:position], lock)
        assert not is_in_order(taken[position:], lock)


@given(st.sets(locks, min_size=2), st.randoms(use_true_random=False))
def test_operations_in_order_never_wait_in_a_circle(all_locks: set[LockId], rng: object) -> None:
    """Random operations, each stopped at a random place: whoever waits, waits for a higher lock."""
    owner: dict[LockId, int] = {}
    waits_for: dict[int, int] = {}
    for operation in range(8):
        wanted = rng.sample(sorted(all_locks), rng.randint(1, len(all_locks)))  # type: ignore[attr-defined]
        for lock, _ in in_order(dict.fromkeys(wanted, EXCLUSIVE)):
            if lock in owner:
                waits_for[operation] = owner[lock]
                break
            owner[lock] = operation

    for start in waits_for:
        seen = set()
        at: int | None = start
        while at is not None:
            assert at not in seen, "a circle of operations that wait for each other"
            seen.add(at)
            at = waits_for.get(at)


@given(locks, locks)
def test_order_is_total(one: LockId, other: LockId) -> None:
    assert (one < other) + (other < one) + (one == other) == 1


def test_tree_lock_comes_before_the_root_directory() -> None:
    tree = file_lock(VH_FD, LvOffset(0x500000))
    root = file_lock(FdAddress(4), LvOffset(0x400000))

    assert tree.kind is LockKind.TREE
    assert tree < root
    assert str(tree) == "directory tree"
    assert str(root) == "file descriptor 0x00000004"
    assert str(LockId(LockKind.FB_CLUSTER, 7, LvOffset(0))) == "FB cluster 7"


def test_every_kind_has_its_record_type() -> None:
    assert {kind.lock_type for kind in LockKind} == set(LockType)


@pytest.mark.parametrize(
    ("held", "wanted", "enough"),
    [
        (FREE, SHARED, False),
        (SHARED, SHARED, True),
        (SHARED, EXCLUSIVE, False),
        (EXCLUSIVE, SHARED, True),
        (EXCLUSIVE, EXCLUSIVE, True),
        (FREE, FREE, True),
    ],
)
def test_strength(held: LockMode, wanted: LockMode, enough: bool) -> None:
    assert covers(held, wanted) is enough
    assert exceeds(wanted, held) is not enough
