"""Which transaction a journal asks for, decided from its bytes."""

import pytest

from vmfs.device.memory import MemoryDevice
from vmfs.errors import CorruptRecord
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import CommitSector, CommitState, JournalLayout, pack_body
from vmfs.txn.recovery import replay_journal
from vmfs.txn.replay import needs_replay, newest_commit, runs_to_replay
from vmfs.units import KIB, MIB

SLOT = SlotIndex(2)
LAYOUT = JournalLayout(64 * KIB, 128 * KIB)


def commit(
    sequence: int,
    state: CommitState = CommitState.COMMITTED,
    *,
    generation: int = 1,
    body: bytes = b"",
    run_count: int = 0,
) -> CommitSector:
    return CommitSector(
        state=state,
        slot=SLOT,
        generation=generation,
        sequence=sequence,
        lv_offset=LAYOUT.commit_offset(sequence % 2),
        run_count=run_count,
        payload_size=len(body) - 512 * bool(run_count),
    ).sealed(body)


def sectors(*commits: CommitSector) -> list[bytes]:
    found = [bytes(512), bytes(512)]
    for one in commits:
        found[one.sequence % 2] = one.pack()
    return found


def judge(*commits: CommitSector) -> CommitSector | None:
    return newest_commit(sectors(*commits), layout=LAYOUT, slot=SLOT)


def test_an_empty_journal_asks_for_nothing() -> None:
    assert judge() is None
    assert not needs_replay(None)


def test_the_first_transaction_stands_alone() -> None:
    assert judge(commit(1)) == commit(1)


@pytest.mark.parametrize("sequence", [2, 3, 1000, 1 << 60])
def test_the_higher_sequence_counts(sequence: int) -> None:
    newest = judge(commit(sequence - 1), commit(sequence))

    assert newest == commit(sequence)
    assert needs_replay(newest)


def test_a_transaction_that_is_done_asks_for_nothing() -> None:
    newest = judge(commit(4), commit(5, CommitState.DONE))

    assert newest is not None
    assert newest.sequence == 5
    assert not needs_replay(newest)


@pytest.mark.parametrize(
    ("found", "field"),
    [
        ([commit(2)], "sequence"),
        ([commit(7)], "sequence"),
        ([commit(4), commit(7)], "sequence"),
        ([commit(1), commit(4)], "sequence"),
        ([commit(4, generation=3), commit(5, generation=2)], "generation"),
    ],
)
def test_commits_that_cannot_be_of_one_journal_are_damage(
    found: list[CommitSector], field: str
) -> None:
    with pytest.raises(CorruptRecord, match=field):
        judge(*found)


def test_a_commit_in_the_wrong_half_is_damage() -> None:
    wrong = CommitSector(
        state=CommitState.DONE,
        slot=SLOT,
        generation=1,
        sequence=1,
        lv_offset=LAYOUT.commit_offset(0),
    )

    with pytest.raises(CorruptRecord, match="half 0"):
        newest_commit([wrong.pack(), bytes(512)], layout=LAYOUT, slot=SLOT)


def test_a_body_larger_than_its_half_is_damage() -> None:
    large = commit(1, body=bytes(LAYOUT.body_size + 512), run_count=1)

    with pytest.raises(CorruptRecord, match="body size"):
        judge(large)


@pytest.mark.parametrize(
    "offset", [64 * KIB, 64 * KIB + 512, LAYOUT.orphan_offset - 512, 64 * KIB - 512]
)
def test_no_replay_writes_over_the_journal(offset: int) -> None:
    body = pack_body([(offset, bytes(1024))])
    found = commit(1, body=body, run_count=1)

    with pytest.raises(CorruptRecord, match="outside the journal"):
        runs_to_replay(found, body, layout=LAYOUT, lv_size=MIB)


def test_the_orphan_table_is_replayed() -> None:
    body = pack_body([(LAYOUT.orphan_offset, b"x" * 512)])
    found = commit(1, body=body, run_count=1)

    runs = runs_to_replay(found, body, layout=LAYOUT, lv_size=MIB)

    assert runs == [(LAYOUT.orphan_offset, b"x" * 512)]


async def test_a_report_says_what_was_done() -> None:
    device = MemoryDevice(MIB)
    body = pack_body([(0, b"a" * 1024), (4096, b"b" * 512)])
    await device.write(LAYOUT.body_offset(1), body)
    found = commit(1, body=body, run_count=2)
    await device.write(found.lv_offset, found.pack())

    first = await replay_journal(device, 64 * KIB, 128 * KIB, SLOT)
    second = await replay_journal(device, 64 * KIB, 128 * KIB, SLOT)

    assert (first.replayed, first.sequence, first.sector_count) == (True, 1, 3)
    assert (second.replayed, second.sequence, second.sector_count) == (False, 1, 0)
    assert await device.read(0, 1024) == b"a" * 1024
    assert await device.read(4096, 512) == b"b" * 512


async def test_a_journal_never_used_has_nothing_to_report() -> None:
    report = await replay_journal(MemoryDevice(MIB), 64 * KIB, 128 * KIB, SLOT)

    assert (report.replayed, report.sequence, report.generation) == (False, 0, 0)
