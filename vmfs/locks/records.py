"""Reading and changing lock records on the LUN: the thin shell around `decide`.

Nothing is remembered here. Whoever changes the record of one lock from two tasks at once gets what
compare-and-write gives: one after the other. `LockManager` sees to it that this does not happen.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vmfs.device.base import Device
from vmfs.errors import CorruptRecord, LeaseLost
from vmfs.ids import LvOffset
from vmfs.locks.base import Clock, Peek
from vmfs.locks.decide import (
    Ask,
    Decision,
    Refuse,
    Standing,
    Take,
    Wait,
    decide,
    give_up,
    judge,
    mode_of,
    others,
    whose,
)
from vmfs.locks.order import LockId
from vmfs.locks.writers import RecordWriter
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockMode
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.records")


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """This host stands in the record."""

    mode: LockMode  # what the record says, perhaps more than was wanted
    token: int


Outcome = Got | Ask | Wait | Refuse
"""What came of an attempt: the lock, or what stands in the way."""


async def read_slot(device: Device, lv_offset: LvOffset) -> Heartbeat:
    """Read one heartbeat slot.

    Raises:
        CorruptRecord: it is none.
    """
    return Heartbeat.unpack(await device.read(lv_offset, Heartbeat.SIZE), address=lv_offset)


class LockRecords:
    """The lock records of one volume, as this mount reads and changes them."""

    def __init__(self, *, device: Device, writer: RecordWriter, me: Holder, clock: Clock) -> None:
        """`device` is the logical volume behind the permit; `me` is our slot and generation."""
        self.me = me
        self._device = device
        self._writer = writer
        self._clock = clock

    async def take(self, lock: LockId, wanted: LockMode, *, label: str) -> Outcome:
        """Stand in the record in mode `wanted`, if no other host has to be waited for.

        Durability: none is needed. A lock record that a power cut takes back names nobody, and
        what was done under the lock is in the journal or did not happen.

        Raises:
            CorruptRecord: the record or a holder's slot. A corrupt lock is never a free one.
        """
        decisions: list[Decision] = []

        async def choose(image: bytes) -> bytes | None:
            record = self._unpack(image, lock)
            decision = decide(
                record,
                me=self.me,
                wanted=wanted,
                standings=await self._standings(others(record, self.me)),
                now=int(self._clock()),
            )
            decisions.append(decision)
            return decision.new.pack() if isinstance(decision, Take) else None

        image = await self._writer.update(lock.lv_offset, choose, durable=False, label=label)
        match decisions[-1]:
            case Take() as decision:
                if decision.stale:
                    log.info("stale lock taken lock=%s from=%s", lock, _names(decision.stale))
                return self._got(self._unpack(image, lock))
            case Ask() | Wait() | Refuse() as decision:
                return decision

    async def give_up(self, lock: LockId, to_mode: LockMode, *, label: str) -> DiskLock:
        """Fall to `to_mode` in the record of a lock that this host has.

        Returns:
            The record as it stands now.

        Raises:
            LeaseLost: somebody else wrote us out of the record, so nothing that we hold is sure.
            CorruptRecord: it is no record any more.
        """
        written = False

        async def choose(image: bytes) -> bytes | None:
            nonlocal written
            new = give_up(self._unpack(image, lock), me=self.me, to_mode=to_mode)
            if new is not None:
                written = True
                return new.pack()
            if written:
                return None  # it did happen, unheard, and another host was quick to follow
            raise LeaseLost(f"{lock}: its record does not name this host any more")

        image = await self._writer.update(lock.lv_offset, choose, durable=False, label=label)
        return self._unpack(image, lock)

    async def disown(self, lv_offset: LvOffset, *, unless: Callable[[], bool], label: str) -> bool:
        """Write this host out of a record, where a change with an unknown outcome left it.

        Args:
            lv_offset: where the record stands.
            unless: looked at right before every write: True when the lock is being taken, or had.
            label: for the audit trail.

        Returns:
            Whether it stood there.

        Raises:
            CorruptRecord: there is no lock record at `lv_offset`.
        """
        stood = False

        async def choose(image: bytes) -> bytes | None:
            nonlocal stood
            record = DiskLock.unpack(image, address=lv_offset)
            new = give_up(record, me=self.me, to_mode=LockMode.FREE)
            stood = new is not None and not unless()
            return new.pack() if new is not None and stood else None

        await self._writer.update(lv_offset, choose, durable=False, label=label)
        return stood

    async def read(self, lock: LockId) -> DiskLock:
        """The record as it stands."""
        return self._unpack(await self._device.read(lock.lv_offset, DiskLock.SIZE), lock)

    async def peek(self, lock: LockId, *, seen: Peek | None = None) -> Peek:
        """The record as it stands, and whose it is; see `Locks.peek`."""
        image = await self._device.read(lock.lv_offset, DiskLock.SIZE)
        if seen is not None and image == seen.image:
            return seen
        record = self._unpack(image, lock)
        standings = await self._standings(record.all_holders)
        holder_is = whose(record, me=self.me, standings=standings)
        return Peek(record=record, holder_is=holder_is, image=image)

    async def slot_of(self, holder: Holder) -> tuple[Heartbeat, Standing]:
        """The holder's heartbeat slot, and what it says about the holder."""
        slot = await read_slot(self._device, holder.heartbeat_offset)
        return slot, judge(slot, holder)

    async def _standings(self, holders: Iterable[Holder]) -> dict[Holder, Standing]:
        return {holder: (await self.slot_of(holder))[1] for holder in holders}

    def _got(self, record: DiskLock) -> Got:
        return Got(mode=mode_of(record, self.me), token=record.token)

    def _unpack(self, image: bytes, lock: LockId) -> DiskLock:
        record = DiskLock.unpack(image, address=lock.lv_offset)
        expected = lock.kind.lock_type
        if record.type is not expected:
            raise CorruptRecord(
                DiskLock.NAME, lock.lv_offset, "type", int(record.type), f"{expected:#x}"
            )
        return record


def _names(holders: Iterable[Holder]) -> str:
    return ", ".join(f"{h.owner} (generation {h.generation})" for h in holders)
