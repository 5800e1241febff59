"""Lock records: the sector in front of every file descriptor and every resource cluster.

The record names who holds the object: one host exclusively, or up to eight together. It changes
only by compare-and-write or under a reservation, never through a journal. The token grows by one
with every acquisition: token unchanged means that nobody else had the object meanwhile.

The transitions are pure: each returns the record that is to be written. A free lock still has its
magic and its own address, so it is never an all-zero sector.
"""

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ids import LvOffset, VmfsUuid
from vmfs.ondisk.heartbeat import is_slot_offset
from vmfs.ondisk.record import (
    Buffer,
    require,
    require_length,
    require_one_of,
    require_within,
)

LOCK_SIZE: Final = 512
HOLDER_COUNT_MAX: Final = 8

_HOLDER: Final = Struct("<QQ16s")
_HOLDER_ROOM: Final = 0x164 - 0x44


class LockType(IntEnum):
    """What the lock protects; the magic of the record."""

    FILE_DESC = 0x10C00001
    FB_CLUSTER = 0x10C00002
    SB_CLUSTER = 0x10C00003
    PB_CLUSTER = 0x10C00004
    FD_CLUSTER = 0x10C00005
    PB2_CLUSTER = 0x10C00006


class LockMode(IntEnum):
    """How it is held."""

    FREE = 0
    EXCLUSIVE = 1
    SHARED = 2
    MULTI_WRITER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One mount of one host: its heartbeat slot, the slot's generation, the host's UUID."""

    heartbeat_offset: LvOffset
    generation: int
    owner: VmfsUuid


_TYPES: Final = tuple(LockType)
_MODES: Final = tuple(LockMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLock:
    """One lock record."""

    type: LockType
    lv_offset: LvOffset  # own place: guards against misdirected reads and writes
    heartbeat_offset: int = 0  # slot of the (last) holder; 0: never taken
    generation: int = 0  # of that slot when the lock was taken
    token: int = 0  # + 1 with every acquisition, never goes down
    mode: LockMode = LockMode.FREE
    owner: VmfsUuid = VmfsUuid.NIL  # exclusive holder; nil when free or shared
    acquired_at: int = 0  # holder's uptime in seconds at the last acquisition; for people
    holders: tuple[Holder, ...] = ()  # shared holders, at most 8
    stale_holders: bytes = b""  # what an earlier holder list left behind the current one
    global_holder_count: int = 0  # ESXi's way beyond eight holders; we never use it
    global_generation: int = 0
    break_flag: int = 0
    tail: bytes = bytes(140)

    NAME: ClassVar[str] = "lock record"
    LAYOUT: ClassVar[Struct] = Struct("<IQQQQI16sQI288sIQI140s")
    SIZE: ClassVar[int] = LOCK_SIZE

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        holders = b"".join(
            _HOLDER.pack(h.heartbeat_offset, h.generation, h.owner.raw) for h in self.holders
        )
        room = (holders + self.stale_holders).ljust(_HOLDER_ROOM, b"\0")
        assert len(room) == _HOLDER_ROOM, "too many holders for a lock record"
        return self.LAYOUT.pack(
            self.type,
            self.lv_offset,
            self.heartbeat_offset,
            self.generation,
            self.token,
            self.mode,
            self.owner.raw,
            self.acquired_at,
            len(self.holders),
            room,
            self.global_holder_count,
            self.global_generation,
            self.break_flag,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read a lock record. A torn or corrupt one must never pass for a free one.

        Args:
            data: its sector.
            address: LV offset that it was read from.

        Raises:
            CorruptRecord: not a lock, not this one, or held in a way that cannot be.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        fields = cls.LAYOUT.unpack(data)
        require_one_of(cls.NAME, address, "type", fields[0], _TYPES)
        require(cls.NAME, address, "own address", fields[1], address)
        require_one_of(cls.NAME, address, "mode", fields[5], _MODES)
        count = fields[8]
        require_within(cls.NAME, address, "holder count", count, range(HOLDER_COUNT_MAX + 1))
        room: bytes = fields[9]
        lock = cls(
            type=LockType(fields[0]),
            lv_offset=LvOffset(fields[1]),
            heartbeat_offset=fields[2],
            generation=fields[3],
            token=fields[4],
            mode=LockMode(fields[5]),
            owner=VmfsUuid(fields[6]),
            acquired_at=fields[7],
            holders=_unpack_holders(room, count),
            stale_holders=room[count * _HOLDER.size :].rstrip(b"\0"),
            global_holder_count=fields[10],
            global_generation=fields[11],
            break_flag=fields[12],
            tail=fields[13],
        )
        lock._require_consistent()
        return lock

    def _require_consistent(self) -> None:
        exclusive = self.mode == LockMode.EXCLUSIVE
        shared = self.mode in (LockMode.SHARED, LockMode.MULTI_WRITER)
        if self.mode == LockMode.FREE and self.owner:
            raise self._corrupt("owner", self.owner, "nobody while free")
        if exclusive and not self.owner:
            raise self._corrupt("owner", self.owner, "a host UUID while exclusive")
        if self.holders and not shared:
            raise self._corrupt("holder count", len(self.holders), f"0 while {self.mode.name}")
        if shared and not self.holders and not self.global_holder_count:
            raise self._corrupt("holder count", 0, "at least 1 while shared")
        for holder in self.all_holders:
            if not is_slot_offset(holder.heartbeat_offset):
                raise self._corrupt("heartbeat", holder.heartbeat_offset, "a slot's LV offset")
            if not holder.owner:
                raise self._corrupt("holder", holder.owner, "a host UUID")

    def _corrupt(self, field: str, found: object, expected: str) -> CorruptRecord:
        return CorruptRecord(self.NAME, self.lv_offset, field, found, expected)

    @property
    def is_free(self) -> bool:
        """Nobody holds it."""
        return self.mode == LockMode.FREE

    @property
    def is_full(self) -> bool:
        """No further shared holder fits."""
        return len(self.holders) >= HOLDER_COUNT_MAX

    @property
    def exclusive_holder(self) -> Holder | None:
        """Who has it exclusively."""
        if self.mode != LockMode.EXCLUSIVE:
            return None
        return Holder(
            heartbeat_offset=LvOffset(self.heartbeat_offset),
            generation=self.generation,
            owner=self.owner,
        )

    @property
    def all_holders(self) -> tuple[Holder, ...]:
        """Everybody who has it, in whatever mode."""
        exclusive = self.exclusive_holder
        return (exclusive,) if exclusive is not None else self.holders

    def is_held_by(self, holder: Holder) -> bool:
        """Whether this very mount stands in the record."""
        return holder in self.all_holders

    def taken_exclusive(self, by: Holder, now: int) -> Self:
        """The record with `by` as its only holder. Whoever stood in it must be gone or be `by`.

        Args:
            by: the new holder.
            now: its uptime in seconds.
        """
        assert not [h for h in self.all_holders if h != by], "somebody else stands in the lock"
        return dataclasses.replace(
            self._acquired(by, now), mode=LockMode.EXCLUSIVE, owner=by.owner, holders=()
        )

    def taken_shared(self, by: Holder, now: int) -> Self:
        """The record with `by` among its shared holders; the others stay.

        Args:
            by: the holder that joins.
            now: its uptime in seconds.
        """
        assert self.exclusive_holder in (None, by), "somebody else has it exclusively"
        assert self.mode != LockMode.MULTI_WRITER, "a multi-writer lock is not shared"
        others = tuple(h for h in self.holders if h != by)
        assert len(others) < HOLDER_COUNT_MAX, "no room for another holder"
        return dataclasses.replace(
            self._acquired(by, now),
            mode=LockMode.SHARED,
            owner=VmfsUuid.NIL,
            holders=(*others, by),
        )

    def downgraded(self) -> Self:
        """From exclusive to shared by the same holder: nothing is acquired, the token stays."""
        holder = self.exclusive_holder
        assert holder is not None, "only an exclusive lock is downgraded"
        return dataclasses.replace(
            self,
            mode=LockMode.SHARED,
            owner=VmfsUuid.NIL,
            holders=(holder,),
            stale_holders=b"",
        )

    def without(self, holder: Holder) -> Self:
        """The record after `holder` has left it; free when it was the last."""
        left = tuple(h for h in self.all_holders if h != holder)
        if left == self.all_holders:
            return self
        if not left and not self.global_holder_count:
            return self.freed()
        return dataclasses.replace(self, holders=left, stale_holders=b"")

    def freed(self) -> Self:
        """The record with no holder; heartbeat, generation and token stay as history."""
        return dataclasses.replace(
            self,
            mode=LockMode.FREE,
            owner=VmfsUuid.NIL,
            holders=(),
            stale_holders=b"",
        )

    def _acquired(self, by: Holder, now: int) -> Self:
        return dataclasses.replace(
            self,
            heartbeat_offset=by.heartbeat_offset,
            generation=by.generation,
            token=self.token + 1,
            acquired_at=now,
            stale_holders=b"",
        )


assert DiskLock.LAYOUT.size == DiskLock.SIZE
assert _HOLDER.size * (HOLDER_COUNT_MAX + 1) == _HOLDER_ROOM


def _unpack_holders(room: bytes, count: int) -> tuple[Holder, ...]:
    return tuple(
        Holder(heartbeat_offset=LvOffset(offset), generation=generation, owner=VmfsUuid(owner))
        for offset, generation, owner in _HOLDER.iter_unpack(room[: count * _HOLDER.size])
    )
