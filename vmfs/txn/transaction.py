"""The running transaction of one mount, and its commits.

    running      being staged; lost by a crash
    committing   being written to the journal, then in place; at most one
    journaled    committed and in place, but not durably so: a crash replays it

Reads see the device overlaid by *committing* and then by *running*. *Live* is whatever one of the
three touches: the journal may write it again after a crash.

The caller

* never awaits between its last check and its staging, so that an operation falls into one
  transaction as a whole; calls `room` before, for what it will stage at most;
* writes file data directly to the device, before it stages what makes them reachable;
* never writes directly what is live: `settle` first. (Otherwise a replay brings back the old.)
* calls `discard` for a resource that it frees, so that no image of it is written after its reuse;
  gives the resource out again only after the commit (`on_commit`);
* calls `checkpoint` before another host may change what is live here.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import trio

from vmfs.device.base import Device
from vmfs.device.turn import Turn
from vmfs.errors import VmfsError
from vmfs.txn.buffer import StagedSectors
from vmfs.txn.journal import Journal

_log = logging.getLogger("vmfs.txn")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionStatistics:
    """What the transactions of a mount have cost so far."""

    commit_count: int = 0
    committed_sectors: int = 0
    committed_runs: int = 0
    checkpoint_count: int = 0
    largest_sectors: int = 0


class Transactions:
    """Group commit of one mount. All offsets are LV offsets."""

    def __init__(self, device: Device, journal: Journal) -> None:
        """Stage for `device`, commit through `journal`, which is open and on the same device."""
        self._device = device
        self._journal = journal
        self._running = StagedSectors()
        self._committing: StagedSectors | None = None
        self._journaled: StagedSectors | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._ended = 0  # number of the last commit that has ended, with or without work
        self._flushed = 0  # number of the last one that had work, so that it flushed
        self._turn = Turn()
        self._failed: VmfsError | None = None
        self._counts: Counter[str] = Counter()

    @property
    def failed(self) -> VmfsError | None:
        """The error of a commit, after which nothing can be staged or committed. Reads go on."""
        return self._failed

    @property
    def dirty(self) -> bool:
        """Whether a commit has anything to do, or is at work."""
        return self._pending or self._committing is not None

    @property
    def staged_size(self) -> int:
        """Bytes in the running transaction."""
        return self._running.size

    @property
    def max_transaction_bytes(self) -> int:
        """Bytes that one transaction can take: the bound of `room`."""
        return self._journal.max_transaction_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """Read as if everything staged were in place.

        Raises:
            DeviceError: the LUN cannot be read.
        """
        while True:
            ended = self._ended
            data = await self._device.read(offset, length)
            if ended == self._ended:
                break
            # A commit ended meanwhile: what was read may be older than what it put in place.
        layers = [
            layer
            for layer in (self._committing, self._running)
            if layer is not None and layer.touches(offset, length)
        ]
        if not layers:
            return data
        target = bytearray(data)
        for layer in layers:
            layer.overlay(offset, target)
        return bytes(target)

    def has_room(self, size: int) -> bool:
        """Whether `room` would return at once."""
        fits = self._running.size + size <= self._journal.max_transaction_bytes
        return fits and self._failed is None

    async def room(self, size: int) -> None:
        """Make sure that `size` bytes can be staged, up to the caller's next await.

        Raises:
            VmfsError: a commit has failed (`failed`).
        """
        limit = self._journal.max_transaction_bytes
        assert 0 <= size <= limit, f"an operation of {size} bytes; it must be split at {limit}"
        self._raise_if_failed()
        while self._running.size + size > limit:
            await self.commit()

    def stage(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put whole sectors into the running transaction.

        Raises:
            VmfsError: a commit has failed (`failed`); nothing is staged.
        """
        self._raise_if_failed()
        assert offset + len(data) <= self._device.size, f"staged {offset:#x}: outside the volume"
        self._running.stage(offset, data)
        assert self._running.size <= self._journal.max_transaction_bytes, (
            "more staged than `room` was asked for"
        )

    def discard(self, offset: int, length: int) -> None:
        """Drop what the running transaction has staged in a range that is being freed."""
        self._running.discard(offset, length)

    def is_live(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether any of these (LV offset, length) ranges is staged, or could be replayed."""
        layers = [
            layer
            for layer in (self._running, self._committing, self._journaled)
            if layer is not None and len(layer)
        ]
        return any(layer.touches(offset, length) for offset, length in ranges for layer in layers)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back once, when what is staged until now is committed *and in place*.

        With nothing staged it is called by the next commit, which then writes nothing. It is never
        called if that commit fails. It must not raise.
        """
        self._callbacks.append(callback)

    async def commit(self) -> None:
        """Make everything that was staged before the call durable, and put it in place.

        Callers that come while a commit is being written share the next one.

        Raises:
            VmfsError: this or an earlier commit has failed (`failed`).
            trio.Cancelled: while it waited for its turn. A commit that has begun is not torn.

        Durability: everything staged, and all file data written, before the call.
        """
        self._raise_if_failed()
        wanted = self._running_number if self._pending else self._running_number - 1
        while self._ended < wanted:
            async with self._turn:
                self._raise_if_failed()
                if self._ended < wanted:
                    await self._shielded(self._commit_running)

    async def sync(self) -> None:
        """`commit`, and a flush of file data even where nothing was staged: what fsync needs.

        Raises:
            VmfsError: a commit or the flush has failed.

        Durability: all file data written, and everything staged, before the call.
        """
        self._raise_if_failed()
        if not len(self._running):
            await self._device.flush()
            await self.commit()
            return
        wanted = self._running_number
        await self.commit()
        if self._flushed < wanted:  # all of it was discarded before the commit began
            await self._device.flush()

    async def checkpoint(self) -> None:
        """`commit`, and leave nothing in the journal that a crash could replay.

        Raises:
            VmfsError: this or an earlier commit has failed (`failed`).
            trio.Cancelled: while it waited for its turn.

        Durability: everything staged before the call is durable in place.
        """
        async with self._turn:
            self._raise_if_failed()
            if self._pending or self._journaled is not None:
                await self._shielded(self._checkpoint_now)

    async def settle(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make ranges safe to be written directly, or by another host: no replay touches them.

        Raises:
            VmfsError: this or an earlier commit has failed (`failed`).
        """
        ranges = list(ranges)
        if self.is_live(ranges):
            await self.checkpoint()

    def statistics(self) -> TransactionStatistics:
        """What the transactions have cost so far."""
        return TransactionStatistics(**self._counts)

    def check_invariants(self) -> None:
        """For tests: what must hold between any two steps."""
        for layer in (self._running, self._committing, self._journaled):
            if layer is not None:
                layer.check_invariants()
        assert self._running.size <= self._journal.max_transaction_bytes, "running is too large"
        if self._committing is not None:
            assert self._turn.locked() or self._failed, "a commit without its turn"

    @property
    def _running_number(self) -> int:
        """The number that the running transaction's commit will have."""
        return self._ended + (self._committing is not None) + 1

    @property
    def _pending(self) -> bool:
        return len(self._running) > 0 or len(self._callbacks) > 0

    async def _shielded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` to its end: a commit torn by a cancelled request would be nobody's.

        There is no deadline: a LUN that does not answer cannot be written around. The heartbeat
        stops with it, and then this host is fenced.
        """
        with trio.CancelScope(shield=True):
            try:
                await work()
            except VmfsError as error:
                self._fail(error)
                raise
            except Exception as error:
                self._fail(VmfsError(f"the journal was given up after a bug: {error!r}"))
                raise

    async def _commit_running(self) -> None:
        staged, self._running = self._running, StagedSectors()
        callbacks, self._callbacks = self._callbacks, []
        if len(staged):
            self._committing = staged
            runs = staged.runs()
            await self._journal.append(runs)
            self._journaled = staged
            for offset, data in runs:
                await self._device.write(offset, data)
            self._committing = None
            self._flushed = self._ended + 1
            self._count(staged, len(runs))
        self._ended += 1
        for callback in callbacks:
            callback()

    async def _checkpoint_now(self) -> None:
        if self._pending:
            await self._commit_running()
        await self._journal.mark_done()
        self._journaled = None
        self._counts["checkpoint_count"] += 1

    def _count(self, staged: StagedSectors, run_count: int) -> None:
        self._counts["commit_count"] += 1
        self._counts["committed_sectors"] += len(staged)
        self._counts["committed_runs"] += run_count
        self._counts["largest_sectors"] = max(self._counts["largest_sectors"], len(staged))

    def _fail(self, error: VmfsError) -> None:
        if self._failed is None:
            self._failed = error
            _log.error("commit failed slot=%d error=%s", self._journal.slot, error)

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
