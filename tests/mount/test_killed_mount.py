"""A mount is killed (SIGKILL) at random moments; the next replays, and what was synced is there.

The workload runs in threads of the test against the mount, and writes down what `fsync` has
acknowledged. The moment of the kill is drawn from a seed and counted in operations, not in time;
where the daemon is at that moment is up to the machine, which is the point of the test.
"""

import contextlib
import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, datastore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS = range(12)
OPERATIONS_BEFORE_KILL_MAX = 150
NAMES = 12


@dataclass
class Journal:
    """What one writer knows to be durable: the last content of each name that was fsynced."""

    durable: dict[str, bytes | None] = field(default_factory=dict)
    uncertain: dict[str, list[bytes | None]] = field(default_factory=dict)
    done: int = 0


def content(rng: random.Random) -> bytes:
    """Resident, sub-block, or some file blocks."""
    size = rng.choice((rng.randrange(1, 1024), rng.randrange(1024, 8192), rng.randrange(3 << 20)))
    return rng.randbytes(size)


def work(top: Path, rng: random.Random, journal: Journal, count: int, reached: threading.Event):
    """Create, overwrite, rename, delete and fsync until the mount dies."""
    top.mkdir(exist_ok=True)
    root = os.open(top, os.O_RDONLY)
    with contextlib.suppress(OSError):
        while True:
            name = f"f{rng.randrange(NAMES)}"
            before = journal.uncertain.get(name, [journal.durable.get(name)])
            if rng.random() < 0.2:
                after = None
                journal.uncertain[name] = [*before, None]
                with contextlib.suppress(FileNotFoundError):
                    (top / name).unlink()
                os.fsync(root)
            else:
                after = content(rng)
                journal.uncertain[name] = [*before, after]
                write_and_rename(top, name, after)
                os.fsync(root)
            journal.durable[name] = after
            journal.uncertain.pop(name)
            journal.done += 1
            if journal.done == count:
                reached.set()
    reached.set()  # the mount is gone
    os.close(root)


def write_and_rename(top: Path, name: str, data: bytes) -> None:
    """Replace a file the way careful programs do: so it is the old or the new, never a mixture."""
    with (top / f"{name}.tmp").open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    (top / f"{name}.tmp").rename(top / name)


def verify(top: Path, journal: Journal) -> None:
    """Everything acknowledged is there; what was under way is old or new."""
    for name in {*journal.durable, *journal.uncertain}:
        allowed = journal.uncertain.get(name, [journal.durable.get(name)])
        found = (top / name).read_bytes() if (top / name).exists() else None
        lengths = [None if one is None else len(one) for one in allowed]
        assert found in allowed, (
            f"{name} has {None if found is None else len(found)} bytes; allowed were {lengths}"
        )


def one_round(ds: Datastore, seed: int) -> None:
    """Work, kill, mount again, look."""
    rng = random.Random(seed)
    journals = [Journal(), Journal()]
    reached = [threading.Event(), threading.Event()]
    count = rng.randrange(1, OPERATIONS_BEFORE_KILL_MAX)
    tops = [ds.a.path / f"seed{seed}-{index}" for index in range(2)]
    threads = [
        threading.Thread(
            target=work,
            args=(tops[index], random.Random(f"{seed}/{index}"), journals[index], count, event),
        )
        for index, event in enumerate(reached)
    ]
    for thread in threads:
        thread.start()
    reached[seed % 2].wait()
    ds.a.kill()
    for thread in threads:
        thread.join()

    ds.mount("a")
    ds.check()
    for top, journal in zip(tops, journals, strict=True):
        if top.exists() or journal.durable:
            verify(ds.a.path / top.name, journal)


def test_synced_work_survives_kills_at_random_moments(tmp_path):
    with datastore(tmp_path, hosts=("a",), size="2G") as ds:
        for seed in SEEDS:
            one_round(ds, seed)
