"""The rounds: every load on every variant, interleaved, whatever happens to one of them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from bench import memory
from bench.loads import TIMEOUT_SECONDS, Load, LoadFailed, Scale, run_program
from bench.results import Sample, rotated
from bench.rows import IDLE_HOSTS, KERNEL, OURS, SLEEPS
from bench.variants import Bench, Variant
from tests.support.mounts import ProcessFailed, force_unmount, watchdog

HANG_SECONDS: Final = TIMEOUT_SECONDS + 15
"""After this a mount is torn away: the program that hangs in it cannot be ended otherwise."""

FILLED: Final = frozenset({KERNEL, "fuse2fs", OURS, IDLE_HOSTS, SLEEPS})
FILLED_WITH_DISKS: Final = frozenset({KERNEL, "fuse2fs", OURS})
METADATA_MIB: Final = 64
GUEST_MIB: Final = 256
DROP_PAGES: Final = "1"  # of /proc/sys/vm/drop_caches
TOUCHED: Final = 2.5
"""Memory made ready per byte that a load moves: it is in two page caches afterwards, or in a page
cache and a tmpfs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A load that a variant could not do, and what was said about it."""

    place: str
    load: str
    variant: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one run does.

    Attributes:
        place: `tmpfs` or `disk`: how the samples name where the images are.
        parent: the directory in which the run makes its own.
        loads: in their order.
        variants: their names.
        seconds_max: no round is begun that would end later, setting up included; the first one
            always is.
        guest_disk: makes and boots a guest from this raw disk; None: no guest.
    """

    place: str
    parent: Path
    scale: Scale
    loads: Sequence[Load]
    variants: Sequence[str]
    seconds_max: float
    guest_disk: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run found."""

    samples: list[Sample]
    failures: list[Failure]
    findings: list[str]  # of vmfs check, afterwards: nothing is good


def say(text: str) -> None:
    """To the person who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C does, so that everything is taken down."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run(plan: Plan, work: Path) -> Outcome:
    """Mount, measure, unmount, check. `work` is an empty directory, which the caller removes.

    Raises:
        ProcessFailed, LoadFailed: something could not be set up.
    """
    on_disk = plan.place == "disk"
    with ExitStack() as stack:
        bench = Bench(work, plan.scale, stack, on_disk=on_disk, guest_disk=plan.guest_disk)
        started = time.monotonic()
        bench.prepare()
        bench.mount(plan.variants)
        say(f"{plan.place}: {len(bench.variants)} variants in {time.monotonic() - started:.0f} s")
        rounds = Rounds(plan, bench.variants)
        rounds.run(until=started + plan.seconds_max)
    return Outcome(samples=rounds.samples, failures=rounds.failures, findings=bench.check())


class Rounds:
    """The samples of one run, as they come in."""

    def __init__(self, plan: Plan, variants: Sequence[Variant]) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self._plan = plan
        self._variants = variants

    def run(self, *, until: float) -> None:
        """Round after round, while there is time: each load on each variant, the order rotated."""
        for number in range(self._plan.scale.rounds):
            seconds = self._round(number)
            say(f"{self._plan.place}: round {number + 1} of {self._plan.scale.rounds} is done")
            if time.monotonic() + seconds > until:
                say("no time for another round")
                return

    def _round(self, number: int) -> float:
        """One round; how many seconds its loads took that are in every round."""
        copies = number < self._plan.scale.copy_rounds
        loads = [load for load in self._plan.loads if copies or not load.copies]
        begun, repeated = time.monotonic(), 0.0
        for position, load in enumerate(loads):
            started = time.monotonic()
            for variant in rotated(self._variants, number + position):
                if variant.can(load):
                    self._measure(load, variant, number)
            now = time.monotonic()
            repeated += 0.0 if load.copies else now - started
            left = (now - begun) * (len(loads) / (position + 1) - 1)
            say(f"{self._plan.place}, round {number + 1}: {load.name} ({left:.0f} s left)")
        return repeated

    def _measure(self, load: Load, variant: Variant, number: int) -> None:
        place = variant.place
        if place.on_disk:
            run_program(["sync", "-f", place.outside])
            if load.cold:
                Path("/proc/sys/vm/drop_caches").write_text(DROP_PAGES)
        scale = self._plan.scale
        moved = scale.contents_mib if load.copies else scale.file_mib
        holes = scale.disk_mib - scale.contents_mib if load.copies else 0  # FUSE has them cached
        memory.touch(int(moved * TOUCHED + holes) << 20)
        with watchdog(lambda: force_unmount(place.directory), seconds=HANG_SECONDS):
            self._collect(load.name, variant.name, number, lambda: load.run(place, scale))
        if load.writes and place.directory.is_mount():
            run_program(["sync", "-f", place.directory])  # its writeback must not meet the next one

    def _collect(
        self, load: str, variant: str, number: int, measure: Callable[[], dict[str, float]]
    ) -> None:
        try:
            figures = measure()
        except (LoadFailed, ProcessFailed, OSError) as error:
            text = str(error)
            self.failures.append(
                Failure(place=self._plan.place, load=load, variant=variant, text=text)
            )
            say(f"{load} on {variant} FAILED: {text}")
            return
        self.samples += [
            Sample(place=self._plan.place, row=row, variant=variant, round=number, value=value)
            for row, value in figures.items()
        ]


def room_wanted(plan: Plan) -> int:
    """Bytes that the images of a run take at most: tmpfs is memory, so this is asked first."""
    filled = len(set(plan.variants) & FILLED) + 1
    disks = len(set(plan.variants) & FILLED_WITH_DISKS) + 3  # outside, and copies under way
    guest_mib = GUEST_MIB if plan.guest_disk is not None else 0
    mib = filled * (3 * plan.scale.file_mib + METADATA_MIB)
    mib += disks * (plan.scale.contents_mib + guest_mib)
    return mib << 20


def room_left(path: Path) -> int:
    """Bytes that may still be written there."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
