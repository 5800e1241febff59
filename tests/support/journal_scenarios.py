"""What the journal must survive, as functions of the code under test (a `Kit`).

Each scenario raises when the code breaks its promise. The crash tests run them on the real code;
the mutant test runs them on code with a seeded fault, and one of them must then raise.

The volume of the scenarios is tiny:

    sector 0..31     metadata: each holds the number of the operation that wrote it last,
                     and the place and contents of the data that the operation made reachable
    sector 64..127   file data, written directly
    128 KiB          journal region of slot 5
"""

import dataclasses
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import trio
import trio.testing

from tests.support.faulty import FaultyDevice
from tests.support.mutants import Kit
from tests.support.powercut import Explored, RecordingDevice, explore
from vmfs.device.base import Device
from vmfs.errors import CorruptRecord, DeviceError, VmfsError
from vmfs.ids import FdAddress, SlotIndex
from vmfs.units import KIB, SECTOR_SIZE

SLOT = SlotIndex(5)
REGION = 128 * KIB
REGION_SIZE = 96 * KIB
SIZE = REGION + REGION_SIZE
META_SECTORS = 32
DATA_SECTOR = 64

_META = Struct("<QQQ")

Sectors = dict[int, bytes]
Scenario = Callable[[Kit], Awaitable[Explored | None]]


@dataclass
class Model:
    """What the metadata must be after each operation, in the order in which they were staged."""

    states: list[Sectors] = field(default_factory=lambda: [{}])
    data: list[Sectors] = field(default_factory=lambda: [{}])

    def after(self, changes: Sectors, data: Sectors) -> int:
        """Add an operation; returns its number."""
        self.states.append(self.states[-1] | changes)
        self.data.append(self.data[-1] | data)
        return len(self.states) - 1


def meta(operation: int, data_sector: int, data_value: int) -> bytes:
    """A metadata sector that points at data."""
    return _META.pack(operation, data_sector, data_value).ljust(SECTOR_SIZE, b"\xee")


def contents(value: int) -> bytes:
    """A data sector."""
    return value.to_bytes(8, "little") * (SECTOR_SIZE // 8)


def promised(marks: tuple[object, ...], kind: str) -> int:
    """The highest number that was marked so; 0 for none."""
    return max(
        (mark[1] for mark in marks if isinstance(mark, tuple) and mark[0] == kind), default=0
    )


async def opened(kit: Kit, device: Device, *, generation: int = 1) -> tuple[Any, Any]:
    """A journal and its transactions."""
    journal = kit.Journal(device, REGION, REGION_SIZE, SLOT)
    await journal.open(generation)
    return journal, kit.Transactions(device, journal)


class Checker:
    """Recovery, and what must be true after it."""

    def __init__(self, kit: Kit, model: Model, *, then_write: bool = True) -> None:
        self._kit = kit
        self._model = model
        self._then_write = then_write

    async def recover(self, device: RecordingDevice) -> None:
        """What the next owner of the slot does."""
        await self._kit.replay_journal(device, REGION, REGION_SIZE, SLOT)

    async def check(self, device: RecordingDevice, marks: tuple[object, ...]) -> None:
        """The metadata is one of the states allowed, with its data; twice is once; work goes on."""
        count = await self._matching_state(device, marks)
        once = device.snapshot()
        report = await self._kit.replay_journal(device, REGION, REGION_SIZE, SLOT)
        assert not report.replayed, "a second recovery found work"
        assert once.same_as(device.snapshot()), "recovering twice is not once"
        if self._then_write:
            await self._write_on(device, count)

    async def _matching_state(self, device: RecordingDevice, marks: tuple[object, ...]) -> int:
        found = await device.read(0, META_SECTORS * SECTOR_SIZE)
        sectors = {
            index: found[index * SECTOR_SIZE : (index + 1) * SECTOR_SIZE]
            for index in range(META_SECTORS)
        }
        durable = _by_other_host(marks, "other host wrote")
        begun_there = _by_other_host(marks, "other host writes")
        acked, begun = promised(marks, "acked"), promised(marks, "begun")
        zero = bytes(SECTOR_SIZE)
        for count in range(acked, begun + 1):
            states = [
                self._model.states[count] | durable,
                self._model.states[count] | begun_there,
            ]
            if any(
                all(state.get(index, zero) == data for index, data in sectors.items())
                for state in states
            ):
                break
        else:
            raise AssertionError(
                f"metadata is no state between {acked} and {begun}: "
                f"{[_META.unpack_from(data)[0] for data in sectors.values()]}"
            )
        for index, data in self._model.data[count].items():
            stored = await device.read(index * SECTOR_SIZE, SECTOR_SIZE)
            assert stored == data, f"state {count}: data sector {index} is not what it points at"
        return count

    async def _write_on(self, device: RecordingDevice, count: int) -> None:
        journal, transactions = await opened(self._kit, device, generation=99)
        before = journal.sequence
        transactions.stage(0, meta(1000, 0, 0))
        await transactions.commit()
        assert journal.sequence == before + 1
        assert await device.read(0, SECTOR_SIZE) == meta(1000, 0, 0), "no write after recovery"


async def plain_commits(kit: Kit, *, depth: int = 2, operations: int = 5) -> Explored:
    """Operations one after the other, each committed; data reachable with the metadata."""
    rng = random.Random(1)
    device = RecordingDevice(SIZE)
    model = Model()
    _, transactions = await opened(kit, device)
    for number in range(1, operations + 1):
        data_sector = DATA_SECTOR + number
        await device.write(data_sector * SECTOR_SIZE, contents(number))
        changes = {
            index: meta(number, data_sector, number)
            for index in rng.sample(range(8), rng.randrange(1, 5))
        }
        assert model.after(changes, {data_sector: contents(number)}) == number
        device.mark(("begun", number))
        for index, data in changes.items():
            transactions.stage(index * SECTOR_SIZE, data)
        await transactions.commit()
        device.mark(("acked", number))
    checker = Checker(kit, model)
    return await explore(device, recover=checker.recover, check=checker.check, depth=depth)


async def concurrent_commits(kit: Kit, *, depth: int = 1) -> Explored:
    """Several tasks that stage and commit while others do: group commit promises to each."""
    device = RecordingDevice(SIZE)
    model = Model()
    _, transactions = await opened(kit, device)

    async def client(name: int) -> None:
        rng = random.Random(name)
        for _ in range(3):
            for _ in range(rng.randrange(3)):
                await trio.lowlevel.checkpoint()
            number = len(model.states)
            data_sector = DATA_SECTOR + number
            await device.write(data_sector * SECTOR_SIZE, contents(number))
            changes = {
                index: meta(number, data_sector, number)
                for index in rng.sample(range(6), rng.randrange(1, 4))
            }
            assert model.after(changes, {data_sector: contents(number)}) == number
            device.mark(("begun", number))
            for index, data in changes.items():
                transactions.stage(index * SECTOR_SIZE, data)
            await transactions.commit()
            device.mark(("acked", number))

    async with trio.open_nursery() as nursery:
        for name in range(3):
            nursery.start_soon(client, name)
    checker = Checker(kit, model)
    return await explore(device, recover=checker.recover, check=checker.check, depth=depth)


async def checkpoint_and_another_host(kit: Kit, *, depth: int = 2) -> Explored:
    """After a checkpoint another host changes the same sectors: no replay undoes that."""
    device = RecordingDevice(SIZE)
    other = device.as_host("other")
    model = Model()
    _, transactions = await opened(kit, device)
    for number in (1, 2, 3):
        sectors = (1, 2) if number < 3 else (4,)
        changes = {index: meta(number, 0, 0) for index in sectors}
        model.after(changes, {})
        device.mark(("begun", number))
        for index, data in changes.items():
            transactions.stage(index * SECTOR_SIZE, data)
        if number != 2:
            await transactions.commit()
        else:
            await transactions.checkpoint()
            device.mark(("acked", number))
            theirs = meta(77, 0, 0)
            device.mark(("other host writes", 1, theirs))
            await other.write(1 * SECTOR_SIZE, theirs)
            await other.flush()
            device.mark(("other host wrote", 1, theirs))
    device.mark(("acked", 3))
    checker = Checker(kit, model)
    return await explore(device, recover=checker.recover, check=checker.check, depth=depth)


async def freed_and_reused(kit: Kit, *, depth: int = 2) -> Explored:
    """A block of metadata is freed and becomes file data, written directly."""
    device = RecordingDevice(SIZE)
    model = Model()
    _, transactions = await opened(kit, device)
    block = DATA_SECTOR + 40
    reusable = False

    def now_reusable() -> None:
        nonlocal reusable
        reusable = True

    model.after({1: meta(1, 0, 0)}, {})
    device.mark(("begun", 1))
    transactions.stage(1 * SECTOR_SIZE, meta(1, 0, 0))
    transactions.stage(block * SECTOR_SIZE, contents(5555))
    await transactions.commit()
    device.mark(("acked", 1))

    model.after({1: meta(2, 0, 0)}, {})
    device.mark(("begun", 2))
    transactions.stage(block * SECTOR_SIZE, contents(6666))
    transactions.stage(1 * SECTOR_SIZE, meta(2, 0, 0))
    transactions.discard(block * SECTOR_SIZE, SECTOR_SIZE)
    transactions.on_commit(now_reusable)
    await transactions.commit()
    device.mark(("acked", 2))
    assert reusable, "the freed block never became available"
    assert not transactions.is_live([(block * SECTOR_SIZE, 1)])

    await device.write(block * SECTOR_SIZE, contents(3))
    await device.flush()
    device.mark("data is durable")
    model.after({2: meta(3, block, 3)}, {block: contents(3)})
    device.mark(("begun", 3))
    transactions.stage(2 * SECTOR_SIZE, meta(3, block, 3))
    await transactions.commit()
    device.mark(("acked", 3))

    checker = Checker(kit, model)

    async def check(crashed: RecordingDevice, marks: tuple[object, ...]) -> None:
        if "data is durable" in marks:
            stored = await crashed.read(block * SECTOR_SIZE, SECTOR_SIZE)
            assert stored == contents(3), "a replay brought back freed metadata over file data"
        await checker.check(crashed, marks)

    return await explore(device, recover=checker.recover, check=check, depth=depth)


async def direct_after_staged(kit: Kit, *, depth: int = 1) -> Explored:
    """A sector that was staged is written directly later, after `settle`, and stays so."""
    device = RecordingDevice(SIZE)
    model = Model()
    _, transactions = await opened(kit, device)
    where = DATA_SECTOR * SECTOR_SIZE
    for value in (1, 2):
        transactions.stage(where, contents(value))
        await transactions.commit()
        await transactions.settle([(where, SECTOR_SIZE)])
        await device.write(where, contents(value + 10))
        await transactions.sync()
        device.mark(("written", value + 10))
    checker = Checker(kit, model)

    async def check(crashed: RecordingDevice, marks: tuple[object, ...]) -> None:
        stored = int.from_bytes((await crashed.read(where, 8)), "little")
        allowed = {0: (0, 1, 11), 11: (11, 2, 12), 12: (12,)}[promised(marks, "written")]
        assert stored in allowed, f"{stored} after {promised(marks, 'written')}"
        await checker.check(crashed, marks)

    return await explore(device, recover=checker.recover, check=check, depth=depth)


async def owner_after_owner(kit: Kit, *, depth: int = 1) -> Explored:
    """Owners of one slot follow each other, one after a clean end and one after a crash."""
    device = RecordingDevice(SIZE)
    model = Model()
    number = 0
    for generation in (1, 2, 3):
        _, transactions = await opened(kit, device, generation=generation)
        for _ in range(2 if generation == 1 else 3):
            number += 1
            model.after({number % 4: meta(number, 0, 0)}, {})
            device.mark(("begun", number))
            transactions.stage(number % 4 * SECTOR_SIZE, meta(number, 0, 0))
            await transactions.commit()
            device.mark(("acked", number))
        if generation == 1:
            await transactions.checkpoint()
        else:
            report = await kit.replay_journal(device, REGION, REGION_SIZE, SLOT)
            assert report.replayed
            assert report.generation == generation
    checker = Checker(kit, model)
    return await explore(device, recover=checker.recover, check=checker.check, depth=depth)


async def reads_during_a_commit(kit: Kit) -> None:
    """Whatever a commit is doing, a read sees everything that was staged before it."""
    recording = RecordingDevice(SIZE)
    device = FaultyDevice(recording)
    _, transactions = await opened(kit, device)
    async with trio.open_nursery() as nursery:
        for verb, skip in (("write", 0), ("flush", 0), ("write", 1), ("flush", 1), ("write", 2)):
            device.heal()
            hold = device.hold(verb, skip=skip)
            value = len(device.calls)
            transactions.stage(0, contents(value) + contents(value))
            nursery.start_soon(transactions.commit)
            with trio.fail_after(5):  # a commit without that step would never get here
                await hold.reached.wait()
            transactions.stage(SECTOR_SIZE, contents(value + 1))
            try:
                found = await transactions.read(0, 2 * SECTOR_SIZE)
                assert found == contents(value) + contents(value + 1), f"stale in {verb} {skip}"
                assert transactions.is_live([(0, 1)]), "what is committing is not live"
                assert transactions.is_live([(SECTOR_SIZE, 1)]), "what is running is not live"
            finally:
                hold.release()
            await trio.testing.wait_all_tasks_blocked()
            await transactions.commit()
    device.heal()
    transactions.stage(0, contents(1))
    await transactions.commit()
    transactions.stage(0, contents(2))

    async def commit_meanwhile(_verb: str, _offset: int, _length: int) -> None:
        await transactions.commit()

    stale = SlowRead(recording, commit_meanwhile)
    transactions._device = stale
    assert await transactions.read(0, SECTOR_SIZE) == contents(2)


class SlowRead(FaultyDevice):
    """The first read takes its bytes, then waits (as one in a thread does), then returns them."""

    def __init__(
        self, device: RecordingDevice, meanwhile: Callable[[str, int, int], Awaitable[None]]
    ) -> None:
        super().__init__(device)
        self._meanwhile: Callable[[str, int, int], Awaitable[None]] | None = meanwhile

    async def read(self, offset: int, length: int) -> bytes:
        data = await super().read(offset, length)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            await meanwhile("read", offset, length)
        return data


async def sync_flushes_data(kit: Kit) -> None:
    """`sync` makes file data durable, whatever was staged, discarded or under way."""
    for staged, discarded in ((False, False), (True, False), (True, True)):
        recording = RecordingDevice(SIZE)
        _, transactions = await opened(kit, recording)
        await recording.write(DATA_SECTOR * SECTOR_SIZE, contents(1))
        if staged:
            transactions.stage(0, contents(2))
        if discarded:
            async with trio.open_nursery() as nursery, transactions._turn:
                nursery.start_soon(transactions.sync)
                await trio.testing.wait_all_tasks_blocked()
                transactions.discard(0, SECTOR_SIZE)
        else:
            await transactions.sync()
        recording.mark("synced")

        async def check(crashed: RecordingDevice, marks: tuple[object, ...]) -> None:
            stored = await crashed.read(DATA_SECTOR * SECTOR_SIZE, SECTOR_SIZE)
            assert "synced" not in marks or stored == contents(1), "sync did not flush"

        checker = Checker(kit, Model())
        await explore(recording, recover=checker.recover, check=check, depth=1)


async def a_failed_commit_stops_everything(kit: Kit) -> None:
    """After an I/O error nothing is promised any more, and nothing that was seen disappears."""
    for verb, skip in (("write", 0), ("flush", 0), ("write", 1), ("flush", 1), ("write", 2)):
        recording = RecordingDevice(SIZE)
        device = FaultyDevice(recording)
        _, transactions = await opened(kit, device)
        transactions.stage(0, contents(1))
        await transactions.commit()
        transactions.stage(0, contents(2))
        called: list[int] = []
        transactions.on_commit(lambda called=called: called.append(1))
        device.fail(verb, skip=skip)
        for attempt in (
            transactions.commit,
            transactions.commit,
            transactions.sync,
            transactions.checkpoint,
            lambda: transactions.room(512),  # noqa: B023
        ):
            try:
                await attempt()
            except DeviceError:
                pass
            else:
                raise AssertionError(f"no error after {verb} {skip} failed")
        try:
            transactions.stage(0, contents(3))
        except DeviceError:
            pass
        else:
            raise AssertionError("staged after a failure")
        assert isinstance(transactions.failed, DeviceError)
        assert not called, "called back for a commit that failed"
        assert await transactions.read(0, 512) == contents(2)
        writes = len([event for event in recording.log if hasattr(event, "data")])
        await kit.replay_journal(recording, REGION, REGION_SIZE, SLOT)
        assert await recording.read(0, 8) in (contents(1)[:8], contents(2)[:8])
        assert writes, "nothing was written at all"


async def damage_is_noticed(kit: Kit) -> None:
    """Any changed byte of what recovery depends on is an error, never a guess."""
    device = RecordingDevice(SIZE)
    journal, transactions = await opened(kit, device)
    for number in (1, 2, 3):
        transactions.stage(SECTOR_SIZE, meta(number, 0, 0))
        transactions.stage(5 * SECTOR_SIZE, meta(number, 0, 0))
        await transactions.commit()
    device.forget_history()
    layout = journal.layout
    body = layout.body_offset(1)
    newest, older = layout.commit_offset(1), layout.commit_offset(0)
    rng = random.Random(4)
    places = [newest + at for at in (*range(80), *rng.sample(range(80, 512), 20))]
    places += [older + at for at in range(80)]
    places += [body + at for at in (*range(40), *rng.sample(range(512, 1536), 20))]
    for place in places:
        damaged = RecordingDevice(device.start)
        (byte,) = await damaged.read(place, 1)
        await damaged.write(place, bytes([byte ^ (1 << rng.randrange(8))]))
        await _must_be_noticed(kit, damaged, f"a changed byte at {place:#x}")
    for half_offset in (newest, older):
        damaged = RecordingDevice(device.start)
        await damaged.write(half_offset, bytes(SECTOR_SIZE))
        await _must_be_noticed(kit, damaged, f"a lost commit sector at {half_offset:#x}")
    sectors = [await device.read(offset, SECTOR_SIZE) for offset in (older, newest)]
    damaged = RecordingDevice(device.start)
    await damaged.write(older, sectors[1])
    await _must_be_noticed(kit, damaged, "a misdirected commit sector")
    await _must_be_noticed(kit, device, "the journal of another slot", slot=SlotIndex(6))


async def stale_bodies_never_pass(kit: Kit) -> None:
    """A body under a commit sector of another turn, owner, slot or place is not taken for it."""
    device = RecordingDevice(SIZE)
    await opened(kit, device)
    _, transactions = await opened(kit, device)
    transactions.stage(0, meta(1, 0, 0))
    await transactions.commit()
    layout = kit.JournalLayout(REGION, REGION_SIZE)
    address = layout.commit_offset(1)
    commit = kit.CommitSector.unpack(await device.read(address, SECTOR_SIZE), address=address)
    body = await device.read(layout.body_offset(1), commit.body_size)
    assert commit.matches(body)
    for changed in (
        {"slot": SlotIndex(6)},
        {"generation": 2},
        {"sequence": 3},
        {"lv_offset": address + SECTOR_SIZE},
    ):
        other = dataclasses.replace(commit, **changed)
        assert not other.matches(body), f"a stale body passes with another {changed}"
    try:
        kit.CommitSector.unpack(commit.pack(), address=address + SECTOR_SIZE)
    except CorruptRecord:
        pass
    else:
        raise AssertionError("a commit sector of another place passes")


async def an_unreplayed_journal_is_not_opened(kit: Kit) -> None:
    """Nobody goes on in a journal that still has to be replayed, or that is from the future."""
    device = RecordingDevice(SIZE)
    _, transactions = await opened(kit, device, generation=4)
    transactions.stage(0, meta(1, 0, 0))
    await transactions.commit()
    await _must_not_open(kit, device, generation=5)
    await kit.replay_journal(device, REGION, REGION_SIZE, SLOT)
    await _must_not_open(kit, device, generation=3)
    await opened(kit, device, generation=5)


async def orphans_survive(kit: Kit) -> Explored:
    """The orphan table changes with its transaction, and no damaged entry is believed."""
    device = RecordingDevice(SIZE)
    _, transactions = await opened(kit, device)
    table = kit.OrphanTable(transactions, REGION, REGION_SIZE, SLOT)
    await table.load()
    entries = [
        kit.OrphanEntry(fd_address=FdAddress(address), generation=1, target_size=address << 20)
        for address in (3, 4)
    ]
    steps = [(table.add, entries[0]), (table.add, entries[1]), (table.remove, entries[0])]
    expected: list[set[int]] = [set(), {3}, {3, 4}, {4}]
    model = Model()
    for number, (step, entry) in enumerate(steps, 1):
        model.after({0: meta(number, 0, 0)}, {})
        device.mark(("begun", number))
        transactions.stage(0, meta(number, 0, 0))
        step(entry)
        await transactions.commit()
        device.mark(("acked", number))
    checker = Checker(kit, model, then_write=False)

    async def check(crashed: RecordingDevice, marks: tuple[object, ...]) -> None:
        await checker.check(crashed, marks)
        _, later = await opened(kit, crashed, generation=9)
        again = kit.OrphanTable(later, REGION, REGION_SIZE, SLOT)
        await again.load()
        again.check_invariants()
        count = _META.unpack_from(await crashed.read(0, SECTOR_SIZE))[0]
        assert {entry.fd_address for entry in again.entries()} == expected[count]

    explored = await explore(device, recover=checker.recover, check=check, depth=1)
    place = kit.JournalLayout(REGION, REGION_SIZE).orphan_offset
    for at in range(0, SECTOR_SIZE, 7):
        (byte,) = await device.read(place + at, 1)
        await device.write(place + at, bytes([byte ^ 1]))
        try:
            await kit.OrphanTable(transactions, REGION, REGION_SIZE, SLOT).load()
        except CorruptRecord:
            await device.write(place + at, bytes([byte]))
        else:
            raise AssertionError(f"a changed byte {at} of the orphan table is believed")
    return explored


def _by_other_host(marks: tuple[object, ...], kind: str) -> Sectors:
    return {mark[1]: mark[2] for mark in marks if isinstance(mark, tuple) and mark[0] == kind}


async def _must_be_noticed(
    kit: Kit, device: RecordingDevice, what: str, *, slot: SlotIndex = SLOT
) -> None:
    before = device.snapshot()
    try:
        await kit.replay_journal(device, REGION, REGION_SIZE, slot)
    except CorruptRecord:
        assert device.snapshot().same_as(before), f"{what}: noticed too late"
    else:
        raise AssertionError(f"{what} was not noticed")


async def _must_not_open(kit: Kit, device: RecordingDevice, *, generation: int) -> None:
    try:
        await opened(kit, device, generation=generation)
    except VmfsError:
        return
    raise AssertionError(f"opened as generation {generation}")


SCENARIOS: tuple[Scenario, ...] = (
    stale_bodies_never_pass,
    an_unreplayed_journal_is_not_opened,
    damage_is_noticed,
    sync_flushes_data,
    freed_and_reused,
    direct_after_staged,
    checkpoint_and_another_host,
    owner_after_owner,
    orphans_survive,
    concurrent_commits,
    plain_commits,
    reads_during_a_commit,
    a_failed_commit_stops_everything,
)
"""The quick ones first: a mutant is dropped at the first that notices it."""
