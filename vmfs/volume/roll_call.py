"""Before a mount takes its first lock: every slot in use is accounted for.

    slot in use ─┬─ lockd has its holder open      it lives: its locks stand
                 ├─ lockd has seen its end         recover it, or wait for whoever is at it
                 └─ lockd never heard of it ─┬─ it beats: it lives, and lockd will hear of it
                                             └─ still for its lease: fence it, and recover it

After a power cut a lock record may be free again although the journal of the host that had it is
still to be replayed (lock records are not made durable). Whoever took such a lock would have the
replay write over its work. So a mount waits until nothing is left to replay, and refuses when that
cannot be had: it says for whom it waited.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from vmfs.device.base import Device
from vmfs.errors import LockBusy, VmfsError
from vmfs.locks.decide import holder_of
from vmfs.locks.heartbeat import Mount, needs_recovery, read_slots, unknown_to
from vmfs.locks.overdue import Overdue, host_name, late
from vmfs.locks.service import LockService, lockd_errors
from vmfs.locks.takeover import RECOVERY_SECONDS_MAX, Takeovers
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

_log = logging.getLogger("vmfs.volume")


@dataclass(frozen=True, slots=True)
class Missing:
    """Slots in use whose holder is not known to be alive."""

    dead: tuple[Heartbeat, ...]  # for sure
    unknown: tuple[Heartbeat, ...]  # lockd never heard of it

    def __bool__(self) -> bool:
        return bool(self.dead or self.unknown)


async def missing(device: Device, service: LockService, me: Mount) -> Missing:
    """Read all slots, and ask lockd who is alive.

    Raises:
        CorruptRecord: one of them is no slot.
        LockServiceError: lockd is not there.
    """
    slots = await read_slots(device)
    with lockd_errors("asking lockd who is alive"):
        report = await service.status()
    dead = needs_recovery(slots, me=me, report=report)
    unknown = [slot for slot in unknown_to(slots, report) if slot not in dead]
    # Whose journal is being replayed was proved dead before that began.
    dead += [slot for slot in unknown if slot.replayer]
    return Missing(tuple(dead), tuple(slot for slot in unknown if not slot.replayer))


class RollCall:
    """One mount's; made for the slot that it recovers from."""

    def __init__(
        self,
        *,
        device: Device,
        service: LockService,
        mount: Mount,
        overdue: Overdue,
        takeovers: Takeovers,
    ) -> None:
        """`device` is the logical volume behind the permit."""
        self._device = device
        self._service = service
        self._mount = mount
        self._overdue = overdue
        self._takeovers = takeovers
        self._living: set[Holder] = set()  # hosts that lockd does not know, and that beat

    async def settle(self) -> None:
        """Return when every slot in use is a living host's.

        Raises:
            LockBusy: somebody is not proved dead, or another host's recovery does not end.
            CorruptRecord: a slot is none, or the journal of a dead host is damaged.
            LeaseLost: this host was fenced itself.
            LockServiceError: lockd is not there.
        """
        while True:
            found = await missing(self._device, self._service, self._mount)
            unknown = [slot for slot in found.unknown if holder_of(slot) not in self._living]
            if not found.dead and not unknown:
                return
            await self._account_for(found.dead, unknown)

    async def _account_for(self, dead: Sequence[Heartbeat], unknown: Sequence[Heartbeat]) -> None:
        """All at once: one may wait for another host, or for the end of a lease."""
        failures: list[VmfsError] = []

        async def settle(one: Callable[[Heartbeat], Awaitable[None]], slot: Heartbeat) -> None:
            try:
                await one(slot)
            except VmfsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for slot in dead:
                nursery.start_soon(settle, self._recover, slot)
            for slot in unknown:
                nursery.start_soon(settle, self._tell_apart, slot)
        if failures:
            raise failures[0]

    async def _recover(self, slot: Heartbeat) -> None:
        """Return when the holder, which is dead, is recovered, by us or by another host."""
        said: list[str] = []

        def tell(waits_for: str) -> None:
            if not said:
                said.append(waits_for)
                _log.info("mount waits slot=%d for=%r", slot.index, waits_for)

        try:
            await self._takeovers.until_recovered(holder_of(slot), tell)
        except LockBusy as error:
            raise _refused(slot, error) from error

    async def _tell_apart(self, slot: Heartbeat) -> None:
        """Return when the holder was seen to live, or is recovered.

        It is never fenced before its lease has run out under our eyes: it may be on its way back
        to a lockd that has lost its database.
        """
        holder, watch = holder_of(slot), self._overdue.begin(slot)
        _log.info("mount waits slot=%d for=%r, unknown to lockd", slot.index, host_name(slot))
        gives_up_at = trio.current_time() + watch.pace.lease + RECOVERY_SECONDS_MAX
        while True:
            await trio.sleep(watch.pace.look_every)
            slot, seen = await self._overdue.look(holder, watch)
            if seen is None:
                await self._recover(slot)
                return
            if seen.image != watch.image:
                _log.info("slot=%d beats host=%r", slot.index, host_name(slot))
                self._living.add(holder)
                return
            watch = seen
            refusal = LockBusy(f"lockd does not know {late(host_name(slot), watch)}")
            if watch.is_over:
                try:
                    await self._takeovers.once(slot)
                    return
                except LockBusy as error:
                    refusal = error
            if trio.current_time() >= gives_up_at:
                raise _refused(slot, refusal)


def _refused(slot: Heartbeat, reason: LockBusy) -> LockBusy:
    return LockBusy(
        f"heartbeat slot {slot.index} is in use, and its journal may have to be replayed before "
        f"anything is touched: {reason}",
        holder=reason.holder or host_name(slot),
    )
