"""One file on the tiny volume of `tests.support.space`, down to its sectors, and its oracle.

`TinyFile` does with a `BlockMap` what the files floor does: reserve, fill, install; cut batch by
batch. Contents go directly to `data`, sector by sector; what nobody wrote reads as garbage, so a
block that was not filled shows.
"""

import dataclasses
from typing import Final

import numpy as np
from hypothesis import strategies as st

from tests.support.space import BLOCK_SIZE, Host
from vmfs.ids import FdAddress
from vmfs.ondisk.address import AddressType, FbAddress
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla
from vmfs.space.block_map import BlockMap
from vmfs.space.extent import Extent, ExtentKind
from vmfs.space.index_path import Pointers, Shape
from vmfs.space.missing import Missing
from vmfs.units import SECTOR_SIZE

GARBAGE: Final = b"\xee" * SECTOR_SIZE
ZEROES: Final = bytes(SECTOR_SIZE)

addresses = st.lists(
    st.one_of(
        st.just(0),
        st.builds(
            lambda block, tbz: FbAddress(block=block, tbz=tbz).pack(),
            st.integers(0, 5),
            st.booleans(),
        ),
    ),
    max_size=30,
).map(lambda values: np.array(values, dtype=np.uint32))
"""What adjacent file blocks may have: none, a few near each other, some to be zeroed."""


def new_desc(zla: Zla) -> FileDesc:
    """An empty file."""
    return FileDesc(address=FdAddress(4), link_count=1, type=FileType.FILE, zla=zla, block_size=512)


class TinyFile:
    """A file, its contents by sector, and what it should contain."""

    def __init__(self, host: Host, shape: Shape, zla: Zla) -> None:
        """Empty, at the level that new files have."""
        self.host = host
        self.shape = shape
        self.first_zla = zla
        self.data: dict[int, bytes] = {}  # by LV offset
        self.resident: dict[int, bytes] = {}  # by file sector
        self.expected: dict[int, bytes] = {}  # by file sector
        self.desc = new_desc(zla)
        self.map = self._map(np.zeros(shape.slots, dtype=np.uint32))

    def _map(self, pointers: Pointers) -> BlockMap:
        return BlockMap(
            desc=self.desc,
            pointers=pointers,
            staging=self.host.staging,
            files=self.host.staging.disk.files,
            shape=self.shape,
        )

    def reload(self) -> None:
        """Forget everything but what the descriptor would say."""
        self.map = self._map(self.map.pointers)

    async def write(self, sector: int, count: int, stamp: bytes) -> Missing:
        """Write `count` sectors."""
        offset, length = sector * SECTOR_SIZE, count * SECTOR_SIZE
        await self.map.load(offset, length)
        missing = self.map.missing(offset, length, file_length=self.desc.length)
        old = await self._contents(missing.carried)
        await self._install(missing, old)
        end = max(self.desc.length, offset + length)
        self.desc = self.map.describe(dataclasses.replace(self.desc, length=end))
        for index in range(sector, sector + count):
            contents = stamp.ljust(SECTOR_SIZE, b"%d" % (index % 10))
            self.expected[index] = contents
            await self._put(index, contents)
        return missing

    async def append(self, block: int, count: int, stamp: bytes) -> bool:
        """Fill whole new blocks that are promised ahead, if nothing else is missing there."""
        offset, length = block * BLOCK_SIZE, count * BLOCK_SIZE
        if not self.map.lacks_blocks_only(offset, length):
            return False
        async with self.host.allocator.reserve(want={AddressType.FB: 1}) as grant:
            promise = self.host.allocator.preallocations.promise(grant, count)
        if promise is None or promise.count < count:
            return False
        for at in range(0, length, SECTOR_SIZE):
            self.expected[(offset + at) // SECTOR_SIZE] = self.data[promise.place + at] = stamp
        self.map.append(offset, promise.take(count))
        promise.give_back()
        end = max(self.desc.length, offset + length)
        blocks = self.map.allocated_blocks
        self.desc = dataclasses.replace(
            self.desc, length=end, allocated_blocks=blocks, new_blocks=blocks
        )
        assert self.desc == self.map.describe(self.desc)
        return True

    async def extend(self, sector: int) -> None:
        """Make the file that long; a hole comes to be."""
        length = sector * SECTOR_SIZE
        await self.map.load(length, 0)
        missing = self.map.missing(length, 0, file_length=self.desc.length)
        await self._install(missing, await self._contents(missing.carried))
        self.desc = self.map.describe(dataclasses.replace(self.desc, length=length))

    async def shrink(self, sector: int) -> int:
        """Cut the file; returns how many batches that took."""
        length = sector * SECTOR_SIZE
        self.desc = dataclasses.replace(self.desc, length=length)
        self.expected = {at: data for at, data in self.expected.items() if at < sector}
        self.resident = {at: data for at, data in self.resident.items() if at < sector}
        batches, done = 0, False
        while not done:
            tail = await self.map.tail(self.map.blocks_for(length))
            async with self.host.allocator.reserve(free=tail.addresses) as grant:
                before = self.host.staging.staged_size
                self.map.cut(tail, grant)
                assert self.host.staging.staged_size - before <= tail.room + grant.room
            self.desc = self.map.describe(self.desc)
            done = tail.done
            batches += 1
        await self._zero_behind(sector)
        if self.map.empty and length == 0:
            self.map.restart(self.first_zla)
            self.desc = self.map.describe(self.desc)
        return batches

    async def check(self) -> None:
        """Every sector near something written reads as it should, and nothing is lost or shared."""
        end = self.desc.length // SECTOR_SIZE
        near = {at + d for at in self.expected for d in (-9, -8, -3, -1, 0, 1, 2, 8)} | {0, end - 1}
        for index in sorted(near):
            if 0 <= index < end:
                assert await self._get(index) == self.expected.get(index, ZEROES), index
        owned = await self.owned()
        assert len(set(owned)) == len(owned)
        disk = type(self.host.staging.disk).__new__(type(self.host.staging.disk))
        disk.files = self.host.staging.disk.files
        disk.sectors = self.host.staging.disk.sectors | self.host.staging.running
        kinds = (AddressType.FB, AddressType.SB, AddressType.PB, AddressType.PB2)
        assert {a for kind in kinds for a in disk.used(kind)} == set(owned)
        counted = sum(1 for a in owned if a & 7 in (AddressType.FB, AddressType.SB))
        assert self.desc.allocated_blocks == counted

    async def owned(self) -> list[int]:
        """All addresses of the tree, walked without the map; flags taken off."""
        depth = {Zla.PB: 1, Zla.DOUBLE: 2}.get(self.map.zla, 0)
        return await self._walk(self.map.pointers, depth)

    async def _walk(self, table: Pointers, depth: int) -> list[int]:
        found: list[int] = []
        for value in table[table != 0]:
            address = int(value)
            found.append(address & ~0x20 if address & 7 == AddressType.FB else address)
            if depth:
                file = self.host.staging.disk.files[AddressType(address & 7)]
                body = await file.read(self.host.staging, address)
                found += await self._walk(np.frombuffer(body, dtype="<u4"), depth - 1)
        return found

    async def _install(self, missing: Missing, old: dict[int, bytes]) -> None:
        if missing.nothing:
            return
        async with self.host.allocator.reserve(
            want=missing.want, free=missing.free, near=missing.near
        ) as grant:
            for extent in self.map.fresh(missing, grant):
                assert extent.kind is ExtentKind.DATA
                for at in range(0, extent.length, SECTOR_SIZE):
                    index = (extent.file_offset + at) // SECTOR_SIZE
                    self.data[extent.lv_offset + at] = old.get(index, ZEROES)
            before = self.host.staging.staged_size
            self.map.install(missing, grant)
            assert self.host.staging.staged_size - before <= missing.room + grant.room
            for kind in AddressType:
                if kind is not AddressType.NONE:
                    assert not len(grant.promised(kind)), "more was reserved than needed"
        if missing.carried:
            self.resident = {}

    async def _contents(self, length: int) -> dict[int, bytes]:
        return {index: await self._get(index) for index in range(length // SECTOR_SIZE)}

    async def _extent(self, index: int) -> Extent:
        await self.map.load(index * SECTOR_SIZE, SECTOR_SIZE)
        [extent] = self.map.extents(index * SECTOR_SIZE, SECTOR_SIZE)
        assert (extent.file_offset, extent.length) == (index * SECTOR_SIZE, SECTOR_SIZE)
        assert self.map.place(extent.file_offset, extent.length) in (None, extent.lv_offset)
        return extent

    async def _get(self, index: int) -> bytes:
        extent = await self._extent(index)
        match extent.kind:
            case ExtentKind.DATA:
                return self.data.get(extent.lv_offset, GARBAGE)
            case ExtentKind.RESIDENT:
                return self.resident.get(index, ZEROES)
            case _:
                return ZEROES

    async def _put(self, index: int, contents: bytes) -> None:
        extent = await self._extent(index)
        if extent.kind is ExtentKind.RESIDENT:
            self.resident[index] = contents
        else:
            assert extent.kind is ExtentKind.DATA
            self.data[extent.lv_offset] = contents

    async def _zero_behind(self, sector: int) -> None:
        """The rest of the last block that is kept, as truncation must leave it."""
        if self.map.zla is Zla.RESIDENT:
            return
        per_block = self.map.block_size // SECTOR_SIZE
        for index in range(sector, -(-sector // per_block) * per_block):
            extent = await self._extent(index)
            if extent.kind is ExtentKind.DATA:
                self.data[extent.lv_offset] = ZEROES
