"""The tree of pointers of one file, as far as it is in memory: followed, checked, kept, staged.

    FileDesc.zla, slots ─► pointer blocks (`tables`, by address) ─► addresses of file blocks

`PointerTree` knows no bytes of the file and decides nothing; `vmfs.space.block_map` does both.

Invariants: a pointer is never followed before it was checked against the resource file of its
kind; the depth follows from the level alone, so damaged pointers cannot make a loop; at most
`TABLES_MAX` pointer blocks stay in memory; tables are never written to, but replaced.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np

from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import LvOffset
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import DATA_OFFSET, FileDesc, Zla
from vmfs.space import index_path
from vmfs.space.index_path import Pointers, Shape
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFiles, is_cow
from vmfs.units import SECTOR_SIZE, align_up

TABLES_MAX: Final = 256
"""Pointer blocks that one file keeps in memory: 1 MiB, enough for 256 GiB of it."""

LOAD_TABLES_MAX: Final = TABLES_MAX // 4
"""Pointer blocks of the last level that one `load` may ask for: a range of 64 GiB."""

_PER_SECTOR: Final = SECTOR_SIZE // 4


@cache
def _no_pointers(slots: int) -> Pointers:
    """Zeros, the same ones for every resident file: there are many."""
    none: Pointers = np.zeros(slots, np.uint32)
    none.flags.writeable = False
    return none


class PointerTree:
    """Level, slots and known pointer blocks of one file. `version` grows with every change."""

    def __init__(
        self,
        *,
        desc: FileDesc,
        pointers: Pointers,
        shape: Shape,
        staging: Staging,
        files: ResourceFiles,
    ) -> None:
        """Nothing is checked or read before it is needed."""
        self.zla = desc.zla
        resident = desc.zla is Zla.RESIDENT
        self.pointers = _no_pointers(shape.slots) if resident else pointers
        self.shape = shape
        self.files = files
        self.version = 0
        self._owner = desc.address
        self._staging = staging
        self._tables: dict[int, Pointers] = {}  # by address; least recently used first
        self._sample: dict[int, int] = {}  # of each: index of some pointer that is in use, if any
        self._slots_checked = False

    @property
    def tables(self) -> Mapping[int, Pointers]:
        """The pointer blocks in memory, by address."""
        return self._tables

    def check_slots(self) -> None:
        """Check the descriptor's own pointers, once.

        Raises:
            CorruptRecord: one names no resource of the kind that must stand there.
            Unsupported: the level is one that only VMFS-6 is known to use.
        """
        if self._slots_checked or self.zla is Zla.RESIDENT:
            return
        if self.zla not in (Zla.SB, Zla.FB, Zla.PB, Zla.DOUBLE):
            raise Unsupported(
                f"file {self._owner:#010x} has block list type {self.zla.name}, "
                "which only VMFS-6 is known to use"
            )
        place = self.files[AddressType.FD].address_lv_offset(self._owner)
        self._check(self.pointers, index_path.slot_types(self.zla), LvOffset(place + DATA_OFFSET))
        self._slots_checked = True

    async def load(self, start: int, count: int) -> None:
        """Have all pointer blocks on the way to these file blocks in memory at once.

        Raises:
            CorruptRecord: a pointer is damaged.
            DeviceError: a pointer block cannot be read.
        """
        if index_path.depth(self.zla) == 0 or (count == 1 and self._has(start)):
            return
        complete = False
        while not complete:  # until a pass finds all of them: others may be loading too
            complete = True
            for leaf in index_path.leaves(self.zla, start, count, self.shape):
                complete &= not await self._load_leaf(leaf.path)

    def is_loaded(self, start: int, count: int) -> bool:
        """Whether `gather` can answer for these file blocks without a `load` before."""
        if count == 1:
            return self._slots_checked and self._has(start)
        return self._slots_checked and all(
            self._has(leaf.start) for leaf in index_path.leaves(self.zla, start, count, self.shape)
        )

    async def load_table(self, address: int, holds: tuple[AddressType, ...]) -> Pointers:
        """One pointer block, checked to hold addresses of the kinds `holds` and no others.

        Raises:
            CorruptRecord, DeviceError: as `load`.
        """
        file = self.files[AddressType(address & 7)]
        while address not in self._tables:
            version = self.version
            data = await file.read(self._staging, address)
            if version != self.version:
                continue  # changed while this task read; what it has may be old
            table = np.frombuffer(data, dtype="<u4").astype(np.uint32)
            self._check(table, holds, file.address_lv_offset(address))
            self._keep(address, table)
        table = self._tables.pop(address)
        self._tables[address] = table
        used = table[self._sample[address]]
        if used and used & 7 not in holds:  # loaded before, as a block of another level
            self._check(table, holds, file.address_lv_offset(address))
        return table

    def at(self, block: int) -> int:
        """The address of one file block, which was loaded; 0 where there is none."""
        *steps, last = index_path.path(self.zla, block, self.shape)
        table = self._leaf(steps)
        return 0 if table is None else int(table[last])

    def gather(self, start: int, count: int) -> Pointers:
        """The addresses of adjacent file blocks, which were loaded; 0 where there is none."""
        parts = [np.empty(0, dtype=np.uint32)]
        for leaf in index_path.leaves(self.zla, start, count, self.shape):
            table = self._leaf(leaf.path)
            if table is None:
                parts.append(np.zeros(leaf.count, dtype=np.uint32))
            else:
                parts.append(table[leaf.first : leaf.first + leaf.count])
        return np.concatenate(parts)

    def lacks_all(self, start: int, count: int) -> bool:
        """Whether addresses, and nothing else, are missing for all of these file blocks.

        False as well when that is not known without a `load`, or they have more than one leaf.
        """
        if not self._slots_checked or not self._has(start):
            return False
        *steps, first = index_path.path(self.zla, start, self.shape)
        table = self._leaf(steps)
        if table is None or first + count > len(table) or table[first : first + count].any():
            return False
        return not (steps and is_cow(self._leaf_address(steps)))

    def assign(self, start: int, addresses: Pointers) -> None:
        """Give file blocks that `lacks_all` is true of their addresses; stages their pointer block.

        At level FB nothing is staged: the slots are the descriptor's, which the caller stages.
        """
        *steps, first = index_path.path(self.zla, start, self.shape)
        before = self._leaf(steps)
        assert before is not None
        after = before.copy()
        after[first : first + len(addresses)] = addresses
        self.version += 1
        if not steps:
            self.pointers = after
            return
        address = self._leaf_address(steps)
        low = first * 4 // SECTOR_SIZE * SECTOR_SIZE
        high = align_up((first + len(addresses)) * 4, SECTOR_SIZE)
        changed = after[low // 4 : high // 4].astype("<u4").tobytes()
        self.files[AddressType(address & 7)].stage(self._staging, address, changed, offset=low)
        self._keep(address, after)

    def last_before(self, block: int) -> int:
        """The address nearest in front of a file block, as far as its leaf is in memory; or 0."""
        if not 0 < block <= index_path.reach(self.zla, self.shape):
            return 0
        *steps, last = index_path.path(self.zla, block - 1, self.shape)
        table = self.pointers
        for step in steps:
            known = self._tables.get(int(table[step]))
            if known is None:
                return 0
            table = known
        used = table[: last + 1][table[: last + 1] != 0]
        return int(used[-1]) if len(used) else 0

    def adopt(self, zla: Zla, pointers: Pointers, tables: Mapping[int, Pointers]) -> None:
        """Be this tree from now on; `tables` are the pointer blocks that changed."""
        self.zla = zla
        self.pointers = pointers
        self.version += 1
        for address, table in tables.items():
            self._keep(address, table)

    def forget(self, address: int) -> None:
        """That pointer block is no longer this file's."""
        self._tables.pop(address, None)
        self._sample.pop(address, None)

    def stage(self, address: int, before: Pointers | None, after: Pointers) -> None:
        """Stage a pointer block: as a whole when it is new, else the sectors that changed."""
        file = self.files[AddressType(address & 7)]
        data = after.astype("<u4").tobytes()
        if before is None:
            file.stage(self._staging, address, data)
            return
        changed = np.flatnonzero((before != after).reshape(-1, _PER_SECTOR).any(axis=1))
        for piece in np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1):
            if len(piece):
                start, end = int(piece[0]) * SECTOR_SIZE, (int(piece[-1]) + 1) * SECTOR_SIZE
                file.stage(self._staging, address, data[start:end], offset=start)

    async def _load_leaf(self, path: tuple[int, ...]) -> bool:
        """Load what is missing on the way to a leaf, and it; True when something was read."""
        address = int(self.pointers[path[0]]) if path else 0
        kinds = (index_path.POINTER_BLOCKS, index_path.FILE_BLOCKS)[-len(path) :] if path else ()
        waited = False
        for level, holds in enumerate(kinds, 1):
            if not address:
                break
            waited |= address not in self._tables
            table = await self.load_table(address, holds)
            address = int(table[path[level]]) if level < len(path) else 0
        return waited

    def _has(self, block: int) -> bool:
        """Whether all on the way to one file block is in memory, and no damage was seen there."""
        *steps, _ = index_path.path(self.zla, block, self.shape)
        table = self.pointers
        for level, step in enumerate(steps, 1):
            address = int(table[step])
            if not address:
                return True
            known = self._tables.get(address)
            if known is None:
                return False
            used = int(known[self._sample[address]])
            if used and (used & 7 == AddressType.FB) != (level == len(steps)):
                return False
            table = known
        return True

    def _leaf(self, path: Sequence[int]) -> Pointers | None:
        """What holds the addresses at `path`; None when there is no such pointer block."""
        table = self.pointers
        for step in path:
            address = int(table[step])
            if not address:
                return None
            known = self._tables.get(address)
            assert known is not None, f"pointer block {address:#010x} was not loaded"
            table = known
        return table

    def _leaf_address(self, path: Sequence[int]) -> int:
        """The address of the pointer block at `path`, which is not empty and was loaded."""
        *above, step = path
        table = self._leaf(above)
        return 0 if table is None else int(table[step])

    def _keep(self, address: int, table: Pointers) -> None:
        table.flags.writeable = False
        self._tables.pop(address, None)
        self._tables[address] = table
        self._sample[address] = int(table.argmax())
        while len(self._tables) > TABLES_MAX:
            self.forget(next(iter(self._tables)))

    def _check(self, pointers: Pointers, kinds: tuple[AddressType, ...], place: LvOffset) -> None:
        """Every pointer that stands at `place` is 0, or a resource of one of these kinds."""
        wrong = pointers != 0
        for kind in kinds:
            wrong &= self.files[kind].wrong(pointers)
        if wrong.any():
            index = int(wrong.argmax())
            raise CorruptRecord(
                "pointer",
                place + index * 4,
                "address",
                int(pointers[index]),
                " or ".join(["0", *(f"a {kind.name} of the volume" for kind in kinds)]),
            )
