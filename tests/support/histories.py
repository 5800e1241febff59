"""Record what hosts do with locks and blocks while they are hit, and check that it has an order.

python -m tests.support.histories --what locks --faults 12 --seed 1
python -m tests.support.histories --what blocks --faults 12 --seed 1
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Final

from tests.support.fault_host import compare_and_write, lock_and_release
from tests.support.fault_lab import (
    RAW_BLOCKS,
    FaultLab,
    HostProcess,
    Siege,
    add_options,
    fault_lab,
    fences,
    random_moment,
)
from tests.support.linearizability import LockModel, Operation, RegisterModel, check

HOSTS: Final = ("a", "b", "c", "d")

FILES: Final = 3
"""Locks that the hosts want."""


def run(lab: FaultLab, rng: random.Random, arguments: argparse.Namespace) -> dict[str, object]:
    def start(name: str) -> HostProcess:
        if arguments.what == "locks":
            return lab.start(lock_and_release, name, lab.places)
        return lab.start(compare_and_write, name, RAW_BLOCKS)

    siege = Siege(lab, HOSTS, start)
    kinds = arguments.kinds.split(",")
    for number in range(arguments.faults):
        siege.until_all_work()
        random_moment(rng, seconds=0.05)
        name = rng.choice(HOSTS)

        def others_go_on(name: str = name) -> None:
            siege.until_all_work(but=name)

        siege.strike(kinds[number % len(kinds)], name, until_others=others_go_on)
    siege.end()
    history = [operation for operation in lab.history() if operation.result != "busy"]
    if arguments.what == "locks":
        check([*history, *fences(lab, history)], LockModel())
        lab.check()
    else:
        check(history, RegisterModel())
    return {"operations": len(history), "seed": arguments.seed, **_counts(history), **siege.done}


def _counts(history: list[Operation]) -> dict[str, int]:
    unknown = sum(operation.result == "unknown" for operation in history)
    return {"unknown": unknown, "clients": len({operation.client for operation in history})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=("locks", "blocks"), default="locks")
    add_options(parser)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="history-") as directory,
        fault_lab(arguments.seed, Path(directory), protocol=arguments.protocol, files=FILES) as lab,
    ):
        result = run(lab, random.Random(arguments.seed), arguments)
    os.write(1, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    main()
