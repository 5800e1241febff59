"""The light simulation: real locks, journals, recovery and lockd over a few places on a small LUN.

Each host increments counters under their locks: through the journal, alone or two of them in one
transaction, and by direct writes; reads under shared locks; calls fsync. A host that dies, is
fenced, or loses its nexus is started again. At the end everything heals, each place is locked once
more within a bound, all hosts unmount, and the LUN is compared with the story.
"""

import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final

import trio
import trio.testing
from trio._core import _run as trio_run

from lockd.client import Event, HostIdentity, LockClient
from lockd.client.connection import connect_link
from lockd.machine import ProcessExited
from lockd.protocol.messages import Fence
from lockd.state import ProcessId
from tests.support.sim.daemon import LUN, Daemon
from tests.support.sim.history import BlockHistory
from tests.support.sim.host import SimDevice, SimHost
from tests.support.sim.lun import Lun
from tests.support.sim.plan import PACE, Fault, FaultKind, Plan, plan
from tests.support.sim.story import Place, Story, Violation
from tests.support.sim.watch import Shape, Watch
from vmfs.device.window import Window
from vmfs.errors import LockBusy, VmfsError
from vmfs.ids import LvOffset, SlotIndex
from vmfs.locks import heartbeat
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
from vmfs.volume import LockdSession, VolumeOptions, mounting, roll_call
from vmfs.volume.lockd_session import Nexus, open_nexus
from vmfs.volume.mounting import Losses
from vmfs.volume.structure import Journals

LV_BASE: Final = MIB
SLOTS: Final = 6
PLACES_AT: Final = LvOffset(4 * MIB)
JOURNALS_AT: Final = LvOffset(5 * MIB)
END_SECONDS: Final = 120.0
"""Within so many virtual seconds after the last fault every lock must be obtainable again (I10):
a frozen host's lease, its fence (5 s), the next start's registration, and retries of each."""


IDLE_SECONDS: Final = 0.5
"""How often somebody who has nothing to do looks whether it was lost, or whether all have done."""

BUSY_SECONDS_MAX: Final = 4.0
"""Processor time of a seed in which nothing comes to an end; most take some hundredths."""

HANG_SECONDS: Final = 60.0
"""Real seconds, for a seed in which everybody waits and no time passes."""


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


@dataclass(eq=False)
class World:
    """One seed, running."""

    plan: Plan
    nursery: trio.Nursery
    rng: Random
    lun: Lun
    story: Story
    spots: list[Spot]
    daemon: Daemon
    watch: Watch
    history: BlockHistory | None  # None: records change by plain writes, under a reservation
    trace: list[str] = field(default_factory=list)
    current: dict[int, SimHost] = field(default_factory=dict)
    nonces: int = 0
    healed: trio.Event = field(default_factory=trio.Event)
    """No fault from here on; hosts mount once more, look at all and leave."""
    power: bool = True
    done: dict[int, int] = field(default_factory=dict)  # operations, by host
    looked: set[int] = field(default_factory=set)  # hosts that have seen everything at the end

    def say(self, text: str) -> None:
        self.trace.append(f"{trio.current_time():8.4f} {text}")

    # --- processes ---

    def start_process(self, number: int) -> SimHost:
        self.nonces += 1
        name = "abcdefgh"[number]
        host = SimHost(
            name=name,
            identity=HostIdentity(
                host_uuid=name.encode().ljust(16, b"."), name=name, nonce=self.nonces
            ),
            process=ProcessId(100 + self.nonces, 0, "sim"),
            lun=self.lun,
            rng=self.rng,
        )
        self.daemon.hosts.append(host)
        self.current[number] = host
        return host

    def kill(self, host: SimHost, *, stuck_seconds: float = 0.0) -> None:
        """SIGKILL; its exit is seen a moment later."""
        if host.dead:
            return
        stuck = stuck_seconds > 0 and any(io.data is not None for io in host.in_flight)
        self.say(f"{host.key} is killed{' (stuck)' if stuck else ''}")
        host.die(stuck=stuck)
        self.nursery.start_soon(self._exit, host, stuck_seconds if stuck else 0.0)

    async def _exit(self, host: SimHost, stuck_seconds: float) -> None:
        await trio.sleep(stuck_seconds + self.rng.choice((0.0, 0.0002, 0.01)))
        host.settle()
        self._exited(host)

    def _exited(self, host: SimHost) -> None:
        if host.exited:
            return
        host.exited = True
        for link in host.links:
            link.close()
        self.daemon.submit(ProcessExited(host.process, f"the exit of {host.key} was seen"))
        host.ended.set()

    def killed_by_lockd(self, process: ProcessId) -> None:
        host = next(host for host in self.daemon.hosts if host.process == process)
        if not host.dead:
            self.kill(host, stuck_seconds=self.rng.choice((0.0, 0.0, 1.0)))

    # --- a host, start after start ---

    async def run_host(self, number: int) -> None:
        while number not in self.looked:
            if not self.power or self.daemon.state is None:
                await trio.sleep(0.05)
                continue
            host = self.start_process(number)
            self.say(f"{host.key} starts")
            try:
                await self._run_start(number, host)
            except VmfsError as error:
                self.say(f"{host.key} ends: {type(error).__name__}: {error}")
            if not host.dead:
                self.kill(host)
            await host.ended.wait()
            await trio.sleep(self.rng.choice((0.0, 0.01, 0.3)))

    async def _run_start(self, number: int, host: SimHost) -> None:
        @asynccontextmanager
        async def connect(on_event: Callable[[Event], None]) -> AsyncIterator[LockClient]:
            link = self.daemon.dial(host)
            async with connect_link(link, host.identity, LUN, on_event) as client:
                if self.history is not None:
                    self.history.record(client, host.key)
                yield client

        session = LockdSession(host=host.identity, connect=connect)
        options = VolumeOptions(timing=PACE, clock=trio.current_time, seed=self.nonces)
        losses = Losses()
        device = SimDevice(host, self.history)
        lv = Window(device, LV_BASE, self.lun.size - LV_BASE)
        protocol = LockProtocol.RESERVATION if self.plan.reservation else LockProtocol.ATS
        failure: BaseException | None = None
        with host.scope:
            async with open_nexus(
                session,
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

    # --- faults ---

    async def run_faults(self) -> None:
        for fault in self.plan.faults:
            await trio.sleep_until(fault.at)
            self.say(f"fault: {fault}")
            await self._strike(fault)

    async def _strike(self, fault: Fault) -> None:  # noqa: C901 - one branch for each kind
        host = self.current.get(fault.host)
        kind = fault.kind
        if kind in (FaultKind.LOCKD_RESTART, FaultKind.LOCKD_FORGETS, FaultKind.POWER_CUT):
            await self._strike_lockd(fault)
        elif host is None or host.dead:
            return
        elif kind is FaultKind.KILL:
            self.kill(host)
        elif kind is FaultKind.KILL_STUCK:
            host.slow = fault.seconds / 2
            self._at_next_io(host, lambda h: self.nursery.start_soon(self._kill_in_flight, h))
        elif kind is FaultKind.KILL_IN_IO:
            self._at_next_io(host, self.kill)
        elif kind in (FaultKind.FREEZE_SHORT, FaultKind.FREEZE_LONG):
            self._freeze(host, fault.seconds)
        elif kind in (FaultKind.FREEZE_IN_IO, FaultKind.FREEZE_LONG_IN_IO):
            self._at_next_io(host, lambda h: self._freeze(h, fault.seconds))
        elif kind is FaultKind.SLOW:
            host.slow = fault.seconds
        elif kind is FaultKind.CUT and host.links:
            host.links[-1].cut()
        elif kind is FaultKind.ADMIN_FENCE:
            self.nursery.start_soon(self._fence, host)

    def _at_next_io(self, host: SimHost, strike: Callable[[SimHost], None]) -> None:
        left = self.rng.randrange(6)

        def on_io(who: SimHost) -> None:
            nonlocal left
            if left == 0:
                who.on_io = lambda _: None
                self.say(f"struck in I/O: {who.key}")
                strike(who)
            left -= 1

        host.on_io = on_io

    async def _kill_in_flight(self, host: SimHost) -> None:
        await trio.sleep(host.slow / 2)
        self.kill(host, stuck_seconds=host.slow * 2)

    def _freeze(self, host: SimHost, seconds: float) -> None:
        self.say(f"{host.key} is stopped for {seconds:.2f} s")
        host.freeze()
        self.nursery.start_soon(self._thaw, host, seconds)

    async def _thaw(self, host: SimHost, seconds: float) -> None:
        await trio.sleep(seconds)
        self.say(f"{host.key} goes on")
        host.thaw()

    async def _fence(self, host: SimHost) -> None:
        from lockd.client.connection import _running
        from lockd.client.session import Observer

        admin = SimHost(
            name="admin",
            identity=host.identity,
            process=ProcessId(1, 0, "sim"),
            lun=self.lun,
            rng=self.rng,
        )
        if self.daemon.state is None:
            return
        link = self.daemon.dial(admin)
        try:
            async with _running(Observer(link, lambda event: None), link) as observer:
                uuid, nonce = host.identity.host_uuid, host.identity.nonce
                answer = await observer.fence_on(LUN, uuid, nonce=nonce)
                self.say(f"fence of {host.key}: {answer.result.name}")
        except Exception as error:
            self.say(f"fence of {host.key} failed: {error}")

    async def _strike_lockd(self, fault: Fault) -> None:
        self.daemon.stop()
        if fault.kind is FaultKind.POWER_CUT:
            self.power = False
            for host in self.daemon.hosts:
                host.drop_in_flight()
                host.die()
                if not host.exited:
                    self._exited(host)
            if self.history is not None:
                self.history.check()
            self.watch.power_cut(self.lun.power_cut(self.rng))
        await trio.sleep(fault.seconds)
        if fault.kind is FaultKind.LOCKD_FORGETS:
            self.daemon.forget_everything()
            self.watch.database_lost()
        self.power = True
        await self.daemon.start()

    # --- all of it ---

    async def run(self) -> None:
        await self.daemon.start()
        async with trio.open_nursery() as hosts:
            for number in range(self.plan.hosts):
                hosts.start_soon(self.run_host, number)
            await self.run_faults()
            while not self.healed.is_set():
                await trio.sleep(IDLE_SECONDS)
                busy = any(
                    self.done.get(number, 0) < self.plan.operations
                    for number in range(self.plan.hosts)
                )
                if not busy or trio.current_time() > 60:
                    self.healed.set()
            self.say("healing")
            for host in self.daemon.hosts:
                host.slow = 0.0
                host.on_io = lambda _: None
            hosts.cancel_scope.deadline = trio.current_time() + END_SECONDS
        if len(self.looked) < self.plan.hosts:
            raise Violation("I10: not every host could lock everything in time")
        self._check_end()

    def _check_end(self) -> None:
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
        world = World(asked, nursery, rng, lun, story, spots, daemon, watch, history, trace)
        daemon.on_kill = world.killed_by_lockd
        await world.run()
        nursery.cancel_scope.cancel()
    versions = [v for place in story.places for v in place.versions if v.writer is not None]
    lost = sum(version.lost for version in versions)
    return Result(asked, dict(watch.counts), len(versions) - lost, lost, tuple(trace))


class Hangs(Exception):
    """The seed does not end: somebody waits for ever, and no time passes."""


class SeedFailed(AssertionError):
    """A seed has shown a violation, or a bug; the text says how to see it again."""

    def __init__(self, asked: Plan, error: BaseException, trace: list[str]) -> None:
        super().__init__(f"seed {asked.seed}: {type(error).__name__}: {error}")
        self.seed = asked.seed
        self.plan = asked
        self.trace = tuple(trace)
        # A mutant that merely cannot run was not caught.
        self.is_finding = not isinstance(error, TypeError | NameError | AttributeError)
        self.add_note(f"replay: scripts/sim --seeds {asked.seed}..{asked.seed} --verbose")


_TIMERS: Final = {
    signal.ITIMER_VIRTUAL: signal.SIGVTALRM,
    signal.ITIMER_REAL: signal.SIGALRM,
}


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """One order of tasks for one seed, no log, and only those slots that are used.

    And cheap: thousands of seeds are run. A seed leaves its garbage for the next one's start, and
    the clock, which is asked for the time some thousand times, does not multiply.
    """
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, heartbeat.read_slots
    clock = trio.testing.MockClock.current_time
    trio.testing.MockClock.current_time = lambda self: self._virtual_base  # type: ignore
    gc.disable()
    disabled = logging.root.manager.disable
    alarms = [(number, signal.signal(number, _hangs)) for number in _TIMERS.values()]
    for timer, seconds in zip(_TIMERS, (BUSY_SECONDS_MAX, HANG_SECONDS), strict=True):
        signal.setitimer(timer, seconds)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    roll_call.read_slots = partial(heartbeat.read_slots, count=SLOTS)  # type: ignore[attr-defined]
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, before_us in alarms:
            signal.signal(number, before_us)
        logging.disable(disabled)
        gc.enable()
        trio.testing.MockClock.current_time = clock  # type: ignore[method-assign]
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING, roll_call.read_slots = before  # type: ignore


def _hangs(number: int, frame: object) -> None:
    raise Hangs("no end: it goes round in circles, or everybody waits for ever")


def run_seed(seed: int) -> Result:
    """Run one seed.

    Raises:
        SeedFailed: an invariant does not hold.
    """
    asked = plan(seed)
    trace: list[str] = []
    with deterministic(seed):
        try:
            return trio.run(
                _simulate, asked, trace, clock=trio.testing.MockClock(autojump_threshold=0)
            )
        except BaseException as error:
            leaf = _leaf(error)
            if isinstance(leaf, Hangs):
                trio_run.GLOBAL_RUN_CONTEXT.__dict__.clear()  # that run was left in its middle
            if isinstance(leaf, KeyboardInterrupt):
                raise
            raise SeedFailed(asked, leaf, trace) from leaf


def _leaf(error: BaseException) -> BaseException:
    """The one error that counts in what task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = next(
            (each for each in error.exceptions if not isinstance(each, trio.Cancelled)),
            error.exceptions[0],
        )
    return error


__all__ = ["Fence", "Result", "SeedFailed", "SlotIndex", "run_seed"]
