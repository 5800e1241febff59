"""Seeded clusters under faults, and the proof that the checkers would notice."""

import pytest

from tests.support.sim.mutants import MUTANTS, Mutant
from tests.support.sim.world import SeedFailed, run_seed

SEEDS_PER_BATCH = 250
BATCHES = 8
SEEDS_PER_MUTANT = 400


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_seed_holds_the_invariants(batch: int) -> None:
    failed: list[str] = []
    for seed in range(batch * SEEDS_PER_BATCH, (batch + 1) * SEEDS_PER_BATCH):
        try:
            run_seed(seed)
        except SeedFailed as error:
            failed.append(f"{error}\n  {error.__notes__[0]}")
    assert not failed, "\n".join(failed)


def test_a_seed_is_the_same_twice() -> None:
    for seed in range(20):
        assert run_seed(seed) == run_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    with mutant.applied():
        caught = next(filter(None, map(_failure, range(SEEDS_PER_MUTANT))), None)
    assert caught is not None, f"{SEEDS_PER_MUTANT} seeds noticed nothing"
    assert caught.is_finding, f"it cannot run at all: {caught}"


def _failure(seed: int) -> SeedFailed | None:
    try:
        run_seed(seed)
    except SeedFailed as error:
        return error
    return None
