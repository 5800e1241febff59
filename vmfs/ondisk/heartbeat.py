"""Heartbeat slots: LV 0x300000, 2048 sectors, one for each host that has the volume open.

A slot is *in use* from mount to unmount; its holder writes `stamp_us` at every beat. Generation
grows by one with every acquisition, so a lock record that names (slot, generation) names one
mount of one host, for ever. Slots change only by compare-and-write or under a reservation.

From 0xA4 on VMFS-5 has nothing; there we keep `HostInfo`, so that people see names instead of
UUIDs. A slot in use without it was left by another implementation, most likely ESXi.
"""

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ids import LvOffset, SlotIndex, VmfsUuid
from vmfs.ondisk.record import (
    Buffer,
    pack_text,
    require,
    require_length,
    require_one_of,
    unpack_text,
)

HEARTBEAT_REGION: Final = LvOffset(0x300000)
SLOT_COUNT: Final = 2048
SLOT_SIZE: Final = 512
DRIVER_MAJOR: Final = 14
DRIVER_MINOR: Final = 81
LOCK_IMPLEMENTATION_ATS: Final = 3
"""What ESXi writes on storage with ATS."""

ADDRESS_TEXT_MAX: Final = 46
HOST_NAME_MAX: Final = 64


def slot_offset(index: int) -> LvOffset:
    """Where slot `index` stands."""
    assert 0 <= index < SLOT_COUNT, f"heartbeat slot {index}"
    return LvOffset(HEARTBEAT_REGION + index * SLOT_SIZE)


def is_slot_offset(offset: int) -> bool:
    """Whether a slot begins at this LV offset."""
    relative = offset - HEARTBEAT_REGION
    return 0 <= relative < SLOT_COUNT * SLOT_SIZE and relative % SLOT_SIZE == 0


def slot_index(offset: int) -> SlotIndex:
    """Which slot begins at this LV offset."""
    assert is_slot_offset(offset), f"no heartbeat slot at {offset:#x}"
    return SlotIndex((offset - HEARTBEAT_REGION) // SLOT_SIZE)


class HeartbeatState(IntEnum):
    """The magic of a slot is also its state. Nothing else is legal, zero least of all."""

    FREE = 0xABCDEF01
    IN_USE = 0xABCDEF02


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """Our private tail of a slot in use: who holds it, in words, and at what pace it beats."""

    name: str  # host name, up to 64 bytes of UTF-8; for people only
    pid: int  # process id of the mount on its host; for people only
    nonce: int  # drawn at mount: tells this mount from every other of the same host
    interval_ms: int  # between two beats
    lease_ms: int  # others may ask for a fence when the slot stood still for so long

    MAGIC: ClassVar[int] = 0x48464D56  # "VMFH"
    VERSION: ClassVar[int] = 1
    LAYOUT: ClassVar[Struct] = Struct("<II64sIQII")
    SIZE: ClassVar[int] = 92

    def pack(self) -> bytes:
        """The 92 bytes that stand at 0xA4 of the slot."""
        return self.LAYOUT.pack(
            self.MAGIC,
            self.VERSION,
            pack_text(self.name, HOST_NAME_MAX),
            self.pid,
            self.nonce,
            self.interval_ms,
            self.lease_ms,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read it back.

        Raises:
            CorruptRecord: length, magic, version or name is wrong.
        """
        require_length("host info", address, data, cls.SIZE)
        magic, version, name, pid, nonce, interval_ms, lease_ms = cls.LAYOUT.unpack(data)
        require("host info", address, "magic", magic, cls.MAGIC)
        require("host info", address, "version", version, cls.VERSION)
        return cls(
            name=unpack_text("host info", address, "name", name),
            pid=pid,
            nonce=nonce,
            interval_ms=interval_ms,
            lease_ms=lease_ms,
        )


assert HostInfo.LAYOUT.size == HostInfo.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One slot."""

    lv_offset: LvOffset  # own place: guards against misdirected reads and writes
    state: HeartbeatState = HeartbeatState.FREE
    generation: int = 0  # + 1 with every acquisition, kept after release; 0: never used
    stamp_us: int = 0  # holder's uptime at its last beat, in microseconds; kept after release
    owner: VmfsUuid = VmfsUuid.NIL  # host UUID; nil when free
    journal_fb: int = 0  # packed address of the first file block of the journal; 0 when free
    driver_major: int = 0  # 14.81 while in use
    driver_minor: int = 0
    lock_implementation: int = 0
    address_text: str = ""  # IP address as text, up to 46 bytes
    journal_offset: int = 0  # LV offset of the journal; 0 when free
    replayer: VmfsUuid = VmfsUuid.NIL  # host that replays this one's journal; nil: nobody does
    reserved_7c: bytes = bytes(24)
    replayer_offset: int = 0  # LV offset of the replayer's own slot
    replayer_generation: int = 0  # and its generation
    tail: bytes = bytes(348)  # HostInfo at its start, when it is ours

    NAME: ClassVar[str] = "heartbeat"
    LAYOUT: ClassVar[Struct] = Struct("<IQQQ16sIIBB46sQ16s24sQQ348s")
    SIZE: ClassVar[int] = SLOT_SIZE
    TAIL_OFFSET: ClassVar[int] = 0xA4

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            self.state,
            self.lv_offset,
            self.generation,
            self.stamp_us,
            self.owner.raw,
            self.journal_fb,
            self.driver_major,
            self.driver_minor,
            self.lock_implementation,
            pack_text(self.address_text, ADDRESS_TEXT_MAX),
            self.journal_offset,
            self.replayer.raw,
            self.reserved_7c,
            self.replayer_offset,
            self.replayer_generation,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read a slot.

        Args:
            data: its sector.
            address: LV offset that it was read from.

        Raises:
            CorruptRecord: not a heartbeat, not this one, or in use by nobody.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        fields = cls.LAYOUT.unpack(data)
        state, lv_offset, owner = fields[0], fields[1], VmfsUuid(fields[4])
        require_one_of(cls.NAME, address, "magic", state, tuple(HeartbeatState))
        require(cls.NAME, address, "own address", lv_offset, address)
        if state == HeartbeatState.IN_USE:
            require(cls.NAME, address, "driver version", fields[6], DRIVER_MAJOR)
            if not owner:
                raise CorruptRecord(cls.NAME, address, "owner", owner, "a host UUID while in use")
        elif owner:
            raise CorruptRecord(cls.NAME, address, "owner", owner, "nobody while free")
        return cls(
            lv_offset=LvOffset(lv_offset),
            state=HeartbeatState(state),
            generation=fields[2],
            stamp_us=fields[3],
            owner=owner,
            journal_fb=fields[5],
            driver_major=fields[6],
            driver_minor=fields[7],
            lock_implementation=fields[8],
            address_text=unpack_text(cls.NAME, address, "address text", fields[9]),
            journal_offset=fields[10],
            replayer=VmfsUuid(fields[11]),
            reserved_7c=fields[12],
            replayer_offset=fields[13],
            replayer_generation=fields[14],
            tail=fields[15],
        )

    @property
    def index(self) -> SlotIndex:
        """Which slot this is."""
        return slot_index(self.lv_offset)

    @property
    def is_in_use(self) -> bool:
        """Some host has it, dead or alive."""
        return self.state == HeartbeatState.IN_USE

    @property
    def host(self) -> HostInfo | None:
        """Our private tail; None when there is none, or one that we cannot read."""
        at = self.lv_offset + self.TAIL_OFFSET
        try:
            return HostInfo.unpack(self.tail[: HostInfo.SIZE], address=at)
        except CorruptRecord:
            return None  # it is for people only: a slot without it is as good as any

    def acquired(  # noqa: PLR0913 - one for each field that a mount fills in
        self,
        *,
        owner: VmfsUuid,
        stamp_us: int,
        journal_fb: int,
        journal_offset: int,
        host: HostInfo,
        address_text: str = "",
        lock_implementation: int = LOCK_IMPLEMENTATION_ATS,
    ) -> Self:
        """The slot as a host writes it at mount: in use, generation + 1. It must be free."""
        assert self.state == HeartbeatState.FREE, "a slot in use is recovered before it is taken"
        assert owner, "a slot is held by somebody"
        return type(self)(
            lv_offset=self.lv_offset,
            state=HeartbeatState.IN_USE,
            generation=self.generation + 1,
            stamp_us=stamp_us,
            owner=owner,
            journal_fb=journal_fb,
            driver_major=DRIVER_MAJOR,
            driver_minor=DRIVER_MINOR,
            lock_implementation=lock_implementation,
            address_text=address_text,
            journal_offset=journal_offset,
            tail=host.pack().ljust(348, b"\0"),
        )

    def beaten(self, stamp_us: int) -> Self:
        """The slot at its holder's next beat."""
        assert self.is_in_use, "only a holder beats"
        return dataclasses.replace(self, stamp_us=stamp_us)

    def replaying(self, *, by: VmfsUuid, by_offset: LvOffset, by_generation: int) -> Self:
        """The slot of a fenced host while `by` replays its journal."""
        assert self.is_in_use, "a free slot has nothing to replay"
        return dataclasses.replace(
            self, replayer=by, replayer_offset=by_offset, replayer_generation=by_generation
        )

    def released(self) -> Self:
        """The slot after a clean unmount: free; generation and stamp stay as history."""
        assert self.is_in_use, "only a slot in use is released"
        return type(self)(
            lv_offset=self.lv_offset,
            generation=self.generation,
            stamp_us=self.stamp_us,
            driver_major=self.driver_major,
            driver_minor=self.driver_minor,
            lock_implementation=self.lock_implementation,
        )

    def recovered(self) -> Self:
        """The slot after its dead holder was recovered: free, generation + 1.

        The new generation makes every lock record that still names the old one stale.
        """
        return dataclasses.replace(self.released(), generation=self.generation + 1)


assert Heartbeat.LAYOUT.size == Heartbeat.SIZE
assert Heartbeat.TAIL_OFFSET + HostInfo.SIZE <= Heartbeat.SIZE
