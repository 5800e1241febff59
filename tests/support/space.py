"""A tiny volume for the space floor: two hosts, transactions and locks without journal and lockd.

The fakes keep the two promises that the floor builds on: what is staged is seen by this host at
once and by others after it was put in place; a lock changes hands only after its holder has
checkpointed and forgotten.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import numpy as np

from vmfs.errors import LockBusy
from vmfs.ids import SlotIndex
from vmfs.locks.order import LockId
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, ClusterMeta, ResourceHeader
from vmfs.space import bitmap
from vmfs.space.allocator import Allocator
from vmfs.space.system_file import KINDS, ResourceFile, ResourceFiles
from vmfs.units import SECTOR_SIZE, div_ceil

BLOCK_SIZE: Final = 4096
SUB_BLOCK_SIZE: Final = 1536
"""Three sectors: sub-blocks straddle file blocks."""
POINTER_BLOCK_SIZE: Final = 512
FANOUT: Final = POINTER_BLOCK_SIZE // 4

_SIZES: Final = {
    AddressType.FB: 0,
    AddressType.SB: SUB_BLOCK_SIZE,
    AddressType.PB: POINTER_BLOCK_SIZE,
    AddressType.PB2: POINTER_BLOCK_SIZE,
    AddressType.FD: 2048,
}


def tiny_files(
    *, totals: dict[AddressType, int], per_cluster: int = 4, per_group: int = 2
) -> ResourceFiles:
    """Resource files behind the blocks that they give out, their own blocks out of order."""
    files: dict[AddressType, ResourceFile] = {}
    next_block = totals[AddressType.FB]
    for kind in KINDS:
        size = _SIZES[kind]
        group = per_group * (CLUSTER_HEADER_SIZE + per_cluster * size)
        header = ResourceHeader(
            resources_per_cluster=per_cluster,
            clusters_per_group=per_group,
            first_group=SECTOR_SIZE * 2,
            resource_size=size,
            group_size=group,
            total=totals[kind],
            groups=div_ceil(totals[kind], per_group * per_cluster),
        )
        count = div_ceil(header.file_size, BLOCK_SIZE)
        blocks = np.arange(next_block, next_block + count, dtype=np.int64)[::-1].copy()
        next_block += count
        files[kind] = ResourceFile(kind=kind, header=header, blocks=blocks, block_size=BLOCK_SIZE)
    return files


class Disk:
    """Sectors by LV offset; what was never written reads as zero."""

    def __init__(self, files: ResourceFiles) -> None:
        """A volume on which everything is free."""
        self.files = files
        self.sectors: dict[int, bytes] = {}
        for file in files.values():
            for cluster in range(file.cluster_count):
                total = file.header.cluster_total(cluster)
                meta = ClusterMeta.with_bits(
                    number=cluster, total=total, free_bits=(1 << total) - 1
                )
                self.sectors[file.cluster_meta_offset(cluster)] = meta.pack()

    def used(self, kind: AddressType) -> set[int]:
        """Addresses in use, as the bitmaps in place say."""
        file = self.files[kind]
        found: set[int] = set()
        for cluster in range(file.cluster_count):
            place = file.cluster_meta_offset(cluster)
            meta = ClusterMeta.unpack(self.sectors[place], address=place, number=cluster)
            taken = np.flatnonzero(~bitmap.free_mask(meta))
            found |= {int(address) for address in file.pack(cluster, taken)}
        return found


class FakeStaging:
    """One host's transactions: running, then journaled (live), then only in place."""

    def __init__(self, disk: Disk) -> None:
        """Nothing staged."""
        self.disk = disk
        self.running: dict[int, bytes] = {}
        self.journaled: dict[int, bytes] = {}
        self.callbacks: list[Callable[[], None]] = []
        self.reads: list[int] = []
        self.staged_size = 0

    async def read(self, offset: int, length: int) -> bytes:
        """Sectors, staged changes included."""
        assert offset % SECTOR_SIZE == length % SECTOR_SIZE == 0
        self.reads.append(offset)
        return b"".join(
            self.running.get(at) or self.disk.sectors.get(at) or bytes(SECTOR_SIZE)
            for at in range(offset, offset + length, SECTOR_SIZE)
        )

    def stage(self, offset: int, data: bytes) -> None:
        """Put whole sectors into the running transaction."""
        assert offset % SECTOR_SIZE == len(data) % SECTOR_SIZE == 0
        self.staged_size += len(data)
        for at in range(0, len(data), SECTOR_SIZE):
            self.running[offset + at] = data[at : at + SECTOR_SIZE]

    def discard(self, offset: int, length: int) -> None:
        """Drop what is staged in a range."""
        for at in [at for at in self.running if offset <= at < offset + length]:
            del self.running[at]

    def is_live(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether a sector in the ranges is staged or journaled."""
        live = [*self.running, *self.journaled]
        return any(start <= at < start + length for start, length in ranges for at in live)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back after the next commit."""
        self.callbacks.append(callback)

    async def commit(self) -> None:
        """Put everything in place; it stays live."""
        self.disk.sectors |= self.running
        self.journaled, self.running = self.running, {}
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    async def checkpoint(self) -> None:
        """Commit, and nothing is live."""
        await self.commit()
        self.journaled = {}


@dataclass
class FakePin:
    """A pin that counts."""

    lock: LockId
    mode: LockMode
    token: int
    owner: "FakeLocks"
    released: bool = False

    def release(self) -> None:
        """Once."""
        if not self.released:
            self.released = True
            self.owner.pins[self.lock] -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass
class LockTable:
    """Who has what, across the hosts."""

    holders: dict[LockId, "FakeLocks"] = field(default_factory=dict)
    tokens: dict[LockId, int] = field(default_factory=dict)


class FakeLocks:
    """One host's cluster locks."""

    def __init__(self, table: LockTable) -> None:
        """Holds nothing."""
        self.table = table
        self.pins: dict[LockId, int] = {}
        self.asked: list[LockId] = []  # of other hosts
        self.waited: list[LockId] = []  # every proper acquisition, in order
        self.host: Host | None = None

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin:
        """As the protocol says."""
        held_back = [held for held, count in self.pins.items() if count and held >= lock]
        assert not held_back, f"{lock} wanted while {held_back} are pinned"
        self.waited.append(lock)
        holder = self.table.holders.get(lock)
        if holder is not None and holder is not self:
            self.asked.append(lock)
            await holder.give_up(lock)
        return self._pin(lock, mode)

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin | None:
        """As the protocol says."""
        holder = self.table.holders.get(lock)
        return None if holder not in (None, self) else self._pin(lock, mode)

    def try_cached(self, lock: LockId, mode: LockMode, *, label: str = "") -> FakePin | None:
        """As the protocol says."""
        return self._pin(lock, mode) if self.table.holders.get(lock) is self else None

    async def give_up(self, lock: LockId) -> None:
        """What the holder does when it is asked."""
        if self.pins.get(lock):
            raise LockBusy(f"{lock} is in use", holder="the other host")
        assert self.host is not None
        await self.host.staging.checkpoint()
        self.host.allocator.drop(lock)
        del self.table.holders[lock]

    def _pin(self, lock: LockId, mode: LockMode) -> FakePin:
        assert mode is LockMode.EXCLUSIVE
        if self.table.holders.get(lock) is not self:
            self.table.holders[lock] = self
            self.table.tokens[lock] = self.table.tokens.get(lock, 0) + 1
        self.pins[lock] = self.pins.get(lock, 0) + 1
        return FakePin(lock, mode, self.table.tokens[lock], self)


class Host:
    """One mount, as far as this floor goes."""

    def __init__(self, disk: Disk, table: LockTable, slot: int) -> None:
        """Shares `disk` and `table` with the other hosts."""
        self.staging = FakeStaging(disk)
        self.locks = FakeLocks(table)
        self.locks.host = self
        self.allocator = Allocator(
            staging=self.staging, locks=self.locks, files=disk.files, slot=SlotIndex(slot)
        )

    @property
    def pinned(self) -> list[LockId]:
        """Pins that nobody released."""
        return [lock for lock, count in self.locks.pins.items() if count]
