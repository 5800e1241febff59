"""Becoming a host of the volume: slot, journal, recovery of the dead, locks, free space.

The order is the safety. A slot first, because whoever recovers needs one of its own, and its
heartbeat at once. Then the dead, because what they have committed may not be in place yet. Only
then anything is read that can change.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import trio

from vmfs.errors import LockBusy, VmfsError
from vmfs.files.ground import Ground, UnwrittenMetadata
from vmfs.locks.heartbeat import HeartbeatSlot
from vmfs.locks.manager import LockManager
from vmfs.locks.overdue import Overdue
from vmfs.locks.records import LockRecords
from vmfs.locks.recovery import SlotRecovery
from vmfs.locks.takeover import Takeovers
from vmfs.ondisk.descriptor import FsDescriptor, VolumeFlag
from vmfs.ondisk.heartbeat import SLOT_COUNT
from vmfs.space.allocator import Allocator
from vmfs.txn.journal import Journal
from vmfs.txn.orphans import OrphanTable
from vmfs.txn.transaction import Transactions
from vmfs.volume.lockd_session import Nexus
from vmfs.volume.options import VolumeOptions
from vmfs.volume.recovery import DeadHosts
from vmfs.volume.roll_call import RollCall, missing
from vmfs.volume.structure import Journals, Structure, read_journals, read_structure

_log = logging.getLogger("vmfs.volume")


@dataclass(slots=True)
class Losses:
    """Why this host may not touch the LUN any more. The first reason is the one that counts."""

    reasons: list[str] = field(default_factory=list)
    on_first: Callable[[], None] = lambda: None

    def note(self, reason: str) -> None:
        """One more reason; the permit has been stopped."""
        self.reasons.append(reason)
        if len(self.reasons) == 1:
            self.on_first()

    @property
    def first(self) -> str:
        """Empty while there is none."""
        return self.reasons[0] if self.reasons else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """What this host has, as one of the volume's hosts."""

    nexus: Nexus
    losses: Losses
    slot: HeartbeatSlot
    transactions: Transactions
    dead_hosts: DeadHosts
    locks: LockManager
    ground: Ground


async def mount(
    nexus: Nexus,
    descriptor: FsDescriptor,
    options: VolumeOptions,
    nursery: trio.Nursery,
    losses: Losses,
) -> Mounted:
    """Become a host of the volume. The heartbeat runs in `nursery` from here on.

    Raises:
        LockBusy: all slots with a journal are in use by hosts that live, or a host is dead and
            cannot be recovered now; says who and why.
        CorruptRecord: a structure of the volume, or the journal of a dead host, is damaged.
        LockServiceError, LeaseLost, DeviceError: lockd, or the LUN, is not there for us.
    """
    reading = UnwrittenMetadata(nexus.device)
    structure = await read_structure(reading, descriptor)
    journals = await read_journals(reading, structure)
    slot = await _take_slot(nexus, options, journals, nursery, losses)
    try:
        await nursery.start(_beat, nexus, slot, options, losses)
        return await _prepare(nexus, structure, options, losses, slot, journals)
    except VmfsError:
        with trio.CancelScope(shield=True), trio.move_on_after(options.timing.close):
            await _try_to_give_back(nexus, slot)
        raise


async def _prepare(  # noqa: PLR0913 - one step of `mount`
    nexus: Nexus,
    structure: Structure,
    options: VolumeOptions,
    losses: Losses,
    slot: HeartbeatSlot,
    journals: Journals,
) -> Mounted:
    device, region = nexus.device, journals.region(slot.index)
    journal = Journal(device, region, journals.size, slot.index)
    await journal.open(slot.record.generation)
    transactions = Transactions(device, journal)
    orphans = OrphanTable(transactions, region, journals.size, slot.index)
    await orphans.load()
    dead_hosts = _dead_hosts(nexus, journals, slot)
    dead_hosts.adopt_into(transactions, orphans)
    records = _records(nexus, options, slot)
    await _roll_call(nexus, options, records, dead_hosts).settle()
    locks = LockManager(
        records=records,
        service=nexus.client,
        blocks=nexus.blocks,
        clock=options.clock,
        leases=options.timing.leases,
        lease_time=nexus.permit.lease_time,
        rng=Random(options.seed),
        on_lost=lambda reason: _stop(nexus, losses, reason),
    )
    allocator = Allocator(
        staging=transactions, locks=locks, files=structure.resources, slot=slot.index
    )
    await allocator.load_counts()
    flags = structure.descriptor.must_be_ours().flags
    ground = Ground(
        device=device,
        metadata=transactions,
        locks=locks,
        allocator=allocator,
        orphans=orphans,
        resources=structure.resources,
        descriptor=structure.descriptor,
        clock=options.wall_clock,
        read_only=False,
        resident_data=VolumeFlag.NO_RESIDENT not in flags,
    )
    _log.info("mounted label=%r slot=%d", structure.descriptor.label, slot.index)
    return Mounted(
        nexus=nexus,
        losses=losses,
        slot=slot,
        transactions=transactions,
        dead_hosts=dead_hosts,
        locks=locks,
        ground=ground,
    )


async def give_back(nexus: Nexus, slot: HeartbeatSlot) -> None:
    """Release a slot. No lease limits the I/O that it takes: no beat will renew it any more.

    Raises:
        LeaseLost: it is not ours any more.
    """
    nexus.permit.acknowledged(good_until=math.inf)
    await slot.release()


async def _take_slot(
    nexus: Nexus,
    options: VolumeOptions,
    journals: Journals,
    nursery: trio.Nursery,
    losses: Losses,
) -> HeartbeatSlot:
    """Take a slot with a journal; when the dead have them all, recover them from a spare one.

    The spare one beats meanwhile: who waits for the dead would else judge us by its silence.
    """
    try:
        return await _acquire(nexus, options, journals, range(journals.count))
    except LockBusy:
        if not await missing(nexus.device, nexus.client, nexus.mount):
            raise
    spare = await _acquire(nexus, options, journals, range(journals.count, SLOT_COUNT))
    try:
        await nursery.start(_beat, nexus, spare, options, losses)
        records, dead_hosts = _records(nexus, options, spare), _dead_hosts(nexus, journals, spare)
        await _roll_call(nexus, options, records, dead_hosts).settle()
        return await _acquire(nexus, options, journals, range(journals.count))
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(options.timing.close):
            await _try_to_give_back(nexus, spare)


async def _acquire(
    nexus: Nexus, options: VolumeOptions, journals: Journals, slots: range
) -> HeartbeatSlot:
    return await HeartbeatSlot.acquire(
        device=nexus.device,
        writer=nexus.writer,
        clock=options.clock,
        mount=nexus.mount,
        slots=slots,
        journal=journals.place,
    )


def _dead_hosts(nexus: Nexus, journals: Journals, slot: HeartbeatSlot) -> DeadHosts:
    recovery = SlotRecovery(
        device=nexus.device, writer=nexus.writer, service=nexus.client, me=slot.holder
    )
    return DeadHosts(device=nexus.device, journals=journals, slots=recovery)


def _records(nexus: Nexus, options: VolumeOptions, slot: HeartbeatSlot) -> LockRecords:
    return LockRecords(
        device=nexus.device, writer=nexus.writer, me=slot.holder, clock=options.clock
    )


def _roll_call(
    nexus: Nexus, options: VolumeOptions, records: LockRecords, dead_hosts: DeadHosts
) -> RollCall:
    overdue = Overdue(
        service=nexus.client,
        records=records,
        leases=options.timing.leases,
        lease_time=nexus.permit.lease_time,
    )
    takeovers = Takeovers(
        records=records,
        service=nexus.client,
        overdue=overdue,
        recover=dead_hosts.recover,
        rng=Random(options.seed),
    )
    return RollCall(
        device=nexus.device,
        service=nexus.client,
        mount=nexus.mount,
        overdue=overdue,
        takeovers=takeovers,
    )


async def _beat(
    nexus: Nexus,
    slot: HeartbeatSlot,
    options: VolumeOptions,
    losses: Losses,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    await slot.beat_forever(
        timing=options.timing.leases,
        on_acknowledged=lambda until: nexus.permit.acknowledged(good_until=until),
        on_lost=lambda reason: _stop(nexus, losses, reason),
        task_status=task_status,
    )


def _stop(nexus: Nexus, losses: Losses, reason: str) -> None:
    nexus.permit.stop(reason)
    losses.note(reason)


async def _try_to_give_back(nexus: Nexus, slot: HeartbeatSlot) -> None:
    try:
        await give_back(nexus, slot)
    except VmfsError as error:
        _log.warning("slot not released slot=%d error=%s", slot.index, error)
