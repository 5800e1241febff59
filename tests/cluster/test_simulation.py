"""Seeded clusters under faults, and the proof that the checkers would notice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import cast

import pytest

from lockd.client import LockClient
from lockd.protocol.messages import Good
from tests.support.linearizability import NotLinearizable
from tests.support.sim.batch import pool, run_all
from tests.support.sim.history import BlockHistory
from tests.support.sim.mutants import MUTANTS, VOLUME_MUTANTS, Mutant
from tests.support.sim.running import SeedFailed
from tests.support.sim.volumes import run_volume_seed
from tests.support.sim.world import run_seed

SEEDS_PER_BATCH = 500
BATCHES = 4
VOLUME_SEEDS = 40
SEEDS_PER_MUTANT = 400


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    with pool() as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_seed_holds_the_invariants(workers: ProcessPoolExecutor, batch: int) -> None:
    seeds = range(batch * SEEDS_PER_BATCH, (batch + 1) * SEEDS_PER_BATCH)
    ran = list(run_all(workers, seeds))
    assert [each.seed for each in ran] == list(seeds)
    failed = [each.failure for each in ran if each.failure]
    assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_a_seed_is_the_same_twice() -> None:
    for seed in range(20):
        assert run_seed(seed) == run_seed(seed)


@pytest.mark.slow
def test_whole_volumes_keep_what_was_promised_under_faults(workers: ProcessPoolExecutor) -> None:
    ran = list(run_all(workers, range(VOLUME_SEEDS), volumes=True))
    failed = [each.failure for each in ran if each.failure]
    assert not failed, "\n".join(failed)
    assert sum(each.counts["promised"] for each in ran) > VOLUME_SEEDS
    assert sum(each.counts["replays"] for each in ran) > 0


class Yes:
    """A lockd that finds every block as expected."""

    async def compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good:
        return Good()


@pytest.mark.parametrize("second", [b"one", b"zero"])
async def test_compare_and_writes_that_have_no_order_are_noticed(second: bytes) -> None:
    history = BlockHistory(lambda lba: b"zero")
    client = cast(LockClient, Yes())
    history.record(client, "a")
    await client.compare_and_write(7, b"zero", b"one", durable=True, label="")
    await client.compare_and_write(7, second, b"two", durable=True, label="")
    with history.read(7, "b") as returned:
        returned(b"two")

    if second == b"one":
        history.check()
    else:
        with pytest.raises(NotLinearizable, match="I5: block 0x7: no order explains 3 operations"):
            history.check()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    _assert_caught(mutant, run_seed, range(SEEDS_PER_MUTANT))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", VOLUME_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught_on_whole_volumes(mutant: Mutant) -> None:
    _assert_caught(mutant, run_volume_seed, range(VOLUME_SEEDS))


def _assert_caught(mutant: Mutant, run: Callable[[int], object], seeds: range) -> None:
    with mutant.applied():
        caught = next(filter(None, (_failure(run, seed) for seed in seeds)), None)
    assert caught is not None, f"{len(seeds)} seeds noticed nothing"
    assert caught.is_finding, f"it cannot run at all: {caught}"


def _failure(run: Callable[[int], object], seed: int) -> SeedFailed | None:
    try:
        run(seed)
    except SeedFailed as error:
        return error
    return None
