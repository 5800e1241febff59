"""Listings: what goes into a reply without awaiting, and what is looked at before."""

import stat
from dataclasses import dataclass, field, replace

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes
from trio.testing import MockClock

from vmfs.errors import CorruptRecord, LockBusy, NotFound
from vmfs.files.attributes import ROOT_ADDRESS, Attributes, ListedName
from vmfs.fuse.kernel_cache import KernelCache
from vmfs.fuse.known_nodes import KnownNodes
from vmfs.fuse.listing import HOLDS_SECONDS, LOOKS_MAX, Listing
from vmfs.fuse.listing_replies import ListingReplies
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType

TOP = FdAddress(4)


def listed(number: int, generation: int = 7) -> ListedName:
    return ListedName(
        name=b"%d" % number,
        address=FdAddress(number * 8 + 12),
        generation=generation,
        type=FileType.FILE,
    )


def attributes(name: ListedName) -> Attributes:
    return Attributes(
        address=name.address, generation=name.generation, type=name.type, mode=0o644, link_count=1,
        uid=0, gid=0, size=1, blocks_512=0, mtime=0, ctime=0, atime=0, block_size=1 << 20,
    )  # fmt: skip


@dataclass
class Tree:
    """A directory whose names stand for something else when a test says so."""

    names: dict[bytes, ListedName] = field(default_factory=dict)
    is_held: bool = True
    lasts: int = 1
    asked_for_after: int = -1
    hold_seconds: float = 0
    held: dict[FdAddress, Attributes] = field(default_factory=dict)
    errors: dict[bytes, Exception] = field(default_factory=dict)
    statted: bool = False
    looked: list[bytes] = field(default_factory=list)
    taken: list[FdAddress] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def find(self, name: bytes) -> ListedName | None:
        return self.names.get(name)

    def entries_held(self, address: FdAddress) -> "Tree | None":
        return self if self.is_held else None

    def attributes_held(self, address: FdAddress, generation: int) -> Attributes | None:
        return self.held.get(address)

    def is_looked_at(self, address: FdAddress) -> bool:
        return self.statted

    def tenure(self, address: FdAddress) -> int:
        return self.lasts

    async def hold(self, address: FdAddress) -> None:
        self.taken.append(address)
        if len(self.taken) == self.asked_for_after:
            self.lasts = 0
        await trio.sleep(self.hold_seconds)

    async def lookup(self, parent: FdAddress, name: bytes) -> Attributes:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.lowlevel.checkpoint()
        self.at_once -= 1
        self.looked.append(name)
        if name in self.errors:
            raise self.errors[name]
        if name not in self.names:
            raise NotFound(f"{name!r}")
        return attributes(self.names[name])


def listing(count: int) -> tuple[Tree, Listing, list[tuple[int, ListedName]]]:
    names = [listed(number) for number in range(count)]
    tree = Tree({name.name: name for name in names})
    return tree, Listing(tree, tree, TOP, reader=0), list(enumerate(names, 1))  # type: ignore[arg-type]


async def test_names_are_looked_at_many_at_once_and_then_at_hand() -> None:
    tree, directory, names = listing(100)
    node = names[5][1]
    assert directory.looked_at(node.name, node) is None

    await directory.look_ahead(names)

    assert tree.most_at_once == LOOKS_MAX
    assert len(tree.looked) == 100
    assert [name for _, name, found in directory.at_hand(names) if found == name] == [
        name for _, name in names
    ]
    assert directory.looked_at(node.name, node) == attributes(node)


async def test_what_is_held_is_not_looked_at_again() -> None:
    tree, directory, names = listing(3)
    tree.held[names[1][1].address] = attributes(names[1][1])

    await directory.look_ahead(names)

    assert sorted(tree.looked) == [b"0", b"2"]
    assert directory.looked_at(b"1", names[1][1]) is not None


async def test_name_that_stands_for_another_node_now_is_not_answered_from_before() -> None:
    tree, directory, names = listing(2)
    await directory.look_ahead(names)

    tree.names[b"1"] = replace(listed(1), generation=8)
    del tree.names[b"0"]

    [(_, _, gone), (_, _, other)] = directory.at_hand(names)
    assert gone is None
    assert other is not None
    assert directory.looked_at(b"1", other) is None


async def test_nothing_is_at_hand_of_a_directory_that_is_not_held() -> None:
    tree, directory, names = listing(2)
    tree.is_held = False

    await directory.look_ahead(names)

    assert list(directory.at_hand(names)) == []
    assert tree.looked == []


async def test_one_that_cannot_be_looked_at_does_not_hide_its_neighbours() -> None:
    tree, directory, names = listing(3)
    tree.errors[b"0"] = LockBusy("somebody has it")
    tree.errors[b"1"] = CorruptRecord("file descriptor", 0, "field", 1, "something else")

    await directory.look_ahead(names)

    assert directory.looked_at(b"0", names[0][1]) is None
    assert directory.looked_at(b"1", names[1][1]) == names[1][1]
    assert directory.looked_at(b"2", names[2][1]) == attributes(names[2][1])


@pytest.mark.parametrize("statted", [True, False])
async def test_locks_are_taken_for_a_reader_that_stats_what_it_lists(statted: bool) -> None:
    tree, directory, names = listing(3)
    tree.statted = statted
    await directory.look_ahead(names[:1])
    assert tree.taken == []
    directory.told(names[0][1].address)

    await directory.look_ahead(names[1:])

    assert sorted(tree.taken) == ([name.address for _, name in names[1:]] if statted else [])


async def test_no_more_locks_are_taken_for_a_directory_that_another_host_waits_for() -> None:
    tree, directory, names = listing(100)
    tree.statted, tree.asked_for_after = True, 2
    directory.told(names[0][1].address)

    await directory.look_ahead(names)

    assert len(tree.taken) == 2
    assert all(directory.looked_at(name.name, name) for _, name in names)


async def test_reader_does_not_wait_long_for_locks(autojump_clock: MockClock) -> None:
    tree, directory, names = listing(200)
    tree.statted, tree.hold_seconds = True, HOLDS_SECONDS * 0.6
    directory.told(names[0][1].address)

    await directory.look_ahead(names)

    assert trio.current_time() < 2 * HOLDS_SECONDS
    assert len(tree.taken) == 2 * LOOKS_MAX
    assert all(directory.looked_at(name.name, name) for _, name in names)


@dataclass
class Told:
    """The reply that `ListingReplies` makes, and what was said to who counts."""

    room: int = 1000
    entries: dict[bytes, EntryAttributes] = field(default_factory=dict)

    def readdir_reply(
        self, token: object, name: bytes, entry: EntryAttributes, following: int
    ) -> bool:
        if len(self.entries) == self.room:
            return False
        self.entries[name] = entry
        return True


async def test_of_a_directory_that_is_not_held_only_names_are_told(monkeypatch) -> None:
    tree, directory, names = listing(5)
    tree.is_held, tree.lasts = False, 0
    told, known = Told(room=5), KnownNodes(ROOT_ADDRESS)
    monkeypatch.setattr(pyfuse3, "readdir_reply", told.readdir_reply)

    async def named(position: int) -> list[tuple[int, ListedName]]:
        return names[position : position + 2]

    directory.names = named  # type: ignore[method-assign, assignment]
    replies = ListingReplies(tree, known, KernelCache(tree, known), see=pytest.fail)  # type: ignore[arg-type]

    await replies.reply(1, directory, 2, token=None)  # type: ignore[arg-type]

    assert list(told.entries) == [name.name for _, name in names]
    for _, name in names:
        entry = told.entries[name.name]
        assert (entry.st_ino, entry.st_mode) == (name.address, stat.S_IFREG)
        assert (entry.entry_timeout, entry.attr_timeout) == (0, 0)
        assert entry.st_size < 0, "the kernel would take it in"
    assert len(known) == 5
    assert all(known.forget(name.address, 1) for _, name in names)
    assert tree.looked == []
