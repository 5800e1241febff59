"""What is read and written without waiting: the same bytes, and only where nobody can be in it."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.volumes import VolumeLab, cat, creation, leave_contents_behind, put, volume_lab
from vmfs.errors import LeaseLost, NoSpace
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges
from vmfs.files.file import OpenFile
from vmfs.locks.permit import Permit
from vmfs.units import KIB, MIB
from vmfs.volume import Volume

ROOT = ROOT_ADDRESS
OLD, NEW = b"o" * 3 * MIB, b"n" * 4 * KIB


@asynccontextmanager
async def overwritable() -> AsyncIterator[tuple[VolumeLab, Volume, OpenFile]]:
    """A file of three blocks, written this second: all that `write_now` needs."""
    async with volume_lab() as lab, lab.host("a") as a:
        made = await put(a, b"f", OLD)
        file = await a.namespace.open(made.address, writing=True)
        await file.write(0, OLD)
        assert file.read_now(0, 1) == b"o"  # where it stands is remembered from now on
        yield lab, a, file
        await file.release()
        await lab.assert_clean()


def permit_of(volume: Volume) -> Permit:
    assert volume._mounted is not None
    return volume._mounted.nexus.permit


def refuses(file: OpenFile, *, offset: int = 0) -> bool:
    """Neither of the two is done; they always are refused together here."""
    is_read = file.read_now(offset, len(NEW)) is not None
    is_written = file.write_now(offset, NEW)
    assert is_read == is_written
    return not is_read


async def test_plain_data_is_read_and_overwritten_now(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, _, file):
        assert file.write_now(MIB - 100, NEW)
        assert file.read_now(MIB - 101, len(NEW) + 2) == b"o" + NEW + b"o"
        assert await file.read(MIB - 101, len(NEW) + 2) == b"o" + NEW + b"o"


async def test_reading_ends_with_the_file(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, _, file):
        assert file.read_now(3 * MIB - 10, 100) == b"o" * 10
        assert file.read_now(3 * MIB, 100) == b""
        assert file.read_now(9 * MIB, 100) == b""


async def test_a_late_lease_is_waited_for(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, a, file):
        permit_of(a).acknowledged(good_until=0.0)
        assert refuses(file)
        permit_of(a).acknowledged(good_until=1e9)
        assert not refuses(file)


async def test_a_recalled_permit_is_waited_for(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, a, file):
        permit_of(a).recall()
        assert refuses(file)
        permit_of(a).grant()
        assert not refuses(file)


async def test_a_fenced_host_does_nothing_now_and_says_why_later(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        made = await put(a, b"f", OLD)
        file = await a.namespace.open(made.address, writing=True)
        await file.write(0, OLD)
        permit_of(a).stop("fenced")
        assert refuses(file)
        with pytest.raises(LeaseLost):
            await file.read(0, 1)
        with pytest.raises(LeaseLost):
            await file.write(0, NEW)
        lab.kill(a)


async def test_nobody_passes_a_writer_in_the_guard_or_one_that_waits(
    autojump_clock: MockClock,
) -> None:
    async with overwritable() as (_, _, file):
        guard = file._inode.guard
        async with guard.exclusive():
            assert refuses(file)
        await guard.enter_shared()
        assert file.read_now(0, 1) == b"o"
        assert not file.write_now(0, NEW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.enter_exclusive)
            await trio.testing.wait_all_tasks_blocked()
            assert refuses(file)
            guard.exit_shared()
        guard.exit_exclusive()
        assert not refuses(file)


async def test_the_times_change_once_a_second(autojump_clock: MockClock) -> None:
    async with overwritable() as (lab, a, file):
        before = file.attributes.mtime
        await trio.sleep(1)
        assert file.write_now(0, NEW)
        assert file.attributes.mtime == file.attributes.ctime == before + 1
        await a.sync()
        assert not a._ground.metadata.dirty
        assert file.write_now(0, NEW)
        assert not a._ground.metadata.dirty  # nothing to stage twice in one second
        await file.fsync()
        lab.kill(a)
        async with lab.host("b") as b:
            assert (await b.namespace.getattr(file.address)).mtime == before + 1


async def test_the_end_of_the_file_moves_within_its_last_block(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await leave_contents_behind(a, 4 * MIB)
            made = await put(a, b"f", b"o" * MIB + b"o")
            file = await a.namespace.open(made.address, writing=True)
            assert await file.read(0, 1) == b"o"
            assert file.write_now(MIB + 1, NEW)
            assert not file.write_now(MIB + 5000, NEW)  # it would leave a gap
            assert not file.write_now(2 * MIB - 1, NEW)  # into a block that it has not
            assert file.attributes.size == MIB + 1 + len(NEW)
            assert file.read_now(MIB, MIB) == b"o" + NEW
            await file.release()
        async with lab.host("b") as b:
            await b.namespace.setattr(made.address, AttributeChanges(size=2 * MIB))
            file = await b.namespace.open(made.address, writing=False)
            assert await file.read(MIB, MIB) == (b"o" + NEW).ljust(MIB, b"\0")
            await file.release()
        await lab.assert_clean()


async def test_what_is_to_be_staged_waits_for_room_in_the_transaction(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with overwritable() as (_, a, file):
        assert file.write_now(0, NEW)
        monkeypatch.setattr(type(a._ground.metadata), "has_room", lambda _self, _size: False)
        assert file.write_now(0, NEW)
        await trio.sleep(1)
        assert not file.write_now(0, NEW)
        await file.write(0, NEW)
        assert file.write_now(0, NEW)


async def test_who_may_not_write_does_not_write_now(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, a, file):
        reading = await a.namespace.open(file.address, writing=False)
        assert not reading.write_now(0, NEW)
        await reading.release()
        assert await file.read(0, 3 * MIB) == OLD


async def test_who_appends_writes_at_the_true_end_now(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, a, file):
        await file.write(3 * MIB, b"end")
        appending = await a.namespace.open(file.address, writing=True, append=True)
        assert appending.write_now(0, NEW)
        assert appending.write_now(MIB, b"more")
        await appending.release()
        assert await file.read(3 * MIB - 1, MIB) == b"oend" + NEW + b"more"
        assert await file.read(0, 3 * MIB) == OLD


@asynccontextmanager
async def growing(lab: VolumeLab, volume: Volume) -> AsyncIterator[OpenFile]:
    """A file of two blocks, with a block promised for the next."""
    _, file = await volume.namespace.create(ROOT, b"g", creation())
    await file.write(0, b"0" * MIB)
    promised = volume._ground.allocator.preallocations
    assert promised.count == 0
    await file.write(MIB, b"1" * MIB)
    assert promised.count == 1
    yield file
    await file.release()
    assert promised.count == 0


async def test_a_file_grows_now_by_blocks_that_were_promised(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            free = a.namespace.statistics().blocks_free
            async with growing(lab, a) as file:
                assert file.write_now(2 * MIB, b"2" * MIB)
                assert file.attributes.size == 3 * MIB
                assert file.attributes.blocks_512 == 3 * MIB // 512
                assert a.namespace.statistics().blocks_free == free - 3
                assert file.read_now(MIB + 7, 2 * MIB - 7) == b"1" * (MIB - 7) + b"2" * MIB
                for block in range(3, 40):  # as many as it has are promised at a time
                    if not file.write_now(block * MIB, b"%d" % (block % 10) * MIB):
                        assert block in (3, 7, 15, 31)
                        await file.write(block * MIB, b"%d" % (block % 10) * MIB)
                await file.fsync()
            assert a.namespace.statistics().blocks_free == free - 40
            lab.kill(a)
        async with lab.host("b") as b:
            data = await cat(b, b"g")
            assert data == b"".join(b"%d" % (block % 10) * MIB for block in range(40))
        await lab.assert_clean()


async def test_what_does_not_fill_what_was_promised_does_not_grow_now(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, growing(lab, a) as file:
            assert not file.write_now(2 * MIB, b"2" * (MIB - 1))
            assert not file.write_now(3 * MIB, b"3" * MIB)  # it would leave a gap
            assert not file.write_now(2 * MIB, b"2" * 9 * MIB)  # more than was promised
            assert file.attributes.size == 2 * MIB
            assert file.write_now(2 * MIB - 1, b"2" * (MIB + 1))  # the end of one, and one
            assert file.read_now(MIB, 3 * MIB) == b"1" * (MIB - 1) + b"2" * (MIB + 1)
        await lab.assert_clean()


@pytest.mark.parametrize("size", [100_000, 128 * KIB, 700_000])
async def test_who_writes_in_parts_grows_now_over_blocks_that_were_zeroed(
    autojump_clock: MockClock, size: int
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await leave_contents_behind(a, 40 * MIB)
            _, file = await a.namespace.create(ROOT, b"g", creation())
            waited = 0
            for at in range(0, 20 * MIB, size):
                if not file.write_now(at, b"n" * size):
                    waited += 1
                    await file.write(at, b"n" * size)
            end = file.attributes.size
            assert waited <= 7  # the levels below, and blocks 0, 1, 3, 7, 15
            await a.namespace.setattr(file.address, AttributeChanges(size=60 * MIB))
            await file.write(40 * MIB, b"m" * MIB)
            await file.write(41 * MIB, b"m")
            assert file.write_now(41 * MIB + 1, b"m" * MIB)  # over a border, in a hole
            content = b"n" * end + bytes(40 * MIB - end) + b"m" * (2 * MIB + 1)
            await file.fsync()
            lab.kill(a)
        async with lab.host("b") as b:
            assert (await cat(b, b"g")) == content.ljust(60 * MIB, b"\0")
        await lab.assert_clean()


@pytest.mark.slow
async def test_a_device_that_takes_its_time_fills_promised_blocks_too(
    autojump_clock: MockClock,
) -> None:
    """Nobody finds too little space for the sake of a write that is under way."""
    async with volume_lab() as lab:
        lab.io_seconds = 0.01
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"g", creation())
            await file.write(0, b"0" * 8 * MIB)
            await file.write(8 * MIB, b"8" * MIB)
            promised = a._ground.allocator.preallocations
            assert promised.count == 8
            _, other = await a.namespace.create(ROOT, b"o", creation())
            free = a.namespace.statistics().blocks_free
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.write, 9 * MIB, b"9" * MIB)
                await other.write((free - 5) * MIB, b"o" * 4 * MIB)
                await other.write(0, b"o" * (free - 5) * MIB)
            assert promised.count == 0
            assert a.namespace.statistics().blocks_free == 0
            assert await file.read(8 * MIB, 9 * MIB) == b"8" * MIB + b"9" * MIB
            await other.release()
            await file.release()
        await lab.assert_clean()


async def test_holes_are_filled_now_where_they_are_filled_in_order(
    autojump_clock: MockClock,
) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a, growing(lab, a) as file:
            await a.namespace.setattr(file.address, AttributeChanges(size=600 * MIB))
            assert file.write_now(2 * MIB, b"2" * MIB)
            assert file.attributes.size == 600 * MIB
            await file.write(300 * MIB, b"3" * 2 * MIB)
            assert not file.write_now(302 * MIB, b"4" * MIB)  # the first in front of it is alone
            await file.write(302 * MIB, b"4" * MIB)
            assert file.write_now(303 * MIB, b"5" * MIB)
            assert await file.read(299 * MIB, 6 * MIB) == (
                bytes(MIB) + b"3" * 2 * MIB + b"4" * MIB + b"5" * MIB + bytes(MIB)
            )
        await lab.assert_clean()


async def test_what_was_promised_is_there_for_others(autojump_clock: MockClock) -> None:
    """Another file of this host, and another host, whose file is not made to wait or fail."""
    async with volume_lab() as lab:
        async with lab.host("a") as a, lab.host("b") as b, growing(lab, a) as file:
            free = a.namespace.statistics().blocks_free
            _, other = await a.namespace.create(ROOT, b"o", creation())
            await other.write(0, bytes(free * MIB))
            await other.release()
            assert not file.write_now(2 * MIB, b"2" * MIB)
            with pytest.raises(NoSpace):
                await file.write(2 * MIB, b"2" * MIB)
            await a.namespace.unlink(ROOT, b"o")
            await file.write(2 * MIB, b"2" * MIB)
            await file.write(3 * MIB, b"3" * MIB)
            assert file.write_now(4 * MIB, b"4" * MIB)
            _, theirs = await b.namespace.create(ROOT, b"t", creation())
            await theirs.write(0, bytes((free - 3) * MIB))
            assert not file.write_now(5 * MIB, b"5" * MIB)
            await theirs.release()
            assert await file.read(2 * MIB, 9 * MIB) == b"2" * MIB + b"3" * MIB + b"4" * MIB
        await lab.assert_clean()


async def test_a_host_that_is_killed_leaves_no_promise_behind(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            free = a.namespace.statistics().blocks_free
            _, file = await a.namespace.create(ROOT, b"g", creation())
            await file.write(0, b"0" * MIB)
            await file.write(MIB, b"1" * MIB)
            await file.fsync()
            assert file.write_now(2 * MIB, b"2" * MIB)  # lost with the host
            lab.kill(a)
        async with lab.host("b") as b:
            assert await cat(b, b"g") == b"0" * MIB + b"1" * MIB
            assert b.namespace.statistics().blocks_free == free - 2
        await lab.assert_clean()


async def test_holes_are_read_now_but_not_filled(autojump_clock: MockClock) -> None:
    async with overwritable() as (_, a, file):
        await a.namespace.setattr(file.address, AttributeChanges(size=MIB))
        await a.namespace.setattr(file.address, AttributeChanges(size=3 * MIB))
        assert file.read_now(MIB, 2 * MIB) == bytes(2 * MIB)
        assert file.read_now(MIB - 2, MIB + 9) == b"oo" + bytes(MIB + 7)
        assert not file.write_now(MIB, NEW)
        assert not file.write_now(MIB - 1, NEW)
        assert file.write_now(MIB - len(NEW), NEW)


async def test_pieces_are_read_now_if_the_device_has_them_all(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        _, file = await a.namespace.create(ROOT, b"f", creation())
        for block in (2, 0, 4):  # each behind the one before it
            await file.write(block * MIB, b"%d" % block * MIB)
        got = file.read_now(100, 5 * MIB)
        assert got == b"0" * (MIB - 100) + bytes(MIB) + b"2" * MIB + bytes(MIB) + b"4" * MIB
        permit_of(a).recall()
        assert file.read_now(100, 5 * MIB) is None
        assert file.read_now(MIB, MIB) == bytes(MIB)  # nothing of it is on the LUN
        permit_of(a).grant()
        await file.release()


@pytest.mark.parametrize("size", [700, 6000])
async def test_small_files_are_read_and_written_now(autojump_clock: MockClock, size: int) -> None:
    """In the descriptor, and in a sub-block; not where they outgrow it."""
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await put(a, b"f", b"o" * size)
            file = await a.namespace.open(made.address, writing=True)
            await file.read(0, 1)
            assert file.read_now(size - 5, 10) == b"o" * 5
            assert file.write_now(1, b"nn")
            assert file.write_now(size, b"end")
            assert file.attributes.size == size + 3
            assert not file.write_now(size + 4, b"g")  # it would leave a gap
            assert not file.write_now(0, bytes(9000))
            assert file.read_now(0, 9000) == b"onn" + b"o" * (size - 3) + b"end"
            await file.fsync()
            lab.kill(a)
        async with lab.host("b") as b:
            assert await cat(b, b"f") == b"onn" + b"o" * (size - 3) + b"end"
        await lab.assert_clean()


async def test_pointers_that_are_not_in_memory_are_not_read_now(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(300 * MIB, NEW)  # behind what the descriptor itself can name
            await file.release()
            address = file.address
        async with lab.host("b") as b:
            file = await b.namespace.open(address, writing=False)
            assert file.read_now(300 * MIB, len(NEW)) is None
            assert await file.read(300 * MIB, len(NEW)) == NEW
            assert file.read_now(300 * MIB, len(NEW)) == NEW
            await file.release()


async def test_the_volumes_own_files_are_never_read_now(autojump_clock: MockClock) -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        found = await a.namespace.lookup(ROOT, b".fbb.sf")
        file = await a.namespace.open(found.address, writing=False)
        assert len(await file.read(0, 512)) == 512
        assert file.read_now(0, 512) is None
        await file.release()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "grow", "truncate", "sleep", "read", "read"]),
        st.integers(0, 5 * MIB),
        st.integers(1, 2 * MIB),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=25)
@given(steps=STEPS, seed=st.integers(0, 99))
def test_now_and_later_are_the_same_bytes(steps: list[tuple[str, int, int]], seed: int) -> None:
    counts = trio.run(_same_bytes, steps, seed, clock=MockClock(autojump_threshold=0))
    assert counts >= 1


async def _same_bytes(steps: list[tuple[str, int, int]], seed: int) -> int:
    """How many of the requests were answered at once."""
    content, at_once, rng = bytearray(OLD), 0, random.Random(seed)
    async with overwritable() as (_, a, file):
        for verb, at, count in [*steps, ("read", 0, 1)]:
            offset, length = at, count
            if verb == "truncate":
                await a.namespace.setattr(file.address, AttributeChanges(size=offset))
                content[offset:] = bytes(max(offset - len(content), 0))
            elif verb in ("write", "grow"):
                if verb == "grow":  # by a whole block
                    offset, length = len(content) // MIB * MIB, MIB
                data = rng.randbytes(length)
                content.extend(bytes(max(offset - len(content), 0)))
                content[offset : offset + length] = data
                if file.write_now(offset, data):
                    at_once += 1
                else:
                    await file.write(offset, data)
            elif verb == "sleep":
                await trio.sleep(offset / MIB)
            else:
                got = file.read_now(offset, length)
                at_once += got is not None
                assert got is None or got == content[offset : offset + length]
                assert await file.read(offset, length) == content[offset : offset + length]
        assert file.attributes.size == len(content)
        assert await file.read(0, len(content)) == content
    return at_once
