"""Changing one sector: ATS with every kind of outcome, and whole-LUN reservations."""

from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lockd.client import (
    CompareAndWriteUnknown,
    Conflict,
    ErrorCode,
    Fenced,
    Good,
    LockdDisconnected,
    LockdRefused,
    Miscompare,
)
from tests.support.lockservice import LUN, cluster
from vmfs.device.memory import MemoryDevice
from vmfs.errors import LeaseLost, LockServiceError, ReservationConflict
from vmfs.ids import LvOffset
from vmfs.locks.permit import PermitState
from vmfs.locks.service import BlockMap, clip_label, lockd_errors
from vmfs.locks.writers import (
    CONFLICT_SECONDS_MAX,
    MISCOMPARES_MAX,
    UNKNOWNS_MAX,
    AtsWriter,
)
from vmfs.ondisk.disk_lock import LockMode

OLD, NEW, OTHER = b"o" * 512, b"n" * 512, b"x" * 512
AT = LvOffset(4096)
Step = Callable[["Array", bytes, bytes], Awaitable[Good | Miscompare | Conflict]]


class Array:
    """An array that answers each compare-and-write as the script says, then honestly."""

    def __init__(self, *script: Step) -> None:
        self.device = MemoryDevice(1 << 20)
        self.script = list(script)
        self.calls = 0

    async def compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good | Miscompare | Conflict:
        self.calls += 1
        step = self.script.pop(0) if self.script else honest
        return await step(self, expected, new)

    def writer(self) -> AtsWriter:
        return AtsWriter(
            device=self.device,
            service=self,  # type: ignore[arg-type]
            blocks=BlockMap(0),
            rng=Random(1),
        )


async def honest(array: Array, expected: bytes, new: bytes) -> Good | Miscompare:
    current = await array.device.read(AT, 512)
    if current != expected:
        return Miscompare(offset=0, current=current)
    await array.device.write(AT, new)
    return Good()


async def done_but_unheard(array: Array, expected: bytes, new: bytes) -> Good:
    await array.device.write(AT, new)
    raise CompareAndWriteUnknown("socket cut")


async def not_done_and_unheard(array: Array, expected: bytes, new: bytes) -> Good:
    raise CompareAndWriteUnknown("socket cut")


async def unheard_and_another_wins(array: Array, expected: bytes, new: bytes) -> Good:
    await array.device.write(AT, OTHER)
    raise CompareAndWriteUnknown("socket cut")


async def another_was_first(array: Array, expected: bytes, new: bytes) -> Miscompare:
    await array.device.write(AT, OTHER)
    return Miscompare(offset=0, current=OTHER)


async def late_landing(array: Array, expected: bytes, new: bytes) -> Miscompare:
    """An earlier try of ours, believed lost, lands after all."""
    await array.device.write(AT, new)
    return Miscompare(offset=0, current=new)


async def conflict(array: Array, expected: bytes, new: bytes) -> Conflict:
    return Conflict(holder="host-x")


async def fenced(array: Array, expected: bytes, new: bytes) -> Good:
    raise Fenced(ErrorCode.FENCED, "fenced by b")


async def refused(array: Array, expected: bytes, new: bytes) -> Good:
    raise LockdRefused(ErrorCode.OUT_OF_RANGE, "no such block")


class Chooser:
    """Wants NEW wherever OLD stands, leaves everything else alone; remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def __call__(self, image: bytes) -> bytes | None:
        self.seen.append(image)
        return NEW if image == OLD else None


async def run(*script: Step) -> tuple[Array, Chooser, bytes]:
    array = Array(*script)
    await array.device.write(AT, OLD)
    chooser = Chooser()
    image = await array.writer().update(AT, chooser, durable=False, label="")
    assert image == await array.device.read(AT, 512)
    return array, chooser, image


async def test_good_is_done_in_one() -> None:
    array, chooser, image = await run()
    assert (array.calls, chooser.seen, image) == (1, [OLD], NEW)


async def test_nothing_chosen_writes_nothing() -> None:
    array = Array()
    image = await array.writer().update(AT, Chooser(), durable=False, label="")
    assert (array.calls, image) == (0, bytes(512))


async def test_miscompare_is_decided_anew_from_what_is_there() -> None:
    array, chooser, image = await run(another_was_first)
    assert (array.calls, chooser.seen, image) == (1, [OLD, OTHER], OTHER)


async def test_unknown_outcome_that_happened_is_not_repeated() -> None:
    array, chooser, image = await run(done_but_unheard)
    assert (array.calls, chooser.seen, image) == (1, [OLD], NEW)


async def test_unknown_outcome_that_did_not_happen_is_tried_again() -> None:
    array, chooser, image = await run(not_done_and_unheard)
    assert (array.calls, chooser.seen, image) == (2, [OLD, OLD], NEW)


async def test_unknown_outcome_with_another_winner_is_lost() -> None:
    array, chooser, image = await run(unheard_and_another_wins)
    assert (array.calls, chooser.seen, image) == (1, [OLD, OTHER], OTHER)


async def test_earlier_try_that_lands_late_counts() -> None:
    array, chooser, image = await run(not_done_and_unheard, late_landing)
    assert (array.calls, chooser.seen, image) == (2, [OLD, OLD], NEW)


async def test_outcome_that_is_never_known_ends() -> None:
    with pytest.raises(LockServiceError, match="9 had no outcome"):
        await run(*[not_done_and_unheard] * (UNKNOWNS_MAX + 1))


async def test_record_that_always_changes_ends() -> None:
    counter = iter(range(10_000))

    async def restless(array: Array, expected: bytes, new: bytes) -> Miscompare:
        current = next(counter).to_bytes(512, "little")
        return Miscompare(offset=0, current=current)

    array = Array(*[restless] * (MISCOMPARES_MAX + 1))

    async def choose(image: bytes) -> bytes:
        return NEW

    with pytest.raises(LockServiceError, match="257 were overtaken"):
        await array.writer().update(AT, choose, durable=False, label="")


async def test_conflict_waits_and_reads_again(autojump_clock: MockClock) -> None:
    array, _, image = await run(conflict, conflict, conflict)
    assert (array.calls, image) == (4, NEW)
    assert trio.current_time() > 0


async def test_conflict_without_end_names_the_holder(autojump_clock: MockClock) -> None:
    with pytest.raises(ReservationConflict, match="host-x"):
        await run(*[conflict] * 10_000)
    assert CONFLICT_SECONDS_MAX < trio.current_time() < CONFLICT_SECONDS_MAX + 1


async def test_errors_of_lockd_become_ours() -> None:
    with pytest.raises(LeaseLost, match="fenced by b"):
        await run(fenced)
    with pytest.raises(LockServiceError, match="refused"):
        await run(refused)
    with pytest.raises(LockServiceError, match="gone"), lockd_errors("x"):
        raise LockdDisconnected("gone")


def test_label_is_clipped_at_its_beginning() -> None:
    path = "/" + "ä" * 200
    clipped = clip_label(path)
    assert len(clipped.encode()) <= 256
    assert clipped.startswith("...")
    assert path.endswith(clipped[3:])
    assert clip_label("/vm") == "/vm"
    assert clip_label("/a\udcff") == "/a?"


def test_block_map_goes_both_ways() -> None:
    blocks = BlockMap(0x1100000)
    assert blocks.lba(LvOffset(0x200)) == 0x8801
    assert blocks.lv_offset(0x8801) == 0x200
    with pytest.raises(AssertionError):
        blocks.lba(LvOffset(0x201))


# --- reservations ---------------------------------------------------------------------------------


async def test_reservation_changes_a_record_and_ends(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)

        (await a.locks.acquire(lab.lock(0), LockMode.EXCLUSIVE)).release()

        assert (await lab.record(lab.lock(0))).exclusive_holder == a.slot.holder
        assert lab.lockd.state.luns[LUN].reservation is None


async def test_reservation_keeps_other_hosts_io_out(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        b = await lab.host("b", reservation=True)
        inside, go_on = trio.Event(), trio.Event()
        done: list[str] = []

        async def choose(image: bytes) -> bytes | None:
            inside.set()
            await go_on.wait()
            await a.device.read(0, 512)  # its own I/O goes on
            done.append("a")
            return None

        async def io_of_b() -> None:
            await b.device.write(0, b"b" * 512)
            done.append("b")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(update, a.writer, lab.lock(0).lv_offset, choose)
            await inside.wait()
            assert b.permit.state is PermitState.RETURNED
            nursery.start_soon(io_of_b)
            await wait_all_tasks_blocked()
            assert done == []
            assert await lab.lv.read(0, 512) == bytes(512)
            go_on.set()

        assert done == ["a", "b"]
        assert b.permit.state is PermitState.GRANTED


async def update(
    writer: object, at: LvOffset, choose: Callable[[bytes], Awaitable[bytes | None]]
) -> bytes:
    image: bytes = await writer.update(at, choose, durable=True, label="")  # type: ignore[attr-defined]
    return image


async def test_hosts_that_reserve_at_once_all_get_through(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        hosts = [await lab.host(f"h{number}", reservation=True) for number in range(6)]
        counter = LvOffset(12 << 20)

        async def count(host: object) -> None:
            async def choose(image: bytes) -> bytes:
                return (int.from_bytes(image[:8], "little") + 1).to_bytes(8, "little") + image[8:]

            for _ in range(10):
                await update(host.writer, counter, choose)  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(count, host)
                nursery.start_soon(count, host)

        assert int.from_bytes((await lab.lv.read(counter, 8)), "little") == 120


async def test_two_changes_of_one_host_do_not_share_a_reservation(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        inside: list[int] = []

        async def choose(image: bytes) -> bytes | None:
            inside.append(1)
            assert len(inside) == 1
            await trio.sleep(0.01)
            inside.clear()
            return None

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(update, a.writer, lab.lock(number).lv_offset, choose)


async def test_reset_under_a_change_begins_it_anew(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        lock = lab.lock(0)
        inside, go_on = trio.Event(), trio.Event()
        images = []

        async def choose(image: bytes) -> bytes | None:
            images.append(image)
            inside.set()
            await go_on.wait()
            return OTHER

        async with trio.open_nursery() as nursery:
            nursery.start_soon(update, a.writer, lock.lv_offset, choose)
            await inside.wait()
            async with lab.lockd.observe() as admin:
                await admin.reset(LUN)
            go_on.set()

        assert len(images) == 2
        assert await lab.lv.read(lock.lv_offset, 512) == OTHER


async def test_cancelled_change_gives_the_reservation_back(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)

        async def choose(image: bytes) -> bytes | None:
            await trio.sleep_forever()
            return None

        with trio.move_on_after(1):
            await update(a.writer, lab.lock(0).lv_offset, choose)

        assert lab.lockd.state.luns[LUN].reservation is None


async def test_lock_is_handed_over_in_reservation_mode(autojump_clock: MockClock) -> None:
    async with cluster() as lab:
        a = await lab.host("a", reservation=True)
        b = await lab.host("b", reservation=True)
        lock = lab.lock(0)

        for host in (a, b, a):
            (await host.locks.acquire(lock, LockMode.EXCLUSIVE)).release()

        assert (await lab.record(lock)).exclusive_holder == a.slot.holder
        assert (await lab.record(lock)).token == 3
