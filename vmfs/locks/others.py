"""Dealing with the hosts that stand in a lock record: ask them, or have them recovered.

    STANDS ──ask──► DONE: look again            IN_USE: LockBusy, with their own words
                    NOT_HELD: look again, soon  GONE: recover (proof of death came with it)
                    UNREACHABLE: fence; FENCED: recover, else LockBusy
                    silence, and its heartbeat goes on: LockBusy
                    silence, and its heartbeat stands still for its lease: fence, as above
    REPLAYED ─────► wait until the slot has changed, or take over from a replayer that died too
                    (or hangs: fenced after its lease)

Nothing here writes a lock record or decides anything for good: the caller reads the record again.
"""

import logging
from collections.abc import Callable
from random import Random
from typing import Final

import trio

from lockd.protocol.messages import AskAnswer
from lockd.protocol.terms import AnswerKind, AskKind
from vmfs.errors import LockBusy, VmfsError
from vmfs.locks.base import Hooks
from vmfs.locks.decide import Ask, Standing, Wait, replayer_of
from vmfs.locks.lease import SlotWatch
from vmfs.locks.order import LockId
from vmfs.locks.overdue import NEVER, Overdue, host_name
from vmfs.locks.records import LockRecords
from vmfs.locks.service import BlockMap, LockService, clip_label, lockd_errors
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.others")

ASK_SECONDS_MAX: Final = 30.0
"""How long a live holder may take over its answer: the commit and checkpoint of a full journal on a
slow disk, and the operation before it. Time in which its heartbeat stands still does not count: its
lease decides then (`overdue.py`)."""

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
        self,
        *,
        service: LockService,
        records: LockRecords,
        blocks: BlockMap,
        overdue: Overdue,
        rng: Random,
    ) -> None:
        self.hooks: Hooks | None = None
        self._overdue = overdue
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
        answer = await self._ask(lock, holder, slot, AskKind.ATTRIBUTES, "attributes", _ignore)
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
        answer = await self._ask(lock, holder, slot, what, label, tell)
        return await self._hear(lock, holder, answer, tell)

    async def _ask(  # noqa: PLR0913 - one question, all of it
        self,
        lock: LockId,
        holder: Holder,
        slot: Heartbeat,
        what: AskKind,
        label: str,
        tell: Tell,
    ) -> AskAnswer:
        """Ask, and watch the holder's heartbeat while it is silent.

        Returns:
            Its answer, or GONE in its place: lockd's, when it saw the holder end, or ours, when it
            was fenced after its lease or is being recovered already.
        """
        heard: list[AskAnswer] = []
        failures: list[VmfsError] = []
        text = clip_label(label or str(lock))
        lba = self._blocks.lba(lock.lv_offset)

        async def ask() -> None:
            try:
                with lockd_errors(f"asking for {lock}"):
                    heard.append(await self._service.ask(lba, what, holder.owner.raw, label=text))
            except VmfsError as error:
                failures.append(error)
            nursery.cancel_scope.cancel()

        async def watch() -> None:
            try:
                late = await self._until_gone(holder, slot, label or str(lock), tell)
            except VmfsError as error:
                failures.append(error)
            else:
                heard.append(late)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(watch)
        if heard:
            return heard[0]
        raise failures[0]

    async def _until_gone(
        self, holder: Holder, slot: Heartbeat, wanted: str, tell: Tell
    ) -> AskAnswer:
        """Return when the holder has been fenced because its heartbeat stood still.

        Raises:
            LockBusy: it beats, and has not answered; or it could not be fenced.
        """
        who = host_name(slot)
        watch = self._overdue.begin(slot)
        silent = 0.0
        while silent < ASK_SECONDS_MAX:
            await trio.sleep(watch.pace.look_every)
            slot, seen = await self._overdue.look(holder, watch)
            if seen is None:
                return AskAnswer(kind=AnswerKind.GONE, payload=b"", who=who, proof="recovered")
            watch = seen
            if watch.is_over:
                return await self._fence_overdue(slot, watch, tell)
            if watch.is_late and watch.left < NEVER:
                tell(_late(who, watch))
            else:
                silent += watch.pace.look_every
        raise LockBusy(
            f"{wanted}: {who} has it, and has not answered for {ASK_SECONDS_MAX:.0f} s",
            holder=who,
        )

    async def _fence_overdue(self, slot: Heartbeat, watch: SlotWatch, tell: Tell) -> AskAnswer:
        who = host_name(slot)
        tell(f"lockd, which fences {who}")
        why = f"its heartbeat has stood still for {watch.still_for:.1f} s"
        proof = await self._overdue.fence(slot, why=why)
        return AskAnswer(kind=AnswerKind.GONE, payload=b"", who=who, proof=proof)

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
        if standing is Standing.STANDS:
            await self._overdue.fence(slot, why="lockd does not know it")

    async def _recover_or_wait(self, holder: Holder, tell: Tell) -> None:
        """Return when the holder's slot has moved on: recovered by us, or by whoever was first."""
        gives_up_at = trio.current_time() + RECOVERY_SECONDS_MAX
        pause = POLL_SECONDS
        rival: tuple[Holder, SlotWatch] | None = None
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
            rival = await self._judge_rival(slot, rival, tell)
            if trio.current_time() >= gives_up_at:
                raise busy or LockBusy(f"{who} is dead, and its recovery goes on", holder=who)
            await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(pause * 2, POLL_SECONDS_MAX)

    async def _judge_rival(
        self, slot: Heartbeat, known: tuple[Holder, SlotWatch] | None, tell: Tell
    ) -> tuple[Holder, SlotWatch] | None:
        """Have another host that recovers `slot` fenced, when its own heartbeat stands still."""
        rival = replayer_of(slot)
        if rival is None or rival == self._records.me:
            return None
        if known is None or known[0] != rival:
            its_slot, standing = await self._records.slot_of(rival)
            return (rival, self._overdue.begin(its_slot)) if standing is Standing.STANDS else None
        its_slot, watch = await self._overdue.look(rival, known[1])
        if watch is None:
            return None
        if watch.is_late:
            tell(f"{_late(host_name(its_slot), watch)}; it recovers {host_name(slot)}")
        if watch.is_over:
            await self._fence_overdue(its_slot, watch, tell)
            return None
        return rival, watch

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


def _late(who: str, watch: SlotWatch) -> str:
    return (
        f"{who}, whose heartbeat has stood still for {watch.still_for:.1f} s; "
        f"it is fenced in {watch.left:.1f} s"
    )


def _ignore(_: str) -> None:
    """For callers that nobody watches."""
