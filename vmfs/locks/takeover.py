"""Until a dead host is recovered: by this host, or by whoever was faster.

    its slot ─┬─ has moved on: done
              ├─ nobody replays its journal: recover it
              └─ another host replays it ─┬─ that one beats: wait
                                          ├─ its heartbeat stands still for its lease: fence it
                                          └─ it has ended: recover *it* first, then go on with this

A replayer that died goes first because its journal may hold what it did to the slot that it was
recovering (the orphans that it adopted): replayed later, that would undo the next owner's work.
"""

from random import Random
from typing import Final

import trio

from vmfs.errors import LockBusy
from vmfs.locks.base import RecoverHook
from vmfs.locks.decide import Standing, replayer_of
from vmfs.locks.lease import SlotWatch
from vmfs.locks.overdue import Overdue, Tell, host_name, late
from vmfs.locks.records import LockRecords
from vmfs.locks.service import LockService, has_ended, lockd_errors
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

RECOVERY_SECONDS_MAX: Final = 60.0
"""How long an operation, or a mount, waits for another host that recovers a third: a full journal
is replayed in a few seconds; whoever needs a minute is stuck, and we say for whom we waited."""

POLL_SECONDS: Final = 0.005
"""The first pause between two looks at a slot that is being replayed; nobody announces its end."""

POLL_SECONDS_MAX: Final = 0.25
"""Pauses double up to here."""


class Takeovers:
    """How this host has dead hosts recovered. Holds no state but recoveries under way."""

    def __init__(
        self,
        *,
        records: LockRecords,
        service: LockService,
        overdue: Overdue,
        recover: RecoverHook,
        rng: Random,
    ) -> None:
        """`recover` is the work itself, which takes more than locks."""
        self._recover = recover
        self._records = records
        self._service = service
        self._overdue = overdue
        self._rng = rng
        self._running: dict[int, trio.Event] = {}

    async def until_recovered(
        self, holder: Holder, tell: Tell, *, behind: tuple[Holder, ...] = ()
    ) -> None:
        """Return when the slot of `holder`, which is dead, has moved on.

        Args:
            holder: whose slot.
            tell: hears for whom we wait.
            behind: who waits for it already, each recovered by the next.

        Raises:
            LockBusy: it is not proved dead, or its recovery by another host does not end.
            CorruptRecord: there is no slot, or its journal is damaged.
            LeaseLost: this host was fenced itself.
            LockServiceError: lockd is not there.
        """
        gives_up_at = trio.current_time() + RECOVERY_SECONDS_MAX
        pause = POLL_SECONDS
        watched: tuple[Holder, SlotWatch] | None = None
        while True:
            slot, standing = await self._records.slot_of(holder)
            if standing is Standing.STALE:
                return
            tell(f"the recovery of {host_name(slot)}, which is dead")
            rival = await self._rival_of(slot)
            if rival is None:
                busy = await self._try(slot)
                if busy is None:
                    continue
            elif await self._has_ended(rival):
                await self._first(rival, tell, behind=(*behind, holder))
                continue
            else:
                busy, watched = await self._wait_for(rival, slot, watched, tell)
            if trio.current_time() >= gives_up_at:
                raise busy
            await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(pause * 2, POLL_SECONDS_MAX)

    async def once(self, slot: Heartbeat) -> None:
        """Recover the holder of `slot` now, once, however many wait for it.

        Raises:
            As `until_recovered`; LockBusy also when somebody else is at it.
        """
        index = slot.index
        running = self._running.get(index)
        if running is not None:
            await running.wait()
            return
        self._running[index] = ended = trio.Event()
        try:
            await self._recover(index, slot)
        finally:
            del self._running[index]
            ended.set()

    async def _try(self, slot: Heartbeat) -> LockBusy | None:
        try:
            await self.once(slot)
        except LockBusy as error:
            return error
        return None

    async def _rival_of(self, slot: Heartbeat) -> Holder | None:
        """Another host that replays the journal of this slot, dead or alive."""
        rival = replayer_of(slot)
        if rival is None or rival == self._records.me:
            return None
        _, standing = await self._records.slot_of(rival)
        return None if standing is Standing.STALE else rival

    async def _has_ended(self, rival: Holder) -> bool:
        """Whether lockd has seen its end, or it is being recovered itself, which says the same."""
        its_slot, standing = await self._records.slot_of(rival)
        if standing is not Standing.STANDS:
            return True
        info = its_slot.host
        if info is None:
            return False
        with lockd_errors("asking lockd who is alive"):
            report = await self._service.status()
        return has_ended(report, owner=rival.owner, nonce=info.nonce)

    async def _first(self, rival: Holder, tell: Tell, *, behind: tuple[Holder, ...]) -> None:
        if rival in behind:
            raise LockBusy(
                f"slots {rival.heartbeat_offset:#x} and {behind[-1].heartbeat_offset:#x} are said "
                "to be replayed by each other: run vmfs check"
            )
        await self.until_recovered(rival, tell, behind=behind)

    async def _wait_for(
        self,
        rival: Holder,
        slot: Heartbeat,
        watched: tuple[Holder, SlotWatch] | None,
        tell: Tell,
    ) -> tuple[LockBusy, tuple[Holder, SlotWatch] | None]:
        """Look at a host that recovers `slot`; have it fenced when its heartbeat stands still.

        Returns:
            What to say when the time is up, and what is known of the host's heartbeat now.
        """
        if watched is None or watched[0] != rival:
            its_slot, _ = await self._records.slot_of(rival)
            seen: SlotWatch | None = self._overdue.begin(its_slot)
        else:
            its_slot, seen = await self._overdue.look(rival, watched[1])
        who = host_name(its_slot)
        busy = LockBusy(f"{who} is recovering {host_name(slot)}, which is dead", holder=who)
        if seen is None:
            return busy, None
        if seen.is_late:
            tell(f"{late(who, seen)}; it recovers {host_name(slot)}")
        if seen.is_over:
            tell(f"lockd, which fences {who}")
            await self._overdue.fence_silent(its_slot, seen)
            return busy, None
        return busy, (rival, seen)
