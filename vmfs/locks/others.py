"""Dealing with the hosts that stand in a lock record: ask them, or have them recovered.

    STANDS ──ask──► DONE: look again            IN_USE: LockBusy, with their own words
                    NOT_HELD: look again, soon  GONE: recover (proof of death came with it)
                    UNREACHABLE: fence; FENCED: recover, else LockBusy
                    silence: LockBusy
    REPLAYED ─────► wait until the slot has changed, or take over from a replayer that died too

Nothing here writes a lock record or decides anything for good: the caller reads the record again.
"""

import logging
from collections.abc import Callable
from random import Random
from typing import Final

import trio

from lockd.protocol.messages import AskAnswer
from lockd.protocol.terms import AnswerKind, AskKind, FenceResult
from vmfs.errors import LockBusy, VmfsError
from vmfs.locks.base import Hooks
from vmfs.locks.decide import Ask, Standing, Wait
from vmfs.locks.order import LockId
from vmfs.locks.records import LockRecords
from vmfs.locks.service import BlockMap, LockService, clip_label, lockd_errors
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.others")

ASK_SECONDS_MAX: Final = 30.0
"""How long a live holder may take over its answer: the commit and checkpoint of a full journal on a
slow disk, and the operation before it. Longer than a lease (16 s), after which silence is judged by
the heartbeat and not by this."""

RECOVERY_SECONDS_MAX: Final = 60.0
"""How long an operation waits for another host that recovers a third: a full journal is replayed in
a few seconds; whoever needs a minute is stuck, and the operation says for whom it waited."""

POLL_SECONDS: Final = 0.005
"""The first pause between two looks at a slot that is being replayed; nobody announces its end."""

POLL_SECONDS_MAX: Final = 0.25
"""Pauses double up to here."""

Tell = Callable[[str], None]
"""Says for whom the operation waits, for `vmfs locks`."""


class OtherHosts:
    """How this host deals with the others. Holds no lock and no state but recoveries under way."""

    def __init__(
        self, *, service: LockService, records: LockRecords, blocks: BlockMap, rng: Random
    ) -> None:
        self.hooks: Hooks | None = None
        self._service = service
        self._records = records
        self._blocks = blocks
        self._rng = rng
        self._recoveries: dict[int, trio.Event] = {}

    async def persuade(self, lock: LockId, decision: Ask | Wait, label: str, tell: Tell) -> bool:
        """Do what `decision` says. Returns whether looking again at once is worth it.

        Raises:
            LockBusy: a holder has it in use, is silent, or cannot be recovered now.
            LockServiceError: lockd is not there.
        """
        if isinstance(decision, Wait):
            await self._recover_or_wait(decision.holder, tell)
            return True
        if decision.one_suffices:
            return await self._persuade_any(lock, decision, label, tell)
        failures: list[VmfsError] = []
        moved: list[bool] = []

        async def one(holder: Holder) -> None:
            try:
                moved.append(await self._persuade_one(lock, holder, decision.what, label, tell))
            except VmfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for holder in decision.holders:
                nursery.start_soon(one, holder)
        if failures:
            raise failures[0]
        return any(moved)

    async def _persuade_any(self, lock: LockId, decision: Ask, label: str, tell: Tell) -> bool:
        """Ask one after the other until one has made room; the first refusal is the caller's."""
        refusal: LockBusy | None = None
        for holder in decision.holders:
            try:
                return await self._persuade_one(lock, holder, decision.what, label, tell)
            except LockBusy as error:
                refusal = refusal or error
        assert refusal is not None, "nobody to ask"
        raise LockBusy(
            f"{label or lock}: {len(decision.holders)} hosts share it, the most its record has "
            f"room for; {refusal}",
            holder=refusal.holder,
        )

    async def attributes(self, lock: LockId, holder: Holder) -> bytes | None:
        """Ask the exclusive holder what it knows. None: the LUN says all there is to know.

        Raises:
            LockBusy: it is silent, or cannot be recovered now.
        """
        if holder.owner == self._records.me.owner:
            return None  # an earlier start of this host: what it committed is replayed by now
        slot, standing = await self._records.slot_of(holder)
        if standing is not Standing.STANDS:
            return None
        answer = await self._ask(lock, holder, slot, AskKind.ATTRIBUTES, "attributes")
        if answer.kind is AnswerKind.DONE:
            return answer.payload or None
        await self._hear(lock, holder, answer, _ignore)
        return None

    async def _persuade_one(
        self, lock: LockId, holder: Holder, what: AskKind, label: str, tell: Tell
    ) -> bool:
        slot, standing = await self._records.slot_of(holder)
        if standing is Standing.STALE:
            return True
        if holder.owner == self._records.me.owner:
            # An earlier start of this host. lockd lets us in only after that one has ended.
            await self._recover_or_wait(holder, tell)
            return True
        verb = "to give it up" if what is AskKind.GIVE_UP else "to share it"
        tell(f"{host_name(slot)}, which was asked {verb}")
        answer = await self._ask(lock, holder, slot, what, label)
        return await self._hear(lock, holder, answer, tell)

    async def _ask(
        self, lock: LockId, holder: Holder, slot: Heartbeat, what: AskKind, label: str
    ) -> AskAnswer:
        text = clip_label(label or str(lock))
        lba = self._blocks.lba(lock.lv_offset)
        with trio.move_on_after(ASK_SECONDS_MAX), lockd_errors(f"asking for {lock}"):
            return await self._service.ask(lba, what, holder.owner.raw, label=text)
        raise LockBusy(
            f"{label or lock}: {host_name(slot)} has it, and has not answered for "
            f"{ASK_SECONDS_MAX:.0f} s",
            holder=host_name(slot),
        )

    async def _hear(self, lock: LockId, holder: Holder, answer: AskAnswer, tell: Tell) -> bool:
        """Act on an answer. Returns whether the record has changed, as far as is known."""
        match answer.kind:
            case AnswerKind.DONE:
                return True
            case AnswerKind.NOT_HELD:
                return False
            case AnswerKind.IN_USE:
                why = answer.payload.decode(errors="replace")
                raise LockBusy(
                    f"{lock} is in use on {answer.who}" + (f": {why}" if why else ""),
                    holder=answer.who,
                )
            case AnswerKind.GONE:
                log.info("holder gone lock=%s holder=%r proof=%r", lock, answer.who, answer.proof)
                await self._recover_or_wait(holder, tell)
                return True
            case AnswerKind.UNREACHABLE:
                await self._fence_unknown(holder)
                await self._recover_or_wait(holder, tell)
                return True

    async def _fence_unknown(self, holder: Holder) -> None:
        """A holder of whom lockd never heard: only a fence can tell whether it is dead."""
        slot, standing = await self._records.slot_of(holder)
        if standing is not Standing.STANDS:
            return
        who = host_name(slot)
        info = slot.host
        if info is None or not info.nonce:
            raise LockBusy(f"held by {who}, which is not a host of lockd's", holder=who)
        with lockd_errors(f"fencing {who}"):
            answer = await self._service.fence(holder.owner.raw, nonce=info.nonce)
        if answer.result is not FenceResult.FENCED:
            raise LockBusy(f"held by {who}, which cannot be fenced: {answer.proof}", holder=who)

    async def _recover_or_wait(self, holder: Holder, tell: Tell) -> None:
        """Return when the holder's slot has moved on: recovered by us, or by whoever was first."""
        gives_up_at = trio.current_time() + RECOVERY_SECONDS_MAX
        pause = POLL_SECONDS
        while True:
            slot, standing = await self._records.slot_of(holder)
            if standing is Standing.STALE:
                return
            who = host_name(slot)
            tell(f"the recovery of {who}, which is dead")
            busy: LockBusy | None = None
            try:
                await self._recover(slot)
            except LockBusy as error:
                busy = error
            if busy is None and (await self._records.slot_of(holder))[1] is Standing.STALE:
                return
            if trio.current_time() >= gives_up_at:
                raise busy or LockBusy(f"{who} is dead, and its recovery goes on", holder=who)
            await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(pause * 2, POLL_SECONDS_MAX)

    async def _recover(self, slot: Heartbeat) -> None:
        """Have it recovered, once, however many wait for it."""
        index = slot.index
        running = self._recoveries.get(index)
        if running is not None:
            await running.wait()
            return
        if self.hooks is None:
            raise LockBusy(f"{host_name(slot)} is dead, and nobody here can recover it")
        self._recoveries[index] = ended = trio.Event()
        try:
            await self.hooks.recover(index, slot)
        finally:
            del self._recoveries[index]
            ended.set()


def host_name(slot: Heartbeat) -> str:
    """The holder of a slot, in words."""
    info = slot.host
    return f"{info.name} (pid {info.pid})" if info is not None else f"host {slot.owner}"


def _ignore(_: str) -> None:
    """For callers that nobody watches."""
