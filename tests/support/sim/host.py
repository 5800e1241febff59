"""One start of one host: its process, its device, and how both freeze and end.

    alive ──freeze──► frozen ──thaw──► alive          no code of it runs; what is in flight lands
      └──────kill──────┴─► dead ──► exit is seen       in-flight writes land, or do not, before that

A frozen host stops at its next call to the device or to lockd, and that includes the moment after
the permit was checked and before the write was begun.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from lockd.client import HostIdentity
from lockd.state import ProcessId
from tests.support.sim.history import BlockHistory
from tests.support.sim.lun import Lun
from tests.support.sim.wire import SimLink
from vmfs.device.base import Buffer
from vmfs.errors import DeviceError
from vmfs.units import SECTOR_SIZE, align_down, align_up

LATENCIES: Final = (0.0001, 0.0003, 0.001, 0.005, 0.05)
"""Seconds that a slow I/O takes; most take none."""


@dataclass(eq=False, slots=True)
class InFlight:
    """An I/O that was begun and has not ended. `data` None: a read or a flush."""

    offset: int
    data: bytes | None
    settled: bool = False  # its fate was decided by a kill


@dataclass(eq=False)
class SimHost:
    """One start of one host."""

    name: str
    identity: HostIdentity
    process: ProcessId
    lun: Lun
    rng: Random
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    links: list[SimLink] = field(default_factory=list)
    in_flight: list[InFlight] = field(default_factory=list)
    dead: bool = False  # no instruction of it runs any more
    exited: bool = False  # and nothing of it is in flight: its exit can be seen
    frozen: bool = False
    reported: bool = False  # lockd has said that it can never write again
    lost: str = ""  # why it stopped itself
    slow: float = 0.0  # seconds that each I/O takes at least
    on_io: Callable[["SimHost"], None] = lambda host: None
    at_death: Callable[[], None] = lambda: None  # what waits in a shielded scope has to end, too
    ended: trio.Event = field(default_factory=trio.Event)
    _lot: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def key(self) -> str:
        """Names this start."""
        return f"{self.name}#{self.identity.nonce}"

    async def awake(self) -> None:
        """Wait while the process is stopped."""
        while self.frozen and not self.dead:
            await self._lot.park()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._lot.unpark_all()

    def die(self, *, stuck: bool = False) -> None:
        """SIGKILL takes effect. `stuck`: the process hangs in the kernel until its I/O has ended.

        `settle` must follow before its exit is seen.
        """
        self.dead = True
        if not stuck:
            self.settle()
        self.thaw()
        self.at_death()
        self.scope.cancel()

    def settle(self) -> None:
        """Decide what has become of each write in flight: all of it, nothing, some sectors."""
        for io in self.in_flight:
            if io.settled or io.data is None:
                continue
            io.settled = True
            fate = self.rng.random()
            for at in range(0, len(io.data), SECTOR_SIZE):
                if fate < 0.4 or (fate < 0.7 and self.rng.random() < 0.5):
                    index = (io.offset + at) // SECTOR_SIZE
                    self.lun.write_sector(self.key, index, io.data[at : at + SECTOR_SIZE])

    def drop_in_flight(self) -> None:
        """The power is cut: nothing that is in flight lands."""
        for io in self.in_flight:
            io.settled = True


class SimDevice:
    """The LUN as one start of a host has it."""

    def __init__(self, host: SimHost, history: BlockHistory | None = None) -> None:
        """`history` hears of single blocks that are read."""
        self._host = host
        self._lun = host.lun
        self._history = history

    @property
    def size(self) -> int:
        return self._lun.size

    @property
    def name(self) -> str:
        return f"LUN of {self._host.key}"

    async def read(self, offset: int, length: int) -> bytes:
        lba, history = offset // SECTOR_SIZE, self._history
        if history is None or length != SECTOR_SIZE or not history.knows(lba):
            return await self._read(offset, length)
        with history.read(lba, self._host.key) as returned:
            data = await self._read(offset, length)
            returned(data)
            return data

    async def _read(self, offset: int, length: int) -> bytes:
        io = await self._begin(offset, None)
        data = self._lun.read(offset, length)
        await self._end(io)
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        view = bytes(memoryview(data).cast("B"))
        start, end = align_down(offset, SECTOR_SIZE), align_up(offset + len(view), SECTOR_SIZE)
        if (start, end) != (offset, offset + len(view)):
            whole = bytearray(self._lun.read(start, end - start))
            whole[offset - start : offset - start + len(view)] = view
            view = bytes(whole)
        io = await self._begin(start, view)
        if not io.settled:
            io.settled = True
            self._lun.write(self._host.key, start, view)
        await self._end(io)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: `read` is where it can be made to fail, to wait or to be seen."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never: `write` is where it can be made to fail, to wait or to be seen."""
        return False

    async def flush(self) -> None:
        serial = self._lun.serial
        io = await self._begin(0, None, at_least=0.0001 if self._host.rng.random() < 0.5 else 0.0)
        if not self._host.dead:
            self._lun.flush(self._host.key, serial)
        await self._end(io)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self.write(offset, bytes(length))

    async def unmap(self, offset: int, length: int) -> None:
        await self.write(offset, bytes(length))

    async def copy(self, source: int, target: int, length: int) -> None:
        await self.write(target, await self.read(source, length))

    async def aclose(self) -> None:
        pass

    async def _begin(self, offset: int, data: bytes | None, *, at_least: float = 0.0) -> InFlight:
        """Pass the gate, put the I/O in flight, and let it take its time."""
        host = self._host
        host.on_io(host)  # a fault may strike here
        if host.frozen:
            await host.awake()
        self._live()
        io = InFlight(offset, data)
        host.in_flight.append(io)
        seconds = max(at_least, host.slow)
        if host.rng.random() < 0.12:
            seconds += host.rng.choice(LATENCIES)
        if seconds:
            with trio.CancelScope(shield=True):  # a write that was begun is not taken back
                await trio.sleep(seconds)
        return io

    async def _end(self, io: InFlight) -> None:
        host = self._host
        host.in_flight.remove(io)
        if host.frozen:
            with trio.CancelScope(shield=True):
                await host.awake()
        self._live()

    def _live(self) -> None:
        if self._host.dead:
            raise DeviceError("this host was killed")
