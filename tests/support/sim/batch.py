"""Many seeds, in as many processes as there are processors.

with pool() as workers:
    for result in run_all(workers, range(2000)):
        ...
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from tests.support.sim.running import SeedFailed
from tests.support.sim.volumes import run_volume_seed
from tests.support.sim.world import run_seed

CHUNK: Final = 25
"""Seeds that a process takes at once."""

VOLUME_CHUNK: Final = 5
"""Of the whole simulation; each takes ten times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What has come of one seed, as far as it can be sent to another process."""

    seed: int
    failure: str = ""  # empty: every invariant held
    counts: dict[str, int] = field(default_factory=dict)


def run_one(seed: int) -> Ran:
    """Run one seed; a failure is a result too."""
    try:
        result = run_seed(seed)
    except SeedFailed as error:
        return Ran(seed=seed, failure="\n  ".join([str(error), *error.__notes__]))
    counts = {**result.counts, "kept": result.kept, "lost": result.lost}
    return Ran(seed=seed, counts=counts)


def run_one_volume(seed: int) -> Ran:
    """The same for a seed of the whole simulation."""
    try:
        return Ran(seed=seed, counts=run_volume_seed(seed).counts)
    except SeedFailed as error:
        return Ran(seed=seed, failure="\n  ".join([f"{error} (volumes)", *error.__notes__]))


def pool() -> ProcessPoolExecutor:
    """One process for each processor; they end with the block."""
    return ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn"))


def run_all(
    workers: ProcessPoolExecutor, seeds: Iterable[int], *, volumes: bool = False
) -> Iterator[Ran]:
    """Run seeds; results in their order. `volumes`: of the whole simulation."""
    if volumes:
        return workers.map(run_one_volume, seeds, chunksize=VOLUME_CHUNK)
    return workers.map(run_one, seeds, chunksize=CHUNK)
