"""The content of one directory: a dense array of 140-byte entries, as values. No I/O.

    0        140      280      420
    | .      | ..     | a      | b      ...        | z      |  (rest of the last sector: nothing)
                        slot 2   slot 3              slot n-1

There are no holes: the last entry moves into the place of a removed one (format: `vmfs.ondisk.
dirent`). `.` and `..` are always slots 0 and 1. Names compare as bytes.

Every change returns the byte range that it touched; `sectors` widens a range to the whole sectors
that the transaction stages, so nothing must be read back from the LUN to write an entry.
"""

import dataclasses
from typing import Final

from vmfs.errors import CorruptRecord, Exists, NotFound
from vmfs.files.attributes import ListedName
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry, unpack_all
from vmfs.ondisk.file_desc import FileType
from vmfs.units import SECTOR_SIZE, align_down, align_up

DOT = b"."
DOT_DOT = b".."
_SPECIAL_COUNT = 2

LISTING_KEPT_MAX: Final = 4096
"""Names of a directory whose listing is kept from one reader to the next."""

Range = tuple[int, int]
"""Half-open range of bytes of the directory's content."""


class EntryArray:
    """The entries of one directory, in the order in which they stand on disk."""

    __slots__ = ("_content", "_entries", "_listed", "_slots")

    def __init__(self, content: bytes, *, address: int) -> None:
        """Take a directory's content apart.

        Args:
            content: exactly its `length` bytes.
            address: where it begins (LV offset), for messages.

        Raises:
            CorruptRecord: an entry is corrupt, `.` or `..` is not where it must be, or a name
                stands there twice.
        """
        self._entries = unpack_all(content, address=address)
        self._listed: tuple[ListedName, ...] | None = None  # `listed`, until something changes
        self._content = bytearray(content)
        self._pad()
        self._slots = {entry.name: slot for slot, entry in enumerate(self._entries)}
        first = tuple(entry.name for entry in self._entries[:_SPECIAL_COUNT])
        if first != (DOT, DOT_DOT):
            raise CorruptRecord("directory", address, "first entries", first, (DOT, DOT_DOT))
        if len(self._slots) != len(self._entries):
            raise CorruptRecord(
                "directory", address, "names", _first_double(self._entries), "each name once"
            )

    @classmethod
    def empty(cls, *, own: FdAddress, own_generation: int, parent: DirEntry) -> "EntryArray":
        """A new directory's content.

        Args:
            own: its FD address.
            own_generation: its generation.
            parent: the parent's own `.` entry; `..` becomes a copy of it.
        """
        dot = DirEntry(type=FileType.DIRECTORY, address=own, generation=own_generation, name=DOT)
        dot_dot = dataclasses.replace(parent, name=DOT_DOT)
        return cls(dot.pack() + dot_dot.pack(), address=0)

    @property
    def length(self) -> int:
        """Bytes: the directory's `length` on disk."""
        return len(self._entries) * DirEntry.SIZE

    @property
    def is_empty(self) -> bool:
        """Nothing but `.` and `..`."""
        return len(self._entries) == _SPECIAL_COUNT

    @property
    def dot(self) -> DirEntry:
        """The entry of the directory itself."""
        return self._entries[0]

    @property
    def dot_dot(self) -> DirEntry:
        """The entry of its parent."""
        return self._entries[1]

    def has_content(self, content: bytes) -> bool:
        """Whether a directory with these bytes has exactly these entries."""
        return len(content) == self.length and self._content.startswith(content)

    def find(self, name: bytes) -> DirEntry | None:
        """The entry of that name, `.` and `..` included."""
        slot = self._slots.get(name)
        return None if slot is None else self._entries[slot]

    def must_not_have(self, name: bytes) -> None:
        """Raises: Exists (the name is taken)."""
        if name in self._slots:
            raise Exists(f"{name!r} is there already")

    def listed(self) -> tuple[ListedName, ...]:
        """Every name but `.` and `..`, in the order on disk."""
        if self._listed is not None:
            return self._listed
        listed = tuple(
            ListedName(
                name=entry.name,
                address=entry.address,
                generation=entry.generation,
                type=entry.type,
            )
            for entry in self._entries[_SPECIAL_COUNT:]
        )
        self._listed = listed if len(listed) <= LISTING_KEPT_MAX else None
        return listed

    def add(self, entry: DirEntry) -> Range:
        """Put a new name at the end.

        Raises:
            Exists: the name is taken.
        """
        self.must_not_have(entry.name)
        self._listed = None
        slot = len(self._entries)
        self._entries.append(entry)
        self._slots[entry.name] = slot
        return self._write(slot)

    def replace(self, entry: DirEntry) -> Range:
        """Let an existing name (`..` too) stand for something else.

        Raises:
            NotFound: there is no such name.
        """
        slot = self._slot(entry.name)
        self._listed = None
        self._entries[slot] = entry
        return self._write(slot)

    def rename(self, old: bytes, entry: DirEntry) -> Range:
        """Put `entry`, with a new name, in the place of `old`.

        Raises:
            NotFound: there is no name `old`.
            Exists: the new name is taken.
        """
        slot = self._slot(old)
        self.must_not_have(entry.name)
        self._listed = None
        del self._slots[old]
        self._slots[entry.name] = slot
        self._entries[slot] = entry
        return self._write(slot)

    def remove(self, name: bytes) -> Range:
        """Take a name out; the last entry moves into its place.

        Returns:
            What changed inside the new length; empty when the last entry was the one.

        Raises:
            NotFound: there is no such name.
        """
        assert name not in (DOT, DOT_DOT)
        slot = self._slot(name)
        self._listed = None
        del self._slots[name]
        last = self._entries.pop()
        if slot == len(self._entries):
            return (self.length, self.length)
        self._entries[slot] = last
        self._slots[last.name] = slot
        return self._write(slot)

    def sectors(self, changed: Range) -> tuple[int, bytes]:
        """The whole sectors around a range: offset in the directory, and their bytes."""
        start = align_down(changed[0], SECTOR_SIZE)
        end = align_up(changed[1], SECTOR_SIZE)
        return start, bytes(self._content[start:end])

    def check_invariants(self) -> None:
        """For tests: index, entries and bytes say the same."""
        assert self._slots == {entry.name: slot for slot, entry in enumerate(self._entries)}
        assert unpack_all(self._content[: self.length]) == self._entries
        assert len(self._content) % SECTOR_SIZE == 0

    def _slot(self, name: bytes) -> int:
        slot = self._slots.get(name)
        if slot is None:
            raise NotFound(f"{name!r} is not there")
        return slot

    def _write(self, slot: int) -> Range:
        start = slot * DirEntry.SIZE
        end = start + DirEntry.SIZE
        if end > len(self._content):
            self._content.extend(bytes(end - len(self._content)))
            self._pad()
        self._content[start:end] = self._entries[slot].pack()
        return (start, end)

    def _pad(self) -> None:
        self._content.extend(bytes(-len(self._content) % SECTOR_SIZE))


def _first_double(entries: list[DirEntry]) -> bytes:
    seen: set[bytes] = set()
    for entry in entries:
        if entry.name in seen:
            return entry.name
        seen.add(entry.name)
    raise AssertionError("no name stands there twice")
