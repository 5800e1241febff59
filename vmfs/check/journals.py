"""Journals and orphan tables: what a crash left to be done, and the volume as it will be then.

After a kill, the place of a committed transaction may still hold the old bytes; the next mount
writes the new ones before it does anything else. A check that looked past that would report damage
that nobody will ever see. So the transactions that are to be replayed are laid over the volume in
memory, and everything else is checked through that `Overlay`. The rules are those of
docs/journal.md, applied here a second time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmfs.check.findings import Findings
from vmfs.check.reader import Reader, Source, SystemFile, system_file
from vmfs.check.slots import Slots, describe
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, VolumeParameters
from vmfs.ondisk.heartbeat import slot_offset
from vmfs.ondisk.journal_rec import (
    ORPHAN_TABLE_SIZE,
    REGION_SIZE_MIN,
    CommitSector,
    CommitState,
    JournalLayout,
    half_of,
    unpack_body,
)
from vmfs.ondisk.orphan_rec import OrphanEntry, OrphanSector
from vmfs.units import SECTOR_SIZE

Run = tuple[int, bytes]
"""LV offset, and the sectors to be written there."""

_HALVES: Final = (0, 1)


class Overlay:
    """A volume with sectors laid over it: reads as it will read after replay. Never written."""

    def __init__(self, below: Source) -> None:
        """Nothing laid over it yet."""
        self._below = below
        self._sectors: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self._below.size

    @property
    def name(self) -> str:
        """The name of the device below."""
        return self._below.name

    @property
    def sector_count(self) -> int:
        """Sectors that read differently from the device below."""
        return len(self._sectors)

    def lay(self, runs: Sequence[Run]) -> list[int]:
        """Put runs on top; returns the offsets that were covered already."""
        covered = []
        for offset, data in runs:
            for at in range(0, len(data), SECTOR_SIZE):
                if offset + at in self._sectors:
                    covered.append(offset + at)
                self._sectors[offset + at] = data[at : at + SECTOR_SIZE]
        return covered

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        data = await self._below.read(offset, length)
        first, last = offset // SECTOR_SIZE, -(-(offset + length) // SECTOR_SIZE)
        if last - first <= len(self._sectors):
            inside = range(first * SECTOR_SIZE, last * SECTOR_SIZE, SECTOR_SIZE)
            touched = [sector for sector in inside if sector in self._sectors]
        else:
            touched = [s for s in self._sectors if first <= s // SECTOR_SIZE < last]
        if not touched:
            return data
        patched = bytearray(data)
        for sector in touched:
            start, end = max(sector, offset), min(sector + SECTOR_SIZE, offset + length)
            piece = self._sectors[sector][start - sector : end - sector]
            patched[start - offset : end - offset] = piece
        return bytes(patched)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRegion:
    """One host's journal, found through `.vlj.sf`."""

    slot: SlotIndex
    layout: JournalLayout


@dataclass(slots=True)
class Orphans:
    """What the orphan tables name, and where each entry stands."""

    entries: dict[FdAddress, OrphanEntry] = field(default_factory=dict)
    places: dict[FdAddress, int] = field(default_factory=dict)

    @property
    def generations(self) -> Mapping[FdAddress, int]:
        """Generation of each file that is named."""
        return {address: entry.generation for address, entry in self.entries.items()}


def read_parameters(reader: Reader, findings: Findings) -> VolumeParameters | None:
    """Our own parameters of the volume; None when it is not ours, or they are damaged."""
    try:
        return reader.descriptor.parameters()
    except CorruptRecord as error:
        findings.add("descriptor-corrupt", str(error), address=DESCRIPTOR_OFFSET)
        return None


async def find_regions(
    reader: Reader, parameters: VolumeParameters, findings: Findings
) -> list[JournalRegion]:
    """Every journal region of the volume."""
    try:
        file = await system_file(reader, await reader.node(parameters.journal_fd))
        return [
            _region(file, index, parameters.journal_size)
            for index in range(parameters.journal_count)
        ]
    except CorruptRecord as error:
        findings.add("journal-corrupt", str(error), fd=parameters.journal_fd)
        return []


def _region(file: SystemFile, index: int, size: int) -> JournalRegion:
    pieces = file.ranges(index * size, size)
    if len(pieces) != 1 or size < REGION_SIZE_MIN:
        raise CorruptRecord(
            "journal region", index, "pieces", len(pieces), "1, of whole adjacent blocks"
        )
    return JournalRegion(slot=SlotIndex(index), layout=JournalLayout(pieces[0][0], size))


async def lay_journals(
    reader: Reader, regions: Sequence[JournalRegion], slots: Slots, findings: Findings
) -> Overlay:
    """The volume with every transaction that waits for replay laid over it."""
    overlay = Overlay(reader.device)
    for region in regions:
        at = region.layout.region_offset
        try:
            commit = await newest_commit(reader, region)
            if commit is None or commit.state is CommitState.DONE:
                continue
            runs = await committed_runs(reader, region, commit)
        except CorruptRecord as error:
            findings.add("journal-corrupt", f"slot {region.slot}: {error}", address=at)
            continue
        what = f"transaction {commit.sequence} of {len(runs)} runs"
        slot = slots.by_offset.get(slot_offset(region.slot))
        if slot is None or not slot.is_in_use:
            text = f"slot {region.slot} is free, but its journal holds {what}: nobody replays it"
            findings.add("journal-corrupt", text, address=at)
            continue
        text = f"{describe(slot)}: {what} may not be in place; it is checked as if it were"
        findings.add("needs-replay", text, address=at)
        for sector in overlay.lay(runs)[:1]:
            text = f"slot {region.slot} and another journal both write sector {sector:#x}"
            findings.add("journal-overlap", text, address=at)
    findings.statistics["replayed_sectors"] = overlay.sector_count
    return overlay


async def newest_commit(reader: Reader, region: JournalRegion) -> CommitSector | None:
    """The commit sector that counts; None in a journal that was never used.

    Raises:
        CorruptRecord: one of the two is damaged, or they cannot stand side by side.
    """
    layout, name = region.layout, CommitSector.NAME
    found: list[CommitSector] = []
    for half in _HALVES:
        at = layout.commit_offset(half)
        commit = CommitSector.unpack(await reader.read(at, SECTOR_SIZE), address=at)
        if commit is None:
            continue
        if commit.slot != region.slot:
            raise CorruptRecord(name, at, "slot", commit.slot, region.slot)
        if half_of(commit.sequence) != half:
            raise CorruptRecord(name, at, "sequence", commit.sequence, f"one of half {half}")
        if commit.body_size > layout.body_size:
            raise CorruptRecord(name, at, "body size", commit.body_size, layout.body_size)
        found.append(commit)
    if not found:
        return None
    newest = max(found, key=lambda commit: commit.sequence)
    older = min(commit.sequence for commit in found) if len(found) == len(_HALVES) else 0
    if older != newest.sequence - 1:
        raise CorruptRecord(name, newest.lv_offset, "sequence", newest.sequence, older + 1)
    return newest


async def committed_runs(reader: Reader, region: JournalRegion, commit: CommitSector) -> list[Run]:
    """What the transaction writes.

    Raises:
        CorruptRecord: its body is not what was committed, or it would write over a journal.
    """
    layout = region.layout
    at = layout.body_offset(half_of(commit.sequence))
    body = await reader.read(at, commit.body_size)
    if not commit.matches(body):
        raise CorruptRecord("journal transaction", at, "digest", "another", "the commit sector's")
    runs = unpack_body(body, run_count=commit.run_count, address=at, lv_size=reader.device.size)
    for offset, data in runs:
        if offset < layout.orphan_offset and offset + len(data) > layout.region_offset:
            raise CorruptRecord("journal run", at, "offset", offset, "outside the journal itself")
    return runs


async def read_orphans(
    reader: Reader, regions: Sequence[JournalRegion], findings: Findings
) -> Orphans:
    """Every entry of every orphan table (read through the overlay: they change by transaction)."""
    orphans = Orphans()
    for region in regions:
        start = region.layout.orphan_offset
        table = await reader.read(start, ORPHAN_TABLE_SIZE)
        if not any(table):
            continue
        for at in range(0, ORPHAN_TABLE_SIZE, SECTOR_SIZE):
            data = table[at : at + SECTOR_SIZE]
            try:
                sector = OrphanSector.unpack(data, address=start + at, slot=region.slot)
            except CorruptRecord as error:
                findings.add("orphan-table-corrupt", str(error), address=start + at)
                continue
            for entry in sector.entries:
                if entry is not None:
                    orphans.entries[entry.fd_address] = entry
                    orphans.places[entry.fd_address] = start + at
    return orphans
