"""Dealing with the hosts that stand in a lock record: ask them, or have them recovered.

    STANDS ──ask──► DONE: look again            IN_USE: LockBusy, with their own words
                    NOT_HELD: look again, soon  GONE: recover (proof of death came with it)
                    UNREACHABLE: lockd never heard of it (its database is new): silence, so far
                    silence, and its heartbeat goes on: LockBusy
                    silence, and its heartbeat stands still for its lease: fence;
                        FENCED: recover, else LockBusy
    REPLAYED ─────► wait until the slot has moved on (`takeover.py`)

Nothing here writes a lock record or decides anything for good: the caller reads the record again.
"""

import logging
from random import Random
from typing import Final

import trio

from lockd.protocol.messages import AskAnswer
from lockd.protocol.terms import AnswerKind, AskKind
from vmfs.errors import LockBusy, VmfsError
from vmfs.ids import SlotIndex
from vmfs.locks.base import Hooks
from vmfs.locks.decide import Ask, Standing, Wait
from vmfs.locks.lease import SlotWatch
from vmfs.locks.order import LockId
from vmfs.locks.overdue import NEVER, Overdue, Tell, host_name, late
from vmfs.locks.records import LockRecords
from vmfs.locks.service import BlockMap, LockService, clip_label, lockd_errors
from vmfs.locks.takeover import Takeovers
from vmfs.ondisk.disk_lock import Holder
from vmfs.ondisk.heartbeat import Heartbeat

log = logging.getLogger("vmfs.locks.others")

ASK_SECONDS_MAX: Final = 30.0
"""How long a live holder may take over its answer: the commit and checkpoint of a full journal on a
slow disk, and the operation before it. Time in which its heartbeat stands still does not count: its
lease decides then (`overdue.py`)."""


class OtherHosts:
    """How this host deals with the others. Holds no lock, and keeps nothing between two waits."""

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
        self._takeovers = Takeovers(
            records=records, service=service, overdue=overdue, recover=self._recover, rng=rng
        )

    async def persuade(self, lock: LockId, decision: Ask | Wait, label: str, tell: Tell) -> bool:
        """Do what `decision` says. Returns whether looking again at once is worth it.

        Raises:
            LockBusy: a holder has it in use, is silent, or cannot be recovered now.
            LockServiceError: lockd is not there.
        """
        if isinstance(decision, Wait):
            await self._takeovers.until_recovered(decision.holder, tell)
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
            await self._takeovers.until_recovered(holder, tell)
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
                    answer = await self._service.ask(lba, what, holder.owner.raw, label=text)
                    while answer.kind is AnswerKind.UNREACHABLE:
                        # It may be on its way back to a lockd that has lost its database.
                        tell(f"{host_name(slot)}, which lockd does not know (yet)")
                        await trio.sleep(self._overdue.pace(slot).look_every)
                        answer = await self._service.ask(lba, what, holder.owner.raw, label=text)
                    heard.append(answer)
            except VmfsError as error:
                failures.append(error)
            nursery.cancel_scope.cancel()

        async def watch() -> None:
            try:
                gone = await self._until_gone(holder, slot, label or str(lock), tell)
            except VmfsError as error:
                failures.append(error)
            else:
                heard.append(gone)
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
                tell(late(who, watch))
            else:
                silent += watch.pace.look_every
        raise LockBusy(
            f"{wanted}: {who} has it, and has not answered for {ASK_SECONDS_MAX:.0f} s",
            holder=who,
        )

    async def _fence_overdue(self, slot: Heartbeat, watch: SlotWatch, tell: Tell) -> AskAnswer:
        who = host_name(slot)
        tell(f"lockd, which fences {who}")
        proof = await self._overdue.fence_silent(slot, watch)
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
                await self._takeovers.until_recovered(holder, tell)
                return True
            case AnswerKind.UNREACHABLE:
                raise AssertionError("it was asked until lockd knew it, or it was fenced")

    async def _recover(self, index: SlotIndex, slot: Heartbeat) -> None:
        if self.hooks is None:
            raise LockBusy(f"{host_name(slot)} is dead, and nobody here can recover it")
        await self.hooks.recover(index, slot)


def _ignore(_: str) -> None:
    """For callers that nobody watches."""
