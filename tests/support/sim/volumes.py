"""The whole simulation: real volumes of several hosts, from names to blocks, under seeded faults.

As `world.py`, with `vmfs.volume.Volume` in place of a few counters: each host makes files of every
size, replaces what others made (written aside, synced, renamed into place), deletes, reads, makes
and removes directories. In the end every host mounts once more, holds every name to what it may
hold, and leaves; then `vmfs check` finds nothing.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random
from typing import Any, Final

import trio

from tests.support.build import TIME, build_volume, tiny_request
from tests.support.checked import assert_clean
from tests.support.sim.cluster import IDLE_SECONDS, Cluster
from tests.support.sim.daemon import Daemon
from tests.support.sim.history import BlockHistory
from tests.support.sim.host import SimDevice, SimHost
from tests.support.sim.lun import ZERO, Lun
from tests.support.sim.names import Names, stamped
from tests.support.sim.plan import PACE, Plan, plan
from tests.support.sim.running import run
from tests.support.sim.story import Violation
from tests.support.sim.watch import Shape, Watch
from tests.support.volumes import creation
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.errors import LockBusy, NotFound, StaleHandle, VmfsError
from vmfs.files.attributes import ROOT_ADDRESS
from vmfs.files.ground import UnwrittenMetadata
from vmfs.ids import FdAddress
from vmfs.ondisk.descriptor import LockProtocol
from vmfs.ondisk.heartbeat import Heartbeat, slot_offset
from vmfs.units import MIB, SECTOR_SIZE
from vmfs.volume import Volume, VolumeOptions
from vmfs.volume import volume as volume_module
from vmfs.volume.lockd_session import Nexus, open_nexus
from vmfs.volume.structure import read_descriptor, read_journals, read_structure

LENGTHS: Final = (20, 1024, 1025, 5_000, 9_000, 70_000, MIB + 5)
"""Around every edge: resident, sub-block, one file block, two."""

SHARED: Final = (b"one", b"two", b"three")
"""Names that everybody replaces."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A volume as mkfs leaves it."""

    size: int
    sectors: dict[int, bytes]  # that are not zero
    shape: Shape


@dataclass(frozen=True, slots=True)
class VolumeResult:
    """What a seed has seen."""

    plan: Plan
    counts: dict[str, int]
    trace: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class VolumeWorld(Cluster):
    """One seed, running."""

    fresh: Fresh
    names: Names = field(default_factory=Names)

    async def run_start(self, number: int, host: SimHost) -> None:
        """See `Cluster.run_start`."""
        options = VolumeOptions(
            timing=PACE,
            clock=trio.current_time,
            wall_clock=lambda: TIME + trio.current_time(),
            seed=host.identity.nonce,
        )
        device = SimDevice(host, self.history)
        failure: VmfsError | None = None
        with host.scope:
            try:
                async with Volume.open(device, options, lockd=self.session(host)) as volume:
                    self.say(f"{host.key} has slot {volume.slot}")
                    await self._work(number, host, volume)
                self.names.left(host)
            except VmfsError as error:
                failure = error
        if failure is not None and not host.dead:
            raise failure

    async def check_end(self) -> None:
        """See `Cluster.check_end`."""
        if self.history is not None:
            self.history.check()
        for index in range(self.fresh.shape.slot_count):
            at = slot_offset(index)
            data = self.lun.read(self.fresh.shape.lv_base + at, SECTOR_SIZE)
            if Heartbeat.unpack(data, address=at).is_in_use:
                raise Violation(f"I10: slot {index} is in use at the end")
        device = MemoryDevice(self.lun.size)
        for index, data in self.lun.contents():
            await device.write(index * SECTOR_SIZE, data)
        await assert_clean(device)

    async def _work(self, number: int, host: SimHost, volume: Volume) -> None:
        while not self.healed.is_set():
            if self.done.get(number, 0) >= self.plan.operations:
                with trio.move_on_after(IDLE_SECONDS):
                    await self.healed.wait()
            else:
                self.done[number] = self.done.get(number, 0) + 1
                try:
                    await self._operation(host, volume)
                except (LockBusy, NotFound, StaleHandle) as error:
                    self.say(f"{host.key} did not: {type(error).__name__}: {error}")
                await trio.sleep(self.plan.pace)
            if volume.failed is not None:
                raise volume.failed
        for name in self.names.known():
            await self._look(host, volume, name)
        self.looked.add(number)
        self.say(f"{host.key} has seen everything")

    async def _operation(self, host: SimHost, volume: Volume) -> None:
        kind = self.rng.random()
        mine = self.names.kept_by(host)
        if kind < 0.35:
            await self._replace(host, volume, self.rng.choice(SHARED))
        elif kind < 0.6:
            await self._replace(host, volume, b"%s-%d" % (host.name.encode(), self.names.serial))
        elif kind < 0.7 and mine:
            await self._unlink(host, volume, self.rng.choice(mine))
        elif kind < 0.8:
            name = b"dir of " + host.key.encode()
            await volume.namespace.mkdir(ROOT_ADDRESS, name, creation(0o755))
            await volume.namespace.rmdir(ROOT_ADDRESS, name)
        else:
            await self._look(host, volume, self.rng.choice(self.names.known() or list(SHARED)))

    async def _replace(self, host: SimHost, volume: Volume, name: bytes) -> None:
        """Written aside, synced, renamed into place: at no time is there half of it."""
        version = self.names.version(name, host)
        data = stamped(version.serial, self.rng.choice(LENGTHS))
        aside = b"aside %d" % version.serial
        _, file = await volume.namespace.create(ROOT_ADDRESS, aside, creation())
        try:
            await file.write(0, data)
            await file.fsync()
        finally:
            await file.release()
        with self.names.changing(version, data):
            await volume.namespace.rename(ROOT_ADDRESS, aside, ROOT_ADDRESS, name)
        await self._perhaps_sync(host, volume)

    async def _unlink(self, host: SimHost, volume: Volume, name: bytes) -> None:
        version = self.names.version(name, host)
        with self.names.changing(version, None):
            await volume.namespace.unlink(ROOT_ADDRESS, name)
        await self._perhaps_sync(host, volume)

    async def _perhaps_sync(self, host: SimHost, volume: Volume) -> None:
        if self.rng.random() < 0.6:
            promised = self.names.changed_by(host)
            await volume.sync()
            if host.reported:
                raise Violation(f"I11: sync of {host.key}, which was fenced, was acknowledged")
            self.names.promise(promised)

    async def _look(self, host: SimHost, volume: Volume, name: bytes) -> None:
        began = self.names.moment()
        try:
            found = await volume.namespace.lookup(ROOT_ADDRESS, name)
        except NotFound:
            data = None
        else:
            data = await self._contents(volume, found.address, found.size)
        self.names.check(name, data, began=began, by=host.key)

    async def _contents(self, volume: Volume, address: FdAddress, size: int) -> bytes:
        file = await volume.namespace.open(address, writing=False)
        try:
            return bytes(await file.read(0, size))
        finally:
            await file.release()


@contextmanager
def _stopped_at_death(world: VolumeWorld) -> Iterator[None]:
    """What a killed host has in a shielded scope waits for its permit: that ends with it."""

    @asynccontextmanager
    async def opened(session: Any, *arguments: Any, **options: Any) -> AsyncIterator[Nexus]:
        host = next(h for h in world.daemon.hosts if h.identity == session.host)
        async with open_nexus(session, *arguments, **options) as nexus:
            host.at_death = partial(nexus.permit.stop, "this process was killed")
            yield nexus

    volume_module.open_nexus = opened  # type: ignore[attr-defined]
    try:
        yield
    finally:
        volume_module.open_nexus = open_nexus  # type: ignore[attr-defined]


@cache
def fresh_volume(protocol: LockProtocol) -> Fresh:
    """Made once in a process."""
    return trio.run(_make_fresh, protocol)


async def _make_fresh(protocol: LockProtocol) -> Fresh:
    device, _ = await build_volume(tiny_request(lock_protocol=protocol))
    lv = await find_lv(device)
    reading = UnwrittenMetadata(lv)
    structure = await read_structure(reading, await read_descriptor(lv))
    journals = await read_journals(reading, structure)
    sectors: dict[int, bytes] = {}
    for offset in range(0, device.size, MIB):
        data = await device.read(offset, min(MIB, device.size - offset))
        if any(data):
            for at in range(0, len(data), SECTOR_SIZE):
                if (sector := data[at : at + SECTOR_SIZE]) != ZERO:
                    sectors[(offset + at) // SECTOR_SIZE] = sector
    shape = Shape(lv.offset, journals.count, journals.offset, journals.size)
    return Fresh(device.size, sectors, shape)


async def _simulate(asked: Plan, fresh: Fresh, trace: list[str]) -> VolumeResult:
    rng = Random(asked.seed ^ 0x5EED)
    lun = Lun(fresh.size, fresh.sectors)
    async with trio.open_nursery() as nursery:
        daemon = Daemon(lun, rng, nursery)
        watch = Watch(lun, daemon, fresh.shape)
        world = VolumeWorld(
            plan=asked,
            nursery=nursery,
            rng=rng,
            lun=lun,
            daemon=daemon,
            watch=watch,
            history=None if asked.reservation else BlockHistory(lun.sector),
            trace=trace,
            fresh=fresh,
        )
        daemon.on_kill = world.killed_by_lockd
        with _stopped_at_death(world):
            await world.run()
        nursery.cancel_scope.cancel()
    counts = {**watch.counts, **world.names.counts()}
    return VolumeResult(asked, counts, tuple(trace))


def run_volume_seed(seed: int) -> VolumeResult:
    """Run one seed.

    Raises:
        SeedFailed: an invariant does not hold, or a file is not what was promised.
    """
    asked = plan(seed)
    protocol = LockProtocol.RESERVATION if asked.reservation else LockProtocol.ATS
    return run(asked, partial(_simulate, asked, fresh_volume(protocol)), option="--volumes ")
