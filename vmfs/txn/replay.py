"""What a journal says after a crash: which one transaction, if any, must be written again. Pure.

Each rule is one sentence of `docs/journal.md`:

* the commit sector with the highest sequence is the only one that counts;
* COMMITTED: that transaction is replayed, DONE: nothing is;
* the other half holds the transaction just before it (or was never written).
"""

from collections.abc import Sequence

from vmfs.errors import CorruptRecord
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import CommitSector, CommitState, JournalLayout, half_of, unpack_body

_RECORD = CommitSector.NAME


def newest_commit(
    sectors: Sequence[bytes], *, layout: JournalLayout, slot: SlotIndex
) -> CommitSector | None:
    """Judge the two commit sectors of a journal.

    Args:
        sectors: both, as read at `layout.commit_offset`.
        layout: of the region they are from.
        slot: whose journal it must be.

    Returns:
        The one that counts; None for a journal in which nothing was ever committed.

    Raises:
        CorruptRecord: one of them is damaged, or they cannot have been written by one journal.
    """
    found: list[CommitSector] = []
    for half, data in enumerate(sectors):
        address = layout.commit_offset(half)
        commit = CommitSector.unpack(data, address=address)
        if commit is None:
            continue
        if commit.slot != slot:
            raise CorruptRecord(_RECORD, address, "slot", commit.slot, slot)
        if half_of(commit.sequence) != half:
            raise CorruptRecord(
                _RECORD, address, "sequence", commit.sequence, f"one of half {half}"
            )
        if commit.body_size > layout.body_size:
            raise CorruptRecord(
                _RECORD, address, "body size", commit.body_size, f"up to {layout.body_size}"
            )
        found.append(commit)
    found.sort(key=lambda commit: commit.sequence)
    if not found:
        return None
    newest = found[-1]
    expected = newest.sequence - 1
    before = found[0].sequence if len(found) == 2 else 0
    if before != expected:
        raise CorruptRecord(
            _RECORD,
            layout.commit_offset(half_of(expected)),
            "sequence",
            before,
            expected,
        )
    if found[0].generation > newest.generation:
        raise CorruptRecord(
            _RECORD, newest.lv_offset, "generation", newest.generation, found[0].generation
        )
    return newest


def needs_replay(newest: CommitSector | None) -> bool:
    """Whether there is a committed transaction that may not be in place."""
    return newest is not None and newest.state is CommitState.COMMITTED


def runs_to_replay(
    commit: CommitSector, body: bytes, *, layout: JournalLayout, lv_size: int
) -> list[tuple[int, bytes]]:
    """What to write where, in order to have the committed transaction in place.

    Args:
        commit: the sector that counts, COMMITTED.
        body: `commit.body_size` bytes of its half.
        layout: of the region they are from.
        lv_size: bytes of the logical volume.

    Raises:
        CorruptRecord: the body is not what was committed (the LUN lost or damaged a write that it
            had reported as durable), or it would write outside the volume or over the journal.
    """
    address = layout.body_offset(half_of(commit.sequence))
    if not commit.matches(body):
        raise CorruptRecord(
            "journal transaction",
            address,
            "digest of the body",
            "another",
            f"{commit.body_digest.hex()} (sequence {commit.sequence})",
        )
    runs = unpack_body(body, run_count=commit.run_count, address=address, lv_size=lv_size)
    for offset, data in runs:
        if offset < layout.orphan_offset and offset + len(data) > layout.region_offset:
            raise CorruptRecord(
                "journal run", address, "offset", offset, "a place outside the journal itself"
            )
    return runs
