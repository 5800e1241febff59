"""Giving locks up: what happens when another host asks, and when this one has no more use for them.

    asked ─► open files? wait 100 ms for their RELEASE, else IN_USE
          ─► closing: nobody new gets in; operations under way end
          ─► revoke hook: committed, in place, nothing left to replay over it; caches gone
          ─► the record is written ─► DONE

The wait for operations always ends: an operation waits only for higher locks than those it has
pinned, and whoever has the highest waits for nobody (docs/host-locking.md). Therefore nothing here
may hold back an ask because of *other* asks; only the work itself is limited.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from lockd.protocol.limits import PAYLOAD_SIZE_MAX
from lockd.protocol.messages import Asked
from lockd.protocol.terms import AnswerKind, AskKind
from vmfs.errors import CorruptRecord, LeaseLost, VmfsError
from vmfs.locks.base import Clock, Hooks
from vmfs.locks.claims import Claims
from vmfs.locks.entry import Entry, LockTable
from vmfs.locks.order import LockId, exceeds
from vmfs.locks.records import LockRecords
from vmfs.locks.service import BlockMap
from vmfs.ondisk.disk_lock import LockMode

log = logging.getLogger("vmfs.locks.giving")

OPEN_GRACE_SECONDS: Final = 0.1
"""FUSE's RELEASE reaches us after close(2) has returned: so long an open file may be on its way to
being closed, and a `close` here followed by an `open` there must never meet EBUSY."""

REVOKES_MAX: Final = 16
"""Revocations at work at once: they share commits, so more would only wait for the same disk."""

Answer = tuple[AnswerKind, bytes]


class Giving:
    """The half of the lock manager that makes locks weaker."""

    def __init__(  # noqa: PLR0913 - its surroundings, put together in one place (manager.py)
        self,
        *,
        table: LockTable,
        claims: Claims,
        records: LockRecords,
        blocks: BlockMap,
        clock: Clock,
        on_lost: Callable[[str], None],
    ) -> None:
        """`on_lost` is told when a record shows that this host's locks are not its own any more."""
        self.hooks: Hooks | None = None
        self._table = table
        self._claims = claims
        self._records = records
        self._blocks = blocks
        self._clock = clock
        self._on_lost = on_lost
        self._work = trio.CapacityLimiter(REVOKES_MAX)

    async def answer(self, asked: Asked) -> Answer:
        """Do what another host asks for, and say what became of it."""
        try:
            return await self._answer(asked)
        except VmfsError as error:
            log.warning(
                "ask failed what=%s lba=%d by=%r error=%r",
                asked.what.name,
                asked.lba,
                asked.who,
                str(error),
            )
            return AnswerKind.IN_USE, _payload(f"it could not be given up: {error}")

    async def _answer(self, asked: Asked) -> Answer:
        lv_offset = self._blocks.lv_offset(asked.lba)
        entry = self._table.entries.get(lv_offset)
        if entry is None:
            if asked.what in (AskKind.GIVE_UP, AskKind.GIVE_UP_TO_SHARED):
                await self._disown(asked)
            return AnswerKind.NOT_HELD, b""
        with self._table.kept(entry):
            if entry.claimed:  # the record named us after all: a write whose outcome was not heard
                await self._claims.write(entry)
            match asked.what:
                case AskKind.GIVE_UP:
                    return await self._give_up(entry, LockMode.FREE, asked)
                case AskKind.GIVE_UP_TO_SHARED:
                    return await self._give_up(entry, LockMode.SHARED, asked)
                case AskKind.WRITE_BACK:
                    return await self._write_back(entry)
                case AskKind.ATTRIBUTES:
                    return self._attributes(entry)

    def _attributes(self, entry: Entry) -> Answer:
        if entry.mode is not LockMode.EXCLUSIVE or self.hooks is None:
            return AnswerKind.NOT_HELD, b""
        attributes = self.hooks.attributes(entry.lock)
        assert attributes is None or len(attributes) <= PAYLOAD_SIZE_MAX, "attributes too long"
        return AnswerKind.DONE, attributes or b""

    async def _write_back(self, entry: Entry) -> Answer:
        if entry.mode is LockMode.FREE or self.hooks is None:
            return AnswerKind.NOT_HELD, b""
        async with self._work:
            await self.hooks.write_back(entry.lock)
        return AnswerKind.DONE, b""

    async def _give_up(self, entry: Entry, to_mode: LockMode, asked: Asked) -> Answer:
        """Wait for what is under way here to settle, then close or say why not."""
        grace_ends = trio.current_time() + OPEN_GRACE_SECONDS
        had_it = False
        while entry.taking or entry.closing or exceeds(entry.mode, to_mode):
            had_it = had_it or entry.mode is not LockMode.FREE
            if entry.taking or entry.closing:
                await entry.change()
            elif entry.open_above(to_mode):
                left = grace_ends - trio.current_time()
                if left <= 0:
                    return AnswerKind.IN_USE, _payload(entry.use())
                with trio.move_on_after(left):
                    await entry.change()
            else:
                await self.close(entry, to_mode, asked_by=asked.who)
        if had_it or entry.mode is not LockMode.FREE:
            return AnswerKind.DONE, b""
        await self._disown(asked)
        return AnswerKind.NOT_HELD, b""

    async def close(self, entry: Entry, to_mode: LockMode, *, asked_by: str = "") -> bool:
        """Weaken one lock that has no open file, when its operations have ended.

        Returns:
            Whether it was weakened: not when one of those operations opened the file.

        Durability: what the lock covers is on the LUN, and no journal of ours mentions it.

        Raises:
            VmfsError: it could not be written back. The lock is kept.
        """
        assert not entry.closing, f"{entry.lock} is being given up already"
        entry.closing = True
        try:
            while entry.taking or entry.pinned_above(to_mode):
                await entry.change()
            if entry.open_above(to_mode):
                return False
            if exceeds(entry.mode, to_mode):
                async with self._work:
                    await self._weaken(entry, to_mode, asked_by)
            return True
        finally:
            entry.closing = False
            entry.wake()

    async def _weaken(self, entry: Entry, to_mode: LockMode, asked_by: str) -> None:
        while entry.taking:  # a claim that is being written
            await entry.change()
        if entry.claimed:
            assert self.hooks is not None, "nothing is claimed without hooks"
            await self._claims.leave(entry, self.hooks.revoke, self.hooks.drop)
            return
        await self._revoke(entry.lock, to_mode)
        # From here on this host behaves as if the record said so already. That is true or too
        # modest whatever becomes of the write: cancelled, or its outcome never learned, it leaves
        # at most our name in the record of a lock that we do not use, and `_disown` finds that.
        log.debug(
            "giving up lock=%s from=%s to=%s for=%r",
            entry.lock,
            entry.mode.name,
            to_mode.name,
            asked_by,
        )
        entry.mode = to_mode
        entry.since = self._clock()
        label = f"{entry.label} (asked by {asked_by})" if asked_by else entry.label
        try:
            record = await self._records.give_up(entry.lock, to_mode, label=label)
        except LeaseLost as error:
            self._on_lost(str(error))
            raise
        if asked_by:
            self._table.hand_over(entry, record.token, trio.current_time())

    async def _revoke(self, lock: LockId, to_mode: LockMode) -> None:
        """Make it true for every host that this one has nothing of the lock's under way."""
        hooks = self.hooks
        if hooks is None:
            return
        if len(self._claims):
            await self._claims.settle(lambda: hooks.revoke(lock, to_mode), hooks.drop)
        else:
            await hooks.revoke(lock, to_mode)

    async def _disown(self, asked: Asked) -> None:
        """Take our name out of a record that we know nothing of, if it stands there."""
        lv_offset = self._blocks.lv_offset(asked.lba)
        if lv_offset < 0:
            return  # before the logical volume: no lock record
        try:
            stood = await self._records.disown(
                lv_offset,
                unless=lambda: self._table.is_wanted(lv_offset),
                label="taken back: its acquisition was never heard of",
            )
        except CorruptRecord:
            return  # not a lock record: whoever asks made a mistake, or reads the same error
        if stood:
            log.warning("unknown lock disowned lv_offset=%#x by=%r", lv_offset, asked.who)


def _payload(text: str) -> bytes:
    return text.encode(errors="replace")[:PAYLOAD_SIZE_MAX]
