"""The space floor on a volume as mkfs makes it, with real transactions: sizes of the format."""

import dataclasses

import numpy as np
import pytest

from tests.support.build import build_volume, tiny_request
from tests.support.space import FakeLocks, LockTable
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.errors import FileTooBig
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.address import AddressType, FdAddr
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla
from vmfs.space.allocator import Allocator
from vmfs.space.block_map import BlockMap
from vmfs.space.extent import ExtentKind
from vmfs.space.growth import POINTER_ROOM_PER_TABLE
from vmfs.space.missing import Missing
from vmfs.space.truncation import FREE_BATCH_CLUSTERS_MAX
from vmfs.txn.journal import Journal
from vmfs.txn.recovery import replay_journal
from vmfs.txn.transaction import Transactions
from vmfs.units import GIB, MIB, TIB
from vmfs.volume.structure import read_descriptor, read_journals, read_structure

FB, PB = AddressType.FB, AddressType.PB
ADDRESS = FdAddress(FdAddr(cluster=0, resource=20).pack())


class Mounted:
    """One host on a small real volume, and one file that is only a map."""

    def __init__(self, device: Device) -> None:
        self.device = device

    async def open(self) -> None:
        descriptor = await read_descriptor(self.device)
        reader = Transactions(self.device, Journal(self.device, 0, MIB, SlotIndex(0)))
        structure = await read_structure(reader, descriptor)
        self.files = structure.resources
        journals = await read_journals(reader, structure)
        self.region = journals.region(SlotIndex(0)), journals.size
        await replay_journal(self.device, *self.region, SlotIndex(0))
        journal = Journal(self.device, *self.region, SlotIndex(0))
        await journal.open(generation=1)
        self.transactions = Transactions(self.device, journal)
        self.allocator = Allocator(
            staging=self.transactions,
            locks=FakeLocks(LockTable()),
            files=self.files,
            slot=SlotIndex(0),
        )
        await self.allocator.load_counts()
        self.counts = self.allocator.free_counts()

    def map_of(self, desc: FileDesc, pointers: np.ndarray) -> BlockMap:
        return BlockMap(desc=desc, pointers=pointers, staging=self.transactions, files=self.files)

    def new_map(self, zla: Zla = Zla.FB) -> BlockMap:
        desc = FileDesc(address=ADDRESS, link_count=1, type=FileType.FILE, zla=zla, block_size=MIB)
        return self.map_of(desc, np.zeros(256, dtype=np.uint32))

    async def write(self, block_map: BlockMap, offset: int, length: int) -> Missing:
        await block_map.load(offset, length)
        missing = block_map.missing(offset, length, file_length=0)
        async with self.allocator.reserve(want=missing.want, near=missing.near) as grant:
            await self.transactions.room(missing.room + grant.room)
            block_map.install(missing, grant)
        return missing

    async def cut(self, block_map: BlockMap, keep: int) -> int:
        batches, done = 0, False
        while not done:
            tail = await block_map.tail(keep)
            async with self.allocator.reserve(free=tail.addresses) as grant:
                await self.transactions.room(tail.room + grant.room)
                block_map.cut(tail, grant)
            done, batches = tail.done, batches + 1
        return batches


async def mounted(device: Device | None = None) -> Mounted:
    if device is None:
        lun, _ = await build_volume()
        device = await find_lv(lun)
    host = Mounted(device)
    await host.open()
    return host


async def test_counts_of_a_fresh_volume_leave_out_what_the_volume_itself_uses():
    host = await mounted()

    for kind, count in host.counts.items():
        assert 0 < count.free <= count.total, kind
    assert host.counts[FB].free < host.counts[FB].total
    assert host.counts[PB].free == host.counts[PB].total


@pytest.mark.parametrize(
    ("offset", "zla", "want"),
    [
        (256 * MIB - 1, Zla.FB, {FB: 1}),
        (256 * MIB, Zla.PB, {FB: 1, PB: 1}),
        (256 * GIB - 1, Zla.PB, {FB: 1, PB: 1}),
        (256 * GIB, Zla.DOUBLE, {FB: 1, PB: 2}),
        (64 * TIB - 1, Zla.DOUBLE, {FB: 1, PB: 2}),
    ],
)
async def test_one_byte_at_each_border_of_the_format(offset, zla, want):
    host = await mounted()
    block_map = host.new_map()

    missing = await host.write(block_map, offset, 1)

    assert (block_map.zla, missing.want) == (zla, want)
    await block_map.load(offset, 1)
    [extent] = block_map.extents(offset, 1)
    assert extent.kind is ExtentKind.DATA
    assert extent.lv_offset % MIB == offset % MIB
    await host.cut(block_map, 0)
    await host.transactions.commit()
    assert host.allocator.free_counts() == host.counts


async def test_byte_behind_the_largest_file_is_too_big():
    host = await mounted()
    block_map = host.new_map()

    await block_map.load(64 * TIB, 1)
    with pytest.raises(FileTooBig):
        block_map.missing(64 * TIB, 1, file_length=0)
    with pytest.raises(FileTooBig):
        block_map.missing(64 * TIB + 1, 0, file_length=0)
    assert not block_map.missing(64 * TIB, 0, file_length=0).nothing


async def test_file_grown_over_both_borders_survives_a_crash_after_its_commit():
    host = await mounted()
    block_map = host.new_map()
    places = [0, 255 * MIB, 256 * MIB, 256 * GIB - MIB, 256 * GIB, 17 * TIB, 64 * TIB - MIB]
    found = []
    for place in places:
        await host.write(block_map, place, MIB)
    for place in places:
        await block_map.load(place, MIB)
        found.extend(block_map.extents(place, MIB))
    await host.transactions.commit()
    await host.write(block_map, 5 * MIB, MIB)  # not committed: lost
    desc = block_map.describe(dataclasses.replace(host_desc(), length=64 * TIB))
    pointers = block_map.pointers

    again = await mounted(host.device)
    after = again.map_of(desc, pointers)

    for place, extent in zip(places, found, strict=True):
        await after.load(place, MIB)
        assert after.extents(place, MIB) == [extent]
    await after.load(5 * MIB, MIB)
    assert after.extents(5 * MIB, MIB)[0].kind is ExtentKind.HOLE
    await again.cut(after, 0)
    assert again.allocator.free_counts() == host.counts


def host_desc() -> FileDesc:
    return FileDesc(
        address=ADDRESS, link_count=1, type=FileType.FILE, zla=Zla.DOUBLE, block_size=MIB
    )


async def test_sparse_file_of_64_tib_is_cut_from_the_end_with_few_pointer_blocks_at_once():
    host = await mounted()
    block_map = host.new_map()
    for index in range(60):
        await host.write(block_map, index * 200 * GIB + index * MIB, MIB)

    batches = await host.cut(block_map, 1)

    assert batches >= 3
    assert host.allocator.free_counts()[FB].free == host.counts[FB].free - 1
    await block_map.load(0, MIB)
    assert block_map.extents(0, MIB)[0].kind is ExtentKind.DATA


async def test_blocks_are_taken_in_one_piece_across_clusters():
    host = await mounted()
    block_map = host.new_map()
    count = min(host.counts[FB].free, 200)

    missing = await host.write(block_map, 0, count * MIB)

    assert len(missing.blocks) == count
    await block_map.load(0, count * MIB)
    assert len(block_map.extents(0, count * MIB)) <= 3
    await host.transactions.commit()
    assert await host.cut(block_map, 0) == 1


@pytest.mark.slow
async def test_fifty_thousand_scattered_blocks_are_freed_in_bounded_transactions(monkeypatch):
    """Neighbours in the file are far apart on the volume: each batch could touch every cluster."""
    lun, _ = await build_volume(tiny_request(extents=400))
    host = await mounted(await find_lv(lun))
    count, tables = 50_000, 49
    addresses = (await take(host, FB, 2 * count))[::2]
    scattered = np.random.default_rng(1).permutation(addresses)
    pointers = np.zeros(256, dtype=np.uint32)
    pointers[:tables] = np.sort(await take(host, PB, tables))
    for number in range(tables):
        body = np.zeros(1024, dtype="<u4")
        part = scattered[number * 1024 : (number + 1) * 1024]
        body[: len(part)] = part
        await host.transactions.room(body.nbytes)
        host.files[PB].stage(host.transactions, int(pointers[number]), body.tobytes())
    desc = FileDesc(
        address=ADDRESS,
        link_count=1,
        type=FileType.FILE,
        zla=Zla.PB,
        block_size=MIB,
        length=count * MIB,
        allocated_blocks=count,
    )
    block_map = host.map_of(desc, pointers)
    asked: list[int] = []
    room = host.transactions.room

    async def counted(size: int) -> None:
        asked.append(size)
        await room(size)

    monkeypatch.setattr(host.transactions, "room", counted)

    batches = await host.cut(block_map, 0)
    await host.transactions.checkpoint()

    clusters = len({int(number) for number in host.files[FB].split(addresses)[0]})
    assert clusters > FREE_BATCH_CLUSTERS_MAX  # else nothing would have to be bounded
    assert batches == len(asked)
    assert max(asked) <= FREE_BATCH_CLUSTERS_MAX * 512 + 2 * POINTER_ROOM_PER_TABLE
    assert block_map.empty
    await host.allocator.load_counts()
    free = host.allocator.free_counts()
    assert free[FB].free == host.counts[FB].free - count  # the neighbours stay
    assert free[PB] == host.counts[PB]


async def take(host: Mounted, kind: AddressType, count: int) -> np.ndarray:
    taken = []
    while count:
        now = min(count, 10_000)
        async with host.allocator.reserve(want={kind: now}) as grant:
            await host.transactions.room(grant.room)
            taken.append(grant.take(kind, now))
        await host.transactions.commit()
        count -= now
    return np.concatenate(taken)
