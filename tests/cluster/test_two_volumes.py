"""Two hosts, one LUN: what one did, the other sees at its next look; who has what in use."""

import pytest
import trio
from trio.testing import MockClock

from tests.support.volumes import VolumeLab, cat, creation, names, put, volume_lab
from vmfs.errors import LockBusy, NotFound, StaleHandle
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges, RenameFlag
from vmfs.units import MIB
from vmfs.volume import Volume

ROOT = ROOT_ADDRESS


async def test_names_sizes_and_deletions_are_seen_at_once(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            await put(a, b"f", b"x" * 3 * MIB)
            assert await cat(b, b"f") == b"x" * 3 * MIB
            await a.namespace.mkdir(ROOT, b"d", creation(0o755))
            await put(b, b"g", b"from b")
            assert await names(a) == [b"f", b"d", b"g"]
            assert await cat(a, b"g") == b"from b"
            await b.namespace.unlink(ROOT, b"f")
            with pytest.raises(NotFound):
                await a.namespace.lookup(ROOT, b"f")
            await a.namespace.rename(ROOT, b"g", ROOT, b"h")
            assert await names(b) == await names(a)
        await lab.assert_clean()


async def test_stat_sees_the_size_while_the_other_host_writes(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        _, file = await a.namespace.create(ROOT, b"f", creation())
        await file.write(0, b"12345")
        found = await b.namespace.lookup(ROOT, b"f")
        assert found.size == 5
        await file.write(5, b"6789")
        assert (await b.namespace.getattr(found.address)).size == 9
        await file.release()
        await a.namespace.setattr(found.address, AttributeChanges(mode=0o600))
        assert (await b.namespace.getattr(found.address)).mode == 0o600


async def test_file_open_for_writing_is_busy_elsewhere_until_it_is_closed(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            made, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(0, b"written on a")
            assert (await b.namespace.lookup(ROOT, b"f")).address == made.address
            for writing in (False, True):
                with pytest.raises(LockBusy) as caught:
                    await b.namespace.open(made.address, writing=writing)
                assert "a" in caught.value.holder
            with pytest.raises(LockBusy):
                await b.namespace.unlink(ROOT, b"f")

            await file.release()

            theirs = await b.namespace.open(made.address, writing=True)
            assert await theirs.read(0, 100) == b"written on a"
            await theirs.release()
        await lab.assert_clean()


async def test_close_on_the_way_never_meets_busy(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        _, file = await a.namespace.create(ROOT, b"f", creation())

        async def close_late() -> None:
            await trio.sleep(0.05)
            await file.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_late)
            made = await b.namespace.lookup(ROOT, b"f")
            theirs = await b.namespace.open(made.address, writing=True)
            await theirs.release()


async def test_both_may_read_at_once(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        await put(a, b"f", b"shared" * 1000)
        made = await b.namespace.lookup(ROOT, b"f")
        one = await a.namespace.open(made.address, writing=False)
        two = await b.namespace.open(made.address, writing=False)
        assert await one.read(0, 9000) == await two.read(0, 9000) == b"shared" * 1000
        with pytest.raises(LockBusy):
            await a.namespace.open(made.address, writing=True)
        await two.release()
        third = await a.namespace.open(made.address, writing=True)
        for file in (one, third):
            await file.release()


async def test_creating_in_turns_in_one_directory(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            await a.namespace.mkdir(ROOT, b"d", creation(0o755))
            made = await b.namespace.lookup(ROOT, b"d")

            async def create(volume: Volume, letter: bytes) -> None:
                for number in range(25):
                    await volume.namespace.mknod(
                        made.address, b"%s%d" % (letter, number), creation()
                    )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(create, a, b"a")
                nursery.start_soon(create, b, b"b")
            assert len(await names(a, made.address)) == 50
            assert sorted(await names(a, made.address)) == sorted(await names(b, made.address))
        await lab.assert_clean()


async def test_files_freed_by_one_host_are_made_again_by_the_other(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            for number in range(6):
                await put(a, b"f%d" % number, b"x" * 5000)
            for number in range(6):
                await a.namespace.unlink(ROOT, b"f%d" % number)
            for number in range(6):
                await put(b, b"g%d" % number, b"y" * 5000)
            assert await cat(a, b"g5") == b"y" * 5000
        await lab.assert_clean()


async def test_file_deleted_elsewhere_is_stale(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        made = await put(a, b"f", b"x")
        await b.namespace.lookup(ROOT, b"f")
        await a.namespace.unlink(ROOT, b"f")
        with pytest.raises(StaleHandle):
            await b.namespace.getattr(made.address)
        with pytest.raises(StaleHandle):
            await b.namespace.open(made.address, writing=False)
        await put(a, b"g", b"x")
        await a.namespace.rename(ROOT, b"g", ROOT, b"f")
        assert await cat(b, b"f") == b"x"


async def test_directories_exchanged_against_each_other_never_form_a_circle(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            one = (await a.namespace.mkdir(ROOT, b"one", creation(0o755))).address
            two = (await a.namespace.mkdir(ROOT, b"two", creation(0o755))).address
            await put(a, b"f")
            results: list[str] = []

            async def move(volume: Volume, name: bytes, into: int) -> None:
                try:
                    await volume.namespace.rename(ROOT, name, into, b"moved")  # type: ignore[arg-type]
                except Exception as error:
                    results.append(type(error).__name__)
                else:
                    results.append("moved")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move, a, b"one", two)
                nursery.start_soon(move, b, b"two", one)
            assert sorted(results) == ["InvalidArgument", "moved"] or results == [
                "moved",
                "NotFound",
            ]
        await lab.assert_clean()


async def test_renames_across_the_hosts_keep_every_name(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            d = (await a.namespace.mkdir(ROOT, b"d", creation(0o755))).address
            e = (await b.namespace.mkdir(ROOT, b"e", creation(0o755))).address
            await a.namespace.lookup(ROOT, b"e")
            for number in range(10):
                await a.namespace.mknod(d, b"n%d" % number, creation())
                await b.namespace.mknod(e, b"n%d" % number, creation())

            async def swap(volume: Volume, numbers: range) -> None:
                for number in numbers:
                    name = b"n%d" % number
                    await volume.namespace.rename(d, name, e, name, RenameFlag.EXCHANGE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(swap, a, range(10))
                nursery.start_soon(swap, b, range(9, -1, -1))
            assert len(await names(a, d)) == len(await names(b, e)) == 10
        await lab.assert_clean()


async def test_killed_host_is_recovered_by_whoever_needs_its_lock(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("b") as b:
            async with lab.host("a") as a:
                made, file = await a.namespace.create(ROOT, b"f", creation())
                await file.write(0, b"durable")
                await file.fsync()
                await file.write(100, b"perhaps")
                lab.kill(a)
            theirs = await b.namespace.open(made.address, writing=True)
            assert (await theirs.read(0, 7)) == b"durable"
            await theirs.write(0, b"mine")
            await theirs.release()
            await b.namespace.mknod(ROOT, b"g", creation())
        await lab.assert_clean()


async def test_unlinked_open_file_of_a_killed_host_is_freed_by_its_heir(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            before = a.namespace.statistics()
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(0, b"x" * 5 * MIB)
            await a.namespace.unlink(ROOT, b"f")
            await a.sync()
            lab.kill(a)
        async with lab.host("b") as b:
            await trio.sleep(1)
            assert b.namespace.orphans.count == 0
            assert b.namespace.statistics() == before
        await lab.assert_clean()


async def test_all_slots_dead_are_recovered_by_the_next_mount(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        await _kill_in_every_slot(lab)
        async with lab.host("late") as late:
            assert len(await names(late)) == 4
        await lab.assert_clean()


async def _kill_in_every_slot(lab: VolumeLab) -> None:
    for name in ("a", "b", "c", "d"):
        async with lab.host(name) as volume:
            await put(volume, name.encode(), b"x" * 2000)
            await volume.sync()
            lab.kill(volume)
