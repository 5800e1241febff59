"""The records of our journal: commit sectors, and the table of a transaction's runs.

A journal region has two halves and behind them the orphan table (`vmfs.ondisk.orphan_rec`):

    region      +0                                                        +size - 64 KiB
                | commit 0 | table, payload ...  | commit 1 | table, payload ... | orphan table |
                  512 B      half 0                512 B      half 1

Transaction `n` is written to half ``n % 2``: its table and payload first, its commit sector last.
A commit sector says COMMITTED (this half holds transaction n, replay it) or DONE (everything up to
and including n is in place). Only the commit sector with the highest sequence counts.
See `docs/journal.md` for why that is enough.

The digest is BLAKE2b rather than a CRC: it is as fast here, 128 bits cannot be hit by chance, and
it is salted with slot, generation, sequence and place, so that neither a neighbour's journal nor an
earlier owner's nor an earlier turn's body can ever pass for this one. It is no part of the proof of
crash safety (the flushes are): it makes a device that lied about a flush, or rotted, a loud error.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ids import SlotIndex
from vmfs.ondisk.record import Buffer, require, require_length, require_one_of, require_within
from vmfs.units import KIB, SECTOR_SIZE, align_down, align_up

ORPHAN_TABLE_SIZE: Final = 64 * KIB
"""At the end of each journal region; see `vmfs.ondisk.orphan_rec`."""

DIGEST_SIZE: Final = 16
REGION_SIZE_MIN: Final = ORPHAN_TABLE_SIZE + 2 * 16 * KIB
"""Room for two halves in which the largest single operation fits."""

_RUN: Final = Struct("<QQ")
_SALT: Final = Struct("<IQQQII")


class CommitState(IntEnum):
    """What a commit sector says about its half."""

    COMMITTED = 1
    DONE = 2


@dataclass(frozen=True, slots=True)
class JournalLayout:
    """Where the parts of a journal region stand; all in LV bytes."""

    region_offset: int
    region_size: int

    def __post_init__(self) -> None:
        assert self.region_offset % SECTOR_SIZE == 0, "journal region not on a sector"
        assert self.region_size >= REGION_SIZE_MIN, f"journal of {self.region_size} bytes"

    @property
    def half_size(self) -> int:
        """Bytes of one half, its commit sector included."""
        return align_down((self.region_size - ORPHAN_TABLE_SIZE) // 2, SECTOR_SIZE)

    @property
    def body_size(self) -> int:
        """Bytes that table and payload of one transaction may take."""
        return self.half_size - SECTOR_SIZE

    @property
    def payload_size_max(self) -> int:
        """Bytes of sectors that always fit, even if no two of them are neighbours."""
        sector_count = self.body_size // (SECTOR_SIZE + _RUN.size)
        while table_size(sector_count) + sector_count * SECTOR_SIZE > self.body_size:
            sector_count -= 1
        return sector_count * SECTOR_SIZE

    @property
    def orphan_offset(self) -> int:
        """Where the orphan table stands."""
        return self.region_offset + self.region_size - ORPHAN_TABLE_SIZE

    def commit_offset(self, half: int) -> int:
        """Where the commit sector of half 0 or 1 stands."""
        assert half in (0, 1), f"half {half}"
        return self.region_offset + half * self.half_size

    def body_offset(self, half: int) -> int:
        """Where table and payload of half 0 or 1 stand."""
        return self.commit_offset(half) + SECTOR_SIZE


def half_of(sequence: int) -> int:
    """Which half transaction `sequence` is written to: never the one that must survive it."""
    return sequence % 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSector:
    """The single write that commits a transaction, or says that it needs no replay any more."""

    state: CommitState
    slot: SlotIndex  # whose journal this is: guards against a misdirected write
    generation: int  # of the heartbeat slot's owner who wrote it
    sequence: int  # 1 is the first; grows by one with each transaction, over all owners
    lv_offset: int  # its own: guards against a misdirected write
    run_count: int = 0  # runs in the table; 0 where DONE was written by `format`
    payload_size: int = 0  # bytes, whole sectors
    body_digest: bytes = bytes(DIGEST_SIZE)  # of table and payload

    NAME: ClassVar[str] = "journal commit sector"
    MAGIC: ClassVar[bytes] = b"VLJcommt"
    VERSION: ClassVar[int] = 1
    LAYOUT: ClassVar[Struct] = Struct("<8sIIIIQQQII16s")
    SIZE: ClassVar[int] = SECTOR_SIZE

    def pack(self) -> bytes:
        """The sector as it stands on disk, its own digest at the end."""
        fields = self.LAYOUT.pack(
            self.MAGIC,
            self.VERSION,
            self.state,
            self.slot,
            0,
            self.generation,
            self.sequence,
            self.lv_offset,
            self.run_count,
            self.payload_size,
            self.body_digest,
        )
        checked = fields.ljust(self.SIZE - DIGEST_SIZE, b"\0")
        return checked + _digest(checked)

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self | None:
        """Read it; None for a sector of zeroes, which was never written.

        Args:
            data: the sector.
            address: the LV offset it was read from.

        Raises:
            CorruptRecord: neither zeroes nor a whole commit sector of this place. A sector is never
                torn by a crash, so this is damage, and what it said cannot be guessed.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        data = bytes(data)
        if not any(data):
            return None
        magic, version, state, slot, reserved, generation, sequence, lv_offset, *body = (
            cls.LAYOUT.unpack_from(data)
        )
        if magic != cls.MAGIC:
            raise CorruptRecord(cls.NAME, address, "magic", magic, cls.MAGIC)
        require(cls.NAME, address, "version", version, cls.VERSION)
        checked, digest = data[:-DIGEST_SIZE], data[-DIGEST_SIZE:]
        if digest != _digest(checked):
            raise CorruptRecord(cls.NAME, address, "digest", digest.hex(), _digest(checked).hex())
        require(cls.NAME, address, "own LV offset", lv_offset, address)
        require_one_of(cls.NAME, address, "state", state, (1, 2))
        require(cls.NAME, address, "reserved", reserved, 0)
        run_count, payload_size, body_digest = body
        require(cls.NAME, address, "payload size modulo 512", payload_size % SECTOR_SIZE, 0)
        require_within(
            cls.NAME, address, "run count", run_count, range(payload_size // SECTOR_SIZE + 1)
        )
        return cls(
            state=CommitState(state),
            slot=SlotIndex(slot),
            generation=generation,
            sequence=sequence,
            lv_offset=lv_offset,
            run_count=run_count,
            payload_size=payload_size,
            body_digest=body_digest,
        )

    @property
    def body_size(self) -> int:
        """Bytes of table and payload."""
        return table_size(self.run_count) + self.payload_size

    def sealed(self, body: Buffer) -> Self:
        """The same sector, vouching for `body`: ready to be written."""
        return replace(self, body_digest=self._digest_of(body))

    def matches(self, body: Buffer) -> bool:
        """Whether `body` is the table and payload that was committed with this sector."""
        return self.body_digest == self._digest_of(body)

    def _digest_of(self, body: Buffer) -> bytes:
        """The digest of a body *as this transaction of this owner at this place*."""
        salt = _SALT.pack(
            self.slot, self.generation, self.sequence, self.lv_offset, self.run_count, len(body)
        )
        state = hashlib.blake2b(salt, digest_size=DIGEST_SIZE)
        state.update(body)
        return state.digest()


assert CommitSector.LAYOUT.size + DIGEST_SIZE <= CommitSector.SIZE


def table_size(run_count: int) -> int:
    """Bytes of a table of so many runs, in whole sectors."""
    return align_up(run_count * _RUN.size, SECTOR_SIZE)


def pack_body(runs: Sequence[tuple[int, bytes]]) -> bytes:
    """Table and payload: for each run its LV offset and length, then all the sectors."""
    table = b"".join(_RUN.pack(offset, len(data)) for offset, data in runs)
    return b"".join([table.ljust(table_size(len(runs)), b"\0"), *(data for _, data in runs)])


def unpack_body(
    body: bytes, *, run_count: int, address: int, lv_size: int
) -> list[tuple[int, bytes]]:
    """Take a body apart that has passed its digest.

    Raises:
        CorruptRecord: runs are not whole ascending sectors of the volume, or not all the payload.
    """
    name = "journal run"
    runs = []
    position, previous_end = table_size(run_count), 0
    for index in range(run_count):
        at = index * _RUN.size
        offset, length = _RUN.unpack_from(body, at)
        if offset % SECTOR_SIZE or length % SECTOR_SIZE or not length:
            raise CorruptRecord(name, address + at, "range", f"{offset:#x}+{length:#x}", "sectors")
        require_within(name, address + at, "offset", offset, range(previous_end, lv_size))
        require_within(name, address + at, "end", offset + length, range(lv_size + 1))
        runs.append((offset, body[position : position + length]))
        position += length
        previous_end = offset + length
    require("journal transaction", address, "payload", position, len(body))
    return runs


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()
