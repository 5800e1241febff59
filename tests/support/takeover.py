"""How long a file of a host that was killed stays closed to the next: measured on real mounts.

    python -m tests.support.takeover --runs 100 --profile production

Host A has a file open and writes to it; it is killed with SIGKILL; host B opens the file for
writing until that succeeds. The clock runs from the kill to the return of the open. Each run also
says how lockd knew that A was dead: its exit was seen, so no lease was waited for.
"""

import argparse
import contextlib
import errno
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.support.mounts import (
    BIN,
    Datastore,
    Mount,
    datastore,
    enter_private_namespace,
    run,
)
from vmfs.units import MIB

OPEN_SECONDS_MAX: Final = 60.0
"""An open that is refused so long fails the run."""

RETRY_SECONDS: Final = 0.0005
"""Between a refused open and the next: far shorter than what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """One run."""

    seconds: float  # from the kill to the return of B's open
    refusals: int  # how often B's open failed before
    proof: str  # how lockd knew that A was dead


def measure(ds: Datastore, runs: int, *, profile: str) -> list[Takeover]:
    """Kill a host so often, and let the other one take over, and be the next to die."""
    found = []
    holder = ds.mount("a", f"profile={profile}")
    for number in range(runs):
        successor = ds.mount("ab"[(number + 1) % 2], f"profile={profile}")
        fd = os.open(holder.path / "disk", os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(fd, os.urandom(MIB), 0)
            os.fsync(fd)
            os.pwrite(fd, os.urandom(MIB), MIB)
            found.append(_take_over(ds, holder, successor))
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
        holder.process.kill()
        holder = successor
    return found


def _take_over(ds: Datastore, holder: Mount, successor: Mount) -> Takeover:
    path, refusals = successor.path / "disk", 0
    successor.path.stat()
    start = time.monotonic()
    os.kill(holder.pid, signal.SIGKILL)
    while (fd := _try_open(path)) is None:
        assert time.monotonic() - start < OPEN_SECONDS_MAX, "the file stays closed"
        refusals += 1
        time.sleep(RETRY_SECONDS)
    seconds = time.monotonic() - start
    os.close(fd)
    return Takeover(seconds=seconds, refusals=refusals, proof=_proof(ds, holder))


def _try_open(path: Path) -> int | None:
    """None: it is in use."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return None


def _proof(ds: Datastore, holder: Mount) -> str:
    """What lockd's audit trail says of the end of that process."""
    said = run(BIN / "lockctl", "--socket", ds.socket, "history", "--json")
    about = [line for line in said.splitlines() if f"pid {holder.pid}" in line]
    seen = f"the exit of pid {holder.pid} was seen"
    return seen if any(seen in line for line in about) else "; ".join(about[-5:])


def summary(takeovers: Sequence[Takeover]) -> dict[str, float]:
    """Milliseconds."""
    times = sorted(1000 * takeover.seconds for takeover in takeovers)
    return {
        "runs": len(times),
        "median_ms": round(statistics.median(times), 1),
        "p90_ms": round(times[len(times) * 9 // 10], 1),
        "max_ms": round(times[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--profile", choices=("production", "test"), default="production")
    parser.add_argument("--lock-mode", choices=("ats", "reservation"), default="ats")
    parser.add_argument("--json", type=Path, help="Write every run there.")
    arguments = parser.parse_args()
    enter_private_namespace()
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory:
        os.environ.setdefault("VMFS_RUNTIME_DIR", directory)
        mkfs = ("--lock-mode", arguments.lock_mode)
        with datastore(Path(directory), hosts=(), mkfs=mkfs) as ds:
            takeovers = measure(ds, arguments.runs, profile=arguments.profile)
    figures = {**summary(takeovers), "proofs": sum("was seen" in t.proof for t in takeovers)}
    if arguments.json:
        runs = [asdict(takeover) for takeover in takeovers]
        arguments.json.write_text(json.dumps({**figures, "each": runs}, indent=1) + "\n")
    os.write(1, json.dumps(figures).encode() + b"\n")


if __name__ == "__main__":
    main()
