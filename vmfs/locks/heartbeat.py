"""This mount's heartbeat slot: taken at mount, beaten while mounted, released at unmount.

    FREE(gen) ──acquire──► IN_USE(gen+1) ──beat──► IN_USE(gen+1) ──release──► FREE(gen+1)
                                          └─ the host dies; another one recovers it:
                                             IN_USE, replayed by X ──► FREE(gen+2)

Slots 0 to N-1 have the N journals, and mounts take those. A slot in use is never taken: its holder
is alive, or must be recovered first (`needs_recovery` says which, `recovery` does it). Who recovers
needs a slot of its own; when all N are in use, one without a journal (N to 2047) serves meanwhile.

A beat is a read and a write of our own slot. Whatever image of ours it finds (an earlier beat whose
outcome was not learned is one) it goes on from that: a late beat never turns into an outage. A slot
that is not ours any more means that we were fenced, whoever else says what.

The start of the last acknowledged beat is what this host's lease is counted from (`lease.py`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import trio

from lockd.protocol.messages import StatusReport
from vmfs.device.base import Device
from vmfs.errors import CorruptRecord, LeaseLost, LockBusy, VmfsError
from vmfs.ids import LvOffset, SlotIndex, VmfsUuid
from vmfs.locks.base import Clock
from vmfs.locks.lease import LeaseTiming
from vmfs.locks.service import has_ended
from vmfs.locks.writers import RecordWriter
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import (
    HEARTBEAT_REGION,
    SLOT_COUNT,
    SLOT_SIZE,
    Heartbeat,
    HostInfo,
)

log = logging.getLogger("vmfs.locks.heartbeat")

RELEASE_LABEL: Final = "heartbeat slot released"
ACQUIRE_LABEL: Final = "heartbeat slot acquired"

JournalPlace = Callable[[SlotIndex], tuple[int, LvOffset]]
"""The journal of a slot: packed address of its first file block, and its LV offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """What this mount writes into its slot."""

    host_uuid: VmfsUuid
    info: HostInfo  # its nonce is the one that the mount registered with at lockd
    address_text: str = ""

    def __post_init__(self) -> None:
        assert self.host_uuid, "a host has a UUID"
        assert self.info.nonce, "nonce 0 would mean any start of this host"


async def read_slots(device: Device, count: int = SLOT_COUNT) -> list[Heartbeat]:
    """Read the first `count` slots.

    Raises:
        CorruptRecord: one of them is no slot.
    """
    data = memoryview(await device.read(HEARTBEAT_REGION, count * SLOT_SIZE))
    return [
        Heartbeat.unpack(data[at : at + SLOT_SIZE], address=HEARTBEAT_REGION + at)
        for at in range(0, count * SLOT_SIZE, SLOT_SIZE)
    ]


def foreign(slots: Sequence[Heartbeat]) -> list[Heartbeat]:
    """Slots in use by another implementation, most likely ESXi: the volume is not ours to write."""
    return [slot for slot in slots if slot.is_in_use and slot.host is None]


def needs_recovery(
    slots: Sequence[Heartbeat], *, me: Mount, report: StatusReport
) -> list[Heartbeat]:
    """Slots whose holder has ended, as far as asking harms nobody: recover them before anything.

    Args:
        slots: all that may be in use.
        me: this mount, already registered at lockd, which therefore has seen every earlier start
            of the same host end.
        report: what lockd knows.
    """
    return [slot for slot in slots if slot.is_in_use and _has_ended(slot, me, report)]


def unknown_to(slots: Sequence[Heartbeat], report: StatusReport) -> list[Heartbeat]:
    """Slots of ours whose holder lockd never heard of; a fence finds out whether it is dead."""
    known = {host.host_uuid for host in report.hosts}
    return [
        slot
        for slot in slots
        if slot.is_in_use and slot.host is not None and slot.owner.raw not in known
    ]


def choose_slot(slots: Sequence[Heartbeat], host_uuid: VmfsUuid) -> Heartbeat | None:
    """The free slot that this host takes: the same at each mount when it is free (by hashing)."""
    start = int.from_bytes(host_uuid.raw, "little") % len(slots)
    for slot in (*slots[start:], *slots[:start]):
        if not slot.is_in_use:
            return slot
    return None


class HeartbeatSlot:
    """The slot that this mount holds."""

    def __init__(
        self, *, writer: RecordWriter, clock: Clock, record: Heartbeat, acknowledged: float
    ) -> None:
        """`acquire` makes it."""
        self._acknowledged = acknowledged
        self._ending = trio.Event()
        self._turn = trio.Lock()  # beat or release: in reservation mode a beat is a plain write
        self._writer = writer
        self._clock = clock
        self._record = record
        self._beats = 0

    @classmethod
    async def acquire(  # noqa: PLR0913 - its surroundings, put together in one place (volume.py)
        cls,
        *,
        device: Device,
        writer: RecordWriter,
        clock: Clock,
        mount: Mount,
        slots: range,
        journal: JournalPlace,
    ) -> Self:
        """Take a free slot. Recover the dead first: their slots are not free.

        Args:
            device: the logical volume, behind the permit.
            writer: ATS or reservation.
            clock: seconds since boot.
            mount: who takes it.
            slots: which slots may be taken: those with journals, or for recovery those without.
            journal: where the journal of a slot is; (0, 0) for a slot without.

        Durability: durable on return, so that no generation is ever given out twice.

        Raises:
            LockBusy: all slots are in use; names the hosts.
            CorruptRecord: one of the slots is none.
        """
        while True:
            start = clock()
            found = (await read_slots(device, slots.stop))[slots.start :]
            chosen = choose_slot(found, mount.host_uuid)
            if chosen is None:
                names = sorted({slot.host.name for slot in found if slot.host is not None})
                raise LockBusy(
                    f"all {len(slots)} heartbeat slots are in use ({', '.join(names)}): "
                    "unmount one, or make the volume with more --hosts",
                    holder=", ".join(names),
                )
            journal_fb, journal_offset = journal(chosen.index)
            new = chosen.acquired(
                owner=mount.host_uuid,
                stamp_us=int(clock() * 1e6),
                journal_fb=journal_fb,
                journal_offset=journal_offset,
                host=mount.info,
                address_text=mount.address_text,
            )

            async def choose(
                image: bytes, old: bytes = chosen.pack(), new: bytes = new.pack()
            ) -> bytes | None:
                return new if image == old else None

            image = await writer.update(chosen.lv_offset, choose, durable=True, label=ACQUIRE_LABEL)
            if image == new.pack():
                log.info("slot acquired slot=%d generation=%d", new.index, new.generation)
                return cls(writer=writer, clock=clock, record=new, acknowledged=start)

    @property
    def index(self) -> SlotIndex:
        """Which slot, and which journal."""
        return self._record.index

    @property
    def record(self) -> Heartbeat:
        """As last written."""
        return self._record

    @property
    def beats(self) -> int:
        """How many were written."""
        return self._beats

    @property
    def acknowledged(self) -> float:
        """When the last beat began that was acknowledged (taking the slot is one), own clock."""
        return self._acknowledged

    @property
    def holder(self) -> Holder:
        """This mount, as lock records name it."""
        return Holder(
            heartbeat_offset=self._record.lv_offset,
            generation=self._record.generation,
            owner=self._record.owner,
        )

    async def beat(self) -> None:
        """Write a new stamp.

        Raises:
            LeaseLost: the slot is not ours any more.
            VmfsError: the beat did not get through; the slot may still be ours.
        """

        async def choose(image: bytes) -> bytes | None:
            record = self._ours(image)
            # Never the same image twice, so that every beat is a write.
            return record.beaten(max(int(self._clock() * 1e6), record.stamp_us + 1)).pack()

        start = self._clock()
        async with self._turn:
            image = await self._writer.update_own(
                self._record.lv_offset, choose, believed=self._record.pack()
            )
        self._record = self._ours(image)
        self._acknowledged = start
        self._beats += 1

    async def beat_forever(
        self,
        *,
        timing: LeaseTiming,
        on_acknowledged: Callable[[float], None],
        on_lost: Callable[[str], None],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Beat at an interval until cancelled; returns when the slot is lost, or released.

        Args:
            timing: the pace.
            on_acknowledged: told until when this host's I/O may begin (own clock): at once, for
                the acquisition, and after every good beat.
            on_lost: told why, once; the permit must be stopped before it returns.
            task_status: started after the first beat was tried.
        """
        started = False
        next_beat = trio.current_time()
        on_acknowledged(timing.stops_at(self._acknowledged))
        while not self._ending.is_set():
            with trio.move_on_after(timing.beat) as scope:
                try:
                    await self.beat()
                    if not self._ending.is_set():  # else nothing limits the I/O that is left
                        on_acknowledged(timing.stops_at(self._acknowledged))
                except (LeaseLost, CorruptRecord) as error:
                    if self._ending.is_set():
                        return
                    log.error("slot lost slot=%d reason=%r", self.index, str(error))
                    on_lost(f"heartbeat slot {self.index}: {error}")
                    return
                except VmfsError as error:
                    log.warning("beat failed slot=%d error=%r", self.index, str(error))
            if scope.cancelled_caught:
                log.warning("beat given up slot=%d after=%.2fs", self.index, timing.beat)
            if not started:
                started = True
                task_status.started()
            next_beat = max(next_beat + timing.interval, trio.current_time())
            await trio.sleep_until(next_beat)

    async def release(self) -> None:
        """Give the slot back after a clean unmount: every lock is free, the journal is empty.

        Durability: durable on return.

        Raises:
            LeaseLost: it is not ours any more.
        """
        self._ending.set()
        released = False

        async def choose(image: bytes) -> bytes | None:
            nonlocal released
            record = Heartbeat.unpack(image, address=self._record.lv_offset)
            if released and not self._is_ours(record):
                return None  # it did happen, unheard
            released = True
            return self._ours(image).released().pack()

        async with self._turn:
            await self._writer.update(
                self._record.lv_offset, choose, durable=True, label=RELEASE_LABEL
            )
        log.info("slot released slot=%d generation=%d", self.index, self._record.generation)

    def _is_ours(self, record: Heartbeat) -> bool:
        mine = self._record
        same = record.generation == mine.generation and record.owner == mine.owner
        return record.is_in_use and same and not record.replayer

    def _ours(self, image: bytes) -> Heartbeat:
        record = Heartbeat.unpack(image, address=self._record.lv_offset)
        if not self._is_ours(record):
            if record.replayer:
                raise LeaseLost(f"this host was fenced, host {record.replayer} replays its journal")
            raise LeaseLost("this host was fenced and recovered, the slot is not its own any more")
        return record


def _has_ended(slot: Heartbeat, me: Mount, report: StatusReport) -> bool:
    info = slot.host
    if info is None:
        return False
    if slot.owner == me.host_uuid:
        return info.nonce != me.info.nonce
    return has_ended(report, owner=slot.owner, nonce=info.nonce)
