"""The bytes of files on one host: growth through every level, holes, truncation, limits."""

import random

import pytest

from tests.support.build import tiny_request
from tests.support.volumes import cat, creation, leave_contents_behind, put, volume_lab
from vmfs.errors import FileTooBig, IsADirectory, NoSpace, NotPermitted, ReadOnly
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges
from vmfs.files.file import OpenFile
from vmfs.ondisk.descriptor import VolumeFlag
from vmfs.units import GIB, KIB, MIB, TIB
from vmfs.volume import Volume

ROOT = ROOT_ADDRESS


def pattern(length: int, *, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def fill(file: OpenFile) -> None:
    for step in range(64):
        await file.write(step * 16 * MIB, bytes(16 * MIB))


async def make_many(volume: Volume) -> None:
    for number in range(1000):
        await volume.namespace.mknod(ROOT, b"n%d" % number, creation())


@pytest.mark.parametrize("flags", [VolumeFlag.NONE, VolumeFlag.NO_RESIDENT])
async def test_file_grows_byte_by_byte_levels(flags: VolumeFlag) -> None:
    sizes = [1, 1023, 1024, 1025, 8191, 8192, 8193, MIB, MIB + 1, 3 * MIB]
    data = pattern(sizes[-1])
    async with volume_lab(tiny_request(flags=flags)) as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            at = 0
            for size in sizes:
                await file.write(at, data[at:size])
                at = size
                assert file.attributes.size == size
                assert await file.read(0, size + 10) == data[:size]
            await file.release()
        async with lab.host("b") as b:
            assert await cat(b, b"f") == data
        await lab.assert_clean()


async def test_write_beyond_the_end_leaves_a_hole_that_costs_nothing() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(300 * MIB + 5, b"end")

            assert file.attributes.size == 300 * MIB + 8
            assert file.attributes.blocks_512 == MIB // 512
            assert await file.read(100 * MIB, 10) == bytes(10)
            assert await file.read(300 * MIB, 100) == bytes(5) + b"end"
            await file.write(0, b"start")
            assert await file.read(0, 7) == b"start\0\0"
            await file.release()
        await lab.assert_clean()


async def test_file_of_sixty_tebibytes() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(60 * TIB, b"far")
            assert await file.read(60 * TIB - 1, 5) == b"\0far"
            with pytest.raises(FileTooBig):
                await file.write(64 * TIB - 1, b"xx")
            with pytest.raises(FileTooBig):
                await a.namespace.setattr(file.address, AttributeChanges(size=999_999_999_999_999))
            await a.namespace.setattr(file.address, AttributeChanges(size=64 * TIB))
            await a.namespace.setattr(file.address, AttributeChanges(size=3))
            assert await file.read(0, 10) == bytes(3)
            await file.release()
            assert (await a.namespace.lookup(ROOT, b"f")).blocks_512 == 0
        await lab.assert_clean()


@pytest.mark.parametrize("size", [700, 6000, 2 * MIB + 77])
@pytest.mark.parametrize("cut", [0, 1, 600, 5000, MIB + 3])
async def test_truncate_down_then_up_reads_as_zero(size: int, cut: int) -> None:
    if cut > size:
        return
    data = pattern(size)
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await put(a, b"f", data)
            shorter = await a.namespace.setattr(made.address, AttributeChanges(size=cut))
            longer = await a.namespace.setattr(made.address, AttributeChanges(size=size + 500))
            assert (shorter.size, longer.size) == (cut, size + 500)
            assert await cat(a, b"f") == data[:cut] + bytes(size + 500 - cut)
        await lab.assert_clean()


@pytest.mark.parametrize("at", [0, 100, MIB - 1, MIB, 2 * MIB - 10])
async def test_partial_write_never_shows_what_a_block_held_before(at: int) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await leave_contents_behind(a, 20 * MIB)
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(at, b"x" * 20)
            await a.namespace.setattr(file.address, AttributeChanges(size=4 * MIB))
            await file.write(3 * MIB, b"y")
            data = await file.read(0, 4 * MIB)
            assert data.count(b"x") == 20
            assert data.count(b"y") == 1
            assert data.count(0) == 4 * MIB - 21
            await file.release()
        await lab.assert_clean()


async def test_append_writes_at_the_true_end_whatever_the_offset() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        made = await put(a, b"f", b"one")
        file = await a.namespace.open(made.address, writing=True, append=True)
        await file.write(0, b"two")
        await file.write(1, b"three")
        await file.release()
        assert await cat(a, b"f") == b"onetwothree"


async def test_open_with_truncate_and_the_modes() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        made = await put(a, b"f", b"data")
        file = await a.namespace.open(made.address, writing=False)
        with pytest.raises(NotPermitted):
            await file.write(0, b"x")
        await file.release()
        await file.release()
        file = await a.namespace.open(made.address, writing=True, truncate=True)
        assert file.attributes.size == 0
        await file.release()
        with pytest.raises(IsADirectory):
            await a.namespace.open(ROOT, writing=False)
        with pytest.raises(IsADirectory):
            await a.namespace.setattr(ROOT, AttributeChanges(size=0))


async def test_full_volume_says_so_and_stays_usable() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            _, file = await a.namespace.create(ROOT, b"f", creation())
            with pytest.raises(NoSpace):
                await fill(file)
            assert file.attributes.size > 100 * MIB
            await a.namespace.setattr(file.address, AttributeChanges(size=MIB))
            await file.write(MIB, b"again" * KIB)
            await file.release()
        await lab.assert_clean()


async def test_no_free_descriptor_is_no_space() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            with pytest.raises(NoSpace):
                await make_many(a)
            assert a.namespace.statistics().files_free == 0
            await a.namespace.unlink(ROOT, b"n0")
            await a.namespace.mknod(ROOT, b"again", creation())
        await lab.assert_clean()


async def test_setattr_changes_what_it_is_asked_to() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        made = await put(a, b"f", b"data")
        changed = await a.namespace.setattr(
            made.address, AttributeChanges(mode=0o104755, uid=5, gid=6, mtime=1000, atime=2000)
        )
        assert (changed.mode, changed.uid, changed.gid) == (0o4755, 5, 6)
        assert (changed.mtime, changed.atime) == (1000, 2000)
        assert changed.size == 4
        assert await a.namespace.getattr(made.address) == changed


async def test_read_only_volume_refuses_every_change() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await put(a, b"f", b"data")
        async with lab.host("b", read_only=True) as b:
            assert b.read_only
            assert await cat(b, b"f") == b"data"
            assert (await b.namespace.getattr(made.address)).size == 4
            with pytest.raises(ReadOnly):
                await b.namespace.open(made.address, writing=True)
            with pytest.raises(ReadOnly):
                await b.namespace.create(ROOT, b"g", creation())
            with pytest.raises(ReadOnly):
                await b.namespace.unlink(ROOT, b"f")
            with pytest.raises(ReadOnly):
                await b.namespace.setattr(made.address, AttributeChanges(mode=0))
            with pytest.raises(ReadOnly):
                await b.namespace.rename(ROOT, b"f", ROOT, b"g")
            await b.sync()


async def test_large_file_is_removed_in_batches() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            before = a.namespace.statistics()
            _, file = await a.namespace.create(ROOT, b"f", creation())
            for tebibyte in range(40):  # one pointer block each: more than a batch goes through
                await file.write(tebibyte * TIB // 4, b"x")
            await file.write(GIB, b"y" * 3 * MIB)
            await file.release()
            await a.namespace.unlink(ROOT, b"f")
            assert a.namespace.statistics() == before
            assert a.namespace.orphans.count == 0
        await lab.assert_clean()
