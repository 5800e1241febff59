"""lockd's database is lost while hosts are at work."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.client import Conflict, FenceResult, Good
from lockd.machine import StrangersSeen
from lockd.server.rebuild import DatabaseLost, numbers_above, refuse_strangers, watch_strangers
from lockd.state import Moment
from lockd.store import LmdbStore, MemoryStore, set_aside_if_damaged
from tests.support.lockd import WALL, identity, memory_lockd, until

PATHS = {"ds1": Path("/memory")}


def seen(*looks: tuple[str, ...]) -> object:
    """A search of /proc that finds these, one look after the other; the last for ever."""
    left: Iterator[tuple[str, ...]] = iter(looks)
    last = looks[-1]

    def find(path: Path, known: frozenset[int]) -> tuple[tuple[str, ...], bool]:
        return next(left, last), True

    return find


async def test_strangers_on_a_lun_that_nobody_knows_are_refused() -> None:
    async with memory_lockd() as lockd:
        find = seen(("pid 7 (vmfs)",))
        with pytest.raises(DatabaseLost, match=r"pid 7 \(vmfs\).*--rebuild"):
            refuse_strangers(lockd.state, lockd.store, PATHS, rebuild=False, find=find)  # type: ignore[arg-type]


async def test_a_lun_with_nobody_on_it_starts_as_ever() -> None:
    async with memory_lockd() as lockd:
        watched = refuse_strangers(lockd.state, lockd.store, PATHS, rebuild=False, find=seen(()))  # type: ignore[arg-type]
        assert watched == ()


async def test_a_restart_with_the_database_does_not_look_for_strangers() -> None:
    async with memory_lockd() as lockd, lockd.connect("a"):
        find = seen(("pid 7 (qemu-img)",))
        assert refuse_strangers(lockd.state, lockd.store, PATHS, rebuild=False, find=find) == ()  # type: ignore[arg-type]


async def test_no_reservation_before_the_last_stranger_has_registered_or_ended(
    autojump_clock: object,
) -> None:
    async with memory_lockd() as lockd, lockd.connect("a") as client:
        find = seen(("pid 7 (vmfs)", "pid 8 (vmfs)"), ("pid 8 (vmfs)",), ())
        watched = refuse_strangers(lockd.state, lockd.store, PATHS, rebuild=True, find=find)  # type: ignore[arg-type]
        assert watched == ("ds1",)

        conflict = await client.reserve()

        assert conflict == Conflict(holder="pid 7 (vmfs), pid 8 (vmfs) (not registered)")
        written = await client.compare_and_write(1, bytes(512), b"x" * 512, durable=True, label="x")
        assert written == Good()  # everything else goes on
        await watch_strangers(lockd.engine, "ds1", PATHS["ds1"], find=find)  # type: ignore[arg-type]
        await until(lambda: not lockd.state.luns["ds1"].strangers)
        assert await client.reserve() == Good()


async def test_the_next_lockd_waits_for_strangers_too(autojump_clock: object) -> None:
    find = seen(("pid 7 (vmfs)",))
    store = MemoryStore()
    async with memory_lockd(store=store) as lockd:
        refuse_strangers(lockd.state, store, PATHS, rebuild=True, find=find)  # type: ignore[arg-type]
        async with lockd.connect("a"):
            pass  # somebody is known now, which is no reason not to look
    async with memory_lockd(store=store) as lockd:
        refuse_strangers(lockd.state, store, PATHS, rebuild=False, find=find)  # type: ignore[arg-type]
        async with lockd.connect("a", nonce=2) as client:
            assert isinstance(await client.reserve(), Conflict)
            await watch_strangers(lockd.engine, "ds1", PATHS["ds1"], find=seen(()))  # type: ignore[arg-type]
            await until(lambda: not lockd.state.luns["ds1"].strangers)
    async with memory_lockd(store=store) as lockd:
        assert refuse_strangers(lockd.state, store, PATHS, rebuild=False, find=find) == ()  # type: ignore[arg-type]


async def test_strangers_that_ended_while_lockd_was_away_are_forgotten() -> None:
    store = MemoryStore()
    async with memory_lockd(store=store) as lockd:
        find = seen(("pid 7 (vmfs)",))
        refuse_strangers(lockd.state, store, PATHS, rebuild=True, find=find)  # type: ignore[arg-type]
    async with memory_lockd(store=store) as lockd:
        refuse_strangers(lockd.state, store, PATHS, rebuild=False, find=seen(()))  # type: ignore[arg-type]
    assert not store.start().luns[0].rebuilding


async def test_generations_go_on_above_those_of_the_lost_database() -> None:
    store = MemoryStore()
    async with memory_lockd() as lockd, lockd.connect("a") as a:
        before = a.generation
    async with memory_lockd(store=store) as lockd:
        refuse_strangers(lockd.state, store, PATHS, rebuild=True, find=seen(()))  # type: ignore[arg-type]
    async with memory_lockd(store=store) as lockd:  # nobody came before it was restarted
        async with lockd.connect("a") as a:
            assert a.generation == WALL + 1 > before
        refuse_strangers(lockd.state, store, PATHS, rebuild=True, find=seen(()))  # type: ignore[arg-type]
        async with lockd.connect("a", nonce=2) as a:
            assert a.generation == WALL + 2, "never down, by a second rebuild neither"


async def test_a_generation_of_the_lost_database_proves_nothing() -> None:
    """It may be the start that has just registered anew, and is alive."""
    async with memory_lockd() as lockd:
        refuse_strangers(lockd.state, lockd.store, PATHS, rebuild=True, find=seen(()))  # type: ignore[arg-type]
        async with lockd.connect("a") as a, lockd.connect("b") as b:
            uuid = identity("b").host_uuid
            assert (await a.fence(uuid, generation=2)).result is FenceResult.UNKNOWN
            assert not lockd.sessions.killed
            assert (await a.fence(uuid, generation=b.generation)).result is FenceResult.FENCED


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_the_incarnation_goes_on_above_that_of_the_lost_database(kind: str, tmp_path: Path) -> None:
    store = MemoryStore() if kind == "memory" else LmdbStore(tmp_path)
    above = numbers_above(Moment(5.0, WALL), rebuild=True)
    assert store.start(above=above).incarnation == WALL + 1
    assert store.start().incarnation == WALL + 2
    assert store.start(above=above).incarnation == WALL + 3
    assert numbers_above(Moment(5.0, WALL), rebuild=False) == 0
    store.close()


async def test_strangers_do_not_take_a_reservation_away() -> None:
    async with memory_lockd() as lockd, lockd.connect("a") as client:
        assert await client.reserve() == Good()
        lockd.engine.submit(StrangersSeen("ds1", ("pid 7",)))
        assert await client.reserve() == Good()


async def test_a_host_that_is_just_back_is_not_fenced_by_one_that_did_not_know() -> None:
    async with memory_lockd() as lockd, lockd.connect("a") as a, lockd.connect("b") as b:
        lockd.engine.submit(StrangersSeen("ds1", ("pid 7",)))

        answer = await a.fence(identity("b").host_uuid, nonce=1)

        assert answer.result is FenceResult.ALIVE
        assert not lockd.sessions.killed
        assert len((await b.status()).hosts) == 2
        lockd.engine.submit(StrangersSeen("ds1", ()))
        assert (await a.fence(identity("b").host_uuid, nonce=1)).result is FenceResult.FENCED


def test_a_damaged_state_is_set_aside_and_a_good_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "state.mdb").write_bytes(b"no database" * 4096)

    set_aside_if_damaged(tmp_path)

    assert (tmp_path / "state.damaged").exists()
    store = LmdbStore(tmp_path)
    assert store.start().incarnation == 1
    store.close()
    set_aside_if_damaged(tmp_path)
    store = LmdbStore(tmp_path)
    assert store.start().incarnation == 2
    store.close()
