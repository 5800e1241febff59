"""What the kernel may keep of what it was told, and what it is told when that ends.

The rule: attributes and pages of a node are kept while this host stands in the node's lock record,
names while it stands in their directory's. A *tenure* (`Namespace.tenure`) names one such stretch:
a number that never comes back, and 0 while there is none or it is about to end.

    reply     time-outs without limit if what it says was seen in the tenure that still lasts
    change    here, of a node: its attributes are to be asked for anew
    give up   the same, and every name is to be looked up anew if some of this directory were told
    open      pages stay if they are of this tenure; the kernel's idea of the size is set right

Nothing is done about pages when a lock is given up. A lock is never given up while a file is open
on its node, and pages are only read and written through open files (read-ahead and mappings keep
one open), so no READ can be under way then, and none comes before the next open, which drops them.

A reply that was sent may not have been read yet by the task in the kernel that asked. Attributes
carry a version there that makes a notification win, but for a node that this very reply makes
known: then the notification finds nothing, which is *owed* until it does. Names carry an epoch,
taken before the request was sent, but in a listing afterwards: so a listing under way is waited
for. Its reader may be waiting in turn, for the reply to a LOOKUP in that directory, or for whoever
changes it: that LOOKUP is answered without the lock's being taken anew (`Directories.look`), and a
change that is asked for shows that the listing is over (`changing`).

Decides on values and keeps count; the only thing it does is to send notifications that wait for
nothing. docs/decisions/008-kernel-caches-under-locks.md has the reasons.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from pyfuse3 import EntryAttributes

from vmfs.files.attributes import ROOT_ADDRESS, Attributes
from vmfs.fuse import readers
from vmfs.fuse.known_nodes import KnownNodes, inode_of
from vmfs.fuse.notify import Notifier, Silence
from vmfs.fuse.tree import NamedNode
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType

UNLIMITED: Final = 1e9
"""Seconds that the kernel takes for ever."""

LISTING_SECONDS: Final = 0.25
"""How old a listing is that the kernel should have taken in: its reader needs to be run for some
microseconds. Giving the directory up waits until its last listing is so old, or its reader comes
back; and longer, if the reader is seen to be still in the call (`readers`)."""

LISTING_SECONDS_MAX: Final = 5.0
"""How long a reader that is not run can hold up another host."""

LOOK_SECONDS: Final = 0.01
"""Between two looks at such a reader."""

OWED_SECONDS: Final = 0.001
"""Until a notification that found nothing is sent again; doubled each time, up to a second."""

_KEPT_TYPES: Final = frozenset({FileType.DIRECTORY, FileType.FILE, FileType.SYMLINK})
"""What changes under its own lock only. The volume's own files change under many others."""


class Tenures(Protocol):
    """Who knows since when this host stands in a node's lock record."""

    def tenure(self, address: FdAddress) -> int:
        """See `vmfs.files.namespace.Namespace.tenure`."""
        ...


def seconds(*, seen: int, now: int) -> float:
    """How long the kernel may keep what was seen in tenure `seen`, when `now` lasts."""
    return UNLIMITED if seen and seen == now else 0


@dataclass(slots=True)
class _Told:
    """What the kernel knows of one node, by the tenure that it is of; 0: nothing that holds."""

    attributes: int = 0  # told without limit, and still true
    size: int = 0  # its idea of the size was right once, and it has seen all changes since
    pages: int = 0  # it has no pages of before
    entry: EntryAttributes | None = None  # a reply that says so, as long as `attributes` is not 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A reply with names of a directory."""

    directory: FdAddress
    at: float  # trio time
    reader: int  # the task that lists: its thread id; 0: unknown
    run: int | None  # ns that it had been run by then


class KernelCache:
    """The caches of one mount, as far as they are known here. A `Watcher` of the tree."""

    def __init__(self, tree: Tenures, known: KnownNodes) -> None:
        """Nothing was told yet.

        Args:
            tree: says what is held.
            known: the nodes that the kernel knows.
        """
        self._tree = tree
        self._known = known
        self._notifier: Notifier = Silence()
        self._told: dict[FdAddress, _Told] = {}
        self._open: Counter[FdAddress] = Counter()  # open files
        self._named: set[FdAddress] = set()  # directories of which names were told without limit
        self._listings: dict[int, _Sent] = {}  # and perhaps not taken in yet, by handle
        self._listings_owed: set[int] = set()  # their names are to be forgotten once more
        self._listing_taken = trio.lowlevel.ParkingLot()
        self._owed: set[FdAddress] = set()
        self._pause = OWED_SECONDS
        self._work = trio.Event()
        self._lost = False

    def attach(self, notifier: Notifier) -> None:
        """The mount is there; until now the kernel was told everything for one look only."""
        self._notifier = notifier

    # --- replies ---

    def name_seconds(self, directory: FdAddress, seen: int) -> float:
        """How long a name may be kept, or that there is none, in the reply that goes out now.

        Args:
            directory: whose name it is.
            seen: the directory's tenure before it was looked at.
        """
        if not self._notifier.names_expire:
            return 0
        lasting = seconds(seen=seen, now=self._tree.tenure(directory))
        if lasting:
            self._named.add(directory)
        return lasting

    def attribute_seconds(self, attributes: Attributes) -> float:
        """How long attributes may be kept, in the reply that goes out now.

        For LOOKUP, GETATTR and READDIRPLUS, and for what makes a new node known. Else the kernel
        takes in the replies to what changes something without a look at what it was told since; of
        a new node it can have been told nothing, or in vain, which is owed.
        """
        if not self._notifier.attributes_expire or attributes.type not in _KEPT_TYPES:
            return 0
        if self._known.is_another(attributes.address, attributes.generation):
            return 0  # a notification would find the node that had the address before
        lasting = seconds(seen=attributes.tenure, now=self._tree.tenure(attributes.address))
        if lasting:
            told = self._node(attributes.address)
            told.attributes = told.size = attributes.tenure
        return lasting

    # --- open files ---

    def opened(self, attributes: Attributes) -> int:
        """A file was opened that the kernel knows; its size is made right there.

        Returns:
            The tenure that its pages will be of.
        """
        address = attributes.address
        self._open[address] += 1
        if attributes.type is not FileType.FILE:
            return 0
        now, told = self._tree.tenure(address), self._node(address)
        if not now or told.size != now:
            inode = inode_of(address, root=ROOT_ADDRESS)
            self._notifier.attributes(inode)
            self._notifier.grown(inode, attributes.size)
            told.attributes, told.entry, told.size = 0, None, now
        return now

    def created(self, attributes: Attributes) -> int:
        """A file was made and opened: the reply itself is the first that the kernel hears of it."""
        now = self._tree.tenure(attributes.address)
        self._open[attributes.address] += 1
        self._node(attributes.address).size = now
        return now

    def closed(self, address: FdAddress) -> None:
        """An open file was closed, and all that was read through it is there."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def has_pages_of(self, address: FdAddress, tenure: int) -> bool:
        """Whether all pages that the kernel has of a file are of this tenure."""
        return bool(tenure) and self._node(address).pages == tenure

    def pages_dropped(self, address: FdAddress, tenure: int) -> None:
        """A file that was opened in `tenure` is being used: older pages went when it was opened."""
        if tenure:
            self._node(address).pages = tenure

    # --- listings ---

    def remember(self, address: FdAddress, entry: EntryAttributes) -> None:
        """Name and attributes were just told without limit: `entry` stays true as long as that."""
        self._node(address).entry = entry

    def entry(self, node: NamedNode) -> EntryAttributes | None:
        """What was told of a node's attributes, if all of it is still true. Not to be changed."""
        told = self._told.get(node.address)
        if told is None or not told.attributes or told.entry is None:
            return None
        return told.entry if told.entry.generation == node.generation else None

    def listing_sent(self, handle: int, directory: FdAddress, *, reader: int) -> None:
        """A listing is about to be sent to task `reader`; its names were told without limit."""
        run = readers.look_at_run(reader)
        self._listings[handle] = _Sent(directory, trio.current_time(), reader, run)

    def listing_taken(self, handle: int) -> None:
        """Its reader asks for more, or closes: whatever was sent before was taken in."""
        if self._listings.pop(handle, None) is not None:
            self._listing_taken.unpark_all()
        if handle in self._listings_owed:
            self._listings_owed.discard(handle)
            self._forget_names()

    def changing(self, *directories: FdAddress) -> None:
        """The kernel asks to change these directories: nobody is in a listing of them.

        It keeps a directory locked from before it asks until the reply is taken in, and a listing,
        which is taken in under that lock as well, waits as long (Linux, Documentation/filesystems/
        locking.rst: `i_rwsem`).
        """
        for handle in [h for h, sent in self._listings.items() if sent.directory in directories]:
            self.listing_taken(handle)

    # --- what ends it ---

    def changed(self, address: FdAddress) -> None:
        """See `Watcher.changed`. The kernel is told only what it would not ask for anyhow."""
        told = self._told.get(address)
        if told is not None and told.attributes:
            told.attributes, told.entry = 0, None
            self._forget_attributes(address)

    async def give_up(self, address: FdAddress) -> None:
        """See `Watcher.give_up`."""
        assert not self._tree.tenure(address), f"{address:#x} is given up and still told"
        assert address not in self._open, f"{address:#x} is given up and its pages may be read"
        self.changed(address)
        self._told.pop(address, None)  # all of it was of the tenure that ends
        if address in self._named:
            await self._wait_for_listings(address)
            self._named.discard(address)
            self._forget_names()

    def lost(self) -> None:
        """See `Watcher.lost`. Nothing is told without an end from here on: all tenures are 0."""
        self._told.clear()
        self._lost = True
        self._work.set()

    def forget(self, address: FdAddress) -> None:
        """The kernel knows the node no more."""
        self._told.pop(address, None)
        self._named.discard(address)
        self._owed.discard(address)

    async def settle(self) -> None:
        """Send again what found nothing, and after a loss drop everything. Until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._lost:
                self._lost = False
                await trio.to_thread.run_sync(self._drop_everything, abandon_on_cancel=True)
            while self._owed:
                with trio.move_on_after(self._pause):
                    await self._work.wait()
                    break
                self._pause = min(2 * self._pause, 1.0)
                self._owed = {address for address in self._owed if not self._is_settled(address)}

    def _node(self, address: FdAddress) -> _Told:
        told = self._told.get(address)
        if told is None:
            told = self._told[address] = _Told()
        return told

    def _forget_attributes(self, address: FdAddress) -> None:
        if self._is_settled(address):
            return
        # The reply that makes the node known is on its way. Whoever comes by a name looks it up
        # again; whoever has it already, by the time that it is found.
        self._forget_names()
        self._owed.add(address)
        self._pause = OWED_SECONDS
        self._work.set()

    def _is_settled(self, address: FdAddress) -> bool:
        inode = inode_of(address, root=ROOT_ADDRESS)
        return self._notifier.attributes(inode) or not self._known.has(address)

    def _forget_names(self) -> None:
        self._notifier.names()
        self._named.intersection_update(sent.directory for sent in self._listings.values())

    async def _wait_for_listings(self, directory: FdAddress) -> None:
        """Until no listing of the directory is under way, but for readers that are not run."""
        next_look = 0.0
        while sent := {h: s for h, s in self._listings.items() if s.directory == directory}:
            ripe = max(one.at for one in sent.values()) + LISTING_SECONDS
            with trio.move_on_at(max(ripe, next_look)) as waiting:
                await self._listing_taken.park()
            if waiting.cancelled_caught:
                self._leave_behind(sent)
                next_look = trio.current_time() + LOOK_SECONDS

    def _leave_behind(self, sent: Mapping[int, _Sent]) -> None:
        """Wait no more for readers that are out of their call, or have been in it for too long."""
        for handle, one in sent.items():
            call, run = readers.look_at_call(one.reader), readers.look_at_run(one.reader)
            is_over = trio.current_time() >= one.at + LISTING_SECONDS_MAX
            if is_over or readers.has_taken(one.run, run, call):
                del self._listings[handle]
                self._listings_owed.add(handle)

    def _drop_everything(self) -> None:
        self._notifier.names()
        for address in [ROOT_ADDRESS, *self._known.addresses()]:
            self._notifier.everything(inode_of(address, root=ROOT_ADDRESS))
