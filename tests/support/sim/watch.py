"""Checkers that are no part of the system.

They see each sector before it lands, and each step of lockd before it speaks,
and hold the invariants of docs/locking.md against the bytes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lockd.protocol.messages import AuditEntry
from lockd.protocol.terms import AuditKind
from tests.support.sim.daemon import LUN, WHO, Daemon, SimEngine, check_durable
from tests.support.sim.host import SimHost
from tests.support.sim.lun import Lun
from tests.support.sim.story import Violation
from vmfs.errors import CorruptRecord
from vmfs.ids import LvOffset, SlotIndex
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockType
from vmfs.ondisk.heartbeat import Heartbeat, HeartbeatState, slot_offset
from vmfs.ondisk.journal_rec import CommitSector, CommitState, JournalLayout, half_of
from vmfs.txn.replay import newest_commit, runs_to_replay
from vmfs.units import SECTOR_SIZE

_LOCK_MAGICS = tuple(int(kind).to_bytes(4, "little") for kind in LockType)
_SLOT_MAGICS = tuple(int(state).to_bytes(4, "little") for state in HeartbeatState)


@dataclass(frozen=True, slots=True)
class Shape:
    """Where things stand, in bytes of the logical volume."""

    lv_base: int
    slot_count: int
    journal_offset: int
    journal_size: int
    guarded: dict[int, int] = field(default_factory=dict)  # sector of the LUN to its lock record


@dataclass(frozen=True, slots=True)
class _Replay:
    """What the replay of a slot's journal has to put in place."""

    by: Holder
    runs: tuple[tuple[int, bytes], ...]


class Watch:
    """See the module."""

    def __init__(self, lun: Lun, daemon: Daemon, shape: Shape) -> None:
        self._lun = lun
        self._daemon = daemon
        self._shape = shape
        self._starts: dict[tuple[int, int], SimHost] = {}  # by slot offset and generation
        self._replays: dict[int, _Replay] = {}
        self._unsure: set[int] = set()  # lock records that a power cut took back
        self._owed_audit = 0
        self._reserved_by: bytes | None = None
        self._generations: dict[bytes, int] = {}
        self.counts = {"writes": 0, "takes": 0, "fences": 0, "replays": 0, "reservations": 0}
        lun.on_write = self.wrote
        daemon.watch_engine = self._attach

    # --- lockd ---

    def _attach(self, engine: SimEngine) -> None:
        engine.audited = self._audited
        engine.before_speaking = lambda: self._before_speaking(engine)

    def _audited(self, entries: Sequence[AuditEntry]) -> None:
        self._owed_audit -= sum(entry.kind is AuditKind.LOCK_CHANGED for entry in entries)

    def _before_speaking(self, engine: SimEngine) -> None:  # noqa: C901 - a list of checks
        if self._owed_audit > 0:
            raise Violation(f"I9: {self._owed_audit} changes of ownership without an audit entry")
        self._owed_audit = 0
        check_durable(engine, self._daemon.store)
        for start in self._daemon.hosts:
            if start.reported:
                continue
            host = engine.state.hosts.get((LUN, start.identity.host_uuid))
            if host is None:
                continue
            record = host.record
            superseded = start.identity.nonce in record.earlier_nonces
            if superseded or (record.nonce == start.identity.nonce and not host.open):
                start.reported = True
                self.counts["fences"] += 1
                if any(not io.settled and io.data is not None for io in start.in_flight):
                    raise Violation(f"I3: {start.key} is said to have ended with I/O in flight")
        for (_, uuid), host in engine.state.hosts.items():
            if host.record.generation < self._generations.get(uuid, 0):
                raise Violation(f"I2: the session generation of {host.record} went down")
            self._generations[uuid] = host.record.generation
        reservation = engine.state.luns[LUN].reservation
        holder = reservation.holder if reservation is not None else None
        if holder is not None and holder != self._reserved_by:
            self.counts["reservations"] += 1
            for start in self._daemon.hosts:
                mine = start.identity.host_uuid == holder
                if mine or start.exited or not self._has_nexus(engine, start):
                    continue
                if any(not io.settled for io in start.in_flight):
                    raise Violation(f"I4: reserved while {start.key} has I/O in flight")
        self._reserved_by = holder

    def _has_nexus(self, engine: SimEngine, start: SimHost) -> bool:
        """Before it has one, a mount reads what a volume it is: nothing that ever changes."""
        host = engine.state.hosts.get((LUN, start.identity.host_uuid))
        return host is not None and host.record.nonce == start.identity.nonce

    def database_lost(self) -> None:
        """Its database is gone: generations begin anew."""
        self._generations.clear()

    # --- the LUN ---

    def wrote(self, who: str, sector: int, old: bytes, new: bytes) -> None:
        """A sector is about to land."""
        self.counts["writes"] += 1
        writer = None if who == WHO else self._start_named(who)
        if writer is not None:
            self._check_writer(writer, sector)
        lv_offset = sector * SECTOR_SIZE - self._shape.lv_base
        guard = self._shape.guarded.get(sector)
        if guard is not None:
            assert writer is not None, "lockd writes lock records and slots only"
            self._check_guard(writer, sector, guard)
        elif old[:4] in _SLOT_MAGICS and self._is_slot(lv_offset):
            self._check_slot(LvOffset(lv_offset), old, new, by_lockd=writer is None)
        elif old[:4] in _LOCK_MAGICS:
            self._check_lock(LvOffset(lv_offset), sector, old, new, by_lockd=writer is None)

    def power_cut(self, changed: Sequence[int]) -> None:
        """Some sectors are as they were before: lock records among them name nobody for sure."""
        self._replays.clear()
        self._reserved_by = None
        self._unsure.update(changed)

    def _check_writer(self, writer: SimHost, sector: int) -> None:
        if writer.reported:
            raise Violation(f"I3: sector {sector:#x} written by {writer.key}, reported as ended")
        if self._reserved_by not in (None, writer.identity.host_uuid):
            raise Violation(f"I4: sector {sector:#x} written by {writer.key} under a reservation")

    def _check_guard(self, writer: SimHost, sector: int, guard: int) -> None:
        at = LvOffset(guard * SECTOR_SIZE - self._shape.lv_base)
        record = DiskLock.unpack(self._lun.sector(guard), address=at)
        holder = record.exclusive_holder
        if holder is not None and self._start_of(holder) is writer and self._stands(holder):
            return
        if holder is not None and self._replayer(holder) is writer:
            return
        if guard in self._unsure and any(
            self._start_of(replay.by) is writer for replay in self._replays.values()
        ):
            return
        who = self._start_of(holder).key if holder is not None else record.mode.name
        raise Violation(
            f"I1: sector {sector:#x} written by {writer.key}; its lock (token {record.token}) "
            f"is {who}'s"
        )

    def _check_lock(
        self, at: LvOffset, sector: int, old: bytes, new: bytes, *, by_lockd: bool
    ) -> None:
        before, after = DiskLock.unpack(old, address=at), DiskLock.unpack(new, address=at)
        if after.token < before.token:
            raise Violation(f"I2: token at {at:#x} went from {before.token} to {after.token}")
        came = [holder for holder in after.all_holders if holder not in before.all_holders]
        changed = after.all_holders != before.all_holders or after.mode != before.mode
        if changed and by_lockd:
            self._owed_audit += 1
        stronger = after.mode == 1 and before.mode != 1
        if (came or stronger) and after.token <= before.token:
            raise Violation(f"I2: lock at {at:#x} taken without a new token")
        if after.mode == 1 or before.mode == 1:
            for holder in before.all_holders:
                if holder not in after.all_holders and came and self._stands(holder):
                    raise Violation(
                        f"I1: lock at {at:#x} taken from {self._start_of(holder).key}, "
                        "which stands in it"
                    )
        for holder in came:
            self.counts["takes"] += 1
            if not self._stands(holder) or self._start_of(holder).reported:
                raise Violation(f"I1: lock at {at:#x} taken by a host that holds no slot")
        if came:
            self._unsure.discard(sector)

    def _check_slot(self, at: LvOffset, old: bytes, new: bytes, *, by_lockd: bool) -> None:
        before, after = Heartbeat.unpack(old, address=at), Heartbeat.unpack(new, address=at)
        if after.generation < before.generation:
            raise Violation(f"I2: generation of slot {before.index} went down")
        if by_lockd and (before.is_in_use != after.is_in_use or before.replayer != after.replayer):
            self._owed_audit += 1
        if not before.is_in_use:
            self._slot_taken(before, after)
            return
        start = self._starts[at, before.generation]
        if after.is_in_use and not after.replayer:
            if (after.owner, after.generation) != (before.owner, before.generation):
                raise Violation(f"I6: slot {before.index} of {start.key} simply taken")
            if start.reported or before.replayer:
                raise Violation(f"I3: beat of {start.key}, reported as ended")
        elif after.is_in_use:
            self._slot_taken_over(start, before, after)
        elif not before.replayer:
            if start.reported or after.generation != before.generation:
                raise Violation(f"I7: slot {before.index} of {start.key} freed without a replay")
            self._check_nothing_to_replay(before)
        else:
            self._slot_recovered(before, after)

    def _slot_taken(self, before: Heartbeat, after: Heartbeat) -> None:
        info = after.host
        assert info is not None
        if after.generation != before.generation + 1:
            raise Violation(f"I2: slot {before.index} taken without a new generation")
        start = next(h for h in self._daemon.hosts if h.identity.nonce == info.nonce)
        self._starts[after.lv_offset, after.generation] = start

    def _slot_taken_over(self, start: SimHost, before: Heartbeat, after: Heartbeat) -> None:
        if not start.reported and not start.exited:
            raise Violation(f"I6: slot {before.index} taken over while {start.key} may write")
        by = Holder(
            heartbeat_offset=LvOffset(after.replayer_offset),
            generation=after.replayer_generation,
            owner=after.replayer,
        )
        known = self._replays.get(before.index)
        if before.replayer and known is not None and known.by != by:
            rival = self._start_of(known.by)
            if not rival.reported and not rival.exited:
                raise Violation(f"I7: {rival.key} recovers slot {before.index}, another does too")
        if self._start_of(by).reported:
            raise Violation(f"I3: {self._start_of(by).key} has ended, and recovers others")
        self._replays[before.index] = _Replay(by, self._runs_of(before))

    def _slot_recovered(self, before: Heartbeat, after: Heartbeat) -> None:
        if after.generation != before.generation + 1:
            raise Violation(f"I2: slot {before.index} recovered without a new generation")
        replay = self._replays.pop(before.index, None)
        if replay is None:
            raise Violation(f"I7: slot {before.index} recovered by nobody")
        self.counts["replays"] += 1
        if self._start_of(replay.by).reported:
            raise Violation(f"I3: slot {before.index} freed by a host that has ended")
        self._check_nothing_to_replay(before)
        for lv_offset, data in replay.runs:
            if self._is_in_journals(lv_offset):
                continue  # its orphan table, which was adopted after the replay
            if self._lun.read(self._shape.lv_base + lv_offset, len(data)) != data:
                raise Violation(f"I7: slot {before.index} freed, {lv_offset:#x} not in place")

    # --- journals ---

    def _newest(self, slot: Heartbeat) -> tuple[CommitSector | None, JournalLayout]:
        shape = self._shape
        region = shape.journal_offset + slot.index * shape.journal_size
        layout = JournalLayout(region, shape.journal_size)
        sectors = [
            self._lun.read(shape.lv_base + layout.commit_offset(half), SECTOR_SIZE)
            for half in (0, 1)
        ]
        return newest_commit(sectors, layout=layout, slot=SlotIndex(slot.index)), layout

    def _runs_of(self, slot: Heartbeat) -> tuple[tuple[int, bytes], ...]:
        if slot.index >= self._shape.slot_count:
            return ()
        newest, layout = self._newest(slot)
        if newest is None or newest.state is CommitState.DONE:
            return ()
        at = self._shape.lv_base + layout.body_offset(half_of(newest.sequence))
        body = self._lun.read(at, newest.body_size)
        size = self._lun.size - self._shape.lv_base
        return tuple(runs_to_replay(newest, body, layout=layout, lv_size=size))

    def _check_nothing_to_replay(self, slot: Heartbeat) -> None:
        if slot.index < self._shape.slot_count:
            newest, _ = self._newest(slot)
            if newest is not None and newest.state is not CommitState.DONE:
                raise Violation(f"I7: slot {slot.index} freed with a transaction to replay")

    def _is_in_journals(self, lv_offset: int) -> bool:
        shape = self._shape
        return 0 <= lv_offset - shape.journal_offset < shape.slot_count * shape.journal_size

    # --- who is who ---

    def _is_slot(self, lv_offset: int) -> bool:
        return slot_offset(0) <= lv_offset < slot_offset(0) + 2048 * SECTOR_SIZE

    def _start_named(self, key: str) -> SimHost:
        return next(host for host in self._daemon.hosts if host.key == key)

    def _start_of(self, holder: Holder) -> SimHost:
        return self._starts[holder.heartbeat_offset, holder.generation]

    def _slot_of(self, holder: Holder) -> Heartbeat:
        at = self._shape.lv_base + holder.heartbeat_offset
        return Heartbeat.unpack(self._lun.read(at, SECTOR_SIZE), address=holder.heartbeat_offset)

    def _stands(self, holder: Holder) -> bool:
        slot = self._slot_of(holder)
        return slot.is_in_use and slot.generation == holder.generation

    def _replayer(self, holder: Holder) -> SimHost | None:
        slot = self._slot_of(holder)
        if not slot.is_in_use or slot.generation != holder.generation or not slot.replayer:
            return None
        return self._starts.get((slot.replayer_offset, slot.replayer_generation))


__all__ = ["CorruptRecord", "Shape", "Watch"]
