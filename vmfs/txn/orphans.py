"""A host's orphan table, in memory and staged: what must be finished after a crash.

Only the table; `vmfs.files.orphans` does the work. An entry changes in the same transaction as the
file that it is about, so after a crash the table says exactly what is left to do. The host that
recovers a dead one loads that host's table too and moves the entries to its own.
"""

from dataclasses import replace

from vmfs.errors import CorruptRecord, NoSpace
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.journal_rec import ORPHAN_TABLE_SIZE, JournalLayout
from vmfs.ondisk.orphan_rec import ORPHAN_SECTOR_COUNT, OrphanEntry, OrphanSector
from vmfs.txn.transaction import Transactions
from vmfs.units import SECTOR_SIZE

_Place = tuple[int, int]
"""Index of the sector in the table, index of the place in the sector."""


class OrphanTable:
    """The orphans of one heartbeat slot: at most one entry for each file descriptor."""

    def __init__(
        self,
        transactions: Transactions,
        region_offset: int,
        region_size: int,
        slot: SlotIndex,
    ) -> None:
        """Name the journal region that the table is at the end of; `load` before anything else."""
        self._transactions = transactions
        self._offset = JournalLayout(region_offset, region_size).orphan_offset
        self._slot = slot
        self._sectors: list[OrphanSector] = []
        self._places: dict[FdAddress, _Place] = {}
        self._free: list[_Place] = []

    async def load(self) -> None:
        """Read the table, staged changes included.

        Raises:
            CorruptRecord: a sector is damaged, or a file stands in the table twice.
            DeviceError: the LUN cannot be read.
        """
        data = await self._transactions.read(self._offset, ORPHAN_TABLE_SIZE)
        self._sectors = [
            OrphanSector.unpack(
                data[index * SECTOR_SIZE : (index + 1) * SECTOR_SIZE],
                address=self._offset + index * SECTOR_SIZE,
                slot=self._slot,
            )
            for index in range(ORPHAN_SECTOR_COUNT)
        ]
        self._places = {}
        self._free = []
        for index, sector in enumerate(self._sectors):
            for place, entry in enumerate(sector.entries):
                if entry is None:
                    self._free.append((index, place))
                elif entry.fd_address in self._places:
                    raise CorruptRecord(
                        OrphanSector.NAME, sector.lv_offset, "file", entry.fd_address, "only once"
                    )
                else:
                    self._places[entry.fd_address] = (index, place)
        self._free.reverse()  # so that pop() takes the first place of the table

    @property
    def free_count(self) -> int:
        """How many entries still fit."""
        return len(self._free)

    def __len__(self) -> int:
        return len(self._places)

    def entries(self) -> list[OrphanEntry]:
        """Every orphan, in the order of the table."""
        return [entry for sector in self._sectors for entry in sector.entries if entry is not None]

    def find(self, fd_address: FdAddress) -> OrphanEntry | None:
        """The entry of a file descriptor, if it has one."""
        place = self._places.get(fd_address)
        return None if place is None else self._sectors[place[0]].entries[place[1]]

    def add(self, entry: OrphanEntry) -> None:
        """Stage `entry`; one that the same file descriptor has already is replaced.

        Raises:
            NoSpace: the table is full; nothing is staged.
        """
        place = self._places.get(entry.fd_address)
        if place is None:
            if not self._free:
                raise NoSpace(
                    f"the orphan table of slot {self._slot} is full: "
                    f"{len(self._places)} files wait for being freed"
                )
            place = self._free[-1]
        self._stage(place, entry)
        if entry.fd_address not in self._places:
            self._places[entry.fd_address] = self._free.pop()

    def remove(self, entry: OrphanEntry) -> None:
        """Stage the table without the entry of this file descriptor, which must be in it."""
        place = self._places[entry.fd_address]
        self._stage(place, None)
        del self._places[entry.fd_address]
        self._free.append(place)

    def check_invariants(self) -> None:
        """For tests: places and entries name each other, and every place is one or the other."""
        for fd_address, (index, place) in self._places.items():
            entry = self._sectors[index].entries[place]
            assert entry is not None, f"no entry at {index}, {place}"
            assert entry.fd_address == fd_address, f"entry at {index}, {place}"
        places = set(self._places.values()) | set(self._free)
        assert len(places) == len(self._places) + len(self._free), "a place twice"
        assert len(places) == ORPHAN_SECTOR_COUNT * OrphanSector.PLACES, "a place is lost"

    def _stage(self, place: _Place, entry: OrphanEntry | None) -> None:
        index, position = place
        sector = self._sectors[index]
        entries = (*sector.entries[:position], entry, *sector.entries[position + 1 :])
        changed = replace(sector, entries=entries)
        self._transactions.stage(changed.lv_offset, changed.pack())
        self._sectors[index] = changed
