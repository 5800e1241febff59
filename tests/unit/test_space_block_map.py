"""The block map: a file grown and cut through every level, against its sectors in a dict."""

import dataclasses
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.file_blocks import TinyFile, new_desc
from tests.support.space import (
    BLOCK_SIZE,
    FANOUT,
    SUB_BLOCK_SIZE,
    Disk,
    FakeStaging,
    Host,
    LockTable,
    tiny_files,
)
from vmfs.errors import CorruptRecord, FileTooBig, NoSpace, NotSupported, Unsupported
from vmfs.ondisk.address import AddressType, FbAddress, Pb2Address, PbAddress, SbAddress
from vmfs.ondisk.file_desc import Zla
from vmfs.space.block_map import BlockMap
from vmfs.space.extent import Extent, ExtentKind
from vmfs.space.index_path import Shape

FB, SB, PB, PB2 = AddressType.FB, AddressType.SB, AddressType.PB, AddressType.PB2
TOTALS = {FB: 60, SB: 6, PB: 12, PB2: 4, AddressType.FD: 8}
SLOTS = 2
SHAPE = Shape(slots=SLOTS, fanout=FANOUT)
PER_BLOCK = BLOCK_SIZE // 512
PB_START = 2 * PER_BLOCK  # first sector that needs a pointer block
DOUBLE_START = 2 * FANOUT * PER_BLOCK


async def tiny_file(zla: Zla = Zla.RESIDENT) -> TinyFile:
    host = Host(Disk(tiny_files(totals=TOTALS)), LockTable(), 0)
    await host.allocator.load_counts()
    return TinyFile(host, SHAPE, zla)


async def test_file_grows_through_every_level_and_keeps_its_contents():
    file = await tiny_file()

    steps = [
        (0, 1, Zla.RESIDENT),
        (1, 1, Zla.RESIDENT),
        (2, 1, Zla.SB),
        (3, 1, Zla.FB),
        (PB_START - 1, 1, Zla.FB),
        (PB_START, 1, Zla.PB),
        (DOUBLE_START - 1, 1, Zla.PB),
        (DOUBLE_START, 1, Zla.DOUBLE),
        (128 * DOUBLE_START - 1, 1, Zla.DOUBLE),
    ]
    for index, (sector, count, zla) in enumerate(steps):
        await file.write(sector, count, b"step %d " % index)
        assert file.desc.zla is zla
        await file.check()
        file.reload()
        await file.check()

    with pytest.raises(FileTooBig):
        await file.write(128 * DOUBLE_START, 1, b"too far")


@pytest.mark.parametrize("start", [Zla.RESIDENT, Zla.SB, Zla.FB, Zla.PB])
@pytest.mark.parametrize("sector", [1, 2, 3, PB_START, DOUBLE_START])
async def test_file_jumps_over_levels(start, sector):
    first = {Zla.RESIDENT: 0, Zla.SB: 2, Zla.FB: 7, Zla.PB: PB_START}[start]
    file = await tiny_file()
    await file.write(first, 1, b"first ")
    assert file.desc.zla is start

    await file.write(sector, 2, b"second ")

    await file.check()


async def test_empty_file_jumps_without_leaving_anything_behind():
    file = await tiny_file(Zla.SB)

    missing = await file.write(DOUBLE_START, 1, b"far ")

    assert missing.want == {PB: 2, FB: 1}
    assert missing.free == ()
    await file.check()


async def test_hole_costs_nothing_at_any_level():
    file = await tiny_file(Zla.SB)

    for sector in (3, PB_START, DOUBLE_START, 20 * DOUBLE_START):
        await file.extend(sector)

    assert await file.owned() == []
    assert file.desc.zla is Zla.DOUBLE
    await file.map.load(0, file.desc.length)
    assert file.map.extents(0, file.desc.length) == [
        Extent(kind=ExtentKind.HOLE, file_offset=0, length=file.desc.length)
    ]


async def test_extending_carries_resident_contents_along():
    file = await tiny_file()
    await file.write(0, 1, b"tiny ")

    await file.extend(100 * DOUBLE_START)

    await file.check()
    assert len(await file.owned()) == 3


async def test_second_write_of_a_block_needs_nothing():
    file = await tiny_file()
    await file.write(PB_START, 3, b"one ")

    missing = await file.write(PB_START + 1, 1, b"two ")

    assert missing.nothing
    assert missing.room == 0


async def test_sequential_writes_lie_in_one_piece():
    file = await tiny_file(Zla.FB)
    for block in range(12):
        await file.write(block * PER_BLOCK, PER_BLOCK, b"%d " % block)

    await file.map.load(0, file.desc.length)

    extents = file.map.extents(0, file.desc.length)
    assert [extent.kind for extent in extents] == [ExtentKind.DATA]
    assert extents[0].length == 12 * BLOCK_SIZE


@pytest.mark.parametrize("start", [0, SLOTS, SLOTS * FANOUT + 5])
async def test_append_of_whole_blocks_at_every_level(start):
    file = await tiny_file(Zla.FB)
    await file.write(start * PER_BLOCK, PER_BLOCK, b"w")
    assert file.map.place(start * BLOCK_SIZE, 1) is not None
    assert await file.append(start + 1, 1, b"a")
    assert file.map.place(start * BLOCK_SIZE + 1, BLOCK_SIZE) is None  # it begins elsewhere
    assert file.map.place((start + 1) * BLOCK_SIZE, BLOCK_SIZE) is not None
    await file.check()
    file.reload()
    await file.check()


async def test_append_changes_one_sector_of_a_pointer_block():
    file = await tiny_file(Zla.FB)
    await file.write(SLOTS * PER_BLOCK, PER_BLOCK, b"w")
    await file.host.staging.commit()
    assert await file.append(SLOTS + 1, 2, b"a")
    assert len(file.host.staging.running) == 2  # and the bitmap


async def test_append_is_for_whole_blocks_that_are_all_missing():
    file = await tiny_file(Zla.FB)
    await file.write(2 * PER_BLOCK, PER_BLOCK, b"w")
    lacks = file.map.lacks_blocks_only
    assert lacks(0, 2 * BLOCK_SIZE)
    assert not lacks(0, 3 * BLOCK_SIZE)
    assert not lacks(0, BLOCK_SIZE - 512)
    assert not lacks(512, BLOCK_SIZE)
    assert not lacks(0, 0)
    assert not lacks(SLOTS * BLOCK_SIZE, BLOCK_SIZE)  # another level
    for zla in (Zla.RESIDENT, Zla.SB):
        assert not (await tiny_file(zla)).map.lacks_blocks_only(0, BLOCK_SIZE)


async def test_append_leaves_pointer_blocks_to_others():
    file = await tiny_file(Zla.FB)
    await file.write(SLOTS * PER_BLOCK, PER_BLOCK, b"w")
    leaf = (SLOTS // FANOUT + 1) * FANOUT
    assert not file.map.lacks_blocks_only((leaf - 1) * BLOCK_SIZE, 2 * BLOCK_SIZE)
    assert not file.map.lacks_blocks_only(leaf * BLOCK_SIZE, BLOCK_SIZE)  # there is none yet
    slots = file.map.pointers
    slots[0] |= 0x20  # a snapshot shares it
    shared = map_of(Zla.PB, slots.tolist(), file.host.staging)
    await shared.load(0, BLOCK_SIZE)
    assert not shared.lacks_blocks_only(0, BLOCK_SIZE)


async def test_few_blocks_and_many_have_the_same_extents(monkeypatch):
    file = await tiny_file(Zla.FB)
    for block, count in ((3, 2), (1, 1), (6, 1), (8, 2)):
        await file.write((SLOTS + block) * PER_BLOCK, count * PER_BLOCK, b"w")
    start = SLOTS * BLOCK_SIZE
    await file.map.load(start, 12 * BLOCK_SIZE)
    for offset in range(start, start + 9 * BLOCK_SIZE, BLOCK_SIZE // 2 + 1):
        for length in (0, 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 7, 3 * BLOCK_SIZE):
            monkeypatch.undo()
            few = file.map.extents(offset, length)
            assert file.map.known_extents(offset, length) == few
            empty = len(few) == 1 and few[0].kind in (ExtentKind.HOLE, ExtentKind.ZERO)
            in_one = length and offset // BLOCK_SIZE == (offset + length - 1) // BLOCK_SIZE
            assert file.map.is_empty(offset, length) is bool(empty and in_one) or not length
            monkeypatch.setattr("vmfs.space.block_map.FEW_BLOCKS", 0)
            assert file.map.extents(offset, length) == few
    file.reload()
    assert file.map.known_extents(start, BLOCK_SIZE) is None
    assert not file.map.is_empty(start, BLOCK_SIZE)


async def test_runs_in_front_of_a_block():
    file = await tiny_file(Zla.FB)
    await file.write(2 * PER_BLOCK, 3 * PER_BLOCK, b"w")
    before = file.map.run_before
    assert [before(block, 9) for block in range(7)] == [0, 0, 0, 1, 2, 3, 0]
    assert before(5, 2) == 2
    assert before(SLOTS * FANOUT + 9, 3) == 0  # behind what the level reaches
    assert (await tiny_file(Zla.SB)).map.run_before(0, 9) == 0


async def test_one_write_over_many_pointer_blocks():
    file = await tiny_file(Zla.FB)
    sector = (FANOUT - 2) * PER_BLOCK

    missing = await file.write(sector, 5 * PER_BLOCK, b"wide ")

    assert missing.want == {PB: 2, FB: 5}
    await file.check()


async def test_only_changed_sectors_of_a_pointer_block_are_staged():
    file = await tiny_file(Zla.PB)
    await file.write(0, 1, b"a ")
    file.host.staging.staged_size = 0

    await file.write(PER_BLOCK, 1, b"b ")

    assert file.host.staging.staged_size == 2 * 512  # one of the pointer block, one bitmap


async def test_no_space_changes_nothing():
    file = await tiny_file()
    await file.write(0, 2, b"kept ")
    before = dict(file.host.staging.running)

    with pytest.raises(NoSpace):
        await file.write(PB_START, 61 * PER_BLOCK, b"too much ")

    assert file.host.staging.running == before
    assert file.desc.zla is Zla.RESIDENT
    await file.check()


@pytest.mark.parametrize("keep", [0, 1, 3, PER_BLOCK, PB_START, DOUBLE_START - 5])
async def test_cut_keeps_what_it_must_and_frees_the_rest(keep):
    file = await tiny_file()
    for sector in (0, 9, 17, DOUBLE_START - 9, DOUBLE_START + 70_000):
        await file.write(sector, 2, b"x%d " % sector)

    await file.shrink(keep)

    await file.check()
    if keep == 0:
        assert await file.owned() == []
        assert file.desc.zla is Zla.RESIDENT


async def test_cut_of_a_scattered_file_is_many_small_batches(monkeypatch):
    monkeypatch.setattr("vmfs.space.truncation.FREE_BATCH_MAX", 5)
    monkeypatch.setattr("vmfs.space.truncation.FREE_BATCH_CLUSTERS_MAX", 2)
    monkeypatch.setattr("vmfs.space.truncation.FREE_BATCH_TABLES_MAX", 3)
    file = await tiny_file()
    for block in range(0, 2000, 50):
        await file.write(block * PER_BLOCK, 1, b"b%d " % block) if block < 550 else None
    for block in range(3 * FANOUT, 3 * FANOUT + 8):
        await file.write(block * PER_BLOCK, 1, b"b%d " % block)

    batches = await file.shrink(0)

    assert batches >= 6
    assert await file.owned() == []


async def test_cut_can_stop_and_go_on_with_another_map():
    file = await tiny_file(Zla.FB)
    for block in range(40):
        await file.write(block * 3 * PER_BLOCK, 1, b"%d " % block)

    tail = await file.map.tail(10)
    async with file.host.allocator.reserve(free=tail.addresses) as grant:
        file.map.cut(tail, grant)
    file.desc = file.map.describe(file.desc)
    file.reload()
    await file.shrink(PER_BLOCK)

    await file.check()


async def test_map_that_changed_meanwhile_is_our_mistake():
    file = await tiny_file(Zla.FB)
    await file.write(0, 1, b"a ")
    tail = await file.map.tail(0)
    missing = file.map.missing(PER_BLOCK * 512, 512, file_length=512)
    await file.write(PER_BLOCK, 1, b"b ")

    async with file.host.allocator.reserve(want=missing.want, free=tail.addresses) as grant:
        with pytest.raises(AssertionError, match="changed"):
            file.map.install(missing, grant)
        with pytest.raises(AssertionError, match="changed"):
            file.map.cut(tail, grant)


def with_flags(file: TinyFile, block: int, flag: int) -> None:
    """Set a flag of a block in the slots, as another implementation may have done."""
    pointers = file.map.pointers
    pointers[block] |= np.uint32(flag)
    file.desc = dataclasses.replace(file.desc, tbz_blocks=1 if flag == 0x20 else 0)
    file.map = file._map(pointers)


async def test_tbz_block_reads_as_zero_until_it_is_written():
    file = await tiny_file(Zla.FB)
    await file.write(0, 2 * PER_BLOCK, b"old ")
    with_flags(file, 1, 0x20)
    for index in range(PER_BLOCK, 2 * PER_BLOCK):
        del file.expected[index]
    await file.check()
    assert file.map.is_empty(BLOCK_SIZE, BLOCK_SIZE)
    assert not file.map.is_empty(0, BLOCK_SIZE)

    missing = await file.write(PER_BLOCK + 2, 1, b"new ")

    assert missing.want == {}
    assert file.desc.tbz_blocks == 0
    assert not file.map.pointers[1] & 0x20
    await file.check()


async def test_tbz_block_is_written_while_the_file_grows_a_level():
    file = await tiny_file(Zla.FB)
    await file.write(0, 2 * PER_BLOCK, b"old ")
    with_flags(file, 1, 0x20)
    for index in range(PER_BLOCK, 2 * PER_BLOCK):
        del file.expected[index]

    missing = await file.write(PER_BLOCK + 2, 2 * PER_BLOCK, b"new ")

    assert missing.want == {PB: 1, FB: 2}
    assert missing.zeroed.tolist() == [1]
    await file.check()


async def test_tbz_blocks_are_freed_and_counted():
    file = await tiny_file(Zla.FB)
    await file.write(0, 2 * PER_BLOCK, b"old ")
    with_flags(file, 1, 0x20)

    await file.shrink(0)

    assert file.desc.tbz_blocks == file.desc.allocated_blocks == 0
    assert await file.owned() == []


async def test_block_of_a_snapshot_is_read_but_neither_written_nor_freed():
    file = await tiny_file(Zla.FB)
    await file.write(0, 2 * PER_BLOCK, b"old ")
    with_flags(file, 1, 0x10)
    await file.map.load(0, 512)
    assert [e.kind for e in file.map.extents(0, file.desc.length)] == [ExtentKind.DATA]

    with pytest.raises(NotSupported):
        await file.write(PER_BLOCK, 1, b"new ")

    tail = await file.map.tail(0)
    assert len(tail.addresses) == 1
    assert tail.block_count == 2


async def test_pointer_block_of_a_snapshot_is_neither_written_nor_freed():
    file = await tiny_file(Zla.PB)
    await file.write(0, PER_BLOCK, b"old ")
    with_flags(file, 0, 0x20)
    await file.map.load(0, 512)
    assert file.map.extents(0, 512)[0].kind is ExtentKind.DATA

    with pytest.raises(NotSupported):
        await file.write(PER_BLOCK, 1, b"new ")

    tail = await file.map.tail(0)
    assert len(tail.addresses) == 0
    assert tail.done
    assert not tail.pointers.any()


async def test_sub_block_of_a_snapshot_has_no_place_to_be_overwritten():
    own, shared = (SbAddress(cluster=0, resource=resource).pack() for resource in (0, 1))
    block_map = map_of(Zla.SB, [own, shared | 0x20])
    await block_map.load(0, SUB_BLOCK_SIZE)
    assert block_map.place(0, 1) == block_map.extents(0, 1)[0].lv_offset
    assert block_map.place(SUB_BLOCK_SIZE, 1) is None


async def test_directory_of_several_sub_blocks_is_read_and_rewritten_in_place():
    file = await tiny_file(Zla.SB)
    async with file.host.allocator.reserve(want={SB: 2}) as grant:
        pointers = grant.take(SB, 2)
    length = 2 * SUB_BLOCK_SIZE
    file.desc = dataclasses.replace(file.desc, length=length, allocated_blocks=2)
    file.map = file._map(pointers)

    await file.map.load(0, length)
    extents = file.map.extents(0, length)
    missing = file.map.missing(SUB_BLOCK_SIZE, 512, file_length=length)
    grown = file.map.missing(length, 512, file_length=length)

    assert sum(extent.length for extent in extents) == length
    assert missing.nothing
    assert grown.zla is Zla.FB
    assert grown.carried == length
    assert grown.free == tuple(pointers.tolist())


FILES = tiny_files(totals=TOTALS)


def map_of(zla: Zla, pointers: list[int], staging: FakeStaging | None = None) -> BlockMap:
    return BlockMap(
        desc=new_desc(zla),
        pointers=np.array(pointers, dtype=np.uint32),
        staging=staging or FakeStaging(Disk(FILES)),
        files=FILES,
        shape=SHAPE,
    )


DAMAGED = [
    (Zla.FB, FbAddress(block=60).pack()),
    (Zla.FB, PbAddress(cluster=0, resource=0).pack()),
    (Zla.FB, 7),
    (Zla.FB, 8),
    (Zla.SB, SbAddress(cluster=1, resource=2).pack()),
    (Zla.SB, FbAddress(block=1).pack()),
    (Zla.PB, PbAddress(cluster=3, resource=0).pack()),
    (Zla.PB, FbAddress(block=1).pack()),
    (Zla.DOUBLE, Pb2Address(cluster=1, resource=0).pack()),
    (Zla.DOUBLE, FbAddress(block=1).pack()),
]


@pytest.mark.parametrize(("zla", "address"), DAMAGED)
async def test_damaged_slot_is_named_with_its_place(zla, address):
    block_map = map_of(zla, [0, address])

    for attempt in (block_map.load(0, 512), block_map.tail(0)):
        with pytest.raises(CorruptRecord) as caught:
            await attempt
        assert caught.value.found == address
        assert caught.value.address % 512 == 4
    with pytest.raises(CorruptRecord):
        block_map.extents(0, 512)
    with pytest.raises(CorruptRecord):
        block_map.missing(0, 512, file_length=0)


@pytest.mark.parametrize("address", [FbAddress(block=60).pack(), 7, 0xFFFFFFFF, PB])
async def test_damaged_pointer_in_a_pointer_block_is_named_with_its_place(address):
    staging = FakeStaging(Disk(FILES))
    block = PbAddress(cluster=0, resource=1).pack()
    table = np.zeros(FANOUT, dtype="<u4")
    table[5] = address
    FILES[PB].stage(staging, block, table.tobytes())
    block_map = map_of(Zla.PB, [block, 0], staging)

    with pytest.raises(CorruptRecord) as caught:
        await block_map.load(0, 512)

    [(place, _)] = FILES[PB].address_runs(block)
    assert caught.value.address == place + 20


async def test_pointer_blocks_that_name_themselves_cost_nothing():
    staging = FakeStaging(Disk(FILES))
    block = PbAddress(cluster=0, resource=0).pack()
    table = np.full(FANOUT, block, dtype="<u4")
    FILES[PB].stage(staging, block, table.tobytes())
    block_map = map_of(Zla.DOUBLE, [block, block], staging)

    with pytest.raises(CorruptRecord):
        await block_map.load(0, 512)
    with pytest.raises(CorruptRecord):
        await block_map.tail(0)


async def test_block_that_two_files_own_is_not_freed_twice():
    file = await tiny_file(Zla.FB)
    await file.write(0, PER_BLOCK, b"mine ")
    [address] = await file.owned()
    file.map = file._map(np.array([address, address], dtype=np.uint32))

    with pytest.raises(CorruptRecord):
        await file.shrink(0)


async def test_upper_pointer_block_may_come_from_either_file():
    file = await tiny_file(Zla.SB)
    await file.write(0, 1, b"low ")
    await file.write(DOUBLE_START, 1, b"high ")
    async with file.host.allocator.reserve(want={PB2: 1}) as grant:
        [upper] = grant.take(PB2, 1).tolist()
    pointers = file.map.pointers
    body = await file.host.staging.disk.files[PB].read(file.host.staging, int(pointers[0]))
    file.host.staging.disk.files[PB2].stage(file.host.staging, upper, body)
    async with file.host.allocator.reserve(free=[int(pointers[0])]) as grant:
        grant.free(pointers[:1])
    pointers[0] = upper
    file.map = file._map(pointers)

    await file.check()
    await file.write(DOUBLE_START + 8, 1, b"more ")
    await file.shrink(0)

    assert await file.owned() == []
    await file.check()


async def test_level_of_vmfs6_is_unsupported():
    with pytest.raises(Unsupported, match="PB2"):
        await map_of(Zla.PB2, [0, 0]).load(0, 512)


async def test_range_that_was_not_loaded_is_our_mistake():
    block_map = map_of(Zla.PB, [PbAddress(cluster=0, resource=0).pack(), 0])

    with pytest.raises(AssertionError, match="not loaded"):
        block_map.extents(0, 512)
    with pytest.raises(AssertionError, match="at once"):
        await block_map.load(0, block_map.load_length_max + 1)


async def test_range_behind_what_the_level_reaches_is_a_hole():
    block_map = map_of(Zla.FB, [FbAddress(block=3).pack(), 0])

    await block_map.load(BLOCK_SIZE // 2, 9 * BLOCK_SIZE)
    found = block_map.extents(BLOCK_SIZE // 2, 9 * BLOCK_SIZE)

    assert [extent.kind for extent in found] == [ExtentKind.DATA, ExtentKind.HOLE, ExtentKind.HOLE]
    assert found[0].lv_offset == 3 * BLOCK_SIZE + BLOCK_SIZE // 2
    assert found[-1].end == BLOCK_SIZE // 2 + 9 * BLOCK_SIZE
    assert block_map.extents(0, 0) == []


async def test_pointer_blocks_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr("vmfs.space.pointer_tree.TABLES_MAX", 4)
    file = await tiny_file(Zla.FB)
    for leaf in range(10):
        await file.write(leaf * FANOUT * PER_BLOCK, 1, b"%d " % leaf)

    await file.check()

    assert len(file.map._tree.tables) <= 4


class EveryLevel(RuleBasedStateMachine):
    """Random writes and truncations of one file around the borders of its levels."""

    sectors = st.one_of(
        st.integers(0, 4),
        st.integers(PER_BLOCK - 2, PB_START + 2),
        st.integers((FANOUT - 1) * PER_BLOCK, (FANOUT + 1) * PER_BLOCK),
        st.integers(DOUBLE_START - PER_BLOCK, DOUBLE_START + PER_BLOCK),
        st.integers(DOUBLE_START, 100 * DOUBLE_START),
    )

    @initialize(zla=st.sampled_from([Zla.RESIDENT, Zla.SB, Zla.FB]))
    def begin(self, zla):
        self.file = now(tiny_file(zla))
        self.writes = 0

    @rule(sector=sectors, count=st.integers(1, 3 * PER_BLOCK))
    def write(self, sector, count):
        self.writes += 1
        try:
            now(self.file.write(sector, count, b"w%d " % self.writes))
        except NoSpace:
            now(self.file.host.staging.commit())

    @rule(sector=sectors, count=st.integers(1, 3))
    def append(self, sector, count):
        self.writes += 1
        try:
            now(self.file.append(sector // PER_BLOCK, count, b"a%d " % self.writes))
        except NoSpace:
            now(self.file.host.staging.commit())

    @rule(sector=sectors)
    def resize(self, sector):
        if sector * 512 < self.file.desc.length:
            now(self.file.shrink(sector))
        else:
            try:
                now(self.file.extend(sector))
            except NoSpace:
                assert self.file.desc.zla in (Zla.RESIDENT, Zla.SB, Zla.FB, Zla.PB)

    @rule()
    def reload(self):
        self.file.reload()

    @rule()
    def checkpoint(self):
        now(self.file.host.staging.checkpoint())

    @invariant()
    def reads_what_was_written_and_owns_what_is_used(self):
        now(self.file.check())
        self.file.host.allocator.check_invariants()

    def teardown(self):
        now(self.file.shrink(0))
        assert now(self.file.owned()) == []
        now(self.file.check())


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run one step of a machine to its end."""

    async def run() -> Any:
        return await coroutine

    return trio.run(run)


TestEveryLevel = EveryLevel.TestCase
TestEveryLevel.settings = settings(
    max_examples=settings.default.max_examples // 3, stateful_step_count=12
)
