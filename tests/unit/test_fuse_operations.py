"""Handlers without a kernel: what is counted, closed and forgotten; names that others make."""

import errno
import os
from types import SimpleNamespace

import pyfuse3
import pytest

from tests.support.model import ROOT
from tests.support.model_namespace import ModelNamespace, address_of
from vmfs.errors import Exists, NotFound
from vmfs.files.attributes import ROOT_ADDRESS, Creation
from vmfs.fuse.operations import Operations

CTX = SimpleNamespace(uid=0, gid=0, pid=1, umask=0o022)
CREATION = Creation(mode=0o644, uid=0, gid=0)


class Raced(ModelNamespace):
    """Another host makes `name` at the moment of the first create."""

    def __init__(self, *, then_deletes=False):
        super().__init__()
        self.pending = True
        self.then_deletes = then_deletes

    async def create(self, parent, name, creation, *, append=False):
        if self.pending:
            self.pending = False
            if not self.then_deletes:
                await self.mknod(parent, name, creation)
            raise Exists("made by another host")
        return await super().create(parent, name, creation, append=append)


async def test_create_of_a_name_that_another_host_just_made_opens_it():
    tree = Raced()
    operations = Operations(tree)

    info, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY | os.O_CREAT, CTX)

    assert entry.st_ino == address_of(ROOT + 1)
    assert await operations.write(info.fh, 0, b"x") == 1


async def test_create_of_a_name_that_came_and_went_makes_it():
    tree = Raced(then_deletes=True)
    operations = Operations(tree)

    _, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY | os.O_CREAT, CTX)

    assert tree.model.lookup(ROOT, b"f") == ROOT + 1
    assert entry.st_ino == address_of(ROOT + 1)


async def test_exclusive_create_of_a_name_that_another_host_just_made_is_refused():
    operations = Operations(Raced())

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.create(1, b"f", 0o644, os.O_WRONLY | os.O_CREAT | os.O_EXCL, CTX)

    assert caught.value.errno == errno.EEXIST


async def test_create_of_a_name_that_comes_and_goes_for_ever_ends():
    def trip(verb):
        if verb == "create":
            raise Exists("again")
        if verb == "lookup":
            raise NotFound("and gone")

    operations = Operations(ModelNamespace(trip=trip))

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.create(1, b"f", 0o644, os.O_WRONLY | os.O_CREAT, CTX)

    assert caught.value.errno == errno.ESTALE


async def test_create_to_append_writes_at_the_end():
    tree = ModelNamespace()
    operations = Operations(tree)
    info, _ = await operations.create(1, b"f", 0o644, os.O_WRONLY | os.O_APPEND, CTX)

    await operations.write(info.fh, 0, b"one")
    await operations.write(info.fh, 0, b"two")

    assert tree.model.nodes[ROOT + 1].data.read(0, 10) == b"onetwo"


async def test_forget_tells_the_tree_once_all_lookups_are_taken_back():
    tree = ModelNamespace()
    await tree.mknod(ROOT_ADDRESS, b"f", CREATION)
    operations = Operations(tree)
    inode = (await operations.lookup(1, b"f", CTX)).st_ino
    await operations.lookup(1, b"f", CTX)

    await operations.forget([(inode, 1), (1, 5)])
    assert tree.forgotten == []
    await operations.forget([(inode, 1), (0xDEAD04, 3)])

    assert tree.forgotten == [inode]


async def test_close_everything_closes_what_the_kernel_left_open():
    tree = ModelNamespace()
    await tree.mknod(ROOT_ADDRESS, b"f", CREATION)
    operations = Operations(tree)
    inode = (await operations.lookup(1, b"f", CTX)).st_ino
    await operations.open(inode, os.O_RDWR, CTX)
    await operations.open(inode, os.O_RDONLY, CTX)
    await operations.opendir(1, CTX)
    assert operations.open_count == 3

    await operations.close_everything()

    assert operations.open_count == 0
    assert tree.model.nodes[ROOT + 1].open_count == 0
    assert tree.forgotten == [inode]


async def test_close_everything_goes_on_when_one_close_fails():
    def trip(verb):
        if verb == "release":
            raise ValueError("bug")

    tree = ModelNamespace(trip=trip)
    operations = Operations(tree)
    for name in (b"a", b"b"):
        await operations.create(1, name, 0o644, os.O_WRONLY, CTX)

    await operations.close_everything()

    assert operations.open_count == 0
    assert all(node.open_count == 0 for node in tree.model.nodes.values())


async def test_times_that_the_format_cannot_hold_are_cut(monkeypatch):
    tree = ModelNamespace()
    operations = Operations(tree)
    entry = pyfuse3.EntryAttributes()
    fields = SimpleNamespace(
        update_mode=False,
        update_uid=False,
        update_gid=False,
        update_size=False,
        update_mtime=True,
        update_atime=True,
    )
    entry.st_mtime_ns, entry.st_atime_ns = -5_000_000_000, (1 << 33) * 1_000_000_000

    found = await operations.setattr(1, entry, fields, None, CTX)

    assert found.st_mtime_ns == 0
    assert found.st_atime_ns == ((1 << 32) - 1) * 1_000_000_000


async def test_removed_directory_keeps_its_attributes_until_it_is_forgotten():
    tree = ModelNamespace()
    await tree.mkdir(ROOT_ADDRESS, b"d", CREATION)
    operations = Operations(tree)
    inode = (await operations.lookup(1, b"d", CTX)).st_ino
    await operations.rmdir(1, b"d", CTX)

    assert (await operations.getattr(inode, CTX)).st_nlink == 0

    await operations.forget([(inode, 1)])
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getattr(inode, CTX)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("flags", [4, 8, 5])
async def test_rename_flags_that_are_not_known_are_refused(flags):
    tree = ModelNamespace()
    await tree.mknod(ROOT_ADDRESS, b"f", CREATION)

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Operations(tree).rename(1, b"f", 1, b"g", flags, CTX)

    assert caught.value.errno == errno.EINVAL
