"""The orphan table: files whose truncation or freeing has begun and does not fit one transaction.

    64 KiB at the end of each journal region = 128 sectors, each with 30 entries of 16 bytes

An entry is written in the transaction that unlinks or shrinks the file, and erased in the one that
finishes the work. A sector of zeroes is empty. Sectors change only through the journal.
"""

import hashlib
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress, SlotIndex
from vmfs.ondisk.journal_rec import ORPHAN_TABLE_SIZE
from vmfs.ondisk.record import Buffer, require, require_length
from vmfs.units import SECTOR_SIZE

ORPHAN_SECTOR_COUNT: Final = ORPHAN_TABLE_SIZE // SECTOR_SIZE
_DIGEST_SIZE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanEntry:
    """One file with work left: everything from `target_size` on must still be freed."""

    fd_address: FdAddress  # never 0, which marks a free entry
    generation: int  # of the file descriptor: guards against its reuse
    target_size: int  # bytes to keep; 0 with a link count of 0: free the descriptor as well

    LAYOUT: ClassVar[Struct] = Struct("<IIQ")
    SIZE: ClassVar[int] = 16

    def __post_init__(self) -> None:
        assert self.fd_address != 0, "an orphan without a file descriptor"


assert OrphanEntry.LAYOUT.size == OrphanEntry.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanSector:
    """One sector of the table: 30 places, each with an entry or free."""

    slot: SlotIndex  # whose table it is: guards against a misdirected write
    lv_offset: int  # its own: guards against a misdirected write
    entries: tuple[OrphanEntry | None, ...]

    NAME: ClassVar[str] = "orphan table sector"
    MAGIC: ClassVar[bytes] = b"VLor"
    VERSION: ClassVar[int] = 1
    LAYOUT: ClassVar[Struct] = Struct("<4sHHQQ8s")
    SIZE: ClassVar[int] = SECTOR_SIZE
    PLACES: ClassVar[int] = (SECTOR_SIZE - 32) // OrphanEntry.SIZE

    def __post_init__(self) -> None:
        assert len(self.entries) == self.PLACES, f"{len(self.entries)} places"

    @classmethod
    def empty(cls, *, slot: SlotIndex, lv_offset: int) -> Self:
        """A sector with every place free."""
        return cls(slot=slot, lv_offset=lv_offset, entries=(None,) * cls.PLACES)

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        places = b"".join(
            entry.LAYOUT.pack(entry.fd_address, entry.generation, entry.target_size)
            if entry
            else bytes(OrphanEntry.SIZE)
            for entry in self.entries
        )
        head = (self.MAGIC, self.VERSION, self.slot, self.lv_offset, 0)
        digest = _digest(self.LAYOUT.pack(*head, bytes(_DIGEST_SIZE)) + places)
        return self.LAYOUT.pack(*head, digest) + places

    @classmethod
    def unpack(cls, data: Buffer, *, address: int, slot: SlotIndex) -> Self:
        """Read it; a sector of zeroes is an empty one.

        Args:
            data: the sector.
            address: the LV offset it was read from.
            slot: whose table it must be in.

        Raises:
            CorruptRecord: neither zeroes nor a whole sector of this place and slot.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        data = bytes(data)
        if not any(data):
            return cls.empty(slot=slot, lv_offset=address)
        magic, version, found_slot, lv_offset, reserved, digest = cls.LAYOUT.unpack_from(data)
        if magic != cls.MAGIC:
            raise CorruptRecord(cls.NAME, address, "magic", magic, cls.MAGIC)
        require(cls.NAME, address, "version", version, cls.VERSION)
        places = data[cls.LAYOUT.size :]
        head = cls.LAYOUT.pack(magic, version, found_slot, lv_offset, reserved, bytes(_DIGEST_SIZE))
        if digest != _digest(head + places):
            raise CorruptRecord(
                cls.NAME, address, "digest", digest.hex(), _digest(head + places).hex()
            )
        require(cls.NAME, address, "own LV offset", lv_offset, address)
        require(cls.NAME, address, "slot", found_slot, slot)
        require(cls.NAME, address, "reserved", reserved, 0)
        return cls(
            slot=slot,
            lv_offset=address,
            entries=tuple(
                OrphanEntry(
                    fd_address=FdAddress(fd), generation=generation, target_size=target_size
                )
                if fd
                else None
                for fd, generation, target_size in OrphanEntry.LAYOUT.iter_unpack(places)
            ),
        )


assert OrphanSector.LAYOUT.size == 32
assert OrphanSector.LAYOUT.size + OrphanSector.PLACES * OrphanEntry.SIZE == OrphanSector.SIZE


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_SIZE).digest()
