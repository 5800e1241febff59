"""lockd without a mount: requests per second on its socket, a LUN image beside it."""

import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.loads import Load, Place, Scale, run_program
from bench.variants import socket_directory
from tests.support.mounts import BIN, Process

ADDRESS_SPACE: Final = 1 << 40  # LMDB maps its whole size
LUN_SIZE: Final = 4 << 20
WARM_UP_SECONDS: Final = 0.05
CLIENTS_MAX: Final = 8
LUN_NAME: Final = "ds1"

ROWS: Final = {
    "lockd-1": ("release", 1),
    "lockd-8": ("release", 8),
    "lockd-caw": ("write", 1),
    "lockd-caw-8": ("write", 8),
    "lockd-caw-durable": ("durable", 1),
}
"""By row: what `bench.lockd_client` does, and how many clients it plays."""


def run(parent: Path, seconds: float) -> dict[str, float]:
    """Start lockd on a new LUN in `parent`, load it, end it; requests per second by row.

    Raises:
        LoadFailed: a client failed.
        ProcessFailed: lockd did not start, or did not end well.
    """
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="lockd.", dir=parent))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        lun, socket = directory / "lun", stack.enter_context(socket_directory()) / "sock"
        with lun.open("wb") as image:
            image.truncate(LUN_SIZE)
        command: list[str | Path] = [BIN / "lockd", "--lun", f"{LUN_NAME}={lun}"]
        command += ["--socket", socket, "--state", directory / "state"]
        lockd = Process(command, address_space=ADDRESS_SPACE)
        stack.callback(lockd.kill)
        lockd.wait_for("ready")
        _measure(socket, ("release", 1), 0, WARM_UP_SECONDS)
        figures = {
            row: _measure(socket, load, CLIENTS_MAX * number, seconds)
            for number, (row, load) in enumerate(ROWS.items(), start=1)
        }
        lockd.stop()
    return figures


def _run(place: Place, scale: Scale) -> dict[str, float]:
    return run(place.outside, scale.seconds)


LOAD: Final = Load(name="lockd", rows=tuple(ROWS), run=_run, mountless=True)


def _measure(socket: Path, load: tuple[str, int], first: int, seconds: float) -> float:
    name, clients = load
    words = [sys.executable, "-m", "bench.lockd_client", str(socket), LUN_NAME, name]
    return float(run_program([*words, str(clients), str(first), str(seconds)]))
