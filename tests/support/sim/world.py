"""The light simulation: real locks, journals, recovery and lockd over a few places on a small LUN.

Each host increments counters under their locks: through the journal, alone or two of them in one
transaction, and by direct writes; reads under shared locks; calls fsync. A host that dies, is
fenced, or loses its nexus is started again. At the end everything heals, each place is locked once
more within a bound, all hosts unmount, and the LUN is compared with the story.
"""

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

import trio

from tests.support.sim.cluster import IDLE_SECONDS, Cluster
from tests.support.sim.daemon import Daemon
from tests.support.sim.history import BlockHistory
from tests.support.sim.host import SimDevice, SimHost
from tests.support.sim.lun import Lun
from tests.support.sim.plan import PACE, FaultKind, Plan, plan
from tests.support.sim.running import SLOTS, run
from tests.support.sim.story import Place, Story, Violation
from tests.support.sim.watch import Shape, Watch
from vmfs.device.window import Window
from vmfs.errors import LockBusy, VmfsError
from vmfs.ids import LvOffset
from vmfs.locks.heartbeat import HeartbeatSlot
from vmfs.locks.manager import LockManager
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.descriptor import LockProtocol
from vmfs.ondisk.disk_lock import DiskLock, LockMode
from vmfs.ondisk.heartbeat import Heartbeat, slot_offset
from vmfs.ondisk.journal_rec import REGION_SIZE_MIN
from vmfs.txn.journal import Journal
from vmfs.txn.transaction import Transactions
from vmfs.units import MIB, SECTOR_SIZE
from vmfs.volume import VolumeOptions, mounting
from vmfs.volume.lockd_session import Nexus, open_nexus
from vmfs.volume.mounting import Losses
from vmfs.volume.structure import Journals

LV_BASE: Final = MIB
PLACES_AT: Final = LvOffset(4 * MIB)
JOURNALS_AT: Final = LvOffset(5 * MIB)


@dataclass(frozen=True, slots=True)
class Result:
    """What a seed has seen."""

    plan: Plan
    counts: dict[str, int]
    kept: int  # increments that are there at the end
    lost: int  # and that were lost, as they may be
    trace: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """Two places under one lock: one written through the journal, one directly."""

    lock: LockId
    meta: Place
    data: Place

    @property
    def meta_at(self) -> int:
        return self.lock.lv_offset + SECTOR_SIZE

    @property
    def data_at(self) -> int:
        return self.lock.lv_offset + 2 * SECTOR_SIZE


@dataclass(eq=False)
class Mounted:
    """What the workload of one start uses."""

    host: SimHost
    nexus: Nexus
    slot: HeartbeatSlot
    transactions: Transactions
    locks: LockManager
    losses: Losses


@dataclass(eq=False, kw_only=True)
class World(Cluster):
    """One seed, running."""

    story: Story
    spots: list[Spot]

    async def run_start(self, number: int, host: SimHost) -> None:
        options = VolumeOptions(timing=PACE, clock=trio.current_time, seed=self.nonces)
        losses = Losses()
        device = SimDevice(host, self.history)
        lv = Window(device, LV_BASE, self.lun.size - LV_BASE)
        protocol = LockProtocol.RESERVATION if self.plan.reservation else LockProtocol.ATS
        failure: BaseException | None = None
        with host.scope:
            async with open_nexus(
                self.session(host),
                lv,
                protocol=protocol,
                timing=PACE,
                clock=trio.current_time,
                rng=self.rng,
                on_lost=losses.note,
            ) as nexus:
                host.at_death = partial(nexus.permit.stop, "this process was killed")
                async with trio.open_nursery() as nursery:
                    try:
                        mounted = await _mount(host, nexus, options, losses, nursery, self)
                        self.say(f"{host.key} has slot {mounted.slot.index}")
                        await self._work(number, mounted, nursery)
                    except VmfsError as error:
                        failure = error
                    nursery.cancel_scope.cancel()
        if failure is not None and not host.dead:
            raise failure

    async def _work(self, number: int, mounted: Mounted, nursery: trio.Nursery) -> None:
        nursery.start_soon(_keep_house, mounted)
        while not self.healed.is_set():
            if self.done.get(number, 0) >= self.plan.operations:
                with trio.move_on_after(IDLE_SECONDS):
                    await self.healed.wait()
                self._raise_if_lost(mounted)
                continue
            self.done[number] = self.done.get(number, 0) + 1
            try:
                await self._operation(mounted)
            except LockBusy as error:
                self.say(f"{mounted.host.key} busy: {error}")
            self._raise_if_lost(mounted)
            if self.plan.pace:
                await trio.sleep(self.rng.expovariate(1 / self.plan.pace))
        for spot in self.spots:
            with await mounted.locks.acquire(spot.lock, LockMode.EXCLUSIVE, label="the end"):
                await self._look(mounted, spot)
        self.looked.add(number)
        self.say(f"{mounted.host.key} has seen everything")
        await mounted.transactions.checkpoint()
        await mounted.locks.release_all()
        await mounting.give_back(mounted.nexus, mounted.slot)

    def _raise_if_lost(self, mounted: Mounted) -> None:
        if mounted.losses.first:
            raise VmfsError(mounted.losses.first)
        if mounted.transactions.failed is not None:
            raise VmfsError(str(mounted.transactions.failed))

    async def _operation(self, mounted: Mounted) -> None:
        kind = self.rng.random()
        spot = self.rng.choice(self.spots)
        if kind < 0.15:
            with await mounted.locks.acquire(spot.lock, LockMode.SHARED, label="look"):
                await self._look(mounted, spot)
        elif kind < 0.35:
            with await mounted.locks.acquire(spot.lock, LockMode.EXCLUSIVE, label="data") as pin:
                await self._write_data(mounted, spot, pin.token)
        elif kind < 0.55 and len(self.spots) > 1:
            other = self.rng.choice([each for each in self.spots if each is not spot])
            wanted = {spot.lock: LockMode.EXCLUSIVE, other.lock: LockMode.EXCLUSIVE}
            async with mounted.locks.pinned(wanted, label="both") as pins:
                await self._increment(mounted, [spot, other], [p.token for p in pins.values()])
        else:
            with await mounted.locks.acquire(spot.lock, LockMode.EXCLUSIVE, label="add") as pin:
                await self._increment(mounted, [spot], [pin.token])
        if self.rng.random() < 0.4:
            await self._fsync(mounted)

    async def _look(self, mounted: Mounted, spot: Spot) -> None:
        data = await mounted.transactions.read(spot.meta_at, SECTOR_SIZE)
        spot.meta.read(data, mounted.host)
        spot.data.read(await mounted.nexus.device.read(spot.data_at, SECTOR_SIZE), mounted.host)

    async def _increment(self, mounted: Mounted, spots: list[Spot], tokens: list[int]) -> None:
        host, transactions = mounted.host, mounted.transactions
        await transactions.room(len(spots) * SECTOR_SIZE)
        found = []
        for spot in spots:
            data = await transactions.read(spot.meta_at, SECTOR_SIZE)
            found.append(spot.meta.read(data, host))
        if self.rng.random() < 0.2:
            await trio.sleep(0.003)
        await transactions.room(len(spots) * SECTOR_SIZE)
        together = self.story.transaction()
        for spot, version, token in zip(spots, found, tokens, strict=True):
            new = self.story.write(spot.meta, version, host, token, together)
            transactions.stage(spot.meta_at, spot.meta.pack(new))

    async def _write_data(self, mounted: Mounted, spot: Spot, token: int) -> None:
        device = mounted.nexus.device
        data = await device.read(spot.data_at, SECTOR_SIZE)
        found = spot.data.read(data, mounted.host)
        new = self.story.write(spot.data, found, mounted.host, token, 0)
        await device.write(spot.data_at, spot.data.pack(new))

    async def _fsync(self, mounted: Mounted) -> None:
        promised = self.story.written_by(mounted.host)
        await mounted.transactions.sync()
        if mounted.host.reported:
            raise Violation(f"I11: fsync of {mounted.host.key}, which was fenced, was acknowledged")
        for version in promised:
            version.promised = True

    async def check_end(self) -> None:
        for spot in self.spots:
            for place, at in ((spot.meta, spot.meta_at), (spot.data, spot.data_at)):
                place.read(self.lun.read(LV_BASE + at, SECTOR_SIZE), None)
        self.story.check_end()
        if self.history is not None:
            self.history.check()
        # Whom a new lockd could not prove dead at the last mount is left to the next that needs it.
        forgotten = any(fault.kind is FaultKind.LOCKD_FORGETS for fault in self.plan.faults)
        for index in range(SLOTS):
            at = slot_offset(index)
            slot = Heartbeat.unpack(self.lun.read(LV_BASE + at, SECTOR_SIZE), address=at)
            if slot.is_in_use and not forgotten:
                raise Violation(f"I10: slot {index} is in use at the end")


async def _mount(
    host: SimHost,
    nexus: Nexus,
    options: VolumeOptions,
    losses: Losses,
    nursery: trio.Nursery,
    world: World,
) -> Mounted:
    """As `vmfs.volume.mounting.mount`, without a filesystem on top."""
    journals = Journals(
        offset=JOURNALS_AT, count=SLOTS, size=REGION_SIZE_MIN, block_size=SECTOR_SIZE
    )
    slot = await mounting._acquire(nexus, options, journals, range(SLOTS))
    await nursery.start(mounting._beat, nexus, slot, options, losses)
    device = nexus.device
    journal = Journal(device, journals.region(slot.index), journals.size, slot.index)
    await journal.open(slot.record.generation)
    transactions = Transactions(device, journal)
    dead_hosts = mounting._dead_hosts(nexus, journals, slot)
    records = mounting._records(nexus, options, slot)
    await mounting._roll_call(nexus, options, records, dead_hosts).settle()
    locks = LockManager(
        records=records,
        service=nexus.client,
        blocks=nexus.blocks,
        clock=options.clock,
        leases=options.timing.leases,
        lease_time=nexus.permit.lease_time,
        rng=world.rng,
        on_lost=lambda reason: mounting._stop(nexus, losses, reason),
    )

    async def revoke(lock: LockId, to_mode: LockMode) -> None:
        await transactions.checkpoint()

    async def drop(lock: LockId) -> None:
        pass

    async def write_back(lock: LockId) -> None:
        await transactions.commit()

    locks.set_hooks(
        revoke=revoke,
        drop=drop,
        attributes=lambda lock: None,
        recover=dead_hosts.recover,
        write_back=write_back,
    )
    await nursery.start(locks.run)
    nexus.events.attach_asked(locks.asked)
    return Mounted(host, nexus, slot, transactions, locks, losses)


async def _keep_house(mounted: Mounted) -> None:
    while mounted.transactions.failed is None and not mounted.losses.first:
        await trio.sleep(PACE.commit)
        try:
            await mounted.transactions.commit()
        except VmfsError:
            return


def _make_lun(spots: list[Spot]) -> Lun:
    sectors: dict[int, bytes] = {}
    for index in range(SLOTS):
        at = slot_offset(index)
        sectors[(LV_BASE + at) // SECTOR_SIZE] = Heartbeat(lv_offset=at).pack()
    for spot in spots:
        at = spot.lock.lv_offset
        record = DiskLock(type=spot.lock.kind.lock_type, lv_offset=at)
        sectors[(LV_BASE + at) // SECTOR_SIZE] = record.pack()
        for place, place_at in ((spot.meta, spot.meta_at), (spot.data, spot.data_at)):
            sectors[(LV_BASE + place_at) // SECTOR_SIZE] = place.pack(place.versions[0])
    return Lun(LV_BASE + JOURNALS_AT + SLOTS * REGION_SIZE_MIN + MIB, sectors)


def _spots(story: Story, count: int) -> list[Spot]:
    return [
        Spot(
            LockId(LockKind.FILE_DESC, index, LvOffset(PLACES_AT + index * 4 * SECTOR_SIZE)),
            story.place(journaled=True),
            story.place(journaled=False),
        )
        for index in range(count)
    ]


async def _simulate(asked: Plan, trace: list[str]) -> Result:
    story = Story()
    spots = _spots(story, asked.places)
    lun = _make_lun(spots)
    rng = Random(asked.seed ^ 0x5EED)
    guarded: dict[int, int] = {}
    for spot in spots:
        guard = (LV_BASE + spot.lock.lv_offset) // SECTOR_SIZE
        guarded |= {guard + 1: guard, guard + 2: guard}
    async with trio.open_nursery() as nursery:
        daemon = Daemon(lun, rng, nursery)
        shape = Shape(LV_BASE, SLOTS, JOURNALS_AT, REGION_SIZE_MIN, guarded)
        watch = Watch(lun, daemon, shape)
        history = None if asked.reservation else BlockHistory(lun.sector)
        world = World(
            plan=asked,
            nursery=nursery,
            rng=rng,
            lun=lun,
            daemon=daemon,
            watch=watch,
            history=history,
            trace=trace,
            story=story,
            spots=spots,
        )
        daemon.on_kill = world.killed_by_lockd
        await world.run()
        nursery.cancel_scope.cancel()
    versions = [v for place in story.places for v in place.versions if v.writer is not None]
    lost = sum(version.lost for version in versions)
    return Result(asked, dict(watch.counts), len(versions) - lost, lost, tuple(trace))


def run_seed(seed: int) -> Result:
    """Run one seed.

    Raises:
        SeedFailed: an invariant does not hold.
    """
    asked = plan(seed)
    return run(asked, partial(_simulate, asked))


__all__ = ["Result", "run_seed"]
