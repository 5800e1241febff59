"""Blocks promised ahead: whose they are, and that nobody is refused anything for their sake."""

import numpy as np
import pytest
import trio
import trio.testing

from tests.support.space import Disk, Host, LockTable, tiny_files
from vmfs.errors import NoSpace
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.disk_lock import LockMode
from vmfs.space.preallocation import Preallocation

FB = AddressType.FB
TOTALS = {FB: 22, AddressType.SB: 4, AddressType.PB: 4, AddressType.PB2: 4, AddressType.FD: 4}


async def mounted() -> tuple[Disk, Host, Host]:
    disk, table = Disk(tiny_files(totals=TOTALS, per_cluster=8)), LockTable()
    hosts = Host(disk, table, 0), Host(disk, table, 0)
    for host in hosts:
        await host.allocator.load_counts()
    return disk, *hosts


async def take(host: Host, count: int) -> list[int]:
    async with host.allocator.reserve(want={FB: count}) as grant:
        return blocks(grant.take(FB, count))


async def grow(host: Host, *, by: int = 1, ahead: int) -> Preallocation | None:
    """As a write that allocates: take some, and promise more."""
    async with host.allocator.reserve(want={FB: by}) as grant:
        promise = host.allocator.preallocations.promise(grant, ahead)
        grant.take(FB, by)
        return promise


def blocks(addresses: np.ndarray) -> list[int]:
    return (addresses >> 6).tolist()


async def test_promised_blocks_are_taken_without_a_search_and_one_cluster_is_staged():
    disk, a, _ = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None
    await a.staging.commit()

    assert promise.is_good()
    assert not a.pinned
    assert promise.place == 1 * disk.files[FB].block_size
    assert promise.size == 3 * disk.files[FB].block_size
    assert blocks(promise.take(2)) == [1, 2]
    assert list(a.staging.running) == [disk.files[FB].cluster_meta_offset(0)]
    assert blocks(promise.take(1)) == [3]
    assert promise.count == 0
    a.allocator.check_invariants()


async def test_nobody_else_gets_them_while_there_are_others():
    _, a, _ = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None

    assert await take(a, 4) == [4, 5, 6, 7]
    assert await take(a, 1) == [8]
    promise.give_back()
    assert await take(a, 2) == [9, 10]
    async with a.allocator.reserve(want={FB: 3}, near=[0 << 6 | FB]) as grant:
        assert blocks(grant.take(FB, 3)) == [1, 2, 3]


@pytest.mark.parametrize(("used", "ahead", "found"), [(0, 9, 7), (1, 9, 6), (3, 2, 2)])
async def test_a_promise_ends_with_its_cluster(used, ahead, found):
    _, a, _ = await mounted()
    if used:
        await take(a, used)
    promise = await grow(a, ahead=ahead)
    assert promise is not None
    assert promise.count == found


async def test_a_promise_ends_before_a_block_that_is_in_use_or_promised():
    _, a, _ = await mounted()
    first = await grow(a, by=5, ahead=2)
    second = await grow(a, ahead=1)
    assert first is not None
    assert first.count == 2
    assert second is None  # it got block 7, the last of its cluster
    async with a.allocator.reserve(free=[4 << 6 | FB]) as grant:
        grant.free(np.array([4 << 6 | FB], dtype=np.uint32))
    await a.staging.checkpoint()
    assert await grow(a, ahead=1) is None  # it got block 4; 5 is promised


async def test_a_promise_never_makes_no_space():
    disk, a, _ = await mounted()
    promise = await grow(a, ahead=7)
    assert promise is not None

    assert len(await take(a, 21)) == 21
    assert promise.count == 0
    assert not a.staging.disk.used(FB)
    await a.staging.commit()
    assert len(disk.used(FB)) == 22
    with pytest.raises(NoSpace):
        await take(a, 1)


async def test_free_space_is_counted_as_if_nothing_were_promised():
    _, a, _ = await mounted()
    before = a.allocator.free_counts()[FB].free
    await grow(a, by=1, ahead=7)
    assert a.allocator.free_counts()[FB].free == before - 1


async def test_a_promise_ends_with_the_lock_of_its_cluster():
    disk, a, b = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None
    [lock] = a.locks.table.holders

    await a.locks.give_up(lock)  # nothing is pinned
    assert not promise.is_good()
    assert await take(b, 7) == [1, 2, 3, 4, 5, 6, 7]
    await b.locks.give_up(lock)
    assert await take(a, 1) == [8]
    (await a.locks.acquire(lock, LockMode.EXCLUSIVE)).release()
    assert not promise.is_good()  # the lock is back, what it stood for is not

    promise.give_back()
    a.allocator.check_invariants()
    await a.staging.commit()
    assert len(disk.used(FB)) == 9


async def test_a_promise_ends_with_all_locks():
    _, a, _ = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None
    a.allocator.drop_all()
    assert not promise.is_good()
    promise.give_back()
    assert await take(a, 7) == [1, 2, 3, 4, 5, 6, 7]


async def test_whoever_wants_blocks_back_waits_until_nothing_is_written_to_them():
    _, a, _ = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None
    taken: list[int] = []

    async def take_all() -> None:
        taken.extend(await take(a, 20))

    assert promise.is_good()
    async with trio.open_nursery() as nursery:
        with promise.in_use():
            assert list(a.pinned)
            nursery.start_soon(take_all)
            await trio.testing.wait_all_tasks_blocked()
            assert not taken
            assert blocks(promise.take(1)) == [1]
    assert promise.count == 0
    assert sorted(taken) == list(range(2, 22))
    assert not a.pinned


async def test_an_error_ends_the_promise():
    _, a, _ = await mounted()
    promise = await grow(a, ahead=3)
    assert promise is not None
    with pytest.raises(NoSpace), promise.in_use():
        raise NoSpace("of any kind")
    assert promise.count == 0
    assert not a.pinned
    assert await take(a, 3) == [1, 2, 3]
