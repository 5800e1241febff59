"""A device that remembers every write and flush, and builds the images that a crash could leave.

The fault model. Power fails at any moment. What was flushed is there. Of the writes that were not,
any subset of their sectors is there, in any combination, whatever order they were issued in. A
sector is old or new, never a mixture. With several hosts on one LUN a flush speaks for the writes
of the host that issued it only.

    recording = RecordingDevice(size)
    ... the workload; `recording.mark(...)` for what it has promised or begun ...
    await explore(recording, recover=..., check=...)

Each image has an id like ``17:drop-3`` (after event 17, write 3 lost) or, where recovery was cut as
well, ``17:drop-3/4:floor``; a failing check names it, and `image_by_id` builds that image again.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import trio

from vmfs.device.base import Buffer, assert_range
from vmfs.units import SECTOR_SIZE, align_down, align_up

ZERO_SECTOR = bytes(SECTOR_SIZE)
TEARS_MAX = 8
"""Places at which one write is torn. A write of up to 8 sectors is torn at each of them."""


@dataclass(frozen=True, slots=True)
class Written:
    """A completed write, in whole sectors."""

    offset: int
    data: bytes
    host: str

    @property
    def sectors(self) -> dict[int, bytes]:
        """Sector index to contents."""
        first = self.offset // SECTOR_SIZE
        return {
            first + at // SECTOR_SIZE: self.data[at : at + SECTOR_SIZE]
            for at in range(0, len(self.data), SECTOR_SIZE)
        }


@dataclass(frozen=True, slots=True)
class FlushBegan:
    """From here on the writes before it may be durable."""

    number: int
    host: str


@dataclass(frozen=True, slots=True)
class FlushEnded:
    """From here on the writes before its beginning are durable."""

    number: int
    host: str


@dataclass(frozen=True, slots=True)
class Marked:
    """What the workload says about itself: a promise made, an operation begun."""

    value: object


Event = Written | FlushBegan | FlushEnded | Marked


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Contents of a device: `changes` over `parent`, which all snapshots share and none changes."""

    size: int
    parent: dict[int, bytes] = field(default_factory=dict)
    changes: dict[int, bytes] = field(default_factory=dict)

    def sector(self, index: int) -> bytes:
        """One sector."""
        found = self.changes.get(index)
        return self.parent.get(index, ZERO_SECTOR) if found is None else found

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes."""
        start, end = align_down(offset, SECTOR_SIZE), align_up(offset + length, SECTOR_SIZE)
        changed, unchanged, zero = self.changes.get, self.parent.get, ZERO_SECTOR
        indices = range(start // SECTOR_SIZE, end // SECTOR_SIZE)
        data = b"".join([changed(index) or unchanged(index, zero) for index in indices])
        return data[offset - start : offset - start + length]

    def with_sectors(self, sectors: dict[int, bytes]) -> "Snapshot":
        """The same with other sectors changed too."""
        return Snapshot(self.size, self.parent, self.changes | sectors)

    def same_as(self, other: "Snapshot") -> bool:
        """Whether both hold the same bytes; they share their parent."""
        assert self.parent is other.parent, "snapshots of different devices"
        keys = self.changes.keys() | other.changes.keys()
        return all(self.sector(key) == other.sector(key) for key in keys)


@dataclass(frozen=True, slots=True)
class CrashImage:
    """One thing that a crash could have left."""

    id: str
    snapshot: Snapshot
    marks: tuple[object, ...]  # values marked before the crash, in order


@dataclass(slots=True)
class _Shared:
    start: Snapshot
    content: dict[int, bytes]
    log: list[Event] = field(default_factory=list)
    flush_count: int = 0


class RecordingDevice:
    """A device in memory that logs what is done to it. Held to the contract of every device."""

    def __init__(
        self, start: Snapshot | int, *, host: str = "host", shared: _Shared | None = None
    ) -> None:
        """Begin with the contents of `start`, or with so many bytes of zeroes."""
        snapshot = Snapshot(start) if isinstance(start, int) else start
        self._shared = shared or _Shared(snapshot, dict(snapshot.changes))
        self._host = host

    def as_host(self, host: str) -> "RecordingDevice":
        """The same LUN as another host has it: same contents, same log, flushes of its own."""
        return RecordingDevice(self._shared.start, host=host, shared=self._shared)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._shared.start.size

    @property
    def name(self) -> str:
        """For messages."""
        return f"recording ({self._host})"

    @property
    def start(self) -> Snapshot:
        """What it held before the log began."""
        return self._shared.start

    @property
    def log(self) -> list[Event]:
        """Everything that has happened so far."""
        return self._shared.log

    def snapshot(self) -> Snapshot:
        """What it holds now, as a reader sees it."""
        return Snapshot(self.size, self._shared.start.parent, dict(self._shared.content))

    def forget_history(self) -> None:
        """Begin the log anew; what it holds now is durable. For the end of a set-up."""
        everything = self._shared.start.parent | self._shared.content
        kept = {index: data for index, data in everything.items() if data != ZERO_SECTOR}
        self._shared.start = Snapshot(self.size, kept)
        self._shared.content = {}
        self._shared.log.clear()

    def mark(self, value: object) -> None:
        """Note in the log what was promised or begun."""
        self._shared.log.append(Marked(value))

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        assert_range(self.size, offset, length)
        return Snapshot(self.size, self._shared.start.parent, self._shared.content).read(
            offset, length
        )

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`; sectors that it covers in part are completed."""
        assert_range(self.size, offset, memoryview(data).nbytes)
        start = align_down(offset, SECTOR_SIZE)
        end = align_up(offset + memoryview(data).nbytes, SECTOR_SIZE)
        whole = bytearray(await self.read(start, end - start))
        whole[offset - start : offset - start + memoryview(data).nbytes] = memoryview(data).cast(
            "B"
        )
        written = Written(start, bytes(whole), self._host)
        self._shared.log.append(written)
        self._shared.content.update(written.sectors)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: `read` is where it can be made to fail, to wait or to be seen."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never: `write` is where it can be made to fail, to wait or to be seen."""
        return False

    async def flush(self) -> None:
        """Make what this host has written durable. Other tasks run in its middle."""
        self._shared.flush_count += 1
        number = self._shared.flush_count
        self._shared.log.append(FlushBegan(number, self._host))
        await trio.lowlevel.checkpoint()
        self._shared.log.append(FlushEnded(number, self._host))

    def flush_at_once(self) -> None:
        """A flush in whose middle nothing happens, for callers that cannot wait."""
        self._shared.flush_count += 1
        number = self._shared.flush_count
        self._shared.log.append(FlushBegan(number, self._host))
        self._shared.log.append(FlushEnded(number, self._host))

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zero."""
        await self.write(offset, bytes(length))

    async def unmap(self, offset: int, length: int) -> None:
        """Give the range back; it reads as zero."""
        await self.write(offset, bytes(length))

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the device."""
        assert abs(source - target) >= length, "copy: the ranges overlap"
        await self.write(target, await self.read(source, length))

    async def aclose(self) -> None:
        """Keep everything."""


def crash_images(
    log: list[Event],
    start: Snapshot,
    *,
    rng: random.Random,
    subset_count: int = 4,
    dying: str | None = None,
) -> Iterator[CrashImage]:
    """Every image that a crash during `log` could leave; no image twice under the same marks.

    Args:
        log: as recorded.
        start: what the device held before, durably.
        rng: for the random subsets of sectors.
        subset_count: random subsets for each moment.
        dying: only this host dies, and what the others wrote is kept; None: the power fails.
    """
    medium = _Medium(durable=dict(start.changes), dying=dying)
    marks: tuple[object, ...] = ()
    seen: set[tuple[int, int]] = set()
    for index, event in enumerate(log):
        if isinstance(event, Marked):
            marks = (*marks, event.value)
        else:
            medium.apply(index, event)
        for name, sectors in _variants(medium.pending, rng, subset_count):
            snapshot = Snapshot(start.size, start.parent, medium.durable | sectors)
            contents = (len(marks), hash(frozenset(snapshot.changes.items())))
            if contents not in seen:
                seen.add(contents)
                yield CrashImage(f"{index}:{name}", snapshot, marks)


@dataclass(slots=True, kw_only=True)
class _Medium:
    """What is certainly there, and what may be, at one moment of a log."""

    durable: dict[int, bytes]
    dying: str | None
    pending: dict[int, dict[int, bytes]] = field(default_factory=dict)  # log index to sectors
    hosts: dict[int, str] = field(default_factory=dict)  # of the pending writes
    covered: dict[int, list[int]] = field(default_factory=dict)  # by number of the flush under way

    def apply(self, index: int, event: Written | FlushBegan | FlushEnded) -> None:
        """Go one event on."""
        match event:
            case Written():
                self.pending[index] = event.sectors
                self.hosts[index] = event.host
                if self.dying is not None and event.host != self.dying:
                    self._settle(index)
            case FlushBegan():
                self.covered[event.number] = [
                    key for key, host in self.hosts.items() if host == event.host
                ]
            case FlushEnded():
                for key in self.covered.pop(event.number):
                    if key in self.pending:
                        self._settle(key)

    def _settle(self, key: int) -> None:
        """The write is there for good, and what another host wrote there before never returns."""
        sectors = self.pending.pop(key)
        host = self.hosts.pop(key)
        self.durable.update(sectors)
        for other, older in self.pending.items():
            if other < key and self.hosts[other] != host:
                for sector in sectors:
                    older.pop(sector, None)


def image_by_id(
    recording: RecordingDevice, image_id: str, *, rng: random.Random, subset_count: int = 4
) -> CrashImage:
    """Build the crash image of that id again, from the same workload and seed."""
    images = crash_images(recording.log, recording.start, rng=rng, subset_count=subset_count)
    return next(image for image in images if image.id == image_id)


def _variants(
    pending: dict[int, dict[int, bytes]], rng: random.Random, subset_count: int
) -> Iterator[tuple[str, dict[int, bytes]]]:
    """What may have become of the writes in flight: a name, and the sectors that are there."""
    yield "floor", {}
    if not pending:
        return
    yield "prefix", _joined(pending)
    for key, sectors in pending.items():
        yield f"drop-{key}", _joined(pending | {key: {}})
        yield f"only-{key}", sectors
        for name, torn in _torn(sectors):
            yield f"torn-{key}-{name}-alone", torn
            yield f"torn-{key}-{name}", _joined(pending | {key: torn})
    for number in range(subset_count):
        share = rng.choice((0.2, 0.5, 0.8))
        chosen = {
            key: {sector: data for sector, data in sectors.items() if rng.random() < share}
            for key, sectors in pending.items()
        }
        yield f"subset-{number}", _joined(chosen)


def _torn(sectors: dict[int, bytes]) -> Iterator[tuple[str, dict[int, bytes]]]:
    items = list(sectors.items())
    count = len(items)
    places = range(1, count) if count <= TEARS_MAX else _spread(count)
    for place in places:
        yield f"head{place}", dict(items[:place])
        yield f"tail{place}", dict(items[place:])


def _spread(count: int) -> list[int]:
    return sorted({1 + (count - 2) * step // (TEARS_MAX - 1) for step in range(TEARS_MAX)})


def _joined(writes: dict[int, dict[int, bytes]]) -> dict[int, bytes]:
    """All of these writes, in the order in which they were issued."""
    joined: dict[int, bytes] = {}
    for sectors in writes.values():
        joined.update(sectors)
    return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """How much an exploration has looked at."""

    image_count: int  # images of crashes of the workload
    recovery_image_count: int  # images of crashes during recovery


def _leaf(error: BaseException) -> BaseException:
    """The one error that a task group wraps."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _sample(images: Iterator[CrashImage], count: int, seed: int) -> list[CrashImage]:
    """So many of them, in their order; always the last (nothing but the end is lost in it)."""
    found = list(images)
    if len(found) <= count:
        return found
    chosen = set(random.Random(seed).sample(range(len(found) - 1), count - 1))
    return [image for index, image in enumerate(found) if index in chosen] + found[-1:]


Recover = Callable[[RecordingDevice], Awaitable[None]]
Check = Callable[[RecordingDevice, tuple[object, ...]], Awaitable[None]]


async def explore(
    recording: RecordingDevice,
    *,
    recover: Recover,
    check: Check,
    depth: int = 2,
    seed: int = 0,
    subset_count: int = 4,
    image_count_max: int | None = None,
) -> Explored:
    """Recover from every crash of a workload, and with `depth` 2 from every crash of that.

    Args:
        recording: the device on which the workload has run.
        recover: what a survivor or the next mount does.
        check: raises when what it finds contradicts the marks made before the crash.
        depth: 1: crash the workload; 2: crash recovery's own writes as well.
        seed: of the random subsets.
        subset_count: random subsets for each moment.
        image_count_max: of the images of one log, look only at so many, chosen by the seed.

    Raises:
        AssertionError: naming the image, from the error of `recover` or `check`.
    """
    counts = [0, 0]

    async def descend(
        log: list[Event], start: Snapshot, path: str, marks: tuple[object, ...], level: int
    ) -> None:
        rng = random.Random(seed)
        images = crash_images(log, start, rng=rng, subset_count=subset_count)
        for image in images if image_count_max is None else _sample(images, image_count_max, seed):
            counts[level > 1] += 1
            device = RecordingDevice(image.snapshot)
            name = f"{path}{image.id}"
            known = marks + image.marks
            try:
                await recover(device)
                recovery_log = list(device.log)
                await check(device, known)
            except Exception as error:
                raise AssertionError(
                    f"crash image {name} (seed {seed}): {type(error).__name__}: {_leaf(error)}"
                ) from error
            if level < depth and recovery_log:
                await descend(recovery_log, image.snapshot, f"{name}/", known, level + 1)

    await descend(recording.log, recording.start, "", (), 1)
    return Explored(image_count=counts[0], recovery_image_count=counts[1])
