"""The loads that fio has no word for, as a program of its own: it can be killed when a mount hangs.

    python -m bench.client names DIRECTORY COUNT     create, open, stat, ls -l, unlink
    python -m bench.client reread FILE SECONDS       read a file that was just read, again and again

Prints one JSON object: figures by row. Imports only the standard library: it starts in 20 ms. Its
own work per system call (1 to 2 us) is far below that of any FUSE filesystem.
"""

import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

LISTINGS: Final = 3
"""`ls -l` runs of which the median counts."""

STAT_PASSES: Final = 3
DROP_DENTRIES: Final = "2"  # of /proc/sys/vm/drop_caches: names and attributes, not pages
MIB: Final = 1 << 20


def rate(action: Callable[[str], object], paths: Iterable[str]) -> float:
    """How often per second the action is done on the paths, one after the other."""
    count, start = 0, time.perf_counter()
    for path in paths:
        action(path)
        count += 1
    return count / (time.perf_counter() - start)


def make(path: str) -> None:
    """A new, empty file."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def open_and_close(path: str) -> None:
    """An open for reading."""
    os.close(os.open(path, os.O_RDONLY))


def listing_ms(directory: Path) -> float:
    """How long `ls -l` takes, its own start included: 1 to 2 ms."""
    start = time.perf_counter()
    subprocess.run(
        ["ls", "-l", directory],
        stdout=subprocess.DEVNULL,
        check=True,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    )
    return (time.perf_counter() - start) * 1000


def names(directory: Path, count: int) -> dict[str, float]:
    """The life of `count` empty files in a directory that is empty before and after."""
    paths = [f"{directory}/disk-{number:05}.vmdk" for number in range(count)]
    figures = {"create": rate(make, paths), "open": rate(open_and_close, paths)}
    Path("/proc/sys/vm/drop_caches").write_text(DROP_DENTRIES)
    figures["ls-cold"] = listing_ms(directory)
    figures["ls"] = statistics.median(listing_ms(directory) for _ in range(LISTINGS))
    for path in paths:
        os.stat(path)  # noqa: PTH116 - pathlib would cost more than the call
    figures["stat"] = rate(os.stat, paths * STAT_PASSES)
    figures["unlink"] = rate(os.unlink, paths)
    return figures


def reread(path: Path, seconds: float) -> dict[str, float]:
    """Throughput of opening and reading a whole file that was read just before, in MB/s."""
    buffer = mmap.mmap(-1, MIB)

    def read_all() -> int:
        done = 0
        fd = os.open(path, os.O_RDONLY)
        try:
            while count := os.preadv(fd, [buffer], done):
                done += count
        finally:
            os.close(fd)
        return done

    read_all()
    total, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not total:
        total += read_all()
    return {"reread": total / elapsed / 1e6}


def main() -> None:
    """Run the load that the arguments name."""
    load, target, amount = sys.argv[1:]
    if load == "names":
        figures = names(Path(target), int(amount))
    elif load == "reread":
        figures = reread(Path(target), float(amount))
    else:
        raise SystemExit(f"client: no load {load!r}")
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
