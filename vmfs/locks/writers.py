"""The two ways to change a lock record or a heartbeat slot, chosen once per volume.

    ATS          read ─► choose ─► COMPARE AND WRITE ─┬─ good: done
                           ▲                          ├─ miscompare: choose from what is there
                           └──────────────────────────┴─ not known: read again, never repeat it

    reservation  RESERVE (everybody else's I/O has ended) ─► read ─► choose ─► write ─► RELEASE

Both make one promise: between the image that `choose` saw and the image that was written, nobody
else wrote the sector. `choose` may be called again with a newer image; it must not wait for another
host, which under a reservation could do nothing for us anyway.
"""

import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, Protocol

import trio

from lockd.client import CompareAndWriteUnknown
from lockd.protocol.messages import Conflict, Good, Miscompare
from vmfs.device.base import Device
from vmfs.errors import LockServiceError, ReservationConflict
from vmfs.ids import LvOffset
from vmfs.locks.permit import Permit
from vmfs.locks.service import BlockMap, LockService, clip_label, lockd_errors
from vmfs.units import SECTOR_SIZE

log = logging.getLogger("vmfs.locks.writers")

Choose = Callable[[bytes], Awaitable[bytes | None]]
"""From the sector as it stands to the sector as it shall be; None leaves it as it is."""

Look = Callable[[], Awaitable[bytes]]
"""The sector as it stands, or as it is believed to."""

MISCOMPARES_MAX: Final = 256
"""How often one change is begun anew. Each time another host had changed the record, so somebody
got on; 64 hosts that all want one lock meet each other less often than that."""

UNKNOWNS_MAX: Final = 8
"""How often in a row a compare-and-write may end without an outcome (a medium that fails)."""

CONFLICT_PAUSE: Final = 0.002
"""Seconds, the first pause after a reservation conflict; one lasts about a millisecond."""

CONFLICT_PAUSE_MAX: Final = 0.1
"""Seconds: pauses double up to here, each shortened at random by up to a half."""

CONFLICT_SECONDS_MAX: Final = 60.0
"""How long one change waits for reservations of others. VMware gives up after some 80 conflicts;
whoever holds a reservation for a minute is stuck, and `lockctl` says who it is."""

RELEASE_SECONDS: Final = 2.0
"""How long a RELEASE may take although the change was cancelled: lockd answers at once."""


class RecordWriter(Protocol):
    """Changes one sector, atomically against every other host."""

    async def update(
        self, lv_offset: LvOffset, choose: Choose, *, durable: bool, label: str
    ) -> bytes:
        """Read the sector at `lv_offset`, and write what `choose` makes of it.

        Args:
            lv_offset: where it stands.
            choose: the decision; called once or more, last with the image that was replaced.
            durable: return only when the change survives a power cut.
            label: for people and the audit trail; empty keeps it out of that.

        Returns:
            The sector as it stands now: as chosen, or as found when `choose` said None.

        Raises:
            ReservationConflict: another host had the LUN reserved all the time.
            LeaseLost: this host was fenced.
            LockServiceError: lockd is not there, or the outcome cannot be learned.
        """
        ...

    async def update_own(self, lv_offset: LvOffset, choose: Choose, *, believed: bytes) -> bytes:
        """As `update`, not durable, for this mount's own heartbeat slot.

        Nobody else writes that as long as this host lives (others fence first), so it needs no
        reservation: a beat must not stop the I/O of the whole cluster. No lease keeps it from the
        LUN: it is what renews the lease.

        Args:
            lv_offset: where the slot stands.
            choose: the decision; it does no I/O.
            believed: the image that this mount wrote last; it need not be right.
        """
        ...


class AtsWriter:
    """Compare-and-write through lockd. Leaves every other host's I/O alone."""

    def __init__(
        self, *, device: Device, service: LockService, blocks: BlockMap, rng: Random
    ) -> None:
        """`device` is the logical volume, behind this host's permit; it is only read."""
        self._device = device
        self._service = service
        self._blocks = blocks
        self._rng = rng

    async def update(
        self, lv_offset: LvOffset, choose: Choose, *, durable: bool, label: str
    ) -> bytes:
        """See `RecordWriter.update`."""

        async def look() -> bytes:
            return await self._device.read(lv_offset, SECTOR_SIZE)

        return await self._update(lv_offset, choose, look, durable=durable, text=clip_label(label))

    async def _update(
        self, lv_offset: LvOffset, choose: Choose, look: Look, *, durable: bool, text: str
    ) -> bytes:
        lba = self._blocks.lba(lv_offset)
        pauses = Pauses(self._rng)
        miscompares = unknowns = 0
        current = await look()
        while miscompares <= MISCOMPARES_MAX and unknowns <= UNKNOWNS_MAX:
            new = await choose(current)
            if new is None or new == current:
                return current
            outcome = await self._compare_and_write(lba, current, new, durable=durable, label=text)
            if isinstance(outcome, Good):
                return new
            if isinstance(outcome, Miscompare):
                miscompares += 1
                current = outcome.current
            else:
                if outcome is None:
                    unknowns += 1
                else:
                    await pauses.after_conflict(outcome)
                current = await look()
            if current == new:
                # It did happen, and only the answer was lost. No other host can have written this
                # image: it names us with a new token, or is free by our own hand.
                return new
        raise LockServiceError(
            f"block {lba}: no compare-and-write got through, {miscompares} were overtaken by "
            f"other hosts and {unknowns} had no outcome"
        )

    async def update_own(self, lv_offset: LvOffset, choose: Choose, *, believed: bytes) -> bytes:
        """See `RecordWriter.update_own`: one compare-and-write, and nothing is read.

        A wrong belief costs a miscompare, which says what is there.
        """

        async def look() -> bytes:
            return believed

        return await self._update(lv_offset, choose, look, durable=False, text="")

    async def _compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good | Miscompare | Conflict | None:
        """None: the outcome is not known."""
        with lockd_errors(f"compare-and-write of block {lba}"):
            try:
                return await self._service.compare_and_write(
                    lba, expected, new, durable=durable, label=label
                )
            except CompareAndWriteUnknown as error:
                log.warning("compare-and-write outcome unknown lba=%d reason=%r", lba, str(error))
                return None


class ReservationWriter:
    """Whole-LUN reservation around a plain read and write: for arrays without ATS.

    One change of this host at a time: a second RESERVE of ours would be GOOD as well, and the
    first RELEASE would end both.
    """

    def __init__(
        self, *, device: Device, permit: Permit, service: LockService, rng: Random
    ) -> None:
        """`device` is the logical volume *without* a permit around it: this class enters it."""
        self._device = device
        self._permit = permit
        self._service = service
        self._rng = rng
        self._turn = trio.Lock()
        self._held = False

    def reservation_lost(self) -> None:
        """A unit attention came: whatever we believed, the reservation is gone."""
        self._held = False

    async def update(
        self, lv_offset: LvOffset, choose: Choose, *, durable: bool, label: str
    ) -> bytes:
        """See `RecordWriter.update`."""
        pauses = Pauses(self._rng)
        async with self._turn:
            while True:
                with lockd_errors("RESERVE"):
                    outcome = await self._service.reserve()
                if isinstance(outcome, Conflict):
                    await pauses.after_conflict(outcome)
                    continue
                self._held = True
                self._permit.reserve(held=True)
                try:
                    image = await self._change(lv_offset, choose, durable=durable)
                finally:
                    await self._release()
                if image is not None:
                    return image
                log.warning("reservation lost under a change lv_offset=%#x", lv_offset)
                await pauses.after_conflict(Conflict(holder="a reset of the LUN"))

    async def update_own(self, lv_offset: LvOffset, choose: Choose, *, believed: bytes) -> bytes:
        """See `RecordWriter.update_own`: a plain read and write, when the LUN is not reserved.

        Before that a word to lockd: it judges hosts that everybody waits for by their silence, and
        a host that it cannot hear has no good beat.
        """
        with lockd_errors("heartbeat"):
            await self._service.status()
        await self._permit.enter_for_beat()
        try:
            current = await self._device.read(lv_offset, SECTOR_SIZE)
            new = await choose(current)
            if new is None:
                return current
            await self._device.write(lv_offset, new)
            return new
        finally:
            self._permit.exit()

    async def _change(self, lv_offset: LvOffset, choose: Choose, *, durable: bool) -> bytes | None:
        """Read, choose, write. None: the reservation was lost before the write."""
        await self._permit.enter()
        try:
            current = await self._device.read(lv_offset, SECTOR_SIZE)
        finally:
            self._permit.exit()
        new = await choose(current)
        # Taking a reservation from us begins with a recall of our permit, so a reservation that
        # stands once we are inside stands until we leave.
        await self._permit.enter()
        try:
            if not self._held:
                return None
            if new is None or new == current:
                return current
            await self._device.write(lv_offset, new)
            if durable:
                await self._device.flush()
            return new
        finally:
            self._permit.exit()

    async def _release(self) -> None:
        self._held = False
        try:
            with trio.move_on_after(RELEASE_SECONDS) as scope:
                scope.shield = True
                with lockd_errors("RELEASE"):
                    await self._service.release()
        finally:
            self._permit.reserve(held=False)


class Pauses:
    """Longer and longer pauses between tries, with a limit on all of them together."""

    def __init__(self, rng: Random) -> None:
        """`rng` decides how much each pause is shortened, so that two hosts fall out of step."""
        self._rng = rng
        self._next = CONFLICT_PAUSE
        self._started = trio.current_time()

    async def after_conflict(self, conflict: Conflict) -> None:
        """Wait a little, or give up.

        Raises:
            ReservationConflict: it has gone on for `CONFLICT_SECONDS_MAX`.
        """
        if trio.current_time() - self._started > CONFLICT_SECONDS_MAX:
            raise ReservationConflict(
                f"the LUN has been reserved for {CONFLICT_SECONDS_MAX:.0f} s by {conflict.holder}"
            )
        await trio.sleep(self._next * self._rng.uniform(0.5, 1.0))
        self._next = min(self._next * 2, CONFLICT_PAUSE_MAX)
