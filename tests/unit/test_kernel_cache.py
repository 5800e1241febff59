"""What the kernel may keep, and what it is told when that ends: decided on values."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from vmfs.files.attributes import ROOT_ADDRESS, Attributes
from vmfs.fuse import readers
from vmfs.fuse.kernel_cache import (
    LISTING_SECONDS,
    LISTING_SECONDS_MAX,
    LOOK_SECONDS,
    UNLIMITED,
    KernelCache,
    seconds,
)
from vmfs.fuse.known_nodes import KnownNodes
from vmfs.fuse.readers import TAKEN_NS
from vmfs.fuse.translate import entry_of
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType

DIRECTORY, FILE, OTHER = FdAddress(0x14), FdAddress(0x24), FdAddress(0x34)


@dataclass
class Kernel:
    """A `Notifier` that writes down what it was told."""

    attributes_expire: bool = True
    names_expire: bool = True
    inodes: set[int] = field(default_factory=lambda: {1, DIRECTORY, FILE, OTHER})
    heard: list[str] = field(default_factory=list)
    dropped: trio.Event = field(default_factory=trio.Event)

    def attributes(self, inode: int) -> bool:
        self.heard.append(f"attributes {inode:#x}")
        return inode in self.inodes

    def grown(self, inode: int, size: int) -> None:
        self.heard.append(f"grown {inode:#x} {size}")

    def names(self) -> None:
        self.heard.append("names")

    def everything(self, inode: int) -> None:
        self.heard.append(f"everything {inode:#x}")
        if inode == FILE:
            trio.from_thread.run_sync(self.dropped.set)


@dataclass
class Edge:
    """The cache of a mount, and everything around it."""

    tenures: dict[FdAddress, int] = field(default_factory=dict)
    known: KnownNodes = field(default_factory=lambda: KnownNodes(ROOT_ADDRESS))
    kernel: Kernel = field(default_factory=Kernel)

    def __post_init__(self) -> None:
        self.cache = KernelCache(self, self.known)
        self.cache.attach(self.kernel)

    def tenure(self, address: FdAddress) -> int:
        return self.tenures.get(address, 0)

    def tell(self, attributes: Attributes) -> float:
        """One reply to a LOOKUP."""
        lasting = self.cache.attribute_seconds(attributes)
        self.known.add(
            attributes.address, parent=ROOT_ADDRESS, name=b"f", generation=attributes.generation
        )
        return lasting

    async def give_up(self, address: FdAddress) -> None:
        self.tenures.pop(address, None)
        await self.cache.give_up(address)

    def heard(self) -> list[str]:
        heard, self.kernel.heard = self.kernel.heard, []
        return heard


@pytest.fixture
def edge() -> Edge:
    return Edge()


def seen(
    tenure: int,
    *,
    address: FdAddress = FILE,
    kind: FileType = FileType.FILE,
    generation: int = 7,
    size: int = 5,
) -> Attributes:
    return Attributes(
        address=address, generation=generation, type=kind, mode=0o644, link_count=1, uid=0, gid=0,
        size=size, blocks_512=0, mtime=0, ctime=0, atime=0, block_size=1 << 20, tenure=tenure,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("then", "now", "lasting"),
    [(3, 3, UNLIMITED), (3, 4, 0), (3, 0, 0), (0, 3, 0), (0, 0, 0)],
)
def test_only_what_was_seen_in_the_tenure_that_lasts_may_be_kept(then, now, lasting):
    assert seconds(seen=then, now=now) == lasting


def test_attributes_seen_in_passing_are_good_for_one_look(edge):
    edge.tenures[FILE] = 3

    assert edge.tell(seen(0)) == 0
    assert edge.tell(seen(2)) == 0
    assert edge.tell(seen(3)) == UNLIMITED


def test_the_volumes_own_files_are_never_kept(edge):
    edge.tenures[FILE] = 3

    assert edge.tell(seen(3, kind=FileType.SYSTEM)) == 0
    assert edge.cache.opened(seen(3, kind=FileType.SYSTEM)) == 0


async def test_giving_up_invalidates_attributes_that_were_told_and_no_others(edge):
    edge.tenures |= {FILE: 3, OTHER: 4}
    edge.tell(seen(3))
    edge.tell(seen(0, address=OTHER))

    await edge.give_up(OTHER)
    assert edge.heard() == []
    await edge.give_up(FILE)
    assert edge.heard() == ["attributes 0x24"]
    await edge.give_up(FILE)
    assert edge.heard() == []


def test_change_here_invalidates_once(edge):
    edge.tenures[FILE] = 3
    edge.tell(seen(3))

    edge.cache.changed(FILE)
    edge.cache.changed(FILE)
    edge.cache.changed(OTHER)

    assert edge.heard() == ["attributes 0x24"]


def test_root_is_invalidated_by_its_inode_number(edge):
    edge.tenures[ROOT_ADDRESS] = 3
    edge.tell(seen(3, address=ROOT_ADDRESS, kind=FileType.DIRECTORY))

    edge.cache.changed(ROOT_ADDRESS)

    assert edge.heard() == ["attributes 0x1"]


async def test_giving_a_directory_up_forgets_names_if_some_were_told(edge):
    edge.tenures[DIRECTORY] = 3
    await edge.give_up(DIRECTORY)
    assert edge.heard() == []

    edge.tenures[DIRECTORY] = 4
    assert edge.cache.name_seconds(DIRECTORY, 3) == 0
    assert edge.cache.name_seconds(DIRECTORY, 4) == UNLIMITED
    await edge.give_up(DIRECTORY)
    assert edge.heard() == ["names"]
    await edge.give_up(DIRECTORY)
    assert edge.heard() == []


def test_names_are_never_kept_by_a_kernel_that_cannot_forget_them(edge):
    edge.kernel.names_expire = False
    edge.tenures[DIRECTORY] = 3

    assert edge.cache.name_seconds(DIRECTORY, 3) == 0


def test_node_with_the_address_of_one_that_the_kernel_still_knows_is_not_kept_at_first(edge):
    edge.tenures[FILE] = 3

    assert edge.tell(seen(3, generation=7)) == UNLIMITED
    assert edge.tell(seen(3, generation=8)) == 0
    assert edge.tell(seen(3, generation=8)) == UNLIMITED


async def test_pages_are_kept_from_the_second_open_of_a_tenure_on(edge):
    edge.tenures[FILE] = 3
    tenure = edge.cache.opened(seen(0))
    assert not edge.cache.has_pages_of(FILE, tenure)
    # Opened once more before the first has dropped the old pages: they may still be there.
    assert not edge.cache.has_pages_of(FILE, edge.cache.opened(seen(0)))
    edge.cache.pages_dropped(FILE, tenure)
    assert edge.cache.has_pages_of(FILE, edge.cache.opened(seen(0)))
    for _ in range(3):
        edge.cache.closed(FILE)

    await edge.give_up(FILE)
    assert not edge.cache.has_pages_of(FILE, edge.cache.opened(seen(0)))
    edge.tenures[FILE] = 5
    assert not edge.cache.has_pages_of(FILE, edge.cache.opened(seen(0)))


async def test_lock_is_never_given_up_under_an_open_file(edge):
    """Its pages may be being read: there is nothing that could be done about them then."""
    edge.tenures[FILE] = 3
    edge.cache.opened(seen(0))
    with pytest.raises(AssertionError, match="pages"):
        await edge.give_up(FILE)
    edge.cache.closed(FILE)
    await edge.give_up(FILE)


def test_nothing_is_kept_by_a_kernel_that_is_not_there(edge):
    edge.tenures[FILE] = 3
    alone = KernelCache(edge, edge.known)

    assert alone.attribute_seconds(seen(3)) == 0
    assert alone.name_seconds(FILE, 3) == 0


def test_size_is_made_right_at_the_first_open_of_a_tenure(edge):
    edge.tenures[FILE] = 3
    edge.cache.opened(seen(0, size=77))
    assert edge.heard() == ["attributes 0x24", "grown 0x24 77"]
    edge.cache.opened(seen(0, size=78))
    assert edge.heard() == []

    edge.tenures[FILE] = 5
    edge.tell(seen(5, size=79))
    edge.cache.opened(seen(0, size=79))
    assert edge.heard() == []


def test_size_is_made_right_at_every_open_while_the_lock_is_being_given_up(edge):
    edge.cache.opened(seen(0, size=77))
    edge.cache.opened(seen(0, size=77))

    assert edge.heard() == ["attributes 0x24", "grown 0x24 77"] * 2


def test_file_that_was_just_made_needs_no_notification(edge):
    edge.tenures[FILE] = 3

    assert edge.cache.created(seen(0)) == 3
    edge.cache.opened(seen(0))

    assert edge.heard() == []


async def test_notification_that_finds_nothing_is_sent_again_until_it_does(
    edge, autojump_clock: MockClock
):
    edge.kernel.inodes.discard(FILE)
    edge.tenures[FILE] = 3
    edge.tell(seen(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edge.cache.settle)
        await edge.give_up(FILE)
        assert edge.heard() == ["attributes 0x24", "names"]

        await trio.sleep(0.1)
        assert set(edge.heard()) == {"attributes 0x24"}
        edge.kernel.inodes.add(FILE)
        await trio.sleep(1)
        assert set(edge.heard()) == {"attributes 0x24"}
        await trio.sleep(10)
        assert edge.heard() == []
        nursery.cancel_scope.cancel()


async def test_notification_is_not_owed_for_what_the_kernel_has_forgotten(
    edge, autojump_clock: MockClock
):
    edge.kernel.inodes.discard(FILE)
    edge.tenures[FILE] = 3
    edge.tell(seen(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edge.cache.settle)
        await edge.give_up(FILE)
        edge.known.forget(FILE, 1)
        edge.cache.forget(FILE)
        edge.heard()
        await trio.sleep(10)
        assert edge.heard() == []
        nursery.cancel_scope.cancel()


async def test_giving_a_directory_up_waits_for_a_listing_that_is_being_taken_in(
    edge, autojump_clock: MockClock
):
    edge.tenures[DIRECTORY] = 3
    edge.cache.name_seconds(DIRECTORY, 3)
    edge.cache.listing_sent(1, DIRECTORY, reader=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edge.give_up, DIRECTORY)
        await trio.sleep(LISTING_SECONDS / 2)
        assert edge.heard() == []
        edge.cache.listing_taken(1)
    assert edge.heard() == ["names"]
    edge.cache.listing_taken(1)
    assert edge.heard() == []


async def test_listing_whose_reader_does_not_come_back_has_its_names_forgotten_when_it_does(
    edge, autojump_clock: MockClock
):
    edge.tenures[DIRECTORY] = 3
    edge.cache.name_seconds(DIRECTORY, 3)
    edge.cache.listing_sent(1, DIRECTORY, reader=0)
    started = trio.current_time()

    await edge.give_up(DIRECTORY)

    assert trio.current_time() - started == pytest.approx(LISTING_SECONDS)
    assert edge.heard() == ["names"]
    edge.cache.listing_taken(1)
    assert edge.heard() == ["names"]
    edge.cache.listing_taken(1)
    assert edge.heard() == []


async def test_change_that_the_kernel_asks_for_shows_that_the_listing_is_over(
    edge, autojump_clock: MockClock
):
    """Its reader may wait for the lock under which the kernel asks, and is not waited for."""
    edge.tenures[DIRECTORY] = 3
    edge.cache.name_seconds(DIRECTORY, 3)
    edge.cache.listing_sent(1, DIRECTORY, reader=0)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edge.give_up, DIRECTORY)
        await trio.sleep(LISTING_SECONDS / 2)
        edge.cache.changing(OTHER)
        assert edge.heard() == []
        edge.cache.changing(DIRECTORY, OTHER)
    assert edge.heard() == ["names"]
    assert trio.current_time() - started == pytest.approx(LISTING_SECONDS / 2)


@pytest.mark.parametrize(
    ("calls", "runs", "expected"),
    [
        (["0"], [0], LISTING_SECONDS),
        (["217", "217", None], [0, 0, 0], LISTING_SECONDS + 2 * LOOK_SECONDS),
        (["running"] * 3, [0, TAKEN_NS - 1, TAKEN_NS], LISTING_SECONDS + 2 * LOOK_SECONDS),
        (["217"] * 1000, [0] * 1000, LISTING_SECONDS_MAX),
    ],
)
async def test_reader_that_is_still_in_the_call_is_waited_for(
    edge, monkeypatch, calls, runs, expected, autojump_clock: MockClock
):
    looks = [0, *runs]
    monkeypatch.setattr(readers, "look_at_call", lambda thread: {77: calls}[thread].pop(0))
    monkeypatch.setattr(readers, "look_at_run", lambda thread: {77: looks}[thread].pop(0))
    edge.tenures[DIRECTORY] = 3
    edge.cache.name_seconds(DIRECTORY, 3)
    edge.cache.listing_sent(1, DIRECTORY, reader=77)
    started = trio.current_time()

    await edge.give_up(DIRECTORY)

    assert trio.current_time() - started == pytest.approx(expected, abs=1.1 * LOOK_SECONDS)
    edge.cache.listing_taken(1)
    assert edge.heard() == ["names", "names"]


async def test_listing_of_another_directory_under_way_keeps_it_on_the_list(edge):
    """Its names get the new epoch, so the next who takes that directory needs another."""
    edge.tenures |= {DIRECTORY: 3, OTHER: 4}
    edge.cache.name_seconds(DIRECTORY, 3)
    edge.cache.name_seconds(OTHER, 4)
    edge.cache.listing_sent(1, OTHER, reader=0)

    await edge.give_up(DIRECTORY)
    edge.cache.listing_taken(1)
    await edge.give_up(OTHER)

    assert edge.heard() == ["names", "names"]


def test_reply_is_used_again_as_long_as_it_is_true(edge):
    attributes = seen(3)
    edge.tenures[FILE] = 3
    edge.tell(attributes)
    entry = entry_of(attributes, name_seconds=UNLIMITED, attribute_seconds=UNLIMITED)
    edge.cache.remember(FILE, entry)
    assert edge.cache.entry(attributes) is entry
    assert edge.cache.entry(seen(3, generation=8)) is None

    edge.cache.changed(FILE)
    edge.tell(attributes)

    assert edge.cache.entry(attributes) is None


async def test_loss_drops_everything_in_a_thread(edge):
    edge.tenures[FILE] = 3
    edge.tell(seen(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(edge.cache.settle)
        edge.tenures.clear()  # as `Namespace.tenure` has it from now on
        edge.cache.lost()
        await edge.kernel.dropped.wait()
        nursery.cancel_scope.cancel()

    assert edge.heard() == ["names", "everything 0x1", "everything 0x24"]
    assert edge.tell(seen(3)) == 0
