"""Names on one host: what ext4 does with each operation, and that the volume stays clean."""

import stat

import pytest

from tests.support.volumes import cat, creation, names, put, volume_lab
from vmfs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    StaleHandle,
)
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges, RenameFlag
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType
from vmfs.units import MIB
from vmfs.volume import Volume

ROOT = ROOT_ADDRESS


async def mkdir(volume: Volume, name: bytes, parent: FdAddress = ROOT) -> FdAddress:
    return (await volume.namespace.mkdir(parent, name, creation(0o755))).address


async def test_lookup_finds_what_create_made_and_dots() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await put(a, b"f", b"x")
            directory = await mkdir(a, b"d")

            assert (await a.namespace.lookup(ROOT, b"f")).address == made.address
            assert (await a.namespace.lookup(directory, b".")).address == directory
            assert (await a.namespace.lookup(directory, b"..")).address == ROOT
            with pytest.raises(NotFound):
                await a.namespace.lookup(ROOT, b"g")
            with pytest.raises(NotADirectory):
                await a.namespace.lookup(made.address, b"g")
            with pytest.raises(NameTooLong):
                await a.namespace.lookup(ROOT, b"n" * 128)
        await lab.assert_clean()


async def test_create_sets_owner_mode_times_and_set_group_id_is_inherited() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            shared = await mkdir(a, b"d")
            await a.namespace.setattr(shared, AttributeChanges(mode=0o2775, gid=50))

            attributes, file = await a.namespace.create(shared, b"f", creation(0o640, uid=7, gid=8))
            await file.release()
            sub = await a.namespace.mkdir(shared, b"s", creation(0o755, uid=7, gid=8))

            assert (attributes.uid, attributes.gid, attributes.mode) == (7, 50, 0o640)
            assert attributes.st_mode == stat.S_IFREG | 0o640
            assert attributes.link_count == 1
            assert (sub.gid, sub.mode, sub.link_count) == (50, 0o2755, 2)
            with pytest.raises(Exists):
                await a.namespace.create(shared, b"f", creation())
        await lab.assert_clean()


async def test_longest_name_works_and_one_byte_more_does_not() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"n" * 127, b"x")
            with pytest.raises(NameTooLong):
                await a.namespace.create(ROOT, b"n" * 128, creation())
            assert await cat(a, b"n" * 127) == b"x"
        await lab.assert_clean()


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 8192, 8193, 3 * MIB + 5])
async def test_unlink_gives_everything_back(size: int) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"first")
            await a.sync()
            before = a.namespace.statistics()

            await put(a, b"f", b"x" * size)
            await a.namespace.unlink(ROOT, b"f")

            assert a.namespace.statistics() == before
            with pytest.raises(NotFound):
                await a.namespace.unlink(ROOT, b"f")
        await lab.assert_clean()


async def test_unlinked_open_file_is_readable_and_freed_at_last_close() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            before = a.namespace.statistics()
            _, file = await a.namespace.create(ROOT, b"f", creation())
            await file.write(0, b"y" * 2 * MIB)
            await a.namespace.unlink(ROOT, b"f")

            await file.write(2 * MIB, b"z")
            assert await file.read(2 * MIB - 1, 10) == b"yz"
            assert file.attributes.link_count == 0
            assert (await a.namespace.getattr(file.address)).link_count == 0
            with pytest.raises(NotFound):
                await a.namespace.link(file.address, ROOT, b"again")
            await a.sync()
            await file.release()

            with pytest.raises(StaleHandle):
                await a.namespace.getattr(file.address)
            assert a.namespace.statistics() == before
        await lab.assert_clean()


async def test_mkdir_rmdir_and_link_counts() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            d = await mkdir(a, b"d")
            await mkdir(a, b"e", d)
            assert (await a.namespace.getattr(d)).link_count == 3
            with pytest.raises(NotEmpty):
                await a.namespace.rmdir(ROOT, b"d")
            with pytest.raises(IsADirectory):
                await a.namespace.unlink(ROOT, b"d")
            await a.namespace.rmdir(d, b"e")
            assert (await a.namespace.getattr(d)).link_count == 2
            await a.namespace.rmdir(ROOT, b"d")
            await put(a, b"f")
            with pytest.raises(NotADirectory):
                await a.namespace.rmdir(ROOT, b"f")
            with pytest.raises(StaleHandle):
                await a.namespace.create(d, b"x", creation())
        await lab.assert_clean()


async def test_hard_links_share_contents_and_directories_have_none() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await put(a, b"f", b"shared")
            d = await mkdir(a, b"d")
            linked = await a.namespace.link(made.address, d, b"g")
            assert linked.link_count == 2
            with pytest.raises(NotPermitted):
                await a.namespace.link(d, ROOT, b"e")
            with pytest.raises(Exists):
                await a.namespace.link(made.address, d, b"g")
            await a.namespace.unlink(ROOT, b"f")
            assert (await a.namespace.lookup(d, b"g")).link_count == 1
        await lab.assert_clean()


@pytest.mark.parametrize("length", [1, 1024, 1025, 4095])
async def test_symlink_keeps_its_target(length: int) -> None:
    target = b"t" * length
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            made = await a.namespace.symlink(ROOT, b"l", target, creation(0o777))
            assert made.type is FileType.SYMLINK
            assert made.size == length
            with pytest.raises(InvalidArgument):
                await a.namespace.readlink(ROOT)
            with pytest.raises(NameTooLong):
                await a.namespace.symlink(ROOT, b"m", b"t" * 4096, creation(0o777))
        async with lab.host("b") as b:
            found = await b.namespace.lookup(ROOT, b"l")
            assert await b.namespace.readlink(found.address) == target
        await lab.assert_clean()


async def test_rename_within_a_directory_and_over_a_file() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f", b"new")
            await put(a, b"g", b"old" * MIB)
            await a.namespace.rename(ROOT, b"f", ROOT, b"h")
            await a.namespace.rename(ROOT, b"h", ROOT, b"g")
            assert await names(a) == [b"g"]
            assert await cat(a, b"g") == b"new"
            with pytest.raises(NotFound):
                await a.namespace.rename(ROOT, b"f", ROOT, b"x")
        await lab.assert_clean()


async def test_rename_flags() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f", b"F")
            links = (await a.namespace.getattr(ROOT)).link_count
            d = await mkdir(a, b"d")
            e = await mkdir(a, b"e", d)
            with pytest.raises(Exists):
                await a.namespace.rename(ROOT, b"f", ROOT, b"d", RenameFlag.NOREPLACE)
            with pytest.raises(NotFound):
                await a.namespace.rename(ROOT, b"f", d, b"x", RenameFlag.EXCHANGE)

            await a.namespace.rename(ROOT, b"f", d, b"e", RenameFlag.EXCHANGE)

            assert (await a.namespace.lookup(ROOT, b"f")).address == e
            assert (await a.namespace.lookup(e, b"..")).address == ROOT
            assert (await a.namespace.lookup(d, b"e")).type is FileType.FILE
            assert (await a.namespace.getattr(d)).link_count == 2
            assert (await a.namespace.getattr(ROOT)).link_count == links + 2
            await a.namespace.rename(ROOT, b"f", d, b"x", RenameFlag.NOREPLACE)
            assert (await a.namespace.getattr(d)).link_count == 3
        await lab.assert_clean()


async def test_rename_moves_a_directory_but_never_into_itself() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            links = (await a.namespace.getattr(ROOT)).link_count
            d = await mkdir(a, b"d")
            e = await mkdir(a, b"e", d)
            f = await mkdir(a, b"f", e)
            for target in (d, e, f):
                with pytest.raises(InvalidArgument):
                    await a.namespace.rename(ROOT, b"d", target, b"x")
            with pytest.raises(NotEmpty):
                await a.namespace.rename(e, b"f", ROOT, b"d")
            await a.namespace.rename(d, b"e", ROOT, b"g")
            assert (await a.namespace.lookup(e, b"..")).address == ROOT
            assert (await a.namespace.getattr(ROOT)).link_count == links + 2
            await a.namespace.rename(ROOT, b"g", ROOT, b"d")  # over an empty directory
            assert (await a.namespace.lookup(ROOT, b"d")).address == e
        await lab.assert_clean()


async def test_rename_over_the_wrong_kind_is_refused() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            await put(a, b"f")
            await mkdir(a, b"d")
            with pytest.raises(NotADirectory):
                await a.namespace.rename(ROOT, b"d", ROOT, b"f")
            with pytest.raises(IsADirectory):
                await a.namespace.rename(ROOT, b"f", ROOT, b"d")
            with pytest.raises(InvalidArgument):
                await a.namespace.rename(ROOT, b".", ROOT, b"x")
        await lab.assert_clean()


async def test_system_files_are_seen_and_read_but_never_changed() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        found = await a.namespace.lookup(ROOT, b".fdc.sf")
        file = await a.namespace.open(found.address, writing=False)
        assert len(await file.read(0, 4096)) == 4096
        await file.release()
        with pytest.raises(NotPermitted):
            await a.namespace.open(found.address, writing=True)
        with pytest.raises(NotPermitted):
            await a.namespace.unlink(ROOT, b".fdc.sf")
        with pytest.raises(NotPermitted):
            await a.namespace.setattr(found.address, AttributeChanges(mode=0))
        with pytest.raises(NotPermitted):
            await a.namespace.rename(ROOT, b".fdc.sf", ROOT, b"x")
        with pytest.raises(NotPermitted):
            await a.namespace.link(found.address, ROOT, b"x")
        sub = await mkdir(a, b"sub", await mkdir(a, b"d"))
        parent = (await a.namespace.lookup(sub, b"..")).address
        for flags in (RenameFlag.NONE, RenameFlag.EXCHANGE):
            with pytest.raises(NotPermitted):
                await a.namespace.rename(parent, b"sub", ROOT, b".vh.sf", flags)


async def test_a_directory_grows_past_its_sub_block_and_shrinks() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            d = await mkdir(a, b"d")
            for number in range(150):
                await a.namespace.mknod(d, b"n%04d" % number, creation())
            for number in range(0, 150, 2):
                await a.namespace.unlink(d, b"n%04d" % number)
        async with lab.host("b") as b:
            d = (await b.namespace.lookup(ROOT, b"d")).address
            assert sorted(await names(b, d)) == [b"n%04d" % n for n in range(1, 150, 2)]
        await lab.assert_clean()


async def test_listing_is_stable_while_names_come_and_go() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        for number in range(10):
            await a.namespace.mknod(ROOT, b"n%d" % number, creation())
        directory = await a.namespace.open_directory(ROOT)
        first = [(at, entry) for at, entry in await directory.read(0)][:12]
        for number in range(5):
            await a.namespace.unlink(ROOT, b"n%d" % number)
        rest = await directory.read(first[-1][0])
        listed = [entry.name for _, entry in (*first, *rest)]
        assert [n for n in listed if n.startswith(b"n")] == [b"n%d" % n for n in range(10)]
        again = [entry.name for _, entry in await directory.read(0)]
        assert len(again) == len(listed) - 5


async def test_unknown_addresses_are_stale() -> None:
    async with volume_lab() as lab, lab.host("a") as a:
        for address in (0, 1, 5, 0xFFFFFFC4, 0x3FFFFFFF, (300 << 22) | 4):
            with pytest.raises(StaleHandle):
                await a.namespace.getattr(FdAddress(address))


async def test_descriptor_reused_means_another_file() -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            first = await put(a, b"f")
            await a.namespace.unlink(ROOT, b"f")
            await a.sync()
            made = [await put(a, b"g%d" % number) for number in range(8)]
            [again] = [file for file in made if file.address == first.address]

            assert again.generation == first.generation + 1
            assert (await a.namespace.getattr(first.address)).generation == again.generation
        await lab.assert_clean()
