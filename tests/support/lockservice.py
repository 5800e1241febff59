"""N hosts in one process on one LUN in memory, with the real lockd engine and client between them.

    async with cluster() as lab:
        a, b = await lab.host("a"), await lab.host("b")
        lock = lab.lock(0)
        with await a.locks.acquire(lock, LockMode.EXCLUSIVE):
            ...

Deterministic under `autojump_clock`. The LUN holds free heartbeat slots and free lock records, no
filesystem. `LockHost` has everything of `vmfs.locks`, put together as `volume.py` does it; its
hooks note down what they were called with, and wait or fail when a test wants that.

`device_lockd` alone is lockd on any MemoryDevice, for tests of the floors above.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

import trio

from lockd.client import HostIdentity, LockClient, connect_stream
from lockd.protocol.messages import Good, Miscompare
from lockd.server.lun import first_difference
from lockd.state import ProcessId, Timing
from tests.support.lockd import MemoryBlocks, MemoryLockd, memory_lockd
from vmfs.device.base import Device
from vmfs.device.memory import MemoryDevice
from vmfs.device.window import Window
from vmfs.ids import LvOffset, SlotIndex, VmfsUuid
from vmfs.locks.heartbeat import HeartbeatSlot, Mount
from vmfs.locks.lease import LeaseTiming
from vmfs.locks.manager import LockManager
from vmfs.locks.nexus import LockdEvents
from vmfs.locks.order import LockId, LockKind
from vmfs.locks.permit import GuardedDevice, Permit
from vmfs.locks.records import LockRecords
from vmfs.locks.recovery import SlotRecovery
from vmfs.locks.service import BlockMap
from vmfs.locks.writers import AtsWriter, RecordWriter, ReservationWriter
from vmfs.ondisk.disk_lock import DiskLock, LockMode
from vmfs.ondisk.heartbeat import SLOT_COUNT, Heartbeat, HostInfo, slot_offset
from vmfs.units import MIB, SECTOR_SIZE

LUN: Final = "ds1"
LV_BASE: Final = 2 * MIB
LV_SIZE: Final = 16 * MIB
LOCKS_AT: Final = 8 * MIB
SLOTS: Final = 16
LEASES: Final = LeaseTiming(interval=3.0, beat=8.0, stop=10.0, lease=16.0)


class DeviceBlocks(MemoryBlocks):
    """A MemoryDevice as lockd's LUN."""

    def __init__(self, device: MemoryDevice) -> None:
        super().__init__(0)
        self.device = device

    @property
    def size(self) -> int:
        return self.device.size

    def compare_and_write(self, lba: int, expected: bytes, new: bytes) -> Good | Miscompare | str:
        if self.error:
            return self.error
        current = self.block(lba)
        if current != expected:
            return Miscompare(offset=first_difference(current, expected), current=current)
        at_once(self.device.write(lba * SECTOR_SIZE, new))
        return Good()

    def block(self, lba: int) -> bytes:
        return at_once(self.device.read(lba * SECTOR_SIZE, SECTOR_SIZE))


Result = TypeVar("Result")


def at_once(awaitable: Awaitable[Result]) -> Result:
    """The result of something async that never waits."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("it waits")


@asynccontextmanager
async def device_lockd(
    device: MemoryDevice, *, lun: str = LUN, timing: Timing | None = None
) -> AsyncIterator[MemoryLockd]:
    """Lockd on `device`; hosts connect with `connect_stream(lockd.stream(process), ...)`."""
    async with memory_lockd(blocks={lun: DeviceBlocks(device)}, timing=timing) as lockd:
        yield lockd


Wait = Callable[[], Awaitable[None]]


@dataclass
class LockHost:
    """One mount: its nexus, permit, slot and locks."""

    name: str
    process: ProcessId
    client: LockClient
    permit: Permit
    raw: Device  # the logical volume without the permit
    device: Device  # and with it
    writer: RecordWriter
    slot: HeartbeatSlot
    records: LockRecords
    locks: LockManager
    recovery: SlotRecovery
    nursery: trio.Nursery
    lost: list[str]
    exit: Callable[[], None]
    ended: trio.Event = field(default_factory=trio.Event)
    revoked: list[tuple[LockId, LockMode]] = field(default_factory=list)
    dropped: list[LockId] = field(default_factory=list)
    written_back: list[LockId] = field(default_factory=list)
    recovered: list[SlotIndex] = field(default_factory=list)
    known: dict[LockId, bytes] = field(default_factory=dict)  # what the attributes hook says
    beats: trio.CancelScope | None = None
    during_revoke: Wait | None = None
    during_replay: Wait | None = None

    def kill(self) -> None:
        """SIGKILL: its tasks end, lockd sees the process exit."""
        self.nursery.cancel_scope.cancel()
        self.exit()

    async def beat(self) -> None:
        """Beat from now on, in a task of its own, and keep to the lease."""
        await self.nursery.start(self._beat)

    async def _beat(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self.beats:
            await self.slot.beat_forever(
                timing=LEASES,
                on_acknowledged=lambda until: self.permit.acknowledged(good_until=until),
                on_lost=self.permit.stop,
                task_status=task_status,
            )

    def freeze(self) -> Callable[[], None]:
        """SIGSTOP, as far as others see it: no beat, no answer. The result is SIGCONT.

        What it has under way with the LUN goes on: a test that needs more takes a process.
        """
        assert self.beats is not None, "it did not beat"
        self.beats.cancel()
        thawed = trio.Event()
        self.during_revoke = thawed.wait

        def thaw() -> None:
            self.during_revoke = None
            thawed.set()
            self.nursery.start_soon(self.beat)

        return thaw

    async def unmount(self) -> None:
        """Release all locks and the slot, say goodbye."""
        await self.locks.release_all()
        await self.slot.release()
        await self.client.unregister()
        self.nursery.cancel_scope.cancel()
        await self.ended.wait()

    async def on_revoke(self, lock: LockId, to_mode: LockMode) -> None:
        if self.during_revoke is not None:
            await self.during_revoke()
        self.revoked.append((lock, to_mode))

    async def on_drop(self, lock: LockId) -> None:
        self.dropped.append(lock)

    async def on_write_back(self, lock: LockId) -> None:
        self.written_back.append(lock)

    async def on_recover(self, index: SlotIndex, heartbeat: Heartbeat) -> None:
        taken = await self.recovery.take_over(heartbeat)
        if taken is None:
            return
        if self.during_replay is not None:
            await self.during_replay()
        self.recovered.append(index)
        await self.recovery.finish(taken)


@dataclass
class Cluster:
    """The LUN, lockd, and where hosts are started."""

    lun: MemoryDevice
    lv: Window
    lockd: MemoryLockd
    nursery: trio.Nursery
    hosts: list[LockHost] = field(default_factory=list)
    nonces: int = 0

    def lock(self, index: int, kind: LockKind = LockKind.FILE_DESC) -> LockId:
        """One of the lock records on the LUN, by kind and number (below 64)."""
        offset = LOCKS_AT + (kind * 64 + index) * 1024
        return LockId(kind, index, LvOffset(offset))

    def lba(self, lock: LockId) -> int:
        """Where lockd sees its record."""
        return (LV_BASE + lock.lv_offset) // SECTOR_SIZE

    async def record(self, lock: LockId) -> DiskLock:
        """A lock record as it stands."""
        data = await self.lv.read(lock.lv_offset, DiskLock.SIZE)
        return DiskLock.unpack(data, address=lock.lv_offset)

    async def write_record(self, record: DiskLock) -> None:
        """Put a lock record there by force."""
        await self.lv.write(record.lv_offset, record.pack())

    async def slot(self, index: int) -> Heartbeat:
        """A heartbeat slot as it stands."""
        at = slot_offset(index)
        return Heartbeat.unpack(await self.lv.read(at, Heartbeat.SIZE), address=at)

    async def write_slot(self, slot: Heartbeat) -> None:
        """Put a slot there by force."""
        await self.lv.write(slot.lv_offset, slot.pack())

    async def host(
        self, name: str, *, reservation: bool = False, slots: range = range(SLOTS)
    ) -> LockHost:
        """Mount: connect, take a slot, run the lock manager."""
        self.nonces += 1
        host: LockHost = await self.nursery.start(
            self._run_host, name, self.nonces, reservation, slots
        )
        self.hosts.append(host)
        return host

    async def _run_host(
        self,
        name: str,
        nonce: int,
        reservation: bool,
        slots: range,
        *,
        task_status: trio.TaskStatus[LockHost],
    ) -> None:
        process = self.lockd.process()
        identity = HostIdentity(
            host_uuid=name.encode().ljust(16, b"."), name=f"host-{name}", nonce=nonce
        )
        lost: list[str] = []
        events = LockdEvents(on_lost=lost.append)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stream = self.lockd.stream(process)
            client = await stack.enter_async_context(connect_stream(stream, identity, LUN, events))
            permit = Permit(
                returned=client.returned,
                granted=client.permit,
                clock=trio.current_time,
                interval=LEASES.interval,
            )
            device = GuardedDevice(self.lv, permit)
            blocks = BlockMap(LV_BASE)
            rng = Random(nonce)
            writer: RecordWriter
            if reservation:
                writer = ReservationWriter(device=self.lv, permit=permit, service=client, rng=rng)
            else:
                writer = AtsWriter(device=device, service=client, blocks=blocks, rng=rng)
            events.attach(permit=permit, writer=writer)
            info = HostInfo(
                name=identity.name,
                pid=process.pid,
                nonce=nonce,
                interval_ms=int(LEASES.interval * 1000),
                lease_ms=int(LEASES.lease * 1000),
            )
            slot = await HeartbeatSlot.acquire(
                device=device,
                writer=writer,
                clock=trio.current_time,
                mount=Mount(host_uuid=VmfsUuid(identity.host_uuid), info=info),
                slots=slots,
                journal=lambda index: (0x41 + index, LvOffset(0x900000 + index)),
            )
            records = LockRecords(
                device=device, writer=writer, me=slot.holder, clock=trio.current_time
            )
            locks = LockManager(
                records=records,
                service=client,
                blocks=blocks,
                clock=trio.current_time,
                leases=LEASES,
                lease_time=permit.lease_time,
                rng=rng,
                on_lost=permit.stop,
            )
            host = LockHost(
                name=name,
                process=process,
                client=client,
                permit=permit,
                raw=self.lv,
                device=device,
                writer=writer,
                slot=slot,
                records=records,
                locks=locks,
                recovery=SlotRecovery(device=device, writer=writer, service=client, me=slot.holder),
                nursery=nursery,
                lost=lost,
                exit=lambda: self.lockd.sessions.exit(process),
            )
            locks.set_hooks(
                revoke=host.on_revoke,
                drop=host.on_drop,
                attributes=host.known.get,
                recover=host.on_recover,
                write_back=host.on_write_back,
            )
            await nursery.start(locks.run)
            events.attach_asked(locks.asked)
            task_status.started(host)
            stack.callback(host.ended.set)
            await trio.sleep_forever()

    def check_invariants(self) -> None:
        """I1 for every lock record: at most one exclusive holder, and whoever pins stands in it."""
        for host in self.hosts:
            host.locks.check_invariants()


@asynccontextmanager
async def cluster(*, timing: Timing | None = None) -> AsyncIterator[Cluster]:
    """A LUN with free slots and locks, lockd on it, no hosts yet. All hosts end with the block."""
    lun = MemoryDevice(LV_BASE + LV_SIZE)
    lv = Window(lun, LV_BASE, LV_SIZE)
    for index in range(SLOT_COUNT):
        await lv.write(slot_offset(index), Heartbeat(lv_offset=slot_offset(index)).pack())
    async with device_lockd(lun, timing=timing) as lockd, trio.open_nursery() as nursery:
        lab = Cluster(lun, lv, lockd, nursery)
        for kind in LockKind:
            for number in range(64):
                lock = lab.lock(number, kind)
                await lab.write_record(DiskLock(type=kind.lock_type, lv_offset=lock.lv_offset))
        yield lab
        nursery.cancel_scope.cancel()
