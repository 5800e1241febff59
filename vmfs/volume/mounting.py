"""Becoming a host of the volume: slot, journal, recovery of the dead, locks, free space.

The order is the safety. A slot first, because whoever recovers needs one of its own, and its
heartbeat at once. Then the dead, because what they have committed may not be in place yet. Only
then anything is read that can change.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from vmfs.errors import LockBusy, VmfsError
from vmfs.files.ground import Ground, UnwrittenMetadata
from vmfs.locks.heartbeat import HeartbeatSlot, needs_recovery, read_slots, unknown_to
from vmfs.locks.manager import LockManager
from vmfs.locks.records import LockRecords
from vmfs.locks.recovery import SlotRecovery
from vmfs.locks.service import lockd_errors
from vmfs.ondisk.descriptor import FsDescriptor, VolumeFlag
from vmfs.ondisk.heartbeat import SLOT_COUNT, Heartbeat
from vmfs.space.allocator import Allocator
from vmfs.txn.journal import Journal
from vmfs.txn.orphans import OrphanTable
from vmfs.txn.transaction import Transactions
from vmfs.volume.lockd_session import Nexus
from vmfs.volume.options import VolumeOptions
from vmfs.volume.recovery import DeadHosts
from vmfs.volume.structure import Journals, Structure, read_journals, read_structure

_log = logging.getLogger("vmfs.volume")

RECOVERY_SECONDS_MAX: Final = 60.0
"""How long a mount waits for another host that recovers a third; as operations do."""

RECOVERY_POLL_SECONDS: Final = 0.05
"""Seconds to the second look at the slots; doubled from look to look, as a look reads them all."""


@dataclass(slots=True)
class Losses:
    """Why this host may not touch the LUN any more. The first reason is the one that counts."""

    reasons: list[str] = field(default_factory=list)

    def note(self, reason: str) -> None:
        """One more reason; the permit has been stopped."""
        self.reasons.append(reason)

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
        LockBusy: all slots with a journal are in use by hosts that live.
        CorruptRecord: a structure of the volume, or the journal of a dead host, is damaged.
        LockServiceError, LeaseLost, DeviceError: lockd, or the LUN, is not there for us.
    """
    reading = UnwrittenMetadata(nexus.device)
    structure = await read_structure(reading, descriptor)
    journals = await read_journals(reading, structure)
    dead = await _find_dead(nexus)
    slot = await _take_slot(nexus, options, journals, dead, nursery, losses)
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
    await _recover_before_anything(nexus, dead_hosts)
    records = LockRecords(device=device, writer=nexus.writer, me=slot.holder, clock=options.clock)
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


async def _find_dead(nexus: Nexus) -> list[Heartbeat]:
    """Slots whose holder is dead, or one that lockd never heard of (a fence will tell)."""
    slots = await read_slots(nexus.device)
    with lockd_errors("asking lockd who is alive"):
        report = await nexus.client.status()
    dead = needs_recovery(slots, me=nexus.mount, report=report)
    return [*dead, *unknown_to(slots, report)]


async def give_back(nexus: Nexus, slot: HeartbeatSlot) -> None:
    """Release a slot. No lease limits the I/O that it takes: no beat will renew it any more.

    Raises:
        LeaseLost: it is not ours any more.
    """
    nexus.permit.acknowledged(good_until=math.inf)
    await slot.release()


async def _take_slot(  # noqa: PLR0913 - one step of `mount`
    nexus: Nexus,
    options: VolumeOptions,
    journals: Journals,
    dead: Sequence[Heartbeat],
    nursery: trio.Nursery,
    losses: Losses,
) -> HeartbeatSlot:
    """Take a slot with a journal; when the dead have them all, recover them from a spare one.

    The spare one beats meanwhile: who waits for the dead would else judge us by its silence.
    """
    try:
        return await _acquire(nexus, options, journals, range(journals.count))
    except LockBusy:
        if not dead:
            raise
    spare = await _acquire(nexus, options, journals, range(journals.count, SLOT_COUNT))
    try:
        await nursery.start(_beat, nexus, spare, options, losses)
        await _recover(_dead_hosts(nexus, journals, spare), dead)
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


async def _recover_before_anything(nexus: Nexus, dead_hosts: DeadHosts) -> None:
    """Recover the dead, and wait for those that another host is recovering just now.

    After a power cut a lock record may be free again although the journal of the host that had it
    is still to be replayed: nobody should take a lock before. A recovery that does not end in time
    is left to whoever meets the dead host's locks.
    """
    gives_up_at = trio.current_time() + RECOVERY_SECONDS_MAX
    pause = RECOVERY_POLL_SECONDS
    while dead := await _find_dead(nexus):
        await _recover(dead_hosts, dead)
        theirs = _under_way(await _find_dead(nexus), await read_slots(nexus.device))
        if not theirs:
            return
        if trio.current_time() >= gives_up_at:
            _log.warning("recovery by another host goes on slot=%d", theirs[0].index)
            return
        await trio.sleep(pause)
        pause *= 2


def _under_way(dead: Sequence[Heartbeat], slots: Sequence[Heartbeat]) -> list[Heartbeat]:
    """Those of the dead whose replayer still has the slot that it replays from."""
    at_work = {(slot.lv_offset, slot.generation) for slot in slots if slot.is_in_use}
    return [
        slot
        for slot in dead
        if slot.replayer and (slot.replayer_offset, slot.replayer_generation) in at_work
    ]


async def _recover(dead_hosts: DeadHosts, dead: Sequence[Heartbeat]) -> None:
    """Recover all that can be recovered now.

    Again while that helps: a host that died recovering another has to be recovered before that one
    can be. The others may be alive. If they are not, and hold something, whoever needs it meets
    them again.
    """
    waiting = list(dead)
    while waiting:
        refused: list[tuple[Heartbeat, LockBusy]] = []
        for slot in waiting:
            try:
                await dead_hosts.recover(slot.index, slot)
            except LockBusy as error:
                refused.append((slot, error))
        if len(refused) == len(waiting):
            for slot, reason in refused:
                _log.warning("slot not recovered slot=%d reason=%s", slot.index, reason)
            return
        waiting = [slot for slot, _ in refused]


def _dead_hosts(nexus: Nexus, journals: Journals, slot: HeartbeatSlot) -> DeadHosts:
    recovery = SlotRecovery(
        device=nexus.device, writer=nexus.writer, service=nexus.client, me=slot.holder
    )
    return DeadHosts(device=nexus.device, journals=journals, slots=recovery)


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
