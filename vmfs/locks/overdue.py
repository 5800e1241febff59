"""Hosts whose heartbeat stands still: watched while they are waited for, fenced when overdue.

    first look ─► look, twice an interval ─┬─ the slot changed: it lives; count anew
                                           ├─ unchanged for the holder's own lease: overdue
                                           └─ recovered, or being recovered: somebody was faster

Only a host that somebody waits for is watched, and only lockd fences: it kills the process and
proves that it has ended. A host that is merely slow, or was stopped for less than its lease, is
never harmed. What a lease is stands in `lease.py`.
"""

import logging
from collections.abc import Callable
from typing import Final

from lockd.protocol.terms import FenceResult
from vmfs.errors import LockBusy
from vmfs.locks.base import Clock
from vmfs.locks.decide import Standing
from vmfs.locks.lease import HolderPace, LeaseTiming, SlotWatch
from vmfs.locks.records import LockRecords
from vmfs.locks.service import LockService, lockd_errors
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.overdue")

NEVER: Final = float("inf")

Tell = Callable[[str], None]
"""Says for whom the operation waits, for `vmfs locks`."""


class Overdue:
    """How this host judges others by their heartbeats. Keeps nothing between two waits."""

    def __init__(
        self,
        *,
        service: LockService,
        records: LockRecords,
        leases: LeaseTiming,
        lease_time: Clock,
    ) -> None:
        """Make it.

        Args:
            service: the nexus with lockd; it fences.
            records: reads slots, behind the permit: a host that has stopped itself judges nobody.
            leases: our own pace, for slots that do not say theirs.
            lease_time: a clock that stands still while somebody has the LUN reserved.
        """
        self._service = service
        self._records = records
        self._leases = leases
        self._lease_time = lease_time

    def begin(self, slot: Heartbeat) -> SlotWatch:
        """The first look: `slot` was read just now."""
        return SlotWatch(self.pace(slot), slot.pack(), self._lease_time())

    async def look(self, holder: Holder, watch: SlotWatch) -> tuple[Heartbeat, SlotWatch | None]:
        """Look again.

        Returns:
            The slot, and what is known of its holder now; None when it stands there no longer, or
            its journal is being replayed.

        Raises:
            CorruptRecord: there is no slot any more.
        """
        reading = self._lease_time()
        slot, standing = await self._records.slot_of(holder)
        if standing is not Standing.STANDS:
            return slot, None
        return slot, watch.looked(slot.pack(), reading)

    async def fence(self, slot: Heartbeat, *, why: str) -> str:
        """Have the holder of `slot` fenced: this start of it, and no other.

        Args:
            slot: as it was read last.
            why: for the log, and for the message when it does not work.

        Returns:
            lockd's proof that it can never write again.

        Raises:
            LockBusy: it is not proved dead (it hangs in the kernel, or lockd does not know it).
            LeaseLost: this host was fenced itself.
            LockServiceError: lockd is not there.
        """
        who = host_name(slot)
        info = slot.host
        if info is None or not info.nonce:
            raise LockBusy(f"held by {who}, which is not a host of lockd's", holder=who)
        log.warning("fencing host=%r slot=%d reason=%r", who, slot.index, why)
        with lockd_errors(f"fencing {who}"):
            answer = await self._service.fence(slot.owner.raw, nonce=info.nonce)
        if answer.result is not FenceResult.FENCED:
            raise LockBusy(
                f"held by {who}, which cannot be fenced ({answer.result.name.lower()}): "
                f"{answer.proof}; {why}",
                holder=who,
            )
        log.warning("fenced host=%r slot=%d proof=%r", who, slot.index, answer.proof)
        return answer.proof

    async def fence_silent(self, slot: Heartbeat, watch: SlotWatch) -> str:
        """As `fence`, because the heartbeat has stood still for as long as `watch` has seen."""
        return await self.fence(
            slot, why=f"its heartbeat has stood still for {watch.still_for:.1f} s"
        )

    def pace(self, slot: Heartbeat) -> HolderPace:
        """At what pace the holder of `slot` beats."""
        if slot.host is None:  # another implementation's, which we never fence
            return HolderPace(self._leases.interval, NEVER)
        return pace_of(slot, own=self._leases)


def pace_of(slot: Heartbeat, *, own: LeaseTiming) -> HolderPace:
    """The pace that the holder of a slot says there; what it does not say is as with ourselves."""
    info = slot.host
    return HolderPace.of(
        interval_ms=info.interval_ms if info is not None else 0,
        lease_ms=info.lease_ms if info is not None else 0,
        own=own,
    )


def host_name(slot: Heartbeat) -> str:
    """The holder of a slot, in words."""
    info = slot.host
    return f"{info.name} (pid {info.pid})" if info is not None else f"host {slot.owner}"


def late(who: str, watch: SlotWatch) -> str:
    """What is known of a host whose beats are missing, in words."""
    return (
        f"{who}, whose heartbeat has stood still for {watch.still_for:.1f} s; "
        f"it is fenced in {watch.left:.1f} s"
    )
