"""scripts/sim."""

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

from tests.support.sim.batch import pool, run_all
from tests.support.sim.mutants import MUTANTS
from tests.support.sim.running import SeedFailed
from tests.support.sim.volumes import VolumeResult, run_volume_seed
from tests.support.sim.world import Result, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Seeded clusters under faults")
    parser.add_argument("--seeds", default="0..200", help="first..last, both included")
    parser.add_argument("--verbose", action="store_true", help="say all that happens")
    parser.add_argument("--volumes", action="store_true", help="whole volumes, not a few places")
    parser.add_argument("--mutants", action="store_true", help="seed faults into the protocol")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    if arguments.mutants:
        return _mutants(seeds)
    if arguments.verbose:
        return _aloud(seeds, run_volume_seed if arguments.volumes else run_seed)
    return _seeds(seeds, volumes=arguments.volumes)


def _seeds(seeds: range, *, volumes: bool) -> int:
    started, failed = time.monotonic(), 0
    counts: Counter[str] = Counter()
    with pool() as workers:
        for ran in run_all(workers, seeds, volumes=volumes):
            counts.update(ran.counts)
            failed += bool(ran.failure)
            if ran.failure:
                print(ran.failure, flush=True)
    took = time.monotonic() - started
    print(f"{len(seeds)} seeds, {failed} failed, {took:.1f} s; {dict(counts)}")
    return 1 if failed else 0


def _aloud(seeds: range, run: Callable[[int], Result | VolumeResult]) -> int:
    failed = 0
    for seed in seeds:
        try:
            result = run(seed)
        except SeedFailed as error:
            failed += 1
            print(error, *error.__notes__, error.plan, *error.trace, sep="\n", flush=True)
            traceback.print_exception(error.__cause__)
        else:
            print(result.plan, *result.trace, sep="\n")
    return 1 if failed else 0


def _mutants(seeds: range) -> int:
    killed = 0
    for mutant in MUTANTS:
        with mutant.applied():
            for count, seed in enumerate(seeds, 1):
                try:
                    run_seed(seed)
                except SeedFailed as error:
                    if not error.is_finding:
                        raise
                    killed += 1
                    print(f"killed by seed {seed} (of {count}): {mutant.name}: {error}", flush=True)
                    break
            else:
                print(f"SURVIVED {len(seeds)} seeds: {mutant.name}", flush=True)
    print(f"{killed} of {len(MUTANTS)} mutants killed")
    return 0 if killed == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
