"""Hosts that add to one number under its lock, while they are killed, stopped and cut off.

    python -m tests.support.counters --increments 10000 --faults 24 --seed 1

Each increment stands in its host's history before it is written (what it will make of the number)
and after. In the end every number from 1 up to what stands on the LUN must have been made exactly
once: by one increment that was acknowledged, or by one whose host was hit before it could say so.
"""

import argparse
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from tests.support.fault_host import count
from tests.support.fault_lab import FaultLab, Siege, add_options, fault_lab, random_moment
from tests.support.linearizability import UNKNOWN, Operation

HOSTS: Final = ("a", "b", "c", "d")

WHILE_STOPPED: Final = 50
"""So many increments the others do while one is stopped. When that one has the lock, or had it last
and is asked for it, they get there only after its lease and its fence."""


def number_on(lab: FaultLab) -> int:
    """What stands on the LUN now."""
    return int.from_bytes(lab.read(lab.places[0], 8), "little")


def _has_reached(lab: FaultLab, goal: int) -> bool:
    return number_on(lab) >= goal


def check_increments(history: Iterable[Operation], final: int) -> None:
    """None lost, none doubled.

    Raises:
        AssertionError: says which number.
    """
    made: Counter[int] = Counter()
    unknown: set[int] = set()
    for operation in history:
        assert isinstance(operation.argument, int)
        if operation.result == UNKNOWN:
            unknown.add(operation.argument)
        else:
            made[operation.argument] += 1
    doubled = sorted(number for number, times in made.items() if times > 1)
    assert not doubled, f"made twice, so an increment was lost: {doubled[:10]}"
    missing = [n for n in range(1, final + 1) if n not in made and n not in unknown]
    assert not missing, f"made by nobody: {missing[:10]}"
    beyond = sorted(number for number in made if number > final)
    assert not beyond, f"acknowledged, and lost: {beyond[:10]}; the LUN has {final}"


def run(lab: FaultLab, rng: random.Random, arguments: argparse.Namespace) -> dict[str, object]:
    place = lab.places[0]
    with lab.lun.open("r+b") as lun:
        lun.seek(lab.lun_offset(place))
        lun.write(bytes(512))
    siege = Siege(lab, HOSTS, lambda name: lab.start(count, name, place))
    kinds = arguments.kinds.split(",")
    for number in range(arguments.faults):
        goal = arguments.increments * (number + 1) // (arguments.faults + 1)
        siege.until(partial(_has_reached, lab, goal), f"{goal} increments")

        def others_go_on() -> None:
            goal = number_on(lab) + WHILE_STOPPED
            siege.until(partial(_has_reached, lab, goal), "increments beside a stopped host")

        random_moment(rng, seconds=0.01)
        siege.strike(kinds[number % len(kinds)], rng.choice(HOSTS), until_others=others_go_on)
    siege.until(partial(_has_reached, lab, arguments.increments), "the last increments")
    siege.end()
    final = number_on(lab)
    check_increments(lab.history(), final)
    lab.check()
    return {"increments": final, "seed": arguments.seed, **siege.done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--increments", type=int, default=1000)
    add_options(parser)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="counter-") as directory,
        fault_lab(arguments.seed, Path(directory), protocol=arguments.protocol) as lab,
    ):
        result = run(lab, random.Random(arguments.seed), arguments)
    os.write(1, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    main()
