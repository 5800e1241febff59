"""The one task that owns the machine: events in, effects out, in the order that makes it safe.

    inbox ──► step ──► compare-and-writes at once, between the steps
                │
                ▼      for the whole batch, in this order
             fdatasync of the LUNs with durable writes · records committed · audit written
             · kills and searches · messages sent · histories answered · sessions closed

Whatever arrived while a batch was being worked on is the next batch: one flush and one commit serve
all of it. Nothing in here awaits but the wait for work, so no session can delay another.

A store that cannot commit ends lockd (StoreError): nobody is answered, so nobody was told anything
that could be forgotten.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, Protocol

import trio

from lockd.machine import (
    Event,
    Executed,
    Execution,
    KillFailed,
    LunSearch,
    Outcome,
    Tick,
    next_deadline,
    step,
)
from lockd.protocol.codec import encode
from lockd.protocol.messages import AuditEntry, Good, HistoryReport, Miscompare
from lockd.protocol.terms import AuditKind
from lockd.state import Moment, ProcessId, State
from lockd.store import Store, StoreError

log = logging.getLogger("lockd")

_QUIET: Final = (AuditKind.LOCK_CHANGED, AuditKind.ASKED)
_LOUD: Final = (
    AuditKind.FENCE_BEGUN,
    AuditKind.FENCED,
    AuditKind.FENCE_FAILED,
    AuditKind.RECALL_FAILED,
    AuditKind.RESERVATION_LOST,
    AuditKind.EXITED,
)


class Blocks(Protocol):
    """What the engine needs of a LUN; `LunFile` is one."""

    def compare_and_write(self, lba: int, expected: bytes, new: bytes) -> Good | Miscompare | str:
        """Write block `lba` if it is `expected`; a text is an error."""
        ...

    def sync(self) -> str | None:
        """Make what was written durable; a text is an error."""
        ...


class Effects(Protocol):
    """What the engine does to the world, but for disks. None of it waits."""

    def post(self, session: int, data: bytes) -> None:
        """Send frames to a session."""
        ...

    def finish(self, session: int) -> None:
        """Close a session, once what was posted is on its way."""
        ...

    def kill(self, process: ProcessId) -> str:
        """Send SIGKILL; a text says why it could not be sent."""
        ...

    def search(self, search: LunSearch) -> None:
        """Begin to look for who has a LUN open."""
        ...


class Engine:
    """State, store and LUNs, and the batch of events that comes next."""

    def __init__(
        self,
        state: State,
        store: Store,
        luns: Mapping[str, Blocks],
        effects: Effects,
        clock: Callable[[], Moment],
    ) -> None:
        self.state = state
        self._store = store
        self._luns = luns
        self._effects = effects
        self._clock = clock
        self._inbox: list[Event] = []
        self._lot = trio.lowlevel.ParkingLot()
        self._audit_failed = False
        self._due = next_deadline(state)
        self._look_for_room()

    def submit(self, event: Event) -> None:
        """Have an event happen in the next batch."""
        self._inbox.append(event)
        self._lot.unpark_all()

    async def run(self) -> NoReturn:
        """Work until cancelled.

        Raises:
            StoreError: a commit failed.
        """
        while True:
            if not self._inbox:
                await self._wait()
            if self._due is not None and self._due <= self._clock().boot:
                # Perhaps lockd itself was stopped for a while: what was said to it in that time
                # comes in with this pass of the scheduler, and is heard before silence is judged.
                await trio.lowlevel.checkpoint()
            self.process()

    def process(self) -> None:
        """Let everything in the inbox happen, and carry out what comes of it."""
        batch, self._inbox = self._inbox, []
        if self.state.store_full:
            self._look_for_room()
        now = self._clock()
        if self._due is not None and self._due <= now.boot:
            batch.append(Tick())
        outcomes: list[Outcome] = []
        durable: list[tuple[Execution, Good | Miscompare | str]] = []
        for event in batch:
            outcome = step(self.state, event, now)
            outcomes.append(outcome)
            for execution in outcome.executions:
                blocks = self._luns[execution.lun]
                result = blocks.compare_and_write(execution.lba, execution.expected, execution.new)
                if execution.durable and type(result) is Good:
                    durable.append((execution, result))
                else:
                    outcomes.append(step(self.state, Executed(execution, result), now))
        outcomes += self._make_durable(durable, now)
        self._keep(outcomes)
        self._act(outcomes)
        self._speak(outcomes)
        self._due = next_deadline(self.state)  # nothing but a step changes it

    def _make_durable(
        self, durable: list[tuple[Execution, Good | Miscompare | str]], now: Moment
    ) -> list[Outcome]:
        failures = {name: self._luns[name].sync() for name in {e.lun for e, _ in durable}}
        return [
            step(self.state, Executed(execution, failures[execution.lun] or result), now)
            for execution, result in durable
        ]

    def _keep(self, outcomes: list[Outcome]) -> None:
        records = [record for outcome in outcomes for record in outcome.records]
        if records:
            self._store.commit(records)
            self._look_for_room()
        audit = [entry for outcome in outcomes for entry in outcome.audit]
        if not audit:
            return
        for entry in audit:
            _log(entry)
        try:
            self._store.append(audit)
        except StoreError as error:
            if not self._audit_failed:  # the trail is not worth an outage; say so once
                log.error("audit trail lost from here on: %s", error)
            self._audit_failed = True

    def _look_for_room(self) -> None:
        before, self.state.store_full = self.state.store_full, self._store.room()
        if self.state.store_full and not before:
            log.error("no new host until there is room: %s", self.state.store_full)
        elif before and not self.state.store_full:
            log.warning("there is room for lockd's state again")

    def _act(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            for process in outcome.kills:
                reason = self._effects.kill(process)
                if reason:
                    self.submit(KillFailed(process, reason))
            for search in outcome.searches:
                self._effects.search(search)

    def _speak(self, outcomes: list[Outcome]) -> None:
        frames: dict[int, list[bytes]] = {}
        for outcome in outcomes:
            for session, request_id, message in outcome.messages:
                frames.setdefault(session, []).append(encode(request_id, message))
            for reading in outcome.histories:
                entries = self._store.audit(count=reading.count, before=reading.before)
                report = HistoryReport(entries=entries)
                frames.setdefault(reading.session, []).append(encode(reading.request_id, report))
        for session, parts in frames.items():
            self._effects.post(session, b"".join(parts))
        for outcome in outcomes:
            for session in outcome.closes:
                self._effects.finish(session)

    async def _wait(self) -> None:
        if self._due is None:
            await self._lot.park()
            return
        with trio.move_on_after(max(0.0, self._due - self._clock().boot)):
            await self._lot.park()


def _log(entry: AuditEntry) -> None:
    level = logging.INFO
    if entry.kind in _QUIET:
        level = logging.DEBUG
    elif entry.kind in _LOUD:
        level = logging.WARNING
    if log.isEnabledFor(level):
        where = f" block={entry.lba}" if entry.lba else ""
        log.log(
            level,
            "%s: %s lun=%s host=%r generation=%d%s",
            entry.kind.name.lower().replace("_", " "),
            entry.text,
            entry.lun or "-",
            entry.host,
            entry.generation,
            where,
        )
