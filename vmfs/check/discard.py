"""Giving a damaged journal up: what is wrong with it, what is lost, and in which order it goes.

A damaged commit sector is not treated as missing (docs/journal.md): recovery stops there, and no
host mounts the volume. When nothing better is to be had, the journal is made empty, and the volume
stands as the writes of that host have left it. The last transaction that it committed, up to 5 s of
its work, may then be in place, or not, or in part.

An empty journal is two sectors of zeroes. Between the two writes a crash must not leave one sector
that looks like a whole journal, so what is sound goes first, and what is damaged last.
"""

from dataclasses import dataclass

from vmfs.check.findings import Findings
from vmfs.check.journals import (
    JournalRegion,
    committed_runs,
    find_regions,
    newest_commit,
    read_parameters,
)
from vmfs.check.reader import Reader, Source, open_volume
from vmfs.check.slots import Slots, describe, read_slots
from vmfs.errors import CorruptRecord, InvalidArgument
from vmfs.ids import LvOffset, SlotIndex
from vmfs.ondisk.heartbeat import slot_offset
from vmfs.ondisk.journal_rec import CommitSector, CommitState


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardPlan:
    """A damaged journal, and how it is made an empty one."""

    owner: str
    damage: str
    halves: tuple[str, ...]  # what each of the two halves says
    order: tuple[LvOffset, ...]  # commit sectors, as they must be zeroed, each durably


async def plan_discard(source: Source, index: SlotIndex) -> DiscardPlan:
    """Look at the journal of one slot, as it stands.

    Args:
        source: the logical volume.
        index: of the heartbeat slot.

    Raises:
        InvalidArgument: there is no such journal, or it is sound.
        VmfsError: the volume cannot be read so far.
    """
    findings = Findings()
    reader = await open_volume(source)
    parameters = read_parameters(reader, findings)
    regions = [] if parameters is None else await find_regions(reader, parameters, findings)
    region = next((region for region in regions if region.slot == index), None)
    if region is None:
        raise InvalidArgument(f"journal of slot {index}: there are {len(regions)} journals")
    slots = await read_slots(reader, findings)
    damage = await _damage(reader, region, slots)
    if not damage:
        raise InvalidArgument(f"the journal of slot {index} is sound: there is nothing to discard")
    slot = slots.by_offset.get(slot_offset(index))
    halves = [await _commit(reader, region, half) for half in (0, 1)]
    return DiscardPlan(
        owner=describe(slot) if slot is not None and slot.is_in_use else f"nobody (slot {index})",
        damage=damage,
        halves=tuple(_words(half, commit) for half, commit in enumerate(halves)),
        order=tuple(
            LvOffset(region.layout.commit_offset(half))
            for half in sorted((0, 1), key=lambda half: _rank(halves[half]))
        ),
    )


async def _damage(reader: Reader, region: JournalRegion, slots: Slots) -> str:
    """What makes recovery stop; empty: nothing does."""
    try:
        commit = await newest_commit(reader, region)
        if commit is None or commit.state is CommitState.DONE:
            return ""
        await committed_runs(reader, region, commit)
    except CorruptRecord as error:
        return str(error)
    slot = slots.by_offset.get(slot_offset(region.slot))
    if slot is not None and slot.is_in_use:
        return ""
    return f"the slot is free, and transaction {commit.sequence} still waits for replay"


async def _commit(
    reader: Reader, region: JournalRegion, half: int
) -> CommitSector | CorruptRecord | None:
    at = region.layout.commit_offset(half)
    try:
        return CommitSector.unpack(await reader.read(at, CommitSector.SIZE), address=at)
    except CorruptRecord as error:
        return error


def _words(half: int, commit: CommitSector | CorruptRecord | None) -> str:
    match commit:
        case None:
            return f"half {half} was never used"
        case CorruptRecord():
            return f"half {half} is damaged: what it said is not known"
        case CommitSector(state=CommitState.DONE):
            return f"half {half} holds transaction {commit.sequence}, in place"
        case _:
            return f"half {half} holds transaction {commit.sequence}, perhaps not in place"


def _rank(commit: CommitSector | CorruptRecord | None) -> tuple[bool, int]:
    """Sound ones first, the older before the newer."""
    if isinstance(commit, CorruptRecord):
        return True, 0
    return False, commit.sequence if commit is not None else 0
