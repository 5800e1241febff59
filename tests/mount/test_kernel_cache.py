"""What the kernel keeps is never stale: real mounts that take locks from each other."""

import os
from pathlib import Path

import pytest

from tests.support.doctored_mount import FAULTS
from tests.support.hand_overs import HandOvers, Stale
from tests.support.mounts import Datastore, datastore

pytestmark = pytest.mark.slow

HAND_OVERS = int(os.environ.get("VMFS_HAND_OVERS", "500"))
"""In the suite; docs/measurements.md has a run of 10,000."""


def begin(ds: Datastore) -> HandOvers:
    (ds.a.path / "work").mkdir()
    return HandOvers((ds.a.path / "work", ds.b.path / "work"))


@pytest.mark.timeout(3600)
def test_nothing_stale_is_seen_while_locks_change_hands(tmp_path: Path) -> None:
    limit = max(240, HAND_OVERS // 10)
    with datastore(tmp_path, hosts=("a", "b"), seconds=limit) as ds:
        hand_overs = begin(ds)
        hand_overs.run(HAND_OVERS // 3)
        with hand_overs.readers():
            hand_overs.run(HAND_OVERS - HAND_OVERS // 3)


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_rule_is_found_out(fault: str, tmp_path: Path) -> None:
    with datastore(tmp_path, hosts=("a",), check=False) as ds:
        ds.mount("b", doctored=fault)
        with pytest.raises(Stale):
            begin(ds).run(HAND_OVERS)
