"""The journal itself: what it refuses to open, and what it refuses to take."""

import pytest

from tests.support.faulty import FaultyDevice
from vmfs.device.memory import MemoryDevice
from vmfs.errors import CorruptRecord
from vmfs.ids import SlotIndex
from vmfs.txn.journal import Journal
from vmfs.txn.recovery import replay_journal
from vmfs.txn.transaction import Transactions
from vmfs.units import KIB, MIB

SLOT = SlotIndex(9)
REGION = (64 * KIB, 128 * KIB)


async def journal_on(device: MemoryDevice, *, generation: int = 1) -> Journal:
    journal = Journal(device, *REGION, SLOT)
    await journal.open(generation)
    return journal


async def test_sequences_go_on_over_owners() -> None:
    device = MemoryDevice(MIB)
    first = await journal_on(device)
    assert [await first.append([(0, bytes(512))]) for _ in range(3)] == [1, 2, 3]
    await first.mark_done()

    second = await journal_on(device, generation=2)

    assert second.sequence == 3
    assert not second.holds_committed
    assert await second.append([(0, bytes(512))]) == 4


async def test_a_journal_that_was_not_replayed_is_not_opened() -> None:
    device = MemoryDevice(MIB)
    await (await journal_on(device)).append([(0, b"x" * 512)])

    with pytest.raises(CorruptRecord, match=r"state is COMMITTED \(not replayed\)"):
        await journal_on(device, generation=2)

    await replay_journal(device, *REGION, SLOT)
    await journal_on(device, generation=2)


async def test_an_owner_from_the_past_cannot_open_it() -> None:
    device = MemoryDevice(MIB)
    journal = await journal_on(device, generation=7)
    await journal.append([(0, b"x" * 512)])
    await journal.mark_done()

    with pytest.raises(CorruptRecord, match="generation is 0x7, expected up to 6"):
        await journal_on(device, generation=6)


async def test_the_journal_of_another_slot_is_not_opened() -> None:
    device = MemoryDevice(MIB)
    await (await journal_on(device)).append([(0, b"x" * 512)])

    with pytest.raises(CorruptRecord, match="slot is 0x9"):
        await Journal(device, *REGION, SlotIndex(8)).open(1)


async def test_a_journal_is_opened_before_it_is_used() -> None:
    with pytest.raises(AssertionError, match="not open"):
        await Journal(MemoryDevice(MIB), *REGION, SLOT).append([(0, bytes(512))])


async def test_a_transaction_larger_than_a_half_is_our_mistake() -> None:
    journal = await journal_on(MemoryDevice(MIB))

    with pytest.raises(AssertionError, match="transaction of"):
        await journal.append([(256 * KIB, bytes(64 * KIB))])


async def test_opening_writes_nothing() -> None:
    device = FaultyDevice(MemoryDevice(MIB))
    journal = Journal(device, *REGION, SLOT)
    await journal.open(1)
    await journal.mark_done()

    assert {verb for verb, _, _ in device.calls} == {"read"}


async def test_sync_flushes_once_for_data_and_not_again_for_a_commit() -> None:
    device = FaultyDevice(MemoryDevice(MIB))
    journal = Journal(device, *REGION, SLOT)
    await journal.open(1)
    transactions = Transactions(device, journal)
    device.calls.clear()

    await transactions.sync()
    assert [verb for verb, _, _ in device.calls] == ["flush"]
    device.calls.clear()
    transactions.stage(0, bytes(512))
    await transactions.sync()

    assert [verb for verb, _, _ in device.calls].count("flush") == 2
