"""The locks of one mount: acquired when needed, kept until asked for, then given up at once.

    acquire ─► cached strongly enough? pin (no I/O, no await)
            ─► one task makes an attempt, the others wait for it:
                 record ─► take ─► pin             (the pin and the lock come in one step)
                        └► others hold it: persuade them, look again
    asked   ─► `giving`: in its own task, at once, whatever else this host waits for

Invariants: a lock is pinned or open only in a mode that this host has; a record is written by one
task at a time; whoever was just granted a lock has it pinned before anybody can ask for it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from random import Random
from types import TracebackType
from typing import Final

import trio

from lockd.client import LockdError
from lockd.protocol.messages import Asked
from vmfs.errors import LockBusy, LockServiceError, VmfsError
from vmfs.locks.base import (
    AttributesHook,
    Clock,
    DropHook,
    HeldLock,
    Hooks,
    Peek,
    Pin,
    RecoverHook,
    RevokeHook,
    WaitingOperation,
    WriteBackHook,
)
from vmfs.locks.claims import Claims
from vmfs.locks.decide import Refuse
from vmfs.locks.entry import Attempt, Entry, LockTable, OpPin
from vmfs.locks.giving import Giving
from vmfs.locks.lease import LeaseTiming
from vmfs.locks.order import LockId, covers, in_order, is_in_order
from vmfs.locks.others import OtherHosts
from vmfs.locks.overdue import Overdue
from vmfs.locks.records import Got, LockRecords, Outcome
from vmfs.locks.service import BlockMap, LockService
from vmfs.ondisk.disk_lock import Holder, LockMode

log = logging.getLogger("vmfs.locks.manager")

ROUNDS_MAX: Final = 64
"""How often one acquisition begins anew after other hosts were persuaded. Each round that ends
without the lock means that another host got it: 64 hosts take turns on one lock in as many."""

ROUND_PAUSE: Final = 0.001
"""Seconds before the second look at a record whose holder says that it does not hold it: it is
writing itself in or out just now."""

ROUND_PAUSE_MAX: Final = 0.1
"""Pauses double up to here."""

HANDOVER_POLL: Final = 0.001
"""Seconds between two looks at a record that was just given up for another host."""

LOCKS_KEPT_MAX: Final = 12_288
"""Locks that may be cached at once. Each takes, with what is known under it, some 5 KiB of memory;
and at unmount, when it is in its record, 0.1 ms."""

RELEASES_MAX: Final = 16
"""Locks given up at once at unmount: enough to keep lockd busy."""


class _Wait:
    """One operation that waits; `manager.waiting` shows it."""

    __slots__ = ("label", "lock", "mode", "since", "waits_for")

    def __init__(self, lock: LockId, mode: LockMode, label: str, since: float) -> None:
        self.lock = lock
        self.mode = mode
        self.label = label
        self.since = since
        self.waits_for = "this host's own use of it"

    def tell(self, waits_for: str) -> None:
        self.waits_for = waits_for


class _Pinned:
    """`LockManager.pinned`. A class, because it is on the way of every operation."""

    __slots__ = ("_label", "_manager", "_pins", "_wanted")

    def __init__(
        self, manager: "LockManager", wanted: Mapping[LockId, LockMode], label: str
    ) -> None:
        self._manager = manager
        self._wanted = wanted
        self._label = label
        self._pins: dict[LockId, Pin] = {}

    async def __aenter__(self) -> Mapping[LockId, Pin]:
        try:
            for lock, mode in in_order(self._wanted):
                self._pins[lock] = await self._manager.acquire(lock, mode, label=self._label)
        except BaseException:
            self._release()
            raise
        return self._pins

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        for pin in self._pins.values():
            pin.release()


class LockManager:
    """`Locks` over lock records that many hosts share. See the module and `base.Locks`."""

    def __init__(  # noqa: PLR0913 - its surroundings, put together in one place (volume.py)
        self,
        *,
        records: LockRecords,
        service: LockService,
        blocks: BlockMap,
        clock: Clock,
        leases: LeaseTiming,
        lease_time: Clock,
        rng: Random,
        on_lost: Callable[[str], None],
    ) -> None:
        """Make it; `run` must be running before other hosts can get anything from us.

        Args:
            records: reads and writes the records; knows this mount's slot.
            service: the nexus with lockd.
            blocks: where records stand on the LUN.
            clock: seconds since boot.
            leases: our pace, for hosts that do not say theirs.
            lease_time: the clock on which other hosts are judged (`Permit.lease_time`).
            rng: for pauses.
            on_lost: told when our locks turn out not to be ours (stop the permit).
        """
        self._records = records
        self._service = service
        self._blocks = blocks
        self._clock = clock
        self._rng = rng
        self._table = LockTable()
        overdue = Overdue(service=service, records=records, leases=leases, lease_time=lease_time)
        self._others = OtherHosts(
            service=service, records=records, blocks=blocks, overdue=overdue, rng=rng
        )
        self._claims = Claims(table=self._table, records=records)
        self._giving = Giving(
            table=self._table,
            claims=self._claims,
            records=records,
            blocks=blocks,
            clock=clock,
            on_lost=on_lost,
        )
        self._waits: dict[int, _Wait] = {}
        self._nursery: trio.Nursery | None = None
        self._early: list[Asked] = []
        self._ending = False
        self._crowded = trio.Event()

    def set_hooks(
        self,
        *,
        revoke: RevokeHook,
        drop: DropHook,
        attributes: AttributesHook,
        recover: RecoverHook,
        write_back: WriteBackHook,
    ) -> None:
        """See `Locks.set_hooks`."""
        hooks = Hooks(
            revoke=revoke,
            drop=drop,
            attributes=attributes,
            recover=recover,
            write_back=write_back,
        )
        self._giving.hooks = self._others.hooks = hooks

    # --- acquiring ---

    def try_cached(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """See `Locks.try_cached`."""
        entry = self._table.entries.get(lock.lv_offset)
        if entry is None or not entry.may_use(mode):
            return None
        return OpPin(entry, mode, label, self._table.pins)

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin:
        """See `Locks.acquire`. Without contention there is no checkpoint in it, on purpose."""
        entry = self._table.entries.get(lock.lv_offset)
        if entry is not None and entry.may_use(mode):
            return OpPin(entry, mode, label, self._table.pins)
        self._check_order(lock)
        with self._kept(lock) as entry, self._waiting(lock, mode, label) as wait:
            for _ in range(ROUNDS_MAX):
                pin = await self._acquire_once(entry, mode, label, wait)
                if pin is not None:
                    return pin
            raise LockBusy(
                f"{label or lock}: lost to other hosts {ROUNDS_MAX} times, "
                f"the last time to {wait.waits_for}",
                holder=wait.waits_for,
            )

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """See `Locks.try_acquire`."""
        pin = self.try_cached(lock, mode, label=label)
        if pin is not None:
            return pin
        with self._kept(lock) as entry:
            handed_over = self._table.is_handed_over(lock, trio.current_time())
            if entry.closing or entry.attempt is not None or handed_over:
                return None
            with self._attempting(entry, mode):
                outcome = await self._take(entry, mode, label)
                if isinstance(outcome, Got):
                    return OpPin(entry, mode, label, self._table.pins)
            return None

    async def try_claim(self, lock: LockId, *, label: str = "") -> Pin | None:
        """See `Locks.try_claim`."""
        pin = self.try_cached(lock, LockMode.EXCLUSIVE, label=label)
        if pin is not None:
            return pin
        if lock.lv_offset in self._table.entries:
            return None
        record = await self._records.read(lock)
        handed_over = self._table.is_handed_over(lock, trio.current_time())
        if not record.is_free or lock.lv_offset in self._table.entries or handed_over:
            return None
        entry = self._entry(lock)
        self._claims.add(entry, token=record.token + 1, since=self._clock())
        return OpPin(entry, LockMode.EXCLUSIVE, label, self._table.pins)

    def pinned(
        self, wanted: Mapping[LockId, LockMode], *, label: str = ""
    ) -> AbstractAsyncContextManager[Mapping[LockId, Pin]]:
        """See `Locks.pinned`."""
        return _Pinned(self, wanted, label)

    async def _acquire_once(
        self, entry: Entry, mode: LockMode, label: str, wait: _Wait
    ) -> Pin | None:
        """One round of this task: get it, wait for another task, or lead an attempt."""
        self._check_ending()
        if entry.may_use(mode):
            return OpPin(entry, mode, label, self._table.pins)
        mine = entry.pin_of(trio.lowlevel.current_task())
        if mine is not None:
            # Giving it up waits for this very operation, so it must not wait for that.
            assert covers(mine.mode, mode), f"{entry.lock}: strengthened by who has it pinned"
            return OpPin(entry, mode, label, self._table.pins)
        if entry.closing:
            await entry.closed()
            return None
        if entry.attempt is not None:
            await self._follow(entry.attempt, entry, mode)
            return None
        with self._attempting(entry, mode):
            return await self._lead(entry, mode, label, wait)

    async def _follow(self, attempt: Attempt, entry: Entry, mode: LockMode) -> None:
        """Wait for the outcome of another task's attempt; its refusal is ours as well."""
        await attempt.ended.wait()
        error = attempt.error
        if isinstance(error, LockBusy) and covers(mode, attempt.mode):
            raise LockBusy(str(error), holder=error.holder)

    async def _lead(self, entry: Entry, mode: LockMode, label: str, wait: _Wait) -> Pin:
        """Attempt after attempt until the lock is there."""
        pause = ROUND_PAUSE
        await self._let_others_go_first(entry)
        for _ in range(ROUNDS_MAX):
            await entry.closed()
            if covers(entry.mode, mode):
                return OpPin(entry, mode, label, self._table.pins)
            outcome = await self._take(entry, mode, label)
            if isinstance(outcome, Got):
                return OpPin(entry, mode, label, self._table.pins)
            if isinstance(outcome, Refuse):
                raise LockBusy(f"{label or entry.lock}: {outcome.reason}")
            if await self._others.persuade(entry.lock, outcome, label, wait.tell):
                pause = ROUND_PAUSE
            else:
                await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
                pause = min(pause * 2, ROUND_PAUSE_MAX)
            self._check_ending()
        raise LockBusy(
            f"{label or entry.lock}: lost to other hosts {ROUNDS_MAX} times, "
            f"the last time to {wait.waits_for}",
            holder=wait.waits_for,
        )

    async def _take(self, entry: Entry, mode: LockMode, label: str) -> Outcome:
        """Try to write ourselves into the record. On `Got` the caller pins without an await."""
        assert not entry.taking
        assert not entry.closing
        entry.taking = True
        try:
            outcome = await self._records.take(entry.lock, mode, label=label)
            if isinstance(outcome, Got):
                if entry.mode is LockMode.FREE:
                    entry.tenure = outcome.token
                entry.mode = outcome.mode
                entry.token = outcome.token
                entry.since = self._clock()
            return outcome
        finally:
            entry.taking = False
            entry.wake()

    async def _let_others_go_first(self, entry: Entry) -> None:
        """Whoever we gave the lock up for takes it before we take it back; else it would starve."""
        handover = self._table.handovers.get(entry.lock.lv_offset)
        if handover is None:
            return
        while trio.current_time() < handover.until:
            record = await self._records.read(entry.lock)
            if record.token != handover.token:
                break
            await trio.sleep(HANDOVER_POLL)
        self._table.handovers.pop(entry.lock.lv_offset, None)

    @contextmanager
    def _attempting(self, entry: Entry, mode: LockMode) -> Iterator[None]:
        entry.attempt = attempt = Attempt(mode)
        try:
            yield
        except VmfsError as error:
            attempt.error = error
            raise
        finally:
            entry.attempt = None
            attempt.ended.set()

    def _entry(self, lock: LockId) -> Entry:
        self._check_ending()
        entry = self._table.entry(lock)
        if self._is_crowded:
            self._crowded.set()
        return entry

    @contextmanager
    def _kept(self, lock: LockId) -> Iterator[Entry]:
        entry = self._entry(lock)
        with self._table.kept(entry):
            yield entry

    @contextmanager
    def _waiting(self, lock: LockId, mode: LockMode, label: str) -> Iterator[_Wait]:
        wait = _Wait(lock, mode, label, self._clock())
        self._waits[id(wait)] = wait
        try:
            yield wait
        finally:
            del self._waits[id(wait)]

    def _check_order(self, lock: LockId) -> None:
        task = trio.lowlevel.current_task()
        held = {pin.lock for pin in self._table.pins if pin.task is task}
        assert lock in held or is_in_order(held, lock), (
            f"{lock} is wanted after {', '.join(str(other) for other in sorted(held))}: "
            "locks are taken in order"
        )

    def _check_ending(self) -> None:
        if self._ending:
            raise LockServiceError("the volume is being unmounted: no more locks")

    # --- open files, and what is known ---

    def hold_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """See `Locks.hold_open`."""
        entry = self._table.entries.get(lock.lv_offset)
        assert entry is not None, f"{lock} opened without a pin"
        assert any(covers(pin.mode, mode) for pin in entry.pins), f"{lock} opened without a pin"
        entry.hold_open(mode, label)
        if entry.claimed:
            self._claims.opened()

    def drop_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """See `Locks.drop_open`."""
        entry = self._table.entries.get(lock.lv_offset)
        if entry is not None:
            entry.drop_open(mode, label)
        else:
            assert self._ending, f"{lock}: closed and not held"

    def mode_held(self, lock: LockId) -> LockMode:
        """See `Locks.mode_held`."""
        entry = self._table.entries.get(lock.lv_offset)
        return entry.mode if entry is not None else LockMode.FREE

    def tenure(self, lock: LockId) -> int:
        """See `Locks.tenure`."""
        entry = self._table.entries.get(lock.lv_offset)
        if entry is None or entry.closing or entry.mode is LockMode.FREE:
            return 0
        return entry.tenure

    async def peek(self, lock: LockId, *, seen: Peek | None = None) -> Peek:
        """See `Locks.peek`."""
        return await self._records.peek(lock, seen=seen)

    async def ask_attributes(self, lock: LockId, holder: Holder) -> bytes | None:
        """See `Locks.ask_attributes`."""
        return await self._others.attributes(lock, holder)

    def snapshot(self) -> list[HeldLock]:
        """See `Locks.snapshot`."""
        return [
            HeldLock(
                lock=entry.lock,
                mode=entry.mode,
                token=entry.token,
                since=entry.since,
                users=tuple(pin.label for pin in entry.pins),
                open_by=tuple(label for _, label in entry.opens or ()),
                closing=entry.closing,
                label=entry.label,
            )
            for entry in sorted(self._table.entries.values(), key=lambda entry: entry.lock)
            if entry.mode is not LockMode.FREE
        ]

    def waiting(self) -> list[WaitingOperation]:
        """See `Locks.waiting`."""
        return [
            WaitingOperation(
                lock=wait.lock,
                mode=wait.mode,
                label=wait.label,
                since=wait.since,
                waits_for=wait.waits_for,
            )
            for wait in self._waits.values()
        ]

    def check_invariants(self) -> None:
        """For tests, between any two steps."""
        self._table.check_invariants()
        self._claims.check_invariants()

    # --- giving up ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer other hosts until cancelled. A bug in a hook leaves through here."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for asked in self._early:
                nursery.start_soon(self._serve, asked)
            self._early.clear()
            nursery.start_soon(self._claims.write_long_open, self._clock)
            task_status.started()
            try:
                while True:
                    await self._crowded.wait()
                    await self._thin_out()
                    self._crowded = trio.Event()
            finally:
                self._nursery = None

    def asked(self, event: Asked) -> None:
        """An event of lockd's client: another host asks. Never blocks.

        How many there are at once is bounded by lockd, for each of the hosts that ask.
        """
        if self._nursery is None:
            self._early.append(event)
        else:
            self._nursery.start_soon(self._serve, event)

    async def _serve(self, asked: Asked) -> None:
        kind, payload = await self._giving.answer(asked)
        try:
            await self._service.answer(asked.ask_id, kind, payload)
        except LockdError as error:
            # Whoever asked learns it from lockd's next incarnation, by asking again.
            log.warning("answer lost ask_id=%d reason=%r", asked.ask_id, str(error))

    async def _thin_out(self) -> None:
        """Give up a quarter of the cached locks.

        Claims first: they cost a host that wants them nothing, and this one no word to lockd.
        Others only when that is not enough: nothing stays claimed when one of them is given up.
        """
        hooks = self._giving.hooks
        if hooks is not None:
            try:
                await self._claims.drop_idle(self._excess, hooks.revoke, hooks.drop)
            except VmfsError as error:
                log.warning("claims kept error=%r", str(error))
                return
        if not self._is_crowded:
            return
        for entry in self._table.idle_longest(self._excess):
            if entry.is_idle() and entry.mode is not LockMode.FREE:
                try:
                    with self._table.kept(entry):
                        await self._giving.close(entry, LockMode.FREE)
                except VmfsError as error:
                    log.warning("lock kept lock=%s error=%r", entry.lock, str(error))
                    return

    @property
    def _is_crowded(self) -> bool:
        return len(self._table.entries) > LOCKS_KEPT_MAX

    @property
    def _excess(self) -> int:
        """How many locks are more than three quarters of the limit."""
        return max(0, len(self._table.entries) - LOCKS_KEPT_MAX * 3 // 4)

    async def forget(self, lock: LockId) -> bool:
        """See `Locks.forget`."""
        entry = self._table.entries.get(lock.lv_offset)
        if entry is None:
            return True
        if not entry.is_idle():
            return False
        with self._table.kept(entry):
            await self._giving.close(entry, LockMode.FREE)
        return entry.mode is LockMode.FREE

    async def release_all(self) -> None:
        """See `Locks.release_all`. Waits for operations under way; open files do not count.

        Raises:
            VmfsError: something could not be written back; the rest was given up all the same.
                The heartbeat slot must then not be released as if all were well.
        """
        self._ending = True
        failures: list[VmfsError] = []
        queue = list(self._table.entries.values())

        async def worker() -> None:
            while queue:
                try:
                    await self._release(queue.pop())
                except VmfsError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(RELEASES_MAX):
                nursery.start_soon(worker)
        if failures:
            raise failures[0]

    async def _release(self, entry: Entry) -> None:
        with self._table.kept(entry):
            entry.opens = None
            await entry.closed()
            await self._giving.close(entry, LockMode.FREE)
