"""The allocator: whom it gives what, on one host and on two."""

from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.space import Disk, FakePin, Host, LockTable, tiny_files
from vmfs.errors import CorruptRecord, LockBusy, NoSpace
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.address import AddressType, FbAddress
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space.counters import FreeCount

FB, SB, PB, FD = AddressType.FB, AddressType.SB, AddressType.PB, AddressType.FD
TOTALS = {FB: 22, SB: 9, PB: 8, AddressType.PB2: 4, FD: 8}


def two_hosts() -> tuple[Disk, Host, Host]:
    disk, table = Disk(tiny_files(totals=TOTALS)), LockTable()
    return disk, Host(disk, table, 0), Host(disk, table, 1)


async def mounted() -> tuple[Disk, Host, Host]:
    disk, a, b = two_hosts()
    await a.allocator.load_counts()
    await b.allocator.load_counts()
    return disk, a, b


async def take(host: Host, kind: AddressType, count: int, near: int = 0) -> list[int]:
    async with host.allocator.reserve(want={kind: count}, near=[near]) as grant:
        return grant.take(kind, count).tolist()


async def free(host: Host, addresses: list[int]) -> None:
    async with host.allocator.reserve(free=addresses) as grant:
        grant.free(np.array(addresses, dtype=np.uint32))


def blocks(addresses: list[int]) -> list[int]:
    return [address >> 6 for address in addresses]


async def test_taken_resources_are_staged_and_then_in_place():
    disk, a, _ = await mounted()

    taken = await take(a, FB, 3)

    assert disk.used(FB) == set()
    await a.staging.commit()
    assert disk.used(FB) == set(taken)
    assert not a.pinned


async def test_all_kinds_in_one_grant():
    disk, a, _ = await mounted()
    want = {FD: 1, SB: 2, PB: 1, AddressType.PB2: 1, FB: 5}

    async with a.allocator.reserve(want=want) as grant:
        assert grant.room >= 5 * ClusterMeta.SIZE
        taken = {kind: grant.take(kind, count).tolist() for kind, count in want.items()}
    await a.staging.commit()

    for kind, addresses in taken.items():
        assert disk.used(kind) == set(addresses)


async def test_promise_is_known_before_it_is_taken_and_nothing_is_staged():
    _, a, _ = await mounted()

    async with a.allocator.reserve(want={FB: 6}) as grant:
        promised = grant.promised(FB).tolist()
        assert a.staging.running == {}
        assert grant.first(FB) == promised[0]
        assert grant.take(FB, 4).tolist() == promised[:4]
        assert grant.first(FB) == promised[4]
        assert grant.promised(FB).tolist() == promised[4:]

    async with a.allocator.reserve(want={FB: 18}) as grant:  # what was not taken came back
        assert set(promised[4:]) <= set(grant.promised(FB).tolist())


async def test_two_grants_at_once_never_share():
    _, a, _ = await mounted()

    async with (
        a.allocator.reserve(want={FB: 11}) as one,
        a.allocator.reserve(want={FB: 11}) as two,
    ):
        assert not set(one.promised(FB).tolist()) & set(two.promised(FB).tolist())
        with pytest.raises(NoSpace):
            async with a.allocator.reserve(want={FB: 1}):
                pass


async def test_more_than_reserved_is_our_mistake():
    _, a, _ = await mounted()

    async with a.allocator.reserve(want={FB: 1}) as grant:
        with pytest.raises(AssertionError, match="more than were reserved"):
            grant.take(FB, 2)


async def test_growing_file_gets_its_next_blocks():
    _, a, b = await mounted()
    first = await take(a, FB, 2)

    second = await take(a, FB, 3, near=first[-1])

    assert np.diff(blocks(first + second)).tolist() == [1, 1, 1, 1]
    assert not a.locks.asked
    assert not b.locks.asked


async def test_hint_that_makes_no_sense_is_no_hint():
    _, a, _ = await mounted()

    for near in (7, 6, FbAddress(block=1000).pack(), 0xFFFFFFFF):
        assert len(await take(a, FB, 1, near=near)) == 1


async def test_hosts_begin_apart_and_stay_out_of_each_others_way():
    _, a, b = await mounted()

    of_a, of_b = await take(a, FB, 6), await take(b, FB, 6)

    assert not set(of_a) & set(of_b)
    assert not a.locks.asked
    assert not b.locks.asked
    assert abs(min(blocks(of_a)) - min(blocks(of_b))) >= 8


async def test_cluster_of_another_host_is_asked_for_when_nothing_else_has_room():
    disk, a, b = await mounted()
    of_b = await take(b, FB, 1)

    of_a = await take(a, FB, 21)

    assert len(a.locks.asked) == 1
    assert set(of_a) | set(of_b) == {FbAddress(block=n).pack() for n in range(22)}
    assert disk.used(FB) >= set(of_b)


async def test_cluster_that_is_in_use_elsewhere_is_no_space():
    _, a, b = await mounted()

    async with b.allocator.reserve(want={FB: 1}):
        with pytest.raises(NoSpace):
            await take(a, FB, 21)
        assert len(await take(a, FB, 18)) == 18


async def test_resources_freed_elsewhere_are_found_before_giving_up():
    _, a, b = await mounted()
    everything = await take(a, FB, 22)
    await b.allocator.refresh()
    await free(a, everything[:5])
    await a.staging.commit()

    assert len(await take(b, FB, 5)) == 5


async def test_clusters_are_pinned_in_the_total_order():
    _, a, _ = await mounted()
    addresses = await take(a, FB, 22) + await take(a, FD, 8) + await take(a, SB, 9)
    a.locks.waited.clear()

    async with a.allocator.reserve(want={PB: 1}, free=list(reversed(addresses))):
        pass

    assert a.locks.waited == sorted(a.locks.waited)
    assert len(a.locks.waited) == 6 + 2 + 3


async def test_no_space_leaves_nothing_behind():
    _, a, _ = await mounted()
    await take(a, PB, 8)
    await a.staging.commit()
    staged = dict(a.staging.running)

    with pytest.raises(NoSpace, match=r"1 free pointer blocks are needed, 1 more than there are"):
        async with a.allocator.reserve(want={FB: 3, PB: 1}):
            raise AssertionError("never reached")

    assert a.staging.running == staged
    assert not a.pinned
    assert len(await take(a, FB, 22)) == 22


async def test_freed_resource_comes_back_after_its_commit_only():
    disk, a, _ = await mounted()
    everything = await take(a, SB, 9)
    await a.staging.commit()

    async with a.allocator.reserve(free=everything[:2], want={}) as grant:
        grant.free(np.array(everything[:2], dtype=np.uint32))
        assert a.allocator.free_counts()[SB] == FreeCount(total=9, free=2)

    commits: list[None] = []
    a.staging.on_commit(lambda: commits.append(None))
    again = await take(a, SB, 2)
    assert commits, "the allocator committed first"
    assert set(again) == set(everything[:2])
    await a.staging.commit()
    assert disk.used(SB) == set(everything)


async def test_cluster_whose_free_resources_are_all_unsettled_is_not_even_pinned(monkeypatch):
    _, a, _ = await mounted()
    everything = sorted(await take(a, FB, 22))
    early, late = everything[0], everything[-1]
    await free(a, [late])
    await a.staging.commit()
    await free(a, [early])
    pinned: list[int] = []
    try_acquire = a.locks.try_acquire

    async def seen(lock: LockId, mode: LockMode, *, label: str = "") -> FakePin | None:
        pinned.append(lock.index)
        return await try_acquire(lock, mode, label=label)

    monkeypatch.setattr(a.locks, "try_acquire", seen)

    assert await take(a, FB, 1, near=early) == [late]
    assert pinned == [blocks([late])[0] // 4]


async def test_block_with_contents_in_the_journal_waits_for_the_checkpoint():
    _, a, _ = await mounted()
    everything = await take(a, FB, 22)
    directory = everything[3]
    place = (directory >> 6) * 4096
    a.staging.stage(place, b"d" * 512)
    await a.staging.commit()  # the directory's contents are journaled

    await free(a, [directory, everything[4]])
    a.staging.callbacks.reverse()
    a.staging.disk.sectors |= a.staging.running
    a.staging.running = {}
    for callback in a.staging.callbacks:  # committed, but the journal still has the older one
        callback()
    a.staging.callbacks = []

    assert await take(a, FB, 1) == [everything[4]]
    assert a.staging.journaled
    assert await take(a, FB, 1) == [directory]
    assert not a.staging.is_live([(place, 4096)])


async def test_staged_contents_of_a_freed_resource_are_dropped_but_not_of_a_descriptor():
    disk, a, _ = await mounted()
    [block], [desc] = await take(a, FB, 1), await take(a, FD, 1)
    [(block_at, _)] = disk.files[FB].address_runs(block)
    (desc_at, _), *_ = disk.files[FD].address_runs(desc)
    a.staging.stage(block_at, b"b" * 512)
    a.staging.stage(desc_at, b"f" * 512)

    await free(a, [block, desc])

    assert block_at not in a.staging.running
    assert a.staging.running[desc_at] == b"f" * 512


async def test_double_free_is_damage_and_stages_nothing():
    _, a, _ = await mounted()
    one, two = await take(a, FB, 2)
    await free(a, [one])
    before = dict(a.staging.running)

    with pytest.raises(CorruptRecord, match="free"):
        await free(a, [two, one])
    with pytest.raises(CorruptRecord):
        await free(a, [two, two])

    assert a.staging.running == before
    await free(a, [two])


@pytest.mark.parametrize(
    "address", [FbAddress(block=22).pack(), 7, 6, 8, SB | 0xF << 28, 0xFFFFFFFF]
)
async def test_free_of_what_the_volume_does_not_have_is_damage(address):
    _, a, _ = await mounted()

    with pytest.raises(CorruptRecord):
        async with a.allocator.reserve(free=[address]):
            pass
    assert not a.pinned


async def test_free_outside_of_what_was_reserved_is_our_mistake():
    _, a, _ = await mounted()
    one, *_, last = await take(a, FB, 22)

    async with a.allocator.reserve(free=[one]) as grant:
        with pytest.raises(AssertionError, match="not reserved"):
            grant.free(np.array([last], dtype=np.uint32))


async def test_free_in_a_cluster_that_is_in_use_elsewhere_is_busy():
    _, a, b = await mounted()
    [one] = await take(a, FB, 1)
    a.locks.table.holders.clear()

    async with b.allocator.reserve(want={FB: 22}):
        with pytest.raises(LockBusy):
            await free(a, [one])
    assert not a.pinned


async def test_damaged_cluster_is_passed_over_and_its_neighbours_serve(caplog):
    disk, a, _ = await mounted()
    file = disk.files[FB]
    disk.sectors[file.cluster_meta_offset(0)] = b"\xff" * 512

    taken = await take(a, FB, 18)

    assert min(blocks(taken)) == 4
    assert "damaged cluster" in caplog.text
    with pytest.raises(NoSpace):
        await take(a, FB, 1)
    with pytest.raises(CorruptRecord):
        await free(a, [FbAddress(block=1).pack()])
    assert not a.pinned


async def test_damaged_headers_count_as_full(caplog):
    disk, a, _ = two_hosts()
    file = disk.files[FB]
    disk.sectors[file.cluster_meta_offset(2)] = b"\xff" * 512

    await a.allocator.load_counts()

    assert a.allocator.free_counts()[FB] == FreeCount(total=22, free=18)
    assert "count as full" in caplog.text


async def test_cluster_with_more_resources_than_the_file_says_is_damage():
    disk, a, _ = await mounted()
    file = disk.files[FB]
    last = file.cluster_count - 1
    meta = ClusterMeta.with_bits(number=last, total=4, free_bits=0)  # the last has 2
    disk.sectors[file.cluster_meta_offset(last)] = meta.pack()

    with pytest.raises(CorruptRecord, match="total"):
        await free(a, [FbAddress(block=21).pack()])


async def test_dropped_cluster_is_read_again():
    disk, a, b = await mounted()
    await take(a, FB, 1)
    await a.staging.checkpoint()
    lock = disk.files[FB].cluster_lock(0)
    a.staging.reads.clear()
    await take(a, FB, 1)
    assert a.staging.reads == []

    a.allocator.drop(disk.files[FD].cluster_lock(0))  # another kind of lock: no matter
    await take(a, FB, 1)
    assert a.staging.reads == []
    a.allocator.drop(lock)
    await take(a, FB, 1)

    assert a.staging.reads == [disk.files[FB].cluster_meta_offset(0)]
    assert lock.kind is LockKind.FB_CLUSTER
    assert b.staging.reads


async def test_counts_follow_and_everything_can_be_dropped():
    _, a, _ = await mounted()
    taken = await take(a, FB, 5)
    assert a.allocator.free_counts()[FB] == FreeCount(total=22, free=17)
    await free(a, taken[:2])
    assert a.allocator.free_counts()[FB].free == 19

    await a.staging.checkpoint()
    a.allocator.drop_all()

    await a.allocator.refresh()
    assert a.allocator.free_counts()[FB].free == 19
    a.allocator.check_invariants()


async def test_counts_of_many_groups_and_windows(monkeypatch):
    monkeypatch.setattr("vmfs.space.counters._WINDOW", 3 * 1024)
    disk = Disk(tiny_files(totals=TOTALS | {FB: 103}, per_cluster=5, per_group=8))
    host = Host(disk, LockTable(), 0)

    await host.allocator.load_counts()

    assert {k: c.free for k, c in host.allocator.free_counts().items()} == TOTALS | {FB: 103}


async def test_memory_of_idle_clusters_is_bounded(monkeypatch):
    monkeypatch.setattr("vmfs.space.ledger.CLUSTER_CACHE_MAX", 8)
    disk = Disk(tiny_files(totals=TOTALS | {FB: 200}))
    host = Host(disk, LockTable(), 0)
    await host.allocator.load_counts()

    taken = [await take(host, FB, 4) for _ in range(50)]

    await host.staging.commit()
    assert disk.used(FB) == {address for batch in taken for address in batch}
    assert len(host.allocator._ledger._clusters) <= 8


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run one step of a machine to its end."""

    async def run() -> Any:
        return await coroutine

    return trio.run(run)


class TwoHosts(RuleBasedStateMachine):
    """Random takes, frees, commits and revocations on two hosts, against a set."""

    def __init__(self) -> None:
        super().__init__()
        self.disk, *self.hosts = two_hosts()
        self.used: set[int] = set()
        self.uncommitted: set[int] = set()  # freed, and a crash would undo it
        for host in self.hosts:
            now(host.allocator.load_counts())

    def obtainable(self, index: int, kind: AddressType) -> int:
        """What is free, but in clusters that are full as far as this host can read."""
        view = Disk.__new__(Disk)
        view.files = self.disk.files
        view.sectors = self.disk.sectors | self.hosts[index].staging.running
        file = self.disk.files[kind]
        seen_used, total = view.used(kind), 0
        for cluster in range(file.cluster_count):
            every = set(file.pack(cluster, np.arange(file.header.cluster_total(cluster))).tolist())
            total += len(every - self.used) if every - seen_used else 0
        return total

    def all_free(self, kind: AddressType) -> int:
        return TOTALS[kind] - sum(1 for address in self.used if address & 7 == kind)

    @rule(
        index=st.integers(0, 1),
        kind=st.sampled_from([FB, SB]),
        count=st.integers(1, 22),
        unused=st.integers(0, 2),
    )
    def take(self, index, kind, count, unused):
        host = self.hosts[index]
        obtainable = self.obtainable(index, kind)

        async def run() -> list[int]:
            async with host.allocator.reserve(want={kind: count}) as grant:
                return grant.take(kind, max(0, count - unused)).tolist()

        try:
            taken = now(run())
        except NoSpace:
            assert count > obtainable
            return
        assert not set(taken) & self.used
        assert len(set(taken)) == max(0, count - unused)
        assert not set(taken) & self.uncommitted
        self.used |= set(taken)

    @rule(index=st.integers(0, 1), data=st.data())
    def free(self, index, data):
        if not self.used:
            return
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.used)), max_size=8, unique=True))
        now(free(self.hosts[index], chosen))
        self.used -= set(chosen)
        self.uncommitted |= set(chosen)
        self.hosts[index].staging.on_commit(lambda: self.uncommitted.difference_update(chosen))

    @rule(index=st.integers(0, 1), checkpoint=st.booleans())
    def commit(self, index, checkpoint):
        staging = self.hosts[index].staging
        now(staging.checkpoint() if checkpoint else staging.commit())

    @rule(index=st.integers(0, 1), data=st.data())
    def revoke(self, index, data):
        host = self.hosts[index]
        held = [lock for lock, who in host.locks.table.holders.items() if who is host.locks]
        if held:
            now(host.locks.give_up(data.draw(st.sampled_from(sorted(held)))))

    @rule(index=st.integers(0, 1))
    def refresh(self, index):
        now(self.hosts[index].allocator.refresh())

    @invariant()
    def nothing_is_pinned_and_memory_agrees_with_itself(self):
        for host in self.hosts:
            assert not host.pinned
            host.allocator.check_invariants()

    def teardown(self):
        for host in self.hosts:
            now(host.staging.checkpoint())
        assert {a for kind in TOTALS for a in self.disk.used(kind)} == self.used
        for kind in (FB, SB):
            count = self.all_free(kind)
            assert len(now(take(self.hosts[0], kind, count))) == count
            with pytest.raises(NoSpace):
                now(take(self.hosts[1], kind, 1))


TestTwoHosts = TwoHosts.TestCase
TestTwoHosts.settings = settings(
    max_examples=settings.default.max_examples // 3, stateful_step_count=30
)
