"""The bytes of regular files: reading, writing, extending.

*Bytes behind a file's length mean nothing.* What a crash, an unfinished truncation or a longer
file has left there is never shown, because whoever makes a file longer first zeroes what becomes
visible without being written. On top of that a fresh block is filled in whole (data, and zeroes
around it) before the transaction that gives it to the file can commit: nobody ever reads what the
block held for its last owner.

File data is written straight to the volume and never journaled: an overwrite in place is visible
at once and durable with the next flush, as on ext4. Resident data stands in the descriptor, and is
staged with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vmfs.device.base import Buffer
from vmfs.errors import FileTooBig
from vmfs.files.ground import Ground
from vmfs.files.inode import Contents, Inode
from vmfs.files.removal import Removals
from vmfs.ids import LvOffset
from vmfs.ondisk.file_desc import DATA_SIZE, FileType
from vmfs.space.extent import Extent, ExtentKind
from vmfs.space.grant import Grant
from vmfs.space.missing import Missing
from vmfs.space.preallocation import PREALLOCATED_MAX, Preallocation
from vmfs.units import MIB, div_ceil

WRITE_STEP: Final = 16 * MIB
"""Bytes of one write that get their blocks in one transaction; bounds grants and staging."""

ZEROED_AHEAD_MAX: Final = 8
"""Blocks promised at once to who does not fill them at once: what is zeroed in vain, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A write into blocks that were promised, and perhaps into the one in front of them."""

    blocks: Preallocation
    place: LvOffset  # of all that is written, in one piece
    start: int  # file offset of the first block that was promised
    count: int
    end: int  # file offset behind what is written


class FileData:
    """The bytes of files that are held: shared for reading, exclusively for the rest."""

    def __init__(self, ground: Ground, removals: Removals) -> None:
        """Stand on `ground`; shrinking is a matter of `removals`."""
        self._ground = ground
        self._removals = removals

    def read_now(self, inode: Inode, offset: int, length: int) -> Buffer | None:
        """As `read`, where nothing has to be waited for; else None, and nothing has happened.

        That is so where the pointers and the data are at hand, of a file that nobody on this host
        changes; a hole needs no data. All of it happens in one step of the loop, so nobody can come
        in between, and no guard is entered.

        Returns:
            Bytes that are good until the next `await`: use them at once, or copy them.

        Raises:
            DeviceError: the LUN cannot be read.
        """
        contents = inode.contents
        if contents is None or not inode.guard.free_to_read:
            return None
        count = min(length, contents.desc.length - offset)
        if count <= 0:
            return b""
        place = contents.map.place(offset, count)
        if place is None:
            return self._read_pieces_now(contents, offset, count)
        return self._ground.device.read_now(place, count)

    def _read_pieces_now(self, contents: Contents, offset: int, count: int) -> Buffer | None:
        """Part of `read_now`: what is not data in one piece."""
        if contents.is_resident:
            return contents.resident(offset, count)
        if contents.map.is_empty(offset, count):
            return bytes(count)
        extents = contents.map.known_extents(offset, count)
        if extents is None:
            return None
        data = bytearray(count)
        for extent in filter(_is_data, extents):
            part = self._ground.device.read_now(extent.lv_offset, extent.length)
            if part is None:
                return None
            start = extent.file_offset - offset
            data[start : start + extent.length] = part
        return data

    def write_now(self, inode: Inode, offset: int, data: bytes) -> bool:
        """As `write`, where nothing has to be waited for; else False, and nothing is written.

        That is so for the only user of the file on this host: for an overwrite in place, for bytes
        right behind the end of the file in a block that it has already, and for new blocks that
        were promised to it. The descriptor is staged where that changes it: times change once
        a second, the length as often as it does.

        Raises:
            DeviceError: the LUN cannot be written.
        """
        contents = inode.contents
        if contents is None or not inode.guard.idle:
            return False
        desc, length, now = contents.desc, len(data), self._ground.now()
        changes = offset + length > desc.length or desc.mtime != now or desc.ctime != now
        if offset > desc.length or (changes and not self._ground.has_room):
            return False
        if contents.is_resident:
            return self._write_resident_now(inode, offset, data)
        place = contents.map.place(offset, length)
        if place is None:
            return self._grow_now(inode, offset, data)
        if not self._ground.device.write_now(place, data):
            return False
        if changes:
            self._stage_write(inode, offset, memoryview(data), grown=False)
        return True

    def _write_resident_now(self, inode: Inode, offset: int, data: bytes) -> bool:
        """Part of `write_now`: nothing but the descriptor is changed."""
        if offset + len(data) > DATA_SIZE or not self._ground.has_room:
            return False
        self._stage_write(inode, offset, memoryview(data), grown=False)
        return True

    def _grow_now(self, inode: Inode, offset: int, data: bytes) -> bool:
        """Part of `write_now`: place data in blocks that were promised, then have them."""
        growth = self._growth(inode, offset, len(data)) if self._ground.has_room else None
        if growth is None:
            return False
        with growth.blocks.in_use():
            if not self._ground.device.write_now(growth.place, data):
                return False
            self._stage_growth(inode, growth)
        return True

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Read up to `length` bytes at `offset`; fewer only at the end of the file.

        Raises:
            CorruptRecord: a pointer is damaged.
            DeviceError: the LUN cannot be read.
        """
        contents = inode.loaded
        count = min(length, contents.desc.length - offset)
        if count <= 0:
            return b""
        if contents.is_resident:
            return contents.resident(offset, count)
        await contents.map.load(offset, count)
        extents = contents.map.extents(offset, count)
        # The volume's own files are metadata: what is staged of them counts.
        is_system = contents.desc.type is FileType.SYSTEM
        read = self._ground.metadata.read if is_system else self._ground.device.read
        if len(extents) == 1:
            extent = extents[0]
            return await read(extent.lv_offset, count) if _is_data(extent) else bytes(count)
        data = bytearray(count)
        for extent in extents:
            if _is_data(extent):
                start = extent.file_offset - offset
                part = await read(extent.lv_offset, extent.length)
                data[start : start + extent.length] = part
        return bytes(data)

    async def write(self, inode: Inode, offset: int, data: Buffer) -> None:
        """Write all of `data`, making the file longer where it ends before.

        Raises:
            FileTooBig: nothing is written.
            NoSpace: the blocks of the first pieces may be written, and the length say so.
            LockBusy: a cluster is in another host's hands and was not given up.
        """
        view = memoryview(data).cast("B")
        if offset + len(view) > inode.loaded.map.file_size_max:
            raise FileTooBig(f"{inode}: {offset + len(view)} bytes")
        for start in range(0, len(view), WRITE_STEP):
            await self._write_step(inode, offset + start, view[start : start + WRITE_STEP])

    async def resize(self, inode: Inode, length: int) -> None:
        """truncate(2): cut the file, or let it read as zero up to the new end.

        Raises:
            FileTooBig, NoSpace: nothing has changed.
            LockBusy: as `Removals.shrink`.
        """
        if length > inode.loaded.map.file_size_max:
            raise FileTooBig(f"{inode}: {length} bytes")
        if length < inode.desc.length:
            await self._removals.shrink(inode, length)
        else:
            await self._write_step(inode, length, memoryview(b""))

    async def _write_step(self, inode: Inode, offset: int, data: memoryview) -> None:
        contents = inode.loaded
        await self._zero_up_to(contents, offset)
        block_map = contents.map
        await block_map.load(offset, len(data))
        growth = self._growth(inode, offset, len(data))
        if growth is not None:
            await self._grow(inode, growth, data)
            return
        missing = block_map.missing(offset, len(data), file_length=contents.desc.length)
        old = [] if missing.carried or missing.free else block_map.extents(offset, len(data))
        if missing.nothing:
            await self._overwrite(old, offset, data)
            await self._end_write(inode, offset, data, grown=False)
            return
        if len(missing.blocks):
            inode.give_back_preallocation()  # `near` leads to the same blocks
        async with self._ground.allocator.reserve(
            want=missing.want, free=missing.free, near=missing.near, label=str(inode)
        ) as grant:
            await self._preallocate(inode, missing, grant, offset, len(data))
            await self._fill(inode, missing, grant, offset, data)
            await self._overwrite(old, offset, data)
            await self._ground.room(missing.room + grant.room)
            block_map.install(missing, grant)
            self._stage_write(inode, offset, data, grown=True)

    def _growth(self, inode: Inode, offset: int, length: int) -> Growth | None:
        """How a write fits into blocks that were promised to the file; None if it does not.

        It may begin in the block in front of them. Nothing of the range that becomes the file's
        may show what it held before: it is written, or it was zeroed when it was promised.
        """
        blocks, block_map, size = inode.preallocation, inode.loaded.map, self._ground.block_size
        head = -offset % size
        count = div_ceil(length - head, size)
        if blocks is None or not 0 < count <= blocks.count or not blocks.is_good():
            return None
        if (length - head) % size and not blocks.reads_as_zero:
            return None
        place = LvOffset(blocks.place - head)
        if head and block_map.place(offset, head) != place:
            return None
        if not block_map.lacks_blocks_only(offset + head, count * size):
            return None
        return Growth(
            blocks=blocks, place=place, start=offset + head, count=count, end=offset + length
        )

    async def _grow(self, inode: Inode, growth: Growth, data: memoryview) -> None:
        """As `_grow_now`, and waits where that must be."""
        with growth.blocks.in_use():
            await self._ground.device.write(growth.place, data)
            await self._ground.room()
            self._stage_growth(inode, growth)

    def _stage_growth(self, inode: Inode, growth: Growth) -> None:
        """Give the file what was promised and is filled now."""
        contents, now = inode.loaded, self._ground.now()
        contents.map.append(growth.start, growth.blocks.take(growth.count))
        count = contents.map.allocated_blocks
        contents.change(
            length=max(contents.desc.length, growth.end),
            mtime=now,
            ctime=now,
            allocated_blocks=count,
            new_blocks=count,
        )
        inode.stage(self._ground.metadata, area=contents.map.lists_blocks_itself)

    async def _preallocate(
        self, inode: Inode, missing: Missing, grant: Grant, offset: int, length: int
    ) -> None:
        """Promise a file that is written in order what it will most likely want next.

        As much again as stands in one piece in front of it, so a small file gets nothing. Whoever
        writes less than a block at a time gets zeroes.
        """
        if not inode.writers or missing.carried or not len(missing.blocks):
            return
        in_part = (offset + length) % self._ground.block_size != 0
        limit = ZEROED_AHEAD_MAX if in_part else PREALLOCATED_MAX
        count = inode.loaded.map.run_before(int(missing.blocks[0]), limit)
        promise = self._ground.allocator.preallocations.promise
        inode.preallocation = blocks = promise(grant, count, label=str(inode))
        if blocks is not None and in_part:
            with blocks.in_use():
                await self._ground.device.write_zeroes(blocks.place, blocks.size)
                blocks.reads_as_zero = True

    async def _end_write(self, inode: Inode, offset: int, data: memoryview, *, grown: bool) -> None:
        """Stage what a write changed in the descriptor, if anything."""
        desc, now = inode.desc, self._ground.now()
        longer = offset + len(data) > desc.length
        if longer or grown or inode.loaded.is_resident or (desc.mtime, desc.ctime) != (now, now):
            await self._ground.room()
            self._stage_write(inode, offset, data, grown=grown)

    def _stage_write(self, inode: Inode, offset: int, data: memoryview, *, grown: bool) -> None:
        contents, now = inode.loaded, self._ground.now()
        length = max(contents.desc.length, offset + len(data))
        if contents.is_resident:
            contents.put_resident(offset, data)
        contents.change(length=length, mtime=now, ctime=now)
        inode.stage(self._ground.metadata, area=grown or contents.is_resident)

    async def _zero_up_to(self, contents: Contents, end: int) -> None:
        """Zero what blocks hold between the end of the file and `end`, where it will be longer."""
        offset = contents.desc.length
        while offset < end and not contents.is_resident:
            length = min(end - offset, contents.map.load_length_max)
            await contents.map.load(offset, length)
            for extent in contents.map.extents(offset, length):
                if _is_data(extent):
                    await self._ground.device.write_zeroes(extent.lv_offset, extent.length)
            offset += length

    async def _overwrite(self, extents: Iterable[Extent], offset: int, data: memoryview) -> None:
        """Write the parts of `data` that have blocks already."""
        for extent in extents:
            if _is_data(extent):
                start = extent.file_offset - offset
                await self._ground.device.write(
                    extent.lv_offset, data[start : start + extent.length]
                )

    async def _fill(
        self, inode: Inode, missing: Missing, grant: Grant, offset: int, data: memoryview
    ) -> None:
        """Fill fresh blocks: what is carried over, then the data, and zeroes everywhere else."""
        carried = memoryview(await self.read(inode, 0, missing.carried))
        for extent in inode.loaded.map.fresh(missing, grant):
            await self._zero_around(extent, offset, offset + len(data))
            await self._put(extent, 0, carried)
            await self._put(extent, offset, data)

    async def _zero_around(self, extent: Extent, start: int, end: int) -> None:
        """Zero the parts of an extent outside the file range `start` to `end`."""
        before = (extent.file_offset, min(start, extent.end))
        after = (max(end, extent.file_offset), extent.end)
        if start >= end:
            before, after = (extent.file_offset, extent.end), (extent.end, extent.end)
        for low, high in (before, after):
            if low < high:
                place = LvOffset(extent.lv_offset + low - extent.file_offset)
                await self._ground.device.write_zeroes(place, high - low)

    async def _put(self, extent: Extent, offset: int, data: memoryview) -> None:
        """Write the part of `data` (which begins at `offset` of the file) that is in an extent."""
        start = max(extent.file_offset, offset)
        end = min(extent.end, offset + len(data))
        if start < end:
            place = LvOffset(extent.lv_offset + start - extent.file_offset)
            await self._ground.device.write(place, data[start - offset : end - offset])


def _is_data(extent: Extent) -> bool:
    return extent.kind is ExtentKind.DATA
