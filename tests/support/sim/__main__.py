"""scripts/sim."""

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.support.sim.mutants import MUTANTS
from tests.support.sim.world import SeedFailed, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Seeded clusters under faults")
    parser.add_argument("--seeds", default="0..200", help="first..last, both included")
    parser.add_argument("--verbose", action="store_true", help="say all that happens")
    parser.add_argument("--mutants", action="store_true", help="seed faults into the protocol")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    return _mutants(seeds) if arguments.mutants else _seeds(seeds, verbose=arguments.verbose)


def _seeds(seeds: range, *, verbose: bool) -> int:
    started, failed = time.monotonic(), 0
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            result = run_seed(seed)
        except SeedFailed as error:
            failed += 1
            print(f"{error}\n  {error.__notes__[0]}", flush=True)
            if verbose:
                print(error.plan, *error.trace, sep="\n")
                traceback.print_exception(error.__cause__)
        else:
            counts.update(result.counts, kept=result.kept, lost=result.lost)
            if verbose:
                print(result.plan, *result.trace, sep="\n")
    took = time.monotonic() - started
    print(f"{len(seeds)} seeds, {failed} failed, {took:.1f} s; {dict(counts)}")
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
