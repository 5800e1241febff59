"""Taking over the slot of a dead host: one host does it, and if that one dies too, another.

    IN_USE(gen), owner D ──proof of D's death, take_over──► IN_USE(gen), owner D, replayed by me
        ──the caller replays D's journal, adopts its orphans──►
        ──finish──► FREE(gen+1): every lock record that names (slot, gen) is stale from here on

The order is the safety: first the proof that D never writes again (durable in lockd), then the
compare-and-write that makes us the only one who replays, then the replay, and only then the new
generation that sets D's locks free. A crash of ours anywhere in between leaves the slot as it is,
and the next one begins again, with our slot first; replaying twice is replaying once.
"""

import logging

from lockd.protocol.terms import FenceResult
from vmfs.device.base import Device
from vmfs.errors import LeaseLost, LockBusy
from vmfs.locks.decide import Standing, holder_of, judge, replayer_of
from vmfs.locks.overdue import host_name
from vmfs.locks.records import read_slot
from vmfs.locks.service import LockService, lockd_errors
from vmfs.locks.writers import RecordWriter
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.recovery")


class SlotRecovery:
    """How this mount takes over slots."""

    def __init__(
        self, *, device: Device, writer: RecordWriter, service: LockService, me: Holder
    ) -> None:
        """`device` is the logical volume behind the permit; `me` our own slot and generation."""
        self._device = device
        self._writer = writer
        self._service = service
        self._me = me

    async def take_over(self, seen: Heartbeat) -> Heartbeat | None:
        """Fence the holder of a slot, and become the one who replays its journal.

        Args:
            seen: the slot as it was read; it was in use.

        Returns:
            The slot as it stands now: replay the journal that it names, then `finish`. None: it was
            recovered (or released) meanwhile, there is nothing to do.

        Durability: the fence and the slot are durable before this returns.

        Raises:
            LockBusy: the holder is not proved dead, or another host is replaying, or has died at
                that and is to be recovered first (`takeover.py` sees to both).
            LeaseLost: this host was fenced itself.
            LockServiceError: lockd is not there.
        """
        assert seen.is_in_use, "a free slot has no host to recover"
        await self._fence(seen)
        current = await read_slot(self._device, seen.lv_offset)
        rival = replayer_of(current)
        if rival is not None and rival != self._me:
            await self._check_rival(current, rival)
        decided: list[Heartbeat | None] = []

        async def choose(image: bytes) -> bytes | None:
            record = Heartbeat.unpack(image, address=seen.lv_offset)
            taken = self._taken(record, seen=seen, rival=rival)
            decided.append(taken)
            return taken.pack() if taken is not None else None

        label = f"slot {seen.index}: recovery of {host_name(seen)}"
        await self._writer.update(seen.lv_offset, choose, durable=True, label=label)
        if decided[-1] is not None:
            log.info("slot taken over slot=%d host=%r", seen.index, host_name(seen))
        return decided[-1]

    async def finish(self, taken: Heartbeat) -> None:
        """Free the slot with a new generation: the journal is replayed, its effects are durable.

        Durability: durable on return.

        Raises:
            LeaseLost: another host took the recovery over, so this one was fenced.
        """
        free = taken.recovered().pack()
        written = False

        async def choose(image: bytes) -> bytes | None:
            nonlocal written
            record = Heartbeat.unpack(image, address=taken.lv_offset)
            if self._is_mine(record, taken):
                written = True
                return free
            if written or image == free:
                return None  # it did happen, unheard
            raise LeaseLost(f"slot {taken.index}: another host goes on with its recovery")

        label = f"slot {taken.index}: {host_name(taken)} recovered"
        await self._writer.update(taken.lv_offset, choose, durable=True, label=label)
        log.info(
            "slot recovered slot=%d host=%r generation=%d",
            taken.index,
            host_name(taken),
            taken.generation + 1,
        )

    def _taken(
        self, record: Heartbeat, *, seen: Heartbeat, rival: Holder | None
    ) -> Heartbeat | None:
        """The slot with us as its replayer, if it is still as it was judged."""
        if judge(record, holder_of(seen)) is Standing.STALE:
            return None
        now = replayer_of(record)
        if now not in (None, self._me, rival):
            raise LockBusy(f"{host_name(seen)} is being recovered by another host")
        return record.replaying(
            by=self._me.owner,
            by_offset=self._me.heartbeat_offset,
            by_generation=self._me.generation,
        )

    def _is_mine(self, record: Heartbeat, taken: Heartbeat) -> bool:
        standing = judge(record, holder_of(taken))
        return standing is Standing.REPLAYED and replayer_of(record) == self._me

    async def _fence(self, slot: Heartbeat) -> None:
        """Have the proof that this start of the holder never writes again.

        A slot without our private tail has no nonce, and a fence without one would hit whatever
        start of that host is current: so it is never fenced.
        """
        who = host_name(slot)
        info = slot.host
        if info is None or not info.nonce:
            raise LockBusy(
                f"{who} holds heartbeat slot {slot.index} and is not a host of lockd's "
                "(ESXi?): it cannot be fenced from here",
                holder=who,
            )
        with lockd_errors(f"fencing {who}"):
            answer = await self._service.fence(slot.owner.raw, nonce=info.nonce)
        if answer.result is not FenceResult.FENCED:
            raise LockBusy(
                f"{who} is not proved dead ({answer.result.name.lower()}): {answer.proof}",
                holder=who,
            )

    async def _check_rival(self, slot: Heartbeat, rival: Holder) -> None:
        """Another host replays it. Go on only if that one was recovered, or left, itself.

        If it has merely died, its own journal has to be replayed first: that may hold what it did
        to this slot, and must not be put in place over the work of the slot's next owner.

        Raises:
            LockBusy: it has its slot still.
        """
        its_slot = await read_slot(self._device, rival.heartbeat_offset)
        if judge(its_slot, rival) is not Standing.STALE:
            who = host_name(its_slot)
            raise LockBusy(f"{who} is recovering {host_name(slot)}, or died at it", holder=who)
