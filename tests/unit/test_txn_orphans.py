"""The orphan table in memory, staged, and read again."""

import random

import pytest

from vmfs.device.memory import MemoryDevice
from vmfs.errors import CorruptRecord, NoSpace
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.journal_rec import JournalLayout
from vmfs.ondisk.orphan_rec import ORPHAN_SECTOR_COUNT, OrphanEntry, OrphanSector
from vmfs.txn.journal import Journal
from vmfs.txn.orphans import OrphanTable
from vmfs.txn.transaction import Transactions
from vmfs.units import KIB, MIB

SLOT = SlotIndex(1)
PLACES = ORPHAN_SECTOR_COUNT * OrphanSector.PLACES
REGION = (MIB, 512 * KIB)


def entry(address: int, *, size: int = 0, generation: int = 1) -> OrphanEntry:
    return OrphanEntry(fd_address=FdAddress(address), generation=generation, target_size=size)


async def table_on(device: MemoryDevice) -> tuple[Transactions, OrphanTable]:
    journal = Journal(device, *REGION, SLOT)
    await journal.open(1)
    transactions = Transactions(device, journal)
    table = OrphanTable(transactions, *REGION, SLOT)
    await table.load()
    return transactions, table


async def loaded_again(transactions: Transactions) -> OrphanTable:
    again = OrphanTable(transactions, *REGION, SLOT)
    await again.load()
    again.check_invariants()
    return again


async def test_a_new_table_is_empty() -> None:
    _, table = await table_on(MemoryDevice(2 * MIB))

    assert table.entries() == []
    assert table.free_count == PLACES == 3840


async def test_entries_come_back_after_a_commit() -> None:
    device = MemoryDevice(2 * MIB)
    transactions, table = await table_on(device)
    for address in range(1, 65):
        table.add(entry(address, size=address << 20))
    table.remove(entry(10))

    again = await loaded_again(transactions)
    assert {found.fd_address for found in again.entries()} == set(range(1, 65)) - {10}
    await transactions.checkpoint()

    _, later = await table_on(device)
    assert later.entries() == again.entries() == table.entries()
    assert later.find(FdAddress(12)) == entry(12, size=12 << 20)
    assert later.find(FdAddress(10)) is None


async def test_a_second_entry_of_a_file_replaces_the_first() -> None:
    transactions, table = await table_on(MemoryDevice(2 * MIB))
    table.add(entry(7, size=100))

    table.add(entry(7, size=50))

    assert table.entries() == [entry(7, size=50)]
    assert len(table) == 1
    table.check_invariants()
    assert (await loaded_again(transactions)).entries() == [entry(7, size=50)]


async def test_a_full_table_has_no_space_and_stages_nothing() -> None:
    transactions, table = await table_on(MemoryDevice(2 * MIB))
    for address in range(1, PLACES + 1):
        table.add(entry(address))
    await transactions.commit()

    with pytest.raises(NoSpace, match="slot 1 is full"):
        table.add(entry(PLACES + 1))

    assert not transactions.dirty
    table.add(entry(5, size=3))  # replacing needs no place
    table.remove(entry(6))
    table.add(entry(PLACES + 1))
    table.check_invariants()


async def test_removing_what_is_not_there_is_our_mistake() -> None:
    _, table = await table_on(MemoryDevice(2 * MIB))

    with pytest.raises(KeyError):
        table.remove(entry(3))


async def test_a_file_that_stands_in_the_table_twice_is_damage() -> None:
    device = MemoryDevice(2 * MIB)
    offset = JournalLayout(*REGION).orphan_offset
    empty = OrphanSector.empty(slot=SLOT, lv_offset=offset)
    twice = OrphanSector(
        slot=SLOT, lv_offset=offset, entries=(entry(3), entry(3), *empty.entries[2:])
    )
    await device.write(offset, twice.pack())

    with pytest.raises(CorruptRecord, match="only once"):
        await table_on(device)


async def test_random_changes_agree_with_a_dictionary() -> None:
    transactions, table = await table_on(MemoryDevice(2 * MIB))
    rng = random.Random(5)
    model: dict[int, OrphanEntry] = {}
    for _ in range(400):
        address = rng.randrange(1, 100)
        if address in model and rng.random() < 0.6:
            table.remove(model.pop(address))
        else:
            model[address] = entry(address, size=rng.randrange(1 << 40))
            table.add(model[address])
        if rng.random() < 0.1:
            await transactions.commit()
    table.check_invariants()

    for found in (table, await loaded_again(transactions)):
        assert {one.fd_address: one for one in found.entries()} == model
