"""Somebody who reads directories when no other wants to run, and somebody who always wants to.

    python -m tests.support.starved DIRECTORY SEED    list it, and look at its names, until killed
    python -m tests.support.starved                   only compute, until killed

A reader that is run now and then stays for long where others are for microseconds: between the
reply to what it asked and the moment in which the kernel has taken the reply in.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

READERS: Final = 3  # of each directory


@contextmanager
def starved_readers(*directories: Path) -> Iterator[None]:
    """Readers of all these directories as long as the block lasts, and not enough processors."""
    reading: list[list[Path | str]] = [
        [directory, str(seed)] for directory in directories for seed in range(1, READERS + 1)
    ]
    computing: list[list[Path | str]] = [[] for _ in os.sched_getaffinity(0)]
    with ExitStack() as stack:
        for arguments in [*reading, *computing]:
            command = [sys.executable, "-m", "tests.support.starved", *arguments]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        yield


def read(directory: Path, rng: Random) -> None:
    """Look at the directory in one of the ways in which people do."""
    with suppress(OSError):
        match rng.randrange(3):
            case 0:
                os.listdir(directory)  # noqa: PTH208 (one that asks for nothing else)
            case 1:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        entry.stat()
            case _:
                (directory / f"name-{rng.randrange(8)}").exists()


def main() -> None:
    """See the module."""
    if len(sys.argv) == 1:
        while True:
            pass
    directory, rng = Path(sys.argv[1]), Random(int(sys.argv[2]))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        read(directory, rng)


if __name__ == "__main__":
    main()
