"""Many tasks of one host at once: what one of them chose or changed, no other sees half of."""

import random

import numpy as np
import pytest
import trio

from tests.support.file_blocks import TinyFile
from tests.support.space import FANOUT, Disk, FakeLocks, FakePin, FakeStaging, Host, LockTable
from tests.support.space import tiny_files as files_of
from vmfs.errors import NoSpace
from vmfs.ids import SlotIndex
from vmfs.locks.order import LockId
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import Zla
from vmfs.space.allocator import Allocator
from vmfs.space.extent import ExtentKind
from vmfs.space.index_path import Shape

FB, PB = AddressType.FB, AddressType.PB
TOTALS = {FB: 40, AddressType.SB: 4, PB: 16, AddressType.PB2: 4, AddressType.FD: 4}


class SlowStaging(FakeStaging):
    """Lets other tasks run while it reads and commits."""

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data = await super().read(offset, length)
        await trio.lowlevel.checkpoint()
        return data

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()
        await super().commit()


class SlowLocks(FakeLocks):
    """Lets other tasks run while it locks."""

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin:
        await trio.lowlevel.checkpoint()
        return self._pin(lock, mode)

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin | None:
        await trio.lowlevel.checkpoint()
        return self._pin(lock, mode)


def slow_host() -> Host:
    disk = Disk(files_of(totals=TOTALS))
    host = Host(disk, LockTable(), 0)
    host.staging = SlowStaging(disk)
    host.locks = SlowLocks(LockTable())
    host.allocator = Allocator(
        staging=host.staging, locks=host.locks, files=disk.files, slot=SlotIndex(0)
    )
    return host


@pytest.mark.parametrize("cache", [2, 4096])
@pytest.mark.parametrize("seed", range(5))
async def test_tasks_never_get_the_same_block(seed, cache, monkeypatch):
    monkeypatch.setattr("vmfs.space.ledger.CLUSTER_CACHE_MAX", cache)
    host, rng = slow_host(), random.Random(seed)
    await host.allocator.load_counts()
    owned: set[int] = set()

    async def work() -> None:
        mine: list[int] = []
        for _ in range(30):
            count = rng.randint(0, 4)
            old = [mine.pop() for _ in range(min(len(mine), rng.randint(0, 3)))]
            try:
                async with host.allocator.reserve(want={FB: count}, free=old) as grant:
                    await trio.lowlevel.checkpoint()
                    promised = grant.promised(FB).tolist()
                    assert not owned & set(promised)
                    taken = grant.take(FB, rng.randint(0, count)).tolist()
                    grant.free(np.array(old, dtype=np.uint32))
                    owned.difference_update(old)
                    owned.update(taken)
                    mine.extend(taken)
            except NoSpace:
                mine.extend(old)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(work)

    await host.staging.checkpoint()
    host.allocator.check_invariants()
    assert not host.pinned
    assert host.staging.disk.used(FB) == owned


async def test_cancelled_reservation_leaves_nothing_promised_or_pinned():
    host = slow_host()
    await host.allocator.load_counts()

    for steps in range(40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_later(count: int = steps, scope: trio.CancelScope = scope) -> None:
                    for _ in range(count):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_later)
                async with host.allocator.reserve(want={FB: 30, PB: 9}):
                    await trio.sleep_forever()
        assert not host.pinned

    async with host.allocator.reserve(want={FB: 40, PB: 16}) as grant:
        assert len(set(grant.promised(FB).tolist())) == 40


@pytest.mark.parametrize("seed", range(5))
async def test_readers_see_whole_trees_while_a_writer_grows_them(seed, monkeypatch):
    monkeypatch.setattr("vmfs.space.pointer_tree.TABLES_MAX", 3)
    host, rng = slow_host(), random.Random(seed)
    await host.allocator.load_counts()
    file = TinyFile(host, Shape(slots=8, fanout=FANOUT), Zla.FB)
    blocks = [leaf * FANOUT + rng.randrange(FANOUT) for leaf in range(8)]
    written: list[int] = []
    done = trio.Event()

    async def read() -> None:
        while not done.is_set():
            block = rng.choice(blocks)
            known = block in written
            await file.map.load(block * 4096, 4096)
            [extent] = file.map.extents(block * 4096, 4096)
            assert extent.kind is ExtentKind.DATA or not known
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        for block in rng.sample(blocks, len(blocks)):
            await file.map.load(block * 4096, 4096)
            missing = file.map.missing(block * 4096, 4096, file_length=1)
            async with host.allocator.reserve(want=missing.want) as grant:
                await trio.lowlevel.checkpoint()
                file.map.install(missing, grant)
                written.append(block)
        done.set()

    assert len(await file.owned()) == len(blocks) * 2


class Interrupted:
    """At one of the waits of a host inside `reserve`, another host takes what it merely caches."""

    def __init__(self, mine: Host, theirs: Host, *, at_wait: int) -> None:
        self.mine, self.theirs = mine, theirs
        self.left = at_wait
        self.taken: list[int] = []
        self.came = False
        self._inside = False

    async def strike(self) -> None:
        if self._inside:
            return  # giving up waits as well
        if self.left == 0:
            self._inside = self.came = True
            try:
                async with self.theirs.allocator.reserve(want={FB: 13}) as grant:
                    self.taken += grant.take(FB, 13).tolist()
            except NoSpace:
                pass  # what it lacks is pinned by now
            finally:
                self._inside = False
        self.left -= 1


class InterruptedStaging(FakeStaging):
    interrupted: Interrupted

    async def read(self, offset: int, length: int) -> bytes:
        data = await super().read(offset, length)
        await self.interrupted.strike()
        return data

    async def commit(self) -> None:
        await super().commit()
        await self.interrupted.strike()


class InterruptedLocks(FakeLocks):
    interrupted: Interrupted

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin:
        await self.interrupted.strike()
        return await super().acquire(lock, mode, label=label)

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin | None:
        await self.interrupted.strike()
        return await super().try_acquire(lock, mode, label=label)


@pytest.mark.parametrize("at_wait", range(6))
async def test_cluster_revoked_inside_reserve_is_promised_by_its_new_holder_only(at_wait):
    disk, table = Disk(files_of(totals=TOTALS)), LockTable()
    mine, theirs = Host(disk, table, 0), Host(disk, table, 0)
    mine.staging, mine.locks = InterruptedStaging(disk), InterruptedLocks(table)
    mine.locks.host = mine
    mine.allocator = Allocator(
        staging=mine.staging, locks=mine.locks, files=disk.files, slot=SlotIndex(0)
    )
    interrupted = Interrupted(mine, theirs, at_wait=-1)
    mine.staging.interrupted = mine.locks.interrupted = interrupted
    for host in (mine, theirs):
        await host.allocator.load_counts()
    async with mine.allocator.reserve(want={FB: 26}) as grant:
        old = grant.take(FB, 26).tolist()  # 14 are left, two of them in a cluster of ours
    await mine.staging.commit()

    interrupted.left = at_wait
    async with mine.allocator.reserve(want={FB: 1}, free=old[::5]) as grant:
        new = grant.take(FB, 1).tolist()
        grant.free(np.array(old[::5], dtype=np.uint32))

    assert interrupted.came
    for host in (mine, theirs):
        await host.staging.checkpoint()
        host.allocator.check_invariants()
        assert not host.pinned
    kept = [*(set(old) - set(old[::5])), *new, *interrupted.taken]
    assert len(set(kept)) == len(kept)
    assert disk.used(FB) == set(kept)
    if at_wait == 0:
        assert interrupted.taken
