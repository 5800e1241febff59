"""One seed in one deterministic run on virtual time, and what it says when it fails."""

import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import trio
import trio.testing
from trio._core import _run as trio_run

from tests.support.sim.plan import Plan
from vmfs.locks import heartbeat
from vmfs.volume import roll_call, volume

SLOTS: Final = 6
"""Heartbeat slots that are used; the others are never looked at."""

BUSY_SECONDS_MAX: Final = 30.0
"""Processor time of a seed in which nothing comes to an end. Most take some hundredths, those of
whole volumes up to one or two; and a busy machine counts slowly."""

HANG_SECONDS: Final = 120.0
"""Real seconds, for a seed in which everybody waits and no time passes."""


class Hangs(Exception):
    """The seed does not end: somebody waits for ever, and no time passes."""


class SeedFailed(AssertionError):
    """A seed has shown a violation, or a bug; the text says how to see it again."""

    def __init__(self, asked: Plan, error: BaseException, trace: list[str], *, option: str) -> None:
        super().__init__(f"seed {asked.seed}: {type(error).__name__}: {error}")
        self.seed = asked.seed
        self.plan = asked
        self.trace = tuple(trace)
        # A mutant that merely cannot run was not caught.
        self.is_finding = not isinstance(error, TypeError | NameError | AttributeError)
        self.add_note(f"replay: scripts/sim {option}--seeds {asked.seed}..{asked.seed} --verbose")


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
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    clock = trio.testing.MockClock.current_time
    trio.testing.MockClock.current_time = lambda self: self._virtual_base  # type: ignore
    gc.disable()
    disabled = logging.root.manager.disable
    alarms = [(number, signal.signal(number, _hangs)) for number in _TIMERS.values()]
    for timer, seconds in zip(_TIMERS, (BUSY_SECONDS_MAX, HANG_SECONDS), strict=True):
        signal.setitimer(timer, seconds)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    for module in (roll_call, volume):
        module.read_slots = partial(heartbeat.read_slots, count=SLOTS)  # type: ignore[attr-defined]
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
        for module in (roll_call, volume):
            module.read_slots = heartbeat.read_slots  # type: ignore[attr-defined]
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]


def _hangs(number: int, frame: object) -> None:
    raise Hangs("no end: it goes round in circles, or everybody waits for ever")


Result = TypeVar("Result")


def run(asked: Plan, main: Callable[[list[str]], Awaitable[Result]], *, option: str = "") -> Result:
    """Run what a seed asks for.

    Args:
        asked: the plan; its seed decides the order of tasks.
        main: what to run; it gets a list for what happens, for people.
        option: of scripts/sim, with a space after it, to run this kind of seed again.

    Raises:
        SeedFailed: an invariant does not hold.
    """
    trace: list[str] = []
    with deterministic(asked.seed):
        try:
            return trio.run(main, trace, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as error:
            leaf = _leaf(error)
            if isinstance(leaf, Hangs):
                trio_run.GLOBAL_RUN_CONTEXT.__dict__.clear()  # that run was left in its middle
            if isinstance(leaf, KeyboardInterrupt):
                raise
            raise SeedFailed(asked, leaf, trace, option=option) from leaf


def _leaf(error: BaseException) -> BaseException:
    """The one error that counts in what task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = next(
            (each for each in error.exceptions if not isinstance(each, trio.Cancelled)),
            error.exceptions[0],
        )
    return error
