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

Invariants: a pointer is never followed before it was checked against the resource file of its
kind; the depth of the tree follows from the level alone, so damaged pointers cannot make a loop;
at most `TABLES_MAX` pointer blocks stay in memory.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from vmfs.errors import CorruptRecord, FileTooBig, NotSupported, Unsupported
from vmfs.ids import LvOffset
from vmfs.ondisk.address import AddressType, tbz_mask
from vmfs.ondisk.file_desc import DATA_OFFSET, FileDesc, Zla
from vmfs.space import index_path
from vmfs.space.extent import Extent, ExtentKind, block_extents, clip
from vmfs.space.grant import Grant
from vmfs.space.growth import Draft, Indices, Missing
from vmfs.space.index_path import Pointers, Shape
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFile, ResourceFiles, cow_mask, is_cow
from vmfs.space.truncation import Tail, TailCutter
from vmfs.units import SECTOR_SIZE, div_ceil

TABLES_MAX: Final = 256
"""Pointer blocks that one map keeps in memory: 1 MiB, enough for 256 GiB of a file."""

LOAD_TABLES_MAX: Final = TABLES_MAX // 4
"""Pointer blocks of the last level that one `load` may ask for: a range of 64 GiB."""

_PER_SECTOR: Final = SECTOR_SIZE // 4
_FULL: Final = Shape()
_NO_BLOCKS: Final = np.empty(0, dtype=np.int64)


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
        self._address = desc.address
        self._zla = desc.zla
        self._allocated = desc.allocated_blocks
        self._tbz = desc.tbz_blocks
        resident = desc.zla is Zla.RESIDENT
        self._pointers = np.zeros(shape.slots, np.uint32) if resident else pointers[: shape.slots]
        self._staging = staging
        self._files = files
        self._shape = shape
        self._tables: dict[int, Pointers] = {}  # by address; least recently loaded first
        self._version = 0
        self._slots_checked = False

    @property
    def zla(self) -> Zla:
        """The level of the file now."""
        return self._zla

    @property
    def pointers(self) -> Pointers:
        """The slots as the descriptor must have them (a copy). All zero when resident."""
        return self._pointers.copy()

    @property
    def block_size(self) -> int:
        """Bytes of one block of this file at its level: file block, or sub-block."""
        return self._unit(self._zla)

    @property
    def empty(self) -> bool:
        """No block belongs to the file."""
        return not self._pointers.any()

    @property
    def file_size_max(self) -> int:
        """Bytes that a file can have at most."""
        return index_path.file_size_max(self._unit(Zla.FB), self._shape)

    @property
    def load_length_max(self) -> int:
        """Bytes that one `load` may ask for."""
        return LOAD_TABLES_MAX * self._shape.fanout * self._unit(Zla.FB)

    def blocks_for(self, length: int) -> int:
        """Blocks at the present level that hold `length` bytes: what `tail` must keep."""
        return div_ceil(length, self.block_size)

    def describe(self, desc: FileDesc) -> FileDesc:
        """The descriptor with level, block size and counts as they are now."""
        size = self.block_size
        shift = size.bit_length() - 1
        return dataclasses.replace(
            desc,
            zla=self._zla,
            block_size=size,
            block_shift=shift,
            tbz_shift=shift,
            allocated_blocks=self._allocated,
            new_blocks=self._allocated,
            tbz_blocks=self._tbz,
        )

    def restart(self, zla: Zla) -> None:
        """Begin again at a lower level: an empty file need not stay as deep as it once was.

        Only when `empty`. The caller stages the descriptor.
        """
        assert self.empty, "blocks would be lost"
        self._zla = zla
        self._allocated = self._tbz = 0
        self._version += 1

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
        self._check_slots()
        if self._zla is Zla.RESIDENT:
            return
        start, count = self._block_range(offset, length)
        complete = False
        while not complete:
            complete = True
            for leaf in index_path.leaves(self._zla, start, count, self._shape):
                complete &= not await self._load_leaf(leaf.path)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What the range is made of, ascending and without gaps. It was loaded just before.

        Raises:
            CorruptRecord, Unsupported: as `load`.
        """
        self._check_slots()
        if self._zla is Zla.RESIDENT:
            whole = Extent(kind=ExtentKind.RESIDENT, file_offset=offset, length=length)
            return [whole] if length else []
        start, count = self._block_range(offset, length)
        addresses = self._gather(start, count)
        if self._zla is Zla.SB:
            found = self._sub_block_extents(addresses, start)
        else:
            found = block_extents(addresses, first_block=start, block_size=self.block_size)
        clipped = clip(found, offset, length)
        end = clipped[-1].end if clipped else offset
        if end < offset + length:  # past what the level can name
            rest = offset + length - end
            clipped.append(Extent(kind=ExtentKind.HOLE, file_offset=end, length=rest))
        return clipped

    # Growing.

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
        self._check_slots()
        end = offset + length
        if end > self.file_size_max:
            raise FileTooBig(f"{end} bytes; files of this volume end at {self.file_size_max} bytes")
        target = self._level_for(offset, length)
        moves = target is not self._zla and self._zla in (Zla.RESIDENT, Zla.SB)
        has_contents = file_length > 0 and (self._zla is Zla.RESIDENT or not self.empty)
        carried = file_length if moves and has_contents else 0
        if moves:
            blocks = _covering(((offset, length), (0, carried)), self._unit(target))
            zeroed = _NO_BLOCKS
        else:
            blocks, zeroed = self._unwritten(offset, length)
        return self._count(target, blocks, zeroed, carried=carried, moves=moves)

    def fresh(self, missing: Missing, grant: Grant) -> list[Extent]:
        """The blocks that will be the file's after `install`, and hold anything now.

        The caller fills every byte of them (what is written, what is `carried`, zeroes for the
        rest) before the transaction of `install` commits. `grant` is untouched yet.
        """
        unit = self._unit(missing.zla)
        if missing.zla is Zla.SB:
            places = self._files[AddressType.SB]
            return [
                extent
                for block, address in zip(
                    missing.blocks, grant.promised(AddressType.SB), strict=False
                )
                for extent in _body_extents(places, int(address), int(block) * unit)
            ]
        blocks = np.concatenate((missing.blocks, missing.zeroed))
        promised = grant.promised(AddressType.FB)[: len(missing.blocks)]
        flagged = [self._gather(int(block), 1) for block in missing.zeroed]
        addresses = np.concatenate([promised, *flagged]) & ~np.uint32(1 << 5)
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
        assert missing.version == self._version, "the map has changed since `missing`"
        if missing.free:
            grant.free(np.array(missing.free, dtype=np.uint32))
        draft = self._draft(
            missing.zla, new=lambda kind: int(grant.take(kind, 1)[0]), tables=missing.tables
        )
        draft.raise_to(missing.zla)
        draft.touch(missing.blocks)
        kind = AddressType.SB if missing.zla is Zla.SB else AddressType.FB
        draft.assign(missing.blocks, grant.take(kind, len(missing.blocks)))
        draft.materialise(missing.zeroed)
        for address, table in draft.changed.items():
            before = None if address in draft.made else draft.visited[address]
            self._stage_table(address, before, table)
        restarts = self._zla in (Zla.RESIDENT, Zla.SB) and missing.zla is not self._zla
        self._allocated = len(missing.blocks) + (0 if restarts else self._allocated)
        self._tbz -= min(len(missing.zeroed), self._tbz)
        self._adopt(missing.zla, draft.pointers, draft.changed)

    # Shrinking.

    async def tail(self, keep: int) -> Tail:
        """Choose the next batch of blocks to free behind the first `keep` ones, from the end.

        Nothing is changed. The batch is bounded in addresses, clusters and pointer blocks; it may
        be empty with `done` False, when a stretch held nothing of this file's own.

        Raises:
            CorruptRecord, Unsupported, DeviceError: as `load`.
        """
        self._check_slots()
        cutter = TailCutter(
            zla=self._zla,
            pointers=self._pointers,
            shape=self._shape,
            files=self._files,
            load=self._load_table,
        )
        while True:
            version = self._version
            tail = await cutter.cut(keep)
            if version == self._version:
                return dataclasses.replace(tail, version=version)

    def cut(self, tail: Tail, grant: Grant) -> None:
        """Free a batch; stages pointer blocks and clusters. The caller stages the descriptor.

        Raises:
            CorruptRecord: a block is free already: some other file was given it. Nothing is
                staged then.
        """
        assert tail.version == self._version, "the map has changed since `tail`"
        grant.free(tail.addresses)
        for address, (before, after) in tail.changed.items():
            self._stage_table(address, before, after)
        for address in tail.addresses[(tail.addresses & np.uint32(7)) != np.uint32(1)]:
            self._tables.pop(int(address), None)
        self._allocated -= min(tail.block_count, self._allocated)
        self._tbz -= min(tail.tbz_count, self._tbz)
        self._adopt(self._zla, tail.pointers, {a: after for a, (_, after) in tail.changed.items()})

    # The tree.

    def _unit(self, zla: Zla) -> int:
        small = zla in (Zla.SB, Zla.RESIDENT)
        return self._files[AddressType.SB if small else AddressType.FB].resource_size

    def _block_range(self, offset: int, length: int) -> tuple[int, int]:
        """First block and number of blocks of a range, as far as the level reaches."""
        limit = index_path.reach(self._zla, self._shape)
        start = min(offset // self.block_size, limit)
        end = min(div_ceil(offset + length, self.block_size), limit) if length else start
        return start, end - start

    def _check_slots(self) -> None:
        """Check the descriptor's own pointers, once."""
        if self._slots_checked or self._zla is Zla.RESIDENT:
            return
        if self._zla not in (Zla.SB, Zla.FB, Zla.PB, Zla.DOUBLE):
            raise Unsupported(
                f"file {self._address:#010x} has block list type {self._zla.name}, "
                "which only VMFS-6 is known to use"
            )
        [(place, _), *_] = self._files[AddressType.FD].address_runs(self._address)
        kind = index_path.slot_type(self._zla)
        _check_pointers(self._pointers, self._files[kind], LvOffset(place + DATA_OFFSET))
        self._slots_checked = True

    def _leaf_address(self, path: tuple[int, ...]) -> int:
        """The pointer block at `path`; 0 when there is none (or the slots are meant)."""
        address = int(self._pointers[path[0]]) if path else 0
        for step in path[1:]:
            if address:
                address = int(self._table(address)[step])
        return address

    def _table(self, address: int) -> Pointers:
        table = self._tables.get(address)
        assert table is not None, f"pointer block {address:#010x} was not loaded"
        return table

    async def _load_leaf(self, path: tuple[int, ...]) -> bool:
        """Load what is missing on the way to a leaf, and it; True when something was read."""
        address = int(self._pointers[path[0]]) if path else 0
        kinds = (AddressType.PB, AddressType.FB)[-len(path) :] if path else ()
        waited = False
        for level, holds in enumerate(kinds):
            if not address:
                break
            waited |= address not in self._tables
            table = await self._load_table(address, holds)
            address = int(table[path[level + 1]]) if level + 1 < len(path) else 0
        return waited

    async def _load_table(self, address: int, holds: AddressType) -> Pointers:
        """One pointer block, whose pointers are checked to be of kind `holds`."""
        file = self._files[AddressType(address & 7)]
        while address not in self._tables:
            version = self._version
            data = await file.read(self._staging, address)
            if version != self._version:
                continue  # changed while this task read; what it has may be old
            table = np.frombuffer(data, dtype="<u4").astype(np.uint32)
            _check_pointers(table, self._files[holds], file.address_runs(address)[0][0])
            self._keep(address, table)
        table = self._tables.pop(address)
        self._tables[address] = table
        return table

    def _keep(self, address: int, table: Pointers) -> None:
        table.flags.writeable = False
        self._tables.pop(address, None)
        self._tables[address] = table
        while len(self._tables) > TABLES_MAX:
            del self._tables[next(iter(self._tables))]

    def _gather(self, start: int, count: int) -> Pointers:
        """The addresses of adjacent blocks within reach of the level."""
        parts = [np.empty(0, dtype=np.uint32)]
        for leaf in index_path.leaves(self._zla, start, count, self._shape):
            address = self._leaf_address(leaf.path)
            if leaf.path and not address:
                parts.append(np.zeros(leaf.count, dtype=np.uint32))
                continue
            table = self._table(address) if leaf.path else self._pointers
            parts.append(table[leaf.first : leaf.first + leaf.count])
        return np.concatenate(parts)

    def _sub_block_extents(self, addresses: Pointers, start: int) -> list[Extent]:
        file = self._files[AddressType.SB]
        size = file.resource_size
        found: list[Extent] = []
        for index, address in enumerate(addresses, start):
            if address:
                found.extend(_body_extents(file, int(address), index * size))
            else:
                found.append(Extent(kind=ExtentKind.HOLE, file_offset=index * size, length=size))
        return found

    # Parts of `missing` and `install`.

    def _level_for(self, offset: int, length: int) -> Zla:
        end = offset + length
        if self._zla is Zla.SB and length and end <= self._shape.slots * self.block_size:
            start, count = self._block_range(offset, length)
            if self._gather(start, count).all():
                return Zla.SB  # all there, if in more sub-blocks than we would make
        return index_path.level_needed(
            end,
            at_least=self._zla,
            block_size=self._unit(Zla.FB),
            sub_block_size=self._unit(Zla.SB),
            shape=self._shape,
        )

    def _unwritten(self, offset: int, length: int) -> tuple[Indices, Indices]:
        """Blocks of a range without an address, and those that only read as zero."""
        if self._zla is Zla.RESIDENT or not length:
            return _NO_BLOCKS, _NO_BLOCKS
        first = offset // self.block_size
        total = div_ceil(offset + length, self.block_size) - first
        start, count = self._block_range(offset, length)
        addresses = np.zeros(total, dtype=np.uint32)
        addresses[:count] = self._gather(start, count)
        shared = [int(a) for a in addresses if is_cow(int(a))] if self._zla is Zla.SB else []
        if shared or cow_mask(addresses).any():
            raise NotSupported("blocks that are shared with a snapshot cannot be written yet")
        zeroed = tbz_mask(addresses) if self._zla is not Zla.SB else np.zeros(total, np.bool_)
        return np.flatnonzero(addresses == 0) + first, np.flatnonzero(zeroed) + first

    def _count(
        self, target: Zla, blocks: Indices, zeroed: Indices, *, carried: int, moves: bool
    ) -> Missing:
        """Run the change once with made-up addresses, to see what it takes."""
        want: Counter[AddressType] = Counter()
        left = [int(address) for address in self._pointers[self._pointers != 0]] if moves else []

        def pretend(kind: AddressType) -> int:
            want[kind] += 1
            return want.total() << 3  # type 0: no real address looks so

        draft = self._draft(target, new=pretend, tables={})
        if target is not Zla.RESIDENT:
            draft.raise_to(target)
            draft.touch(np.union1d(blocks, zeroed).astype(np.int64))
        if len(blocks):
            want[AddressType.SB if target is Zla.SB else AddressType.FB] += len(blocks)
        return Missing(
            zla=target,
            blocks=blocks,
            zeroed=zeroed,
            carried=carried,
            want=dict(want),
            free=tuple(address for address in left if not is_cow(address)),
            near=self._near(blocks),
            tables=draft.visited,
            version=self._version,
            converts=target is not self._zla,
        )

    def _draft(
        self, target: Zla, *, new: Callable[[AddressType], int], tables: Mapping[int, Pointers]
    ) -> Draft:
        """The tree as a draft. Contents that move out of SB or RESIDENT start with an empty one."""
        moves = target is not self._zla and self._zla in (Zla.RESIDENT, Zla.SB)
        base = Zla.SB if target is Zla.SB else Zla.FB
        known = {**tables, **self._tables}

        def lookup(address: int) -> Pointers:
            table = known.get(address)
            assert table is not None, f"pointer block {address:#010x} was not loaded"
            return table

        return Draft(
            zla=base if moves else self._zla,
            pointers=np.zeros_like(self._pointers) if moves else self._pointers,
            shape=self._shape,
            lookup=lookup,
            new=new,
        )

    def _known_leaf(self, path: tuple[int, ...]) -> Pointers:
        """The table at `path` if it is in memory; empty if not."""
        if not path:
            return self._pointers
        table = None
        address = int(self._pointers[path[0]])
        for step in (*path[1:], 0):
            table = self._tables.get(address)
            if table is None:
                return np.empty(0, dtype=np.uint32)
            address = int(table[step])
        assert table is not None
        return table

    def _near(self, blocks: Indices) -> tuple[int, ...]:
        """Where the file would like to go on: behind the block before the first new one."""
        hints: list[int] = []
        if self._zla in (Zla.PB, Zla.DOUBLE) and self._pointers.any():
            hints.append(int(self._pointers[self._pointers != 0][-1]))
        if self._zla is Zla.RESIDENT or not len(blocks):
            return tuple(hints)
        if 0 < blocks[0] <= index_path.reach(self._zla, self._shape):
            path = index_path.path(self._zla, int(blocks[0]) - 1, self._shape)
            before = self._known_leaf(path[:-1])[: path[-1] + 1]
            hints.extend(int(a) for a in before[before != 0][-1:])
        return tuple(hints)

    def _stage_table(self, address: int, before: Pointers | None, after: Pointers) -> None:
        """Stage a pointer block: as a whole when it is new, else the sectors that changed."""
        file = self._files[AddressType(address & 7)]
        data = after.astype("<u4").tobytes()
        if before is None:
            file.stage(self._staging, address, data)
            return
        changed = np.flatnonzero((before != after).reshape(-1, _PER_SECTOR).any(axis=1))
        for piece in np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1):
            if len(piece):
                start, end = int(piece[0]) * SECTOR_SIZE, (int(piece[-1]) + 1) * SECTOR_SIZE
                file.stage(self._staging, address, data[start:end], offset=start)

    def _adopt(self, zla: Zla, pointers: Pointers, tables: Mapping[int, Pointers]) -> None:
        self._zla = zla
        self._pointers = pointers
        self._version += 1
        for address, table in tables.items():
            self._keep(address, table)


def _covering(ranges: Iterable[tuple[int, int]], unit: int) -> Indices:
    """The blocks of `unit` bytes that (offset, length) ranges touch, ascending, each once."""
    parts = [
        np.arange(offset // unit, div_ceil(offset + length, unit))
        for offset, length in ranges
        if length
    ]
    return np.unique(np.concatenate([_NO_BLOCKS, *parts])).astype(np.int64)


def _body_extents(file: ResourceFile, address: int, file_offset: int) -> list[Extent]:
    """A sub-block as extents: two when it straddles blocks of its resource file."""
    found: list[Extent] = []
    for place, length in file.address_runs(address):
        found.append(
            Extent(kind=ExtentKind.DATA, file_offset=file_offset, length=length, lv_offset=place)
        )
        file_offset += length
    return found


def _check_pointers(pointers: Pointers, file: ResourceFile, place: LvOffset) -> None:
    wrong = file.first_wrong(pointers)
    if wrong is not None:
        raise CorruptRecord(
            "pointer",
            place + wrong * 4,
            "address",
            int(pointers[wrong]),
            f"0, or one of the volume's {file.header.total} {file.kind.name}",
        )
