"""The running transaction: what callers may count on while others stage and commit."""

import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.faulty import FaultyDevice
from vmfs.device.image import ImageDevice
from vmfs.device.memory import MemoryDevice
from vmfs.errors import DeviceError
from vmfs.ids import SlotIndex
from vmfs.txn.journal import Journal
from vmfs.txn.recovery import replay_journal
from vmfs.txn.transaction import Transactions
from vmfs.units import KIB, MIB, SECTOR_SIZE

SLOT = SlotIndex(0)
REGION = 512 * KIB
REGION_SIZE = 128 * KIB


def sector(value: int) -> bytes:
    return value.to_bytes(2, "little") * 256


async def opened(
    device: MemoryDevice | FaultyDevice, *, generation: int = 1
) -> tuple[Journal, Transactions]:
    journal = Journal(device, REGION, REGION_SIZE, SLOT)
    await journal.open(generation)
    return journal, Transactions(device, journal)


@pytest.fixture
def device() -> FaultyDevice:
    return FaultyDevice(MemoryDevice(MIB))


async def test_what_is_staged_is_read_but_not_written(device: FaultyDevice) -> None:
    _, transactions = await opened(device)

    transactions.stage(512, sector(1))

    assert await transactions.read(500, 100) == bytes(12) + sector(1)[:88]
    assert await device.read(512, 512) == bytes(512)
    assert transactions.dirty
    assert transactions.staged_size == 512


async def test_a_commit_puts_it_in_place(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    transactions.stage(512, sector(1))

    await transactions.commit()

    assert await device.read(512, 512) == sector(1)
    assert not transactions.dirty
    assert journal.sequence == 1
    assert journal.holds_committed


async def test_a_commit_costs_two_flushes_and_an_empty_one_none(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    for value in (1, 2):
        device.calls.clear()
        transactions.stage(0, sector(value) + sector(value))
        transactions.stage(8 * KIB, sector(value))
        await transactions.commit()
        assert [verb for verb, _, _ in device.calls] == [
            "write", "flush", "write", "flush", "write", "write",
        ]  # fmt: skip
    device.calls.clear()

    await transactions.commit()
    assert device.calls == []
    await transactions.checkpoint()
    assert [verb for verb, _, _ in device.calls] == ["flush", "write", "flush"]
    device.calls.clear()
    await transactions.checkpoint()
    await transactions.settle([(0, MIB)])
    assert device.calls == []


async def test_what_is_committed_is_live_until_the_next_commit_or_a_checkpoint(
    device: FaultyDevice,
) -> None:
    _, transactions = await opened(device)
    transactions.stage(0, sector(1))
    assert transactions.is_live([(9999, 5), (100, 1)])
    await transactions.commit()
    assert transactions.is_live([(0, 512)])
    assert not transactions.is_live([(512, 512), (4096, 0)])

    transactions.stage(512, sector(2))
    await transactions.commit()
    assert not transactions.is_live([(0, 512)])
    assert transactions.is_live([(512, 512)])

    await transactions.checkpoint()
    assert not transactions.is_live([(0, MIB)])


async def test_settle_costs_nothing_where_nothing_is_live(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    transactions.stage(0, sector(1))
    device.calls.clear()

    await transactions.settle([(512, 4096), (MIB, 1)])

    assert device.calls == []
    await transactions.settle([(512, 4096), (511, 1)])
    assert not transactions.dirty
    assert not transactions.is_live([(0, 512)])


async def test_callers_share_a_commit(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    done = []

    async def client(value: int) -> None:
        transactions.stage(value * SECTOR_SIZE, sector(value))
        await transactions.commit()
        assert await device.read(value * SECTOR_SIZE, SECTOR_SIZE) == sector(value)
        done.append(value)

    async with trio.open_nursery() as nursery:
        for value in range(20):
            nursery.start_soon(client, value)

    assert len(done) == 20
    assert journal.sequence <= 2


async def test_callers_of_sync_share_its_flushes(tmp_path: Path) -> None:
    path = tmp_path / "lun.img"
    path.write_bytes(bytes(MIB))
    device = ImageDevice.open(path, writable=True)
    journal = Journal(device, REGION, REGION_SIZE, SLOT)
    await journal.open(1)
    transactions = Transactions(device, journal)

    async def overwrite_client() -> None:
        await transactions.sync()

    async def staging_client(value: int) -> None:
        transactions.stage(value * SECTOR_SIZE, sector(value))
        await transactions.sync()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(overwrite_client)
    assert device.statistics().flush_count <= 2  # one under way, one for who came meanwhile

    before = device.statistics().flush_count
    async with trio.open_nursery() as nursery:
        for value in range(20):
            nursery.start_soon(staging_client, value)
    assert journal.sequence <= 2
    assert device.statistics().flush_count - before <= 4  # two for each of these commits
    await device.aclose()


async def test_what_is_staged_during_a_commit_falls_into_the_next(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    hold = device.hold("flush")
    transactions.stage(0, sector(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transactions.commit)
        await hold.reached.wait()
        transactions.stage(0, sector(2))
        transactions.check_invariants()
        hold.release()

    assert await device.read(0, 512) == sector(1)
    assert await transactions.read(0, 512) == sector(2)
    await transactions.commit()
    assert await device.read(0, 512) == sector(2)
    assert journal.sequence == 2


async def test_a_commit_under_way_is_waited_for(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    hold = device.hold("flush", skip=1)
    transactions.stage(0, sector(1))
    finished = False

    async def waiter() -> None:
        nonlocal finished
        await transactions.commit()
        finished = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transactions.commit)
        await hold.reached.wait()
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        assert not finished
        hold.release()
    assert finished


async def test_a_cancelled_caller_does_not_tear_a_commit(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    hold = device.hold("flush")
    transactions.stage(0, sector(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transactions.commit)
        await hold.reached.wait()
        nursery.cancel_scope.cancel()
        hold.release()

    assert await device.read(0, 512) == sector(1)
    assert not transactions.dirty
    assert transactions.failed is None


async def test_a_cancelled_waiter_leaves_at_once(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    hold = device.hold("flush")
    transactions.stage(0, sector(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transactions.commit)
        await hold.reached.wait()
        transactions.stage(512, sector(2))
        with trio.CancelScope() as scope:
            scope.cancel()
            await transactions.commit()
        assert scope.cancelled_caught
        hold.release()
    await transactions.commit()

    assert await device.read(0, 1024) == sector(1) + sector(2)


async def test_callbacks_run_once_when_their_transaction_is_in_place(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    seen: list[bytes] = []
    transactions.stage(0, sector(1))
    transactions.on_commit(lambda: seen.append(memory_of(device)))
    hold = device.hold("flush")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transactions.commit)
        await hold.reached.wait()
        transactions.stage(0, sector(2))
        transactions.on_commit(lambda: seen.append(b"second"))
        hold.release()

    assert seen == [sector(1)[:2]]
    await transactions.commit()
    assert seen == [sector(1)[:2], b"second"]


def memory_of(device: FaultyDevice) -> bytes:
    """The first two bytes of the memory device below, without an await."""
    below = device._device
    assert isinstance(below, MemoryDevice)
    return bytes(below._pages[0][:2])


async def test_a_callback_without_anything_staged_is_called_by_the_next_commit(
    device: FaultyDevice,
) -> None:
    _, transactions = await opened(device)
    seen: list[int] = []
    transactions.on_commit(lambda: seen.append(1))

    assert transactions.dirty
    await transactions.commit()

    assert seen == [1]
    assert [verb for verb, _, _ in device.calls if verb != "read"] == []


async def test_room_commits_when_the_transaction_is_nearly_full(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    limit = transactions.max_transaction_bytes
    size = limit // 3 // SECTOR_SIZE * SECTOR_SIZE
    for index in range(10):
        await transactions.room(size)
        transactions.stage(index % 3 * size, b"x" * size)
        transactions.stage(index % 3 * size, b"y" * size)
        transactions.check_invariants()

    assert journal.sequence <= 3
    with pytest.raises(AssertionError, match="split"):
        await transactions.room(limit + 1)


async def test_the_largest_scattered_transaction_fits() -> None:
    device = MemoryDevice(64 * MIB)
    journal, transactions = await opened(device)
    count = transactions.max_transaction_bytes // SECTOR_SIZE
    await transactions.room(count * SECTOR_SIZE)
    for index in range(count):
        transactions.stage(2 * MIB + index * 2 * SECTOR_SIZE, sector(index))

    await transactions.commit()

    assert transactions.statistics().largest_sectors == count
    report = await replay_journal(device, REGION, REGION_SIZE, SLOT)
    assert report.sector_count == count
    assert journal.sequence == 1


async def test_staging_more_than_room_is_our_mistake(device: FaultyDevice) -> None:
    _, transactions = await opened(device)

    with pytest.raises(AssertionError, match="room"):
        transactions.stage(0, bytes(transactions.max_transaction_bytes + 512))


async def test_staging_outside_the_volume_is_our_mistake(device: FaultyDevice) -> None:
    _, transactions = await opened(device)

    with pytest.raises(AssertionError, match="outside"):
        transactions.stage(MIB, sector(1))


async def test_a_failure_in_place_keeps_what_was_committed(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    transactions.stage(0, sector(1))
    device.fail("write", place=(0, 512))

    with pytest.raises(DeviceError, match="injected"):
        await transactions.commit()

    assert await device.read(0, 512) == bytes(512)
    assert await transactions.read(0, 512) == sector(1)
    assert transactions.is_live([(0, 1)])
    await replay_journal(device, REGION, REGION_SIZE, SLOT)
    assert await device.read(0, 512) == sector(1)


async def test_a_bug_in_a_commit_stops_the_journal_too(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    transactions.stage(0, sector(1))

    async def bug(_verb: str, _offset: int, _length: int) -> None:
        raise ZeroDivisionError

    device.before("write", bug)
    with pytest.raises(ZeroDivisionError):
        await transactions.commit()

    assert "ZeroDivisionError" in str(transactions.failed)
    with pytest.raises(type(transactions.failed)):
        transactions.stage(0, sector(2))


async def test_waiters_learn_that_the_commit_failed(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    hold = device.hold("flush")
    device.fail("flush", skip=0)
    transactions.stage(0, sector(1))
    errors: list[DeviceError] = []

    async def client() -> None:
        try:
            await transactions.commit()
        except DeviceError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client)
        await hold.reached.wait()
        hold.release()

    assert len(errors) == 3


async def test_a_checkpoint_includes_what_was_staged(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    transactions.stage(0, sector(1))

    await transactions.checkpoint()

    assert await device.read(0, 512) == sector(1)
    assert not journal.holds_committed
    report = await replay_journal(device, REGION, REGION_SIZE, SLOT)
    assert not report.replayed


async def test_a_formatted_journal_is_empty(device: FaultyDevice) -> None:
    journal, transactions = await opened(device)
    transactions.stage(0, sector(1))
    await transactions.commit()

    await journal.format()

    again, _ = await opened(device)
    assert again.sequence == 0


async def test_statistics_count_what_was_committed(device: FaultyDevice) -> None:
    _, transactions = await opened(device)
    for count in (3, 1):
        transactions.stage(0, b"x" * 512 * count)
        transactions.stage(8192, sector(1))
        await transactions.commit()
    await transactions.checkpoint()

    found = transactions.statistics()

    assert (found.commit_count, found.checkpoint_count) == (2, 1)
    assert (found.committed_sectors, found.committed_runs) == (6, 4)
    assert found.largest_sectors == 4


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("stage"), st.integers(0, 30), st.integers(1, 4)),
        st.tuples(st.just("stage"), st.integers(0, 30), st.integers(1, 4)),
        st.tuples(st.just("discard"), st.integers(0, 30), st.integers(1, 4)),
        st.tuples(st.sampled_from(["commit", "checkpoint", "crash", "end"]), *[st.just(0)] * 2),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(STEPS)
def test_random_transactions_agree_with_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    trio.run(_agree_with_a_dictionary, steps)


async def _agree_with_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    device = MemoryDevice(MIB)
    journal, transactions = await opened(device)
    rng = random.Random(0)
    generation = 1
    placed: dict[int, bytes] = {}
    staged: dict[int, bytes] = {}
    for verb, first, count in steps:
        match verb:
            case "stage":
                data = rng.randbytes(count * SECTOR_SIZE)
                transactions.stage(first * SECTOR_SIZE, data)
                for index in range(count):
                    staged[first + index] = data[index * 512 : index * 512 + 512]
            case "discard":
                transactions.discard(first * SECTOR_SIZE, count * SECTOR_SIZE)
                for index in range(count):
                    staged.pop(first + index, None)
            case "commit" | "checkpoint":
                await (transactions.commit() if verb == "commit" else transactions.checkpoint())
                placed |= staged
                staged = {}
            case _:
                if verb == "end":
                    await transactions.checkpoint()
                    placed |= staged
                await replay_journal(device, REGION, REGION_SIZE, SLOT)
                staged = {}
                generation += 1
                before = journal.sequence
                journal, transactions = await opened(device, generation=generation)
                assert journal.sequence == before
        transactions.check_invariants()
        for index in range(35):
            expected = staged.get(index, placed.get(index, bytes(SECTOR_SIZE)))
            assert await transactions.read(index * SECTOR_SIZE, SECTOR_SIZE) == expected
            in_place = placed.get(index, bytes(SECTOR_SIZE))
            assert await device.read(index * SECTOR_SIZE, SECTOR_SIZE) == in_place
            if index in staged:
                assert transactions.is_live([(index * SECTOR_SIZE + 5, 1)])
