"""Stop a writer anywhere, let the next host take over, let the first go on: does it still write?

    python -m tests.support.stale_writers --protocol ats --points 250 --seed 1

Each host writes payloads of 1 MiB that say under which grant they were written. At each point the
writer is stopped at a random moment; the next host, which has had the volume open, has it fenced by
lockd, recovers it, takes the lock and writes once. Then the first gets SIGCONT, if it is there.
When it has ended, the LUN must show the second host's grant in every sector of the payload.

With --unfenced the next host believes in fences that were not done: there must be stale writes.
With --by-lease nobody orders the fence: the next host wants the lock, and waits for the lease.
"""

import argparse
import json
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.support.fault_host import ENDED, MAGIC, STAMP, write_stamps
from tests.support.fault_lab import FaultLab, HostProcess, fault_lab, in_lanes, random_moment

LANES: Final = 4
"""Writers at once, each with a file of its own."""

MOMENT_SECONDS: Final = 0.008
"""The stop comes so long after the writer went on, at most: some payloads later."""


def grants_on(data: bytes) -> set[int]:
    """Every token that stands in a payload."""
    found = set()
    for magic, _, _, token, _ in STAMP.iter_unpack(data):
        assert magic == MAGIC, f"{magic!r} is nobody's stamp"
        found.add(token)
    return found


def run_lane(lab: FaultLab, lane: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One writer after the other on one file."""
    rng = random.Random(f"{arguments.seed} {lane}")
    place = lab.places[lane]
    stale: list[dict[str, Any]] = []
    writer = _next_host(lab, lane, 0, arguments)
    writer.tell(do="take")
    token = writer.hear()["token"]
    points = arguments.points // LANES
    for point in range(1, points + 1):
        successor = _next_host(lab, lane, point, arguments)
        writer.tell(do="go")
        random_moment(rng, seconds=MOMENT_SECONDS)
        writer.stop()
        victim = {"name": writer.who.name, "nonce": writer.who.nonce}
        orders = not (arguments.unfenced or arguments.by_lease)
        successor.tell(do="take", fence=victim if orders else None)
        new_token = successor.hear()["token"]
        assert new_token > token, f"token {new_token} after {token}"
        writer.go_on()
        status = writer.wait()
        expected = ENDED if arguments.unfenced else -signal.SIGKILL
        assert status == expected, f"point {point}: {writer.who.client} ended with {status}"
        old = sorted(grants_on(lab.read(place)) - {new_token})
        if old:
            stale.append({"lane": lane, "point": point, "granted": new_token, "found": old})
        writer.close()
        writer, token = successor, new_token
    writer.kill()
    return {"points": points, "stale": stale}


def _next_host(lab: FaultLab, lane: int, point: int, arguments: argparse.Namespace) -> HostProcess:
    host = lab.start(
        write_stamps,
        f"lane{lane}-{point % 2}",
        lab.places[lane],
        point,
        unfenced=arguments.unfenced,
    )
    assert host.hear() == {"ready": True}
    return host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--protocol", choices=("ats", "reservation"), default="ats")
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--by-lease", action="store_true")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="stale-") as directory,
        fault_lab(arguments.seed, Path(directory), protocol=arguments.protocol, files=LANES) as lab,
    ):
        lanes = in_lanes(LANES, lambda lane: run_lane(lab, lane, arguments))
        lab.hosts.clear()  # the lanes' own
        lab.check()
    result = {
        "points": sum(lane["points"] for lane in lanes),
        "stale": [one for lane in lanes for one in lane["stale"]],
        "seed": arguments.seed,
    }
    os.write(1, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    main()
