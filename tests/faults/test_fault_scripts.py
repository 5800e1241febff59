"""The scripts that show a fault to a user: each must see what it says is to be seen."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "faults"
FAULTS = (
    "kill",
    "stop",
    "stop-then-continue",
    "cut-socket",
    "kill-lockd",
    "fill-lun",
    "eio",
    "pause",
)


@pytest.mark.mount
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_script_sees_what_it_promises(tmp_path, private_mounts, monkeypatch, fault):
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    done = subprocess.run(
        ["timeout", "-k", "20", "180", SCRIPTS / fault],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_script_is_tested_and_run_by_all():
    found = {path.name for path in SCRIPTS.iterdir()} - {
        "lib.sh",
        "all",
        "failing_lun.py",
        "pausing_host.py",
    }

    assert found == set(FAULTS)
    assert f"for fault in {' '.join(FAULTS)}; do" in (SCRIPTS / "all").read_text()
