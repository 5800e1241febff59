"""Several hosts where something runs out, is very large, or changes hands at a bad moment."""

import dataclasses
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.support.build import TINY_LIMITS, tiny_request
from tests.support.volumes import LAZY, cat, creation, names, put, volume_lab
from vmfs.errors import Exists, LockBusy, NoSpace, NotFound
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges
from vmfs.units import GIB, MIB
from vmfs.volume import Volume

pytestmark = pytest.mark.slow

ROOT = ROOT_ADDRESS


async def test_one_host_more_than_there_are_journals_is_told_so(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with AsyncExitStack() as stack:
            for number in range(TINY_LIMITS.hosts):
                await stack.enter_async_context(lab.host(f"h{number}"))
            with pytest.raises(LockBusy, match="slot"):
                await stack.enter_async_context(lab.host("late"))
        async with lab.host("later") as later:
            await put(later, b"f")
        await lab.assert_clean()


async def test_sixteen_hosts_are_mounted_and_the_seventeenth_is_told_what_to_do(
    autojump_clock: MockClock,
) -> None:
    limits = dataclasses.replace(TINY_LIMITS, hosts=16)
    async with volume_lab(tiny_request(limits=limits)) as lab:
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(lab.host(f"esx{n:02}")) for n in range(16)]
            assert {host.slot for host in hosts} == set(range(16))
            for number, host in enumerate(hosts):
                await put(host, b"by %d" % number)
            with pytest.raises(LockBusy) as caught:
                await stack.enter_async_context(lab.host("esx16"))
            told = str(caught.value)
            assert "all 16 heartbeat slots are in use" in told
            assert "unmount one, or make the volume with more --hosts" in told
            assert all(f"esx{n:02}" in told for n in range(16))
            assert len(await names(hosts[7])) == 16
        await lab.assert_clean()


async def test_more_readers_than_a_lock_record_has_room_for(autojump_clock: MockClock) -> None:
    limits = dataclasses.replace(TINY_LIMITS, hosts=10)
    async with volume_lab(tiny_request(limits=limits)) as lab:
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(lab.host(f"h{n}")) for n in range(10)]
            await put(hosts[0], b"f", b"read by many")
            made = await hosts[1].namespace.lookup(ROOT, b"f")
            files, refused = [], 0
            for host in hosts:
                try:
                    files.append(await host.namespace.open(made.address, writing=False))
                except LockBusy:
                    refused += 1
            assert len(files) == 8
            assert refused == 2
            assert (await hosts[9].namespace.lookup(ROOT, b"f")).size == 12
            assert await names(hosts[9]) == [b"f"]
            for file in files:
                assert await file.read(0, 100) == b"read by many"
                await file.release()
            assert await cat(hosts[9], b"f") == b"read by many"
        await lab.assert_clean()


async def test_many_hosts_list_one_directory(autojump_clock: MockClock) -> None:
    limits = dataclasses.replace(TINY_LIMITS, hosts=12)
    async with volume_lab(tiny_request(limits=limits)) as lab:
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(lab.host(f"h{n}")) for n in range(12)]
            await put(hosts[0], b"f")
            for _ in range(3):
                for host in hosts:
                    assert await names(host) == [b"f"]
            await put(hosts[11], b"g")
            assert sorted(await names(hosts[5])) == [b"f", b"g"]
        await lab.assert_clean()


async def test_hosts_that_fill_a_volume_together_use_it_up_and_get_it_back(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            await a.sync()
            before = a.namespace.statistics().blocks_free

            async def fill(volume: Volume, letter: bytes) -> None:
                _, file = await volume.namespace.create(ROOT, letter, creation())
                try:
                    for block in range(before + 1):
                        await file.write(block * MIB, letter)
                except NoSpace:
                    return
                finally:
                    await file.release()
                raise AssertionError("more room than there is")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, a, b"x")
                nursery.start_soon(fill, b, b"y")
            sizes = [(await a.namespace.lookup(ROOT, name)).blocks_512 for name in (b"x", b"y")]
            assert sum(sizes) * 512 == before * MIB

            await a.namespace.unlink(ROOT, b"x")
            await b.namespace.unlink(ROOT, b"y")
            _, file = await a.namespace.create(ROOT, b"z", creation())
            for block in range(before):
                await file.write(block * MIB, b"z")
            await file.release()
            await a.namespace.unlink(ROOT, b"z")
        async with lab.host("a") as a:
            assert a.namespace.statistics().blocks_free == before
        await lab.assert_clean()


@pytest.mark.parametrize("killed", [False, True])
async def test_removal_larger_than_the_journal(autojump_clock: MockClock, *, killed: bool) -> None:
    limits = dataclasses.replace(TINY_LIMITS, pointer_blocks=1024)
    async with volume_lab(tiny_request(extents=12, limits=limits)) as lab:
        async with lab.host("a") as a:
            before = a.namespace.statistics()
            made, file = await a.namespace.create(ROOT, b"huge", creation())
            for block in range(2500):
                await file.write(block * 120 * MIB + 7, b"%d" % block)
            await file.release()
            await a.sync()
        async with lab.host("b") as b:
            async with lab.host("a") as a:
                if killed:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(a.namespace.unlink, ROOT, b"huge")
                        await trio.lowlevel.checkpoint()
                        await a.sync()
                        lab.kill(a)
                        nursery.cancel_scope.cancel()
                else:
                    await a.namespace.setattr(made.address, AttributeChanges(size=20 * GIB + 5))
                    file = await b.namespace.open(made.address, writing=False)
                    assert await file.read(120 * MIB + 7, 1) == b"1"
                    assert file.attributes.size == 20 * GIB + 5
                    await file.release()
                    await a.namespace.unlink(ROOT, b"huge")
            await trio.sleep(60)
            if await names(b):
                await b.namespace.unlink(ROOT, b"huge")
        async with lab.host("b") as b:
            assert b.namespace.statistics() == before
        await lab.assert_clean()


async def test_two_hosts_in_one_directory_both_get_on(autojump_clock: MockClock) -> None:
    """On a LUN that takes time: where it takes none, nobody is ever in the middle of anything."""
    async with volume_lab() as lab:
        lab.io_seconds = 0.0002
        async with lab.host("a") as a, lab.host("b") as b:
            made: list[bytes] = []

            async def create(volume: Volume, letter: bytes) -> None:
                for number in range(20):
                    await volume.namespace.mknod(ROOT, b"%s%d" % (letter, number), creation())
                    made.append(letter)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(create, a, b"a")
                nursery.start_soon(create, b, b"b")
            first_half = made[:20]
            assert min(first_half.count(b"a"), first_half.count(b"b")) >= 5, made
        await lab.assert_clean()


async def test_directory_asked_for_while_a_create_waits_for_space(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            for round_number in range(10):
                async with trio.open_nursery() as nursery:
                    for host, letter in ((a, b"a"), (b, b"b")):
                        name = b"%s%d" % (letter, round_number)
                        nursery.start_soon(put, host, name, letter * 9000)
                        nursery.start_soon(host.namespace.mkdir, ROOT, name + b"d", creation())
                    nursery.start_soon(names, b)
                assert sorted(await names(a)) == sorted(await names(b))
                for letter in (b"a", b"b"):
                    name = b"%s%d" % (letter, round_number)
                    assert await cat(a, name) == await cat(b, name) == letter * 9000
                    await b.namespace.unlink(ROOT, name)
        await lab.assert_clean()


async def test_stat_of_what_another_host_makes_and_deletes_all_the_time(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            done = trio.Event()

            async def churn() -> None:
                for number in range(40):
                    await put(a, b"f", b"x" * number)
                    await a.namespace.unlink(ROOT, b"f")
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(churn)
                while not done.is_set():
                    try:
                        found = await b.namespace.lookup(ROOT, b"f")
                    except NotFound:
                        pass
                    else:
                        assert found.link_count == 1
                    for entry in await names(b):
                        assert entry == b"f"
                    await trio.lowlevel.checkpoint()
        await lab.assert_clean()


async def test_mkdir_succeeds_though_another_host_removes_the_directory_at_once(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            done = trio.Event()

            async def remove() -> None:
                while not done.is_set():
                    try:
                        await b.namespace.rmdir(ROOT, b"d")
                    except NotFound:
                        await trio.sleep(0.001)  # the clock stands still while anybody works

            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove)
                for _ in range(30):
                    try:
                        made = await a.namespace.mkdir(ROOT, b"d", creation(0o755))
                    except Exists:
                        continue
                    assert made.link_count == 2
                done.set()
        await lab.assert_clean()


@pytest.mark.parametrize("removed", [False, True])
async def test_a_directory_that_is_asked_for_is_given_up_with_all_that_is_staged_in_it(
    autojump_clock: MockClock, *, removed: bool
) -> None:
    """The other host sees it, and whoever gave it up may die at once: nothing of it is lost."""
    async with volume_lab() as lab:
        async with lab.host("b") as b:
            async with lab.host("a") as a:
                made = (await a.namespace.mkdir(ROOT, b"d", creation(0o755))).address
                for number in range(40):  # more than one block of entries
                    await a.namespace.mknod(made, b"entry %d" % number, creation())
                wanted = {b"entry %d" % number for number in range(40)}
                if removed:
                    await a.sync()
                    for number in range(0, 40, 3):
                        await a.namespace.unlink(made, b"entry %d" % number)
                        wanted.remove(b"entry %d" % number)

                assert (await b.namespace.lookup(ROOT, b"d")).address == made
                await b.namespace.mknod(made, b"mine", creation())
                lab.kill(a)

            assert set(await names(b, made)) == wanted | {b"mine"}
            for name in wanted:
                assert (await b.namespace.lookup(made, name)).link_count == 1
        await lab.assert_clean()


async def test_freed_blocks_that_another_host_has_by_now_are_left_alone_by_the_replay(
    autojump_clock: MockClock,
) -> None:
    """A frees what its journal has contents of; B fills it; A dies: its replay leaves B's alone."""
    limits = dataclasses.replace(TINY_LIMITS, sub_blocks=64)
    async with volume_lab(tiny_request(limits=limits)) as lab:
        async with lab.host("b") as b:
            async with lab.host("a") as a:
                # Entries of directories go through the journal, and are in sub-blocks.
                directories = []
                for number in range(40):
                    made = await a.namespace.mkdir(ROOT, b"d%d" % number, creation(0o755))
                    await a.namespace.mknod(made.address, b"inside", creation())
                    directories.append(made.address)
                await put(a, b"large", b"a" * 3 * MIB)
                await put(a, b"held", b"so that B meets A's death")
                await a.sync()  # committed, in place, and still in the journal
                for number, address in enumerate(directories):
                    await a.namespace.unlink(address, b"inside")
                    await a.namespace.rmdir(ROOT, b"d%d" % number)
                await a.namespace.unlink(ROOT, b"large")
                await a.sync()

                wanted = {b"f%d" % number: b"%d" % number * 4000 for number in range(20)}
                wanted[b"large"] = b"b" * 3 * MIB
                for name, data in wanted.items():
                    await put(b, name, data)
                await b.sync()
                lab.kill(a)

            await b.namespace.unlink(ROOT, b"held")
            assert set(await names(b)) == set(wanted)
            for name, data in wanted.items():
                assert await cat(b, name) == data
        async with lab.host("c") as c:
            for name, data in wanted.items():
                assert await cat(c, name) == data
        await lab.assert_clean()


async def test_free_space_that_two_hosts_show_is_the_same_after_a_refresh(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            before = b.namespace.statistics()
            await put(a, b"f", b"x" * 20 * MIB)
            await a.sync()
            assert a.namespace.statistics().blocks_free == before.blocks_free - 20
            assert b.namespace.statistics() == before

            await trio.sleep(2 * LAZY.refresh)

            assert b.namespace.statistics() == a.namespace.statistics()
            await b.namespace.unlink(ROOT, b"f")
            await put(b, b"g", b"y" * 3 * MIB)
            await b.sync()
            await trio.sleep(2 * LAZY.refresh)
            assert b.namespace.statistics() == a.namespace.statistics()
            assert a.namespace.statistics().blocks_free == before.blocks_free - 3
        await lab.assert_clean()
