"""Looking at attributes: in passing, again and again, and what is held for it."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from tests.support.volumes import VolumeLab, creation, put, volume_lab
from vmfs.errors import LockBusy, NotFound
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges
from vmfs.files.inode_table import LOOKED_AT_MAX, LOOKS_LEFT_ALONE
from vmfs.ids import FdAddress
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import LockMode
from vmfs.volume import Volume

FREE, SHARED = LockMode.FREE, LockMode.SHARED


def lock_of(volume: Volume, address: FdAddress) -> LockId:
    return volume._ground.lock_of(address)


async def free_file(lab: VolumeLab, volume: Volume) -> FdAddress:
    """A file that nobody holds, though its directory was looked at."""
    made = await put(volume, b"f", b"content")
    await volume.sync()
    await volume.locks.forget(lock_of(volume, made.address))
    return made.address


async def test_one_look_takes_nothing_and_the_second_takes_the_shared_lock(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        lock = lock_of(b, address)

        first = await b.namespace.lookup(ROOT_ADDRESS, b"f")
        assert first.tenure == 0
        assert b.locks.mode_held(lock) is FREE
        second = await b.namespace.getattr(address)
        assert b.locks.mode_held(lock) is SHARED
        assert second.tenure == b.namespace.tenure(address) != 0
        assert b.namespace.attributes_held(address, second.generation) == second


async def test_what_is_held_for_looking_is_given_to_whoever_wants_to_write(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        for _ in range(3):
            await b.namespace.lookup(ROOT_ADDRESS, b"f")

        await a.namespace.setattr(address, AttributeChanges(mode=0o600))

        assert b.namespace.tenure(address) == 0
        assert (await b.namespace.getattr(address)).mode == 0o600
        assert b.namespace.tenure(address) == 0  # looks are counted anew


async def test_looking_never_waits_for_a_host_that_has_the_file_exclusively(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        file = await a.namespace.open(address, writing=True)
        for _ in range(5):
            assert (await b.namespace.lookup(ROOT_ADDRESS, b"f")).tenure == 0
        await file.write(0, b"longer than it was")
        assert (await b.namespace.getattr(address)).size == 18
        await file.release()


async def test_hold_asks_a_host_that_merely_keeps_it_and_leaves_one_alone_that_uses_it(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        file = await a.namespace.open(address, writing=True)
        await b.namespace.lookup(ROOT_ADDRESS, b"f")

        await b.namespace.hold(address)
        assert b.namespace.tenure(address) == 0
        await file.release()
        for _ in range(LOOKS_LEFT_ALONE):
            await b.namespace.hold(address)
            assert b.namespace.tenure(address) == 0
        await b.namespace.hold(address)
        assert b.namespace.tenure(address) != 0
        assert a.locks.mode_held(lock_of(a, address)) is SHARED


async def test_locks_held_for_looking_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LOOKED_AT_MAX > 2
    monkeypatch.setattr("vmfs.files.inode_table.LOOKED_AT_MAX", 2)
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        made = [await put(a, b"%d" % n, b"x") for n in range(4)]
        await a.sync()
        for attributes in made:
            await a.locks.forget(lock_of(a, attributes.address))
        for _ in range(3):
            for n in range(4):
                await b.namespace.lookup(ROOT_ADDRESS, b"%d" % n)

        held = [b.namespace.tenure(attributes.address) != 0 for attributes in made]
        assert sum(held) == 2


async def test_tenure_outlasts_a_stronger_and_a_weaker_lock_and_ends_with_it(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        for _ in range(2):
            await b.namespace.lookup(ROOT_ADDRESS, b"f")
        tenure = b.namespace.tenure(address)

        await b.namespace.setattr(address, AttributeChanges(mode=0o600))
        assert b.namespace.tenure(address) == tenure
        await (await a.namespace.open(address, writing=False)).release()
        assert b.namespace.tenure(address) == tenure
        await a.namespace.setattr(address, AttributeChanges(mode=0o640))
        assert b.namespace.tenure(address) == 0
        await b.namespace.setattr(address, AttributeChanges(mode=0o600))
        assert b.namespace.tenure(address) > tenure


async def test_nothing_is_held_once_this_host_was_fenced(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        made = await a.namespace.mkdir(ROOT_ADDRESS, b"d", creation(0o755))
        assert a.namespace.tenure(made.address) != 0
        assert a.namespace.entries_held(ROOT_ADDRESS) is not None

        a.namespace.lost()

        assert a.namespace.tenure(made.address) == 0
        assert a.namespace.entries_held(ROOT_ADDRESS) is None
        assert a.namespace.attributes_held(made.address, made.generation) is None


async def test_busy_file_is_still_seen(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        address = await free_file(lab, a)
        file = await a.namespace.open(address, writing=True)
        await b.namespace.lookup(ROOT_ADDRESS, b"f")
        with pytest.raises(LockBusy):
            await b.namespace.open(address, writing=False)
        assert (await b.namespace.getattr(address)).size == 7
        await file.release()


@dataclass
class SlowToForget:
    """A watcher that drops what was copied under one lock when a test says so."""

    address: FdAddress
    asked: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)

    def changed(self, address: FdAddress) -> None:
        """It copies nothing."""

    async def give_up(self, address: FdAddress) -> None:
        if address == self.address:
            self.asked.set()
            await self.done.wait()

    def lost(self) -> None:
        """It copies nothing."""


async def test_directory_that_is_being_given_up_is_looked_at_all_the_same(
    autojump_clock: MockClock,
) -> None:
    """What gives it up may wait for who waits for the answer."""
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        made = await put(a, b"f", b"x")
        directory = await a.namespace.open_directory(ROOT_ADDRESS)
        watcher = SlowToForget(ROOT_ADDRESS)
        a.namespace.watch(watcher)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.namespace.mkdir, ROOT_ADDRESS, b"d", creation(0o755))
            await watcher.asked.wait()
            assert a.namespace.tenure(ROOT_ADDRESS) == 0
            with trio.fail_after(0.05):
                assert (await a.namespace.lookup(ROOT_ADDRESS, b"f")).address == made.address
                with pytest.raises(NotFound):
                    await a.namespace.lookup(ROOT_ADDRESS, b"d")
                assert b"f" in [entry.name for _, entry in await directory.read(0)]
            watcher.done.set()
        assert b"d" in [entry.name for _, entry in await directory.read(0)]
        await directory.release()
        await a.namespace.lookup(ROOT_ADDRESS, b"d")
