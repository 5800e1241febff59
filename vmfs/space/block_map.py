"""Which block belongs to which byte of one file: reading its tree of pointers, and changing it.

A `BlockMap` is what one file descriptor says about blocks: level (ZLA), slots, counts; and some of
the pointer blocks below, as they are on the volume overlaid by what is staged. Reading:

    await block_map.load(offset, length)
    for extent in block_map.extents(offset, length): ...

Writing, under the file's exclusive lock, one writer at a time:

    await block_map.load(offset, length)
    missing = block_map.missing(offset, length, file_length=desc.length)
    async with allocator.reserve(want=missing.want, free=missing.free, near=missing.near) as grant:
        for extent in block_map.fresh(missing, grant): ...   # fill: data, and zeroes around it
        await transactions.room(missing.room + grant.room + ...)
        block_map.install(missing, grant)                    # plain from here
        desc = block_map.describe(desc)                      # the caller stages the descriptor

Shrinking, in as many transactions as it takes, each of bounded size, the last blocks first:

    while True:
        tail = await block_map.tail(block_map.blocks_for(length))
        async with allocator.reserve(free=tail.addresses) as grant:
            await transactions.room(tail.room + grant.room + ...)
            block_map.cut(tail, grant)
            desc = block_map.describe(desc)
        if tail.done: break

The caller keeps the file's lock and sees to it that nobody changes the map between the steps of
one change (an assertion otherwise); reading goes on meanwhile. Drop the map when the lock goes.
"""

import dataclasses
from functools import cache
from typing import Any, Final

import numpy as np

from vmfs.errors import FileTooBig
from vmfs.ids import LvOffset
from vmfs.ondisk.address import FB_TBZ, AddressType
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla
from vmfs.space import index_path
from vmfs.space.data_runs import WINDOW_BLOCKS, DataRuns, PlainRuns, plain_runs
from vmfs.space.extent import (
    Extent,
    ExtentKind,
    block_extents,
    body_extents,
    clip,
    few_block_extents,
    sub_block_extents,
)
from vmfs.space.grant import Grant
from vmfs.space.index_path import Levels, Pointers, Shape
from vmfs.space.missing import Growing, Missing, nothing_missing
from vmfs.space.pointer_tree import LOAD_TABLES_MAX, PointerTree
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFiles, is_cow
from vmfs.space.truncation import Tail, TailCutter
from vmfs.units import div_ceil

_FULL: Final = Shape()
_KIND_AND_FLAGS: Final = 0x3F
_BLOCK_LEVELS: Final = (Zla.FB, Zla.PB, Zla.DOUBLE)

FEW_BLOCKS: Final = 4
"""Blocks up to which their extents are found one after the other: 3 us each, or 25 in bulk."""


class BlockMap:
    """The blocks of one file."""

    def __init__(
        self,
        *,
        desc: FileDesc,
        pointers: Pointers,
        staging: Staging,
        files: ResourceFiles,
        shape: Shape = _FULL,
    ) -> None:
        """Nothing is checked or read before it is needed.

        Args:
            desc: the file's descriptor.
            pointers: its data area as addresses (`unpack_pointers`; for a resident file, whatever
                is there: it is not looked at).
            staging: to read and stage pointer blocks through.
            files: the resource files of the volume.
            shape: the widths of the tree; for tests.
        """
        self._tree = PointerTree(
            desc=desc,
            pointers=pointers[: shape.slots],
            shape=shape,
            staging=staging,
            files=files,
        )
        self._files = files
        self._file_block = files[AddressType.FB].resource_size
        self._levels = _levels(self._file_block, files[AddressType.SB].resource_size, shape)
        self._allocated = desc.allocated_blocks
        self._tbz = desc.tbz_blocks
        self._runs = DataRuns(block_size=self._file_block)

    @property
    def zla(self) -> Zla:
        """The level of the file now."""
        return self._tree.zla

    @property
    def allocated_blocks(self) -> int:
        """How many blocks the file has."""
        return self._allocated

    @property
    def lists_blocks_itself(self) -> bool:
        """Whether the addresses of its blocks stand in the descriptor."""
        return self.zla in (Zla.FB, Zla.SB)

    @property
    def pointers(self) -> Pointers:
        """The slots as the descriptor must have them (a copy). All zero when resident."""
        return self._tree.pointers.copy()

    @property
    def block_size(self) -> int:
        """Bytes of one block of this file at its level: file block, or sub-block."""
        return self._levels.unit(self.zla)

    @property
    def empty(self) -> bool:
        """No block belongs to the file."""
        return not self._tree.pointers.any()

    @property
    def file_size_max(self) -> int:
        """Bytes that a file can have at most."""
        return self._levels.file_size_max

    @property
    def load_length_max(self) -> int:
        """Bytes that one `load` may ask for."""
        return LOAD_TABLES_MAX * self._levels.shape.fanout * self._file_block

    def blocks_for(self, length: int) -> int:
        """Blocks at the present level that hold `length` bytes: what `tail` must keep."""
        return div_ceil(length, self.block_size)

    def describe(self, desc: FileDesc) -> FileDesc:
        """The descriptor with level, block size and counts as they are now."""
        size = self.block_size
        in_sub_blocks = self.zla is Zla.SB and desc.type is FileType.DIRECTORY
        now: dict[str, Any] = {
            "zla": self.zla,
            "block_size": size,
            "block_shift": size.bit_length() - 1,
            "tbz_shift": (size if in_sub_blocks else self._file_block).bit_length() - 1,
            "allocated_blocks": self._allocated,
            "new_blocks": self._allocated,
            "tbz_blocks": self._tbz,
        }
        if all(getattr(desc, field) == value for field, value in now.items()):
            return desc
        return desc.changed(now)

    def restart(self, zla: Zla) -> None:
        """Begin again at a lower level: an empty file need not stay as deep as it once was.

        Only when `empty`. The caller stages the descriptor.
        """
        assert self.empty, "blocks would be lost"
        self._allocated = self._tbz = 0
        self._tree.adopt(zla, self._tree.pointers, {})

    # Reading.

    async def load(self, offset: int, length: int) -> None:
        """Bring the pointer blocks that a range needs into memory, until something is awaited.

        Args:
            offset: bytes; may lie behind the end of the file.
            length: bytes, at most `load_length_max`.

        Raises:
            CorruptRecord: a pointer names no resource of the kind that must stand there.
            Unsupported: the file has a kind of block list that VMFS-5 does not use.
            DeviceError: a pointer block cannot be read.
        """
        assert length <= self.load_length_max, f"{length} bytes at once"
        self._tree.check_slots()
        if self.zla is Zla.RESIDENT:
            return
        await self._tree.load(*self._levels.blocks(self.zla, offset, length))

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What the range is made of, ascending and without gaps. It was loaded just before.

        Raises:
            CorruptRecord, Unsupported: as `load`.
        """
        self._tree.check_slots()
        if self.zla is Zla.RESIDENT:
            whole = Extent(kind=ExtentKind.RESIDENT, file_offset=offset, length=length)
            return [whole] if length else []
        start, count = self._levels.blocks(self.zla, offset, length)
        if count <= FEW_BLOCKS and self.zla is not Zla.SB and offset + length <= self._reach:
            return few_block_extents(self._tree.at, offset, length, block_size=self._file_block)
        addresses = self._tree.gather(start, count)
        if self.zla is Zla.SB:
            found = sub_block_extents(self._files[AddressType.SB], addresses, first_block=start)
        else:
            found = block_extents(addresses, first_block=start, block_size=self.block_size)
        clipped = clip(found, offset, length)
        end = clipped[-1].end if clipped else offset
        if end < offset + length:  # past what the level can name
            rest = offset + length - end
            clipped.append(Extent(kind=ExtentKind.HOLE, file_offset=end, length=rest))
        return clipped

    def known_extents(self, offset: int, length: int) -> list[Extent] | None:
        """As `extents`, without a `load` before; None when that would have to read."""
        blocks = self._levels.blocks(self.zla, offset, length)
        if self.zla is Zla.RESIDENT or self._tree.is_loaded(*blocks):
            return self.extents(offset, length)
        return None

    def is_empty(self, offset: int, length: int) -> bool:
        """Whether a range inside one block has no contents: it reads as zero.

        False as well when that is not known without reading.
        """
        block, within = divmod(offset, self._file_block)
        end = offset + length
        if self.zla not in _BLOCK_LEVELS or within + length > self._file_block or end > self._reach:
            return False
        if not self._tree.is_loaded(block, 1):
            return False
        address = self._tree.at(block)
        return address == 0 or address & FB_TBZ != 0

    def place(self, offset: int, length: int) -> LvOffset | None:
        """Where a range stands that is nothing but data, in one piece; None when it is not so.

        None as well when that is not known without reading. Nothing else needs to be asked before
        such a range is read, or overwritten by who may write the file.
        """
        runs = self._runs.around(offset, self._tree.version) or self._look_around(offset)
        return None if runs is None else runs.find(offset, length)

    # Growing.

    def lacks_blocks_only(self, offset: int, length: int) -> bool:
        """Whether whole file blocks are missing for a range, side by side, and nothing else is.

        Then `append` can give them. False as well when that is not known without reading.
        """
        size = self._file_block
        if self.zla not in _BLOCK_LEVELS or offset % size or length % size:
            return False
        if not length or offset + length > min(self._reach, self.file_size_max):
            return False
        return self._tree.lacks_all(offset // size, length // size)

    def run_before(self, block: int, limit: int) -> int:
        """How many file blocks in front of one have blocks without a gap; `limit` at most."""
        start = max(block - limit, 0)
        if self.zla not in _BLOCK_LEVELS or block > index_path.reach(self.zla, self._levels.shape):
            return 0
        if not self._tree.is_loaded(start, block - start):
            return 0
        there = self._tree.gather(start, block - start) != 0
        return len(there) if there.all() else int(there[::-1].argmin())

    def append(self, offset: int, addresses: Pointers) -> None:
        """Give a range that `lacks_blocks_only` file blocks that are side by side and filled.

        Stages a pointer block. The caller stages the descriptor (`allocated_blocks`, and the
        `pointers` at level FB) without awaiting in between.
        """
        size, before = self._file_block, self._tree.version
        self._tree.assign(offset // size, addresses)
        self._allocated += len(addresses)
        place = LvOffset((int(addresses[0]) >> 6) * size)
        after = self._tree.version
        self._runs.grow(offset, len(addresses) * size, place, before=before, after=after)

    def missing(self, offset: int, length: int, *, file_length: int) -> Missing:
        """What the file lacks before all of a range can be written in place.

        With `length` 0: what it lacks to be `offset` bytes long (its level may have to grow).
        The range was loaded just before.

        Args:
            offset: bytes.
            length: bytes.
            file_length: of the file as it is; decides what must be carried over when contents
                move out of the descriptor, or out of a sub-block.

        Raises:
            FileTooBig: the range ends behind the largest file.
            NotSupported: it touches blocks that are shared with a snapshot (COW).
            CorruptRecord, Unsupported: as `load`.
        """
        self._tree.check_slots()
        end = offset + length
        if end > self.file_size_max:
            raise FileTooBig(f"{end} bytes; files of this volume end at {self.file_size_max} bytes")
        if self._is_in_place(offset, length):
            return nothing_missing(self.zla, self._tree.version)
        return self._growing.find(offset, length, file_length=file_length)

    def fresh(self, missing: Missing, grant: Grant) -> list[Extent]:
        """The blocks that will be the file's after `install`, and hold anything now.

        The caller fills every byte of them (what is written, what is `carried`, zeroes for the
        rest) before the transaction of `install` commits. `grant` is untouched yet.
        """
        unit = self._levels.unit(missing.zla)
        if missing.zla is Zla.SB:
            places = self._files[AddressType.SB]
            return [
                extent
                for block, address in zip(
                    missing.blocks, grant.promised(AddressType.SB), strict=False
                )
                for extent in body_extents(places, int(address), int(block) * unit)
            ]
        blocks = np.concatenate((missing.blocks, missing.zeroed))
        promised = grant.promised(AddressType.FB)[: len(missing.blocks)]
        addresses = np.concatenate((promised, missing.zeroed_addresses))
        order = np.argsort(blocks)
        blocks, addresses = blocks[order], addresses[order]
        pieces = np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks) != 1) + 1)
        return [
            extent
            for piece in pieces
            if len(piece)
            for extent in block_extents(
                addresses[piece], first_block=int(blocks[piece[0]]), block_size=unit
            )
        ]

    def install(self, missing: Missing, grant: Grant) -> None:
        """Give the file what it lacked; stages pointer blocks and what `grant` changes.

        The caller stages the descriptor (`describe`, `pointers`) without awaiting in between.

        Raises:
            CorruptRecord: a sub-block that is left behind is free already. Nothing is staged then.
        """
        assert missing.version == self._tree.version, "the map has changed since `missing`"
        if missing.free:
            grant.free(np.array(missing.free, dtype=np.uint32))
        draft = self._growing.draft(
            missing.zla,
            new=lambda: int(grant.take(AddressType.PB, 1)[0]),
            tables=missing.tables,
        )
        draft.raise_to(missing.zla)
        draft.touch(missing.blocks)
        kind = AddressType.SB if missing.zla is Zla.SB else AddressType.FB
        draft.assign(missing.blocks, grant.take(kind, len(missing.blocks)))
        draft.materialise(missing.zeroed)
        for address, table in draft.changed.items():
            old = None if address in draft.made else draft.visited[address]
            self._tree.stage(address, old, table)
        before = 0 if self._growing.moves_to(missing.zla) else self._allocated
        self._allocated = before + len(missing.blocks)
        self._tbz -= min(len(missing.zeroed), self._tbz)
        self._tree.adopt(missing.zla, draft.pointers, draft.changed)

    # Shrinking.

    async def tail(self, keep: int) -> Tail:
        """Choose the next batch of blocks to free behind the first `keep` ones, from the end.

        Nothing is changed. The batch is bounded in addresses, clusters and pointer blocks; it may
        be empty with `done` False, when a stretch held nothing of this file's own.

        Raises:
            CorruptRecord, Unsupported, DeviceError: as `load`.
        """
        self._tree.check_slots()
        while True:
            version = self._tree.version
            cutter = TailCutter(
                zla=self.zla,
                pointers=self._tree.pointers,
                shape=self._levels.shape,
                files=self._files,
                load=self._tree.load_table,
            )
            tail = await cutter.cut(keep)
            if version == self._tree.version:
                return dataclasses.replace(tail, version=version)

    def cut(self, tail: Tail, grant: Grant) -> None:
        """Free a batch; stages pointer blocks and clusters. The caller stages the descriptor.

        Raises:
            CorruptRecord: a block is free already: some other file was given it. Nothing is
                staged then.
        """
        assert tail.version == self._tree.version, "the map has changed since `tail`"
        grant.free(tail.addresses)
        for address, (before, after) in tail.changed.items():
            self._tree.stage(address, before, after)
        for address in tail.addresses[(tail.addresses & np.uint32(7)) != np.uint32(1)]:
            self._tree.forget(int(address))
        self._allocated -= min(tail.block_count, self._allocated)
        self._tbz -= min(tail.tbz_count, self._tbz)
        self._tree.adopt(
            self.zla, tail.pointers, {a: after for a, (_, after) in tail.changed.items()}
        )

    @property
    def _growing(self) -> Growing:
        return Growing(tree=self._tree, levels=self._levels)

    # Where data is.

    @property
    def _reach(self) -> int:
        """Bytes that the present level can name."""
        return self._levels.reach(self.zla)

    def _look_around(self, offset: int) -> PlainRuns | None:
        """Learn the runs of one window of the file, if its pointers are all in memory."""
        index = self._runs.index(offset)
        if self.zla is Zla.SB:
            return self._look_into_sub_blocks() if index == 0 else None
        if self.zla not in _BLOCK_LEVELS:
            return None
        start = index * WINDOW_BLOCKS
        count = min(WINDOW_BLOCKS, index_path.reach(self.zla, self._levels.shape) - start)
        if count <= 0 or not self._tree.is_loaded(start, count):
            return None
        addresses = self._tree.gather(start, count)
        runs = plain_runs(addresses, first_block=start, block_size=self._file_block)
        return self._runs.keep(index, runs)

    def _look_into_sub_blocks(self) -> PlainRuns | None:
        """Learn the runs of a file in sub-blocks, the ones that a snapshot shares left out."""
        count = index_path.reach(self.zla, self._levels.shape)
        if not self._tree.is_loaded(0, count):
            return None
        addresses = self._tree.gather(0, count)
        own = [0 if is_cow(address) else address for address in addresses.tolist()]
        runs = PlainRuns(starts=[], ends=[], shifts=[])
        for extent in sub_block_extents(self._files[AddressType.SB], own, first_block=0):
            if extent.kind is ExtentKind.DATA:
                runs.with_more(extent.file_offset, extent.length, extent.lv_offset)
        return self._runs.keep(0, runs)

    def _is_in_place(self, offset: int, length: int) -> bool:
        """Whether a range is in one file block that only waits for data: the common case, fast."""
        if not length or self.zla not in _BLOCK_LEVELS:
            return False
        block, within = divmod(offset, self._file_block)
        if within + length > self._file_block or offset + length > self._reach:
            return False
        return self._tree.at(block) & _KIND_AND_FLAGS == AddressType.FB


@cache
def _levels(file_block: int, sub_block: int, shape: Shape) -> Levels:
    """One for all files of a volume."""
    return Levels(file_block=file_block, sub_block=sub_block, shape=shape)
