"""The right to do I/O on the LUN, and the device that never does any without it.

Every host holds a permit as long as nobody has the whole LUN reserved. When another host reserves,
lockd recalls it: new I/O waits, what is in flight drains, the permit goes back; when the
reservation has ended it is granted again, and what waited goes on. A host that was fenced, or lost
its slot, has none ever after: everything raises LeaseLost, what waits included.

    granted ──recall──► draining ──last I/O ends──► returned ──grant──► granted
       └──────────────────────── stop, from anywhere ──────────────────► stopped

A granted permit is good only until the lease of this host ends (`lease.py`): from then on new I/O
waits, and goes on by itself when a heartbeat is acknowledged. That is looked up on the clock at
every entry, so a process that was stopped and continued finds it out before its first write.

The fast path is two comparisons and one addition; there is no await and no lock in it.
Entering twice from one task is a mistake: a recall between the two would wait for itself.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import trio

from vmfs.device.base import Buffer, Device
from vmfs.errors import LeaseLost
from vmfs.locks.base import Clock
from vmfs.locks.lease import LeaseClock

log = logging.getLogger("vmfs.locks.permit")


class PermitState(Enum):
    """See the picture above."""

    GRANTED = "granted"
    DRAINING = "draining"
    RETURNED = "returned"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitStatistics:
    """What the permit has seen."""

    state: PermitState
    in_flight: int
    waiting: int
    recalls: int
    stop_reason: str
    is_late: bool  # granted, but no heartbeat was acknowledged in time: new I/O waits for one


class Permit:
    """This host's permit. Events of lockd's client drive it; devices pass through it."""

    def __init__(
        self,
        *,
        returned: Callable[[], None],
        granted: bool = True,
        clock: Clock = lambda: 0.0,
        interval: float = 0.0,
    ) -> None:
        """Make it as registration found it. Until the first `acknowledged` no lease limits it.

        Args:
            returned: tells lockd that nothing is in flight (`client.returned`); never blocks.
            granted: whether it was held at registration (`client.permit`).
            clock: seconds since boot.
            interval: seconds between two beats, for the lease clock.
        """
        self.lease_clock = LeaseClock(interval=interval)
        self._clock = clock
        self._good_until = math.inf
        self._late = False
        self._reserved_here = False
        self._connected = True
        self._say_returned = returned
        self._state = PermitState.GRANTED if granted else PermitState.RETURNED
        self._in_flight = 0
        self._owed = False  # a recall that was not answered yet
        self._recalls = 0
        self._stop_reason = ""
        self._lot = trio.lowlevel.ParkingLot()
        self._set_lease_clock()

    async def enter(self) -> None:
        """Begin one I/O, when that is allowed. Every `enter` is followed by one `exit`.

        Raises:
            LeaseLost: this host may not touch the LUN any more.
        """
        while self._state is not PermitState.GRANTED or self._clock() >= self._good_until:
            if self._state is PermitState.GRANTED:
                self._say_late()
            self.check()
            await self._lot.park()
        self._in_flight += 1

    @property
    def is_open(self) -> bool:
        """Whether one I/O may be begun and ended now, without `await` in between."""
        return self._state is PermitState.GRANTED and self._clock() < self._good_until

    async def enter_for_beat(self) -> None:
        """As `enter`, for a beat that is written by this host itself: no lease keeps it out."""
        while self._state is not PermitState.GRANTED:
            self.check()
            await self._lot.park()
        self._in_flight += 1

    def acknowledged(self, *, good_until: float) -> None:
        """A heartbeat was acknowledged: I/O may begin until then, by the permit's clock."""
        self._good_until = good_until
        if self._late:
            self._late = False
            log.info("io resumed reason='a heartbeat was acknowledged' waiting=%d", len(self._lot))
            self._lot.unpark_all()

    def lease_time(self) -> float:
        """The clock on which this host judges others; it stands still under reservations."""
        return self.lease_clock.read(self._clock())

    def reserve(self, *, held: bool) -> None:
        """This host itself has the LUN reserved (or no longer): nobody else can beat."""
        self._reserved_here = held
        self._set_lease_clock()

    def disconnected(self) -> None:
        """Without lockd for now. I/O goes on until the lease of this host ends.

        That is safe: lockd has it on record that this permit is out, and grants no reservation
        before it is back. But without lockd nobody can beat, so the time counts against nobody.
        """
        self._connected = False
        self._set_lease_clock()

    def reconnected(self, *, granted: bool) -> None:
        """With lockd again, which has it that this permit is `granted`, or not."""
        self._connected = True
        if granted:
            self.grant()
        else:
            self.recall()

    def exit(self) -> None:
        """End one I/O, whatever became of it."""
        assert self._in_flight > 0, "an I/O ended that never began"
        self._in_flight -= 1
        if self._owed:
            self._return_if_drained()

    def recall(self) -> None:
        """Start nothing new, and give it back when the last I/O has ended; lockd asks for it."""
        self._recalls += 1
        self._owed = True
        if self._state is not PermitState.STOPPED:
            self._state = PermitState.DRAINING
        self._set_lease_clock()
        self._return_if_drained()

    def grant(self) -> None:
        """Go on: lockd gives it back, or no longer wants it."""
        self._owed = False
        if self._state is not PermitState.STOPPED:
            self._state = PermitState.GRANTED
            self._set_lease_clock()
            self._lot.unpark_all()

    def stop(self, reason: str) -> None:
        """Never again: fenced, or nothing proves that we are not. The first reason stays."""
        if self._state is PermitState.STOPPED:
            return
        log.error("io stopped reason=%r", reason)
        self._state = PermitState.STOPPED
        self._stop_reason = reason
        self._lot.unpark_all()

    def check(self) -> None:
        """Raise LeaseLost if it was stopped; a recall does not matter here."""
        if self._state is PermitState.STOPPED:
            raise LeaseLost(self._stop_reason)

    @property
    def state(self) -> PermitState:
        """Where in the picture it is."""
        return self._state

    def statistics(self) -> PermitStatistics:
        """Numbers, for tests and for people."""
        return PermitStatistics(
            state=self._state,
            in_flight=self._in_flight,
            waiting=len(self._lot),
            recalls=self._recalls,
            stop_reason=self._stop_reason,
            is_late=self.is_late,
        )

    @property
    def is_late(self) -> bool:
        """Whether new I/O waits for a heartbeat to be acknowledged."""
        return self._state is PermitState.GRANTED and self._clock() >= self._good_until

    def _say_late(self) -> None:
        if not self._late:
            self._late = True
            late = self._clock() - self._good_until
            log.warning("io waits reason='no heartbeat was acknowledged' late=%.3fs", late)

    def _set_lease_clock(self) -> None:
        now = self._clock()
        free = self._state is PermitState.GRANTED and not self._reserved_here
        if free and self._connected:
            self.lease_clock.free(now)
        else:
            self.lease_clock.reserved(now)

    def _return_if_drained(self) -> None:
        if self._in_flight:
            return
        self._owed = False
        if self._state is PermitState.DRAINING:
            self._state = PermitState.RETURNED
        self._say_returned()


class GuardedDevice:
    """A device each verb of which waits for the permit. All floors above locks use this one."""

    def __init__(self, device: Device, permit: Permit) -> None:
        """`device` is not owned, but `aclose` closes it."""
        self._device = device
        self._permit = permit

    @property
    def size(self) -> int:
        """Bytes."""
        return self._device.size

    @property
    def name(self) -> str:
        """For messages."""
        return self._device.name

    async def read(self, offset: int, length: int) -> bytes:
        """Read, under the permit."""
        await self._permit.enter()
        try:
            return await self._device.read(offset, length)
        finally:
            self._permit.exit()

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, under the permit."""
        await self._permit.enter()
        try:
            await self._device.write(offset, data)
        finally:
            self._permit.exit()

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read, if the permit is there; it cannot be recalled in the middle of this."""
        return self._device.read_now(offset, length) if self._permit.is_open else None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write, if the permit is there; it cannot be recalled in the middle of this."""
        return self._permit.is_open and self._device.write_now(offset, data)

    async def flush(self) -> None:
        """Flush, under the permit."""
        await self._permit.enter()
        try:
            await self._device.flush()
        finally:
            self._permit.exit()

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range, under the permit."""
        await self._permit.enter()
        try:
            await self._device.write_zeroes(offset, length)
        finally:
            self._permit.exit()

    async def unmap(self, offset: int, length: int) -> None:
        """Give a range back, under the permit."""
        await self._permit.enter()
        try:
            await self._device.unmap(offset, length)
        finally:
            self._permit.exit()

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the device, under the permit."""
        await self._permit.enter()
        try:
            await self._device.copy(source, target, length)
        finally:
            self._permit.exit()

    async def aclose(self) -> None:
        """Close what is below. Needs no permit: nothing is written."""
        await self._device.aclose()
