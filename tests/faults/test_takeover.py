"""A host is killed with a file open; the next opens it, and waits for no lease.

How long it takes is recorded, and not asserted on: `scripts/takeover` makes the table in
docs/measurements.md. That no lease was waited for is seen from lockd's proof of the death.
"""

import json

import pytest

from tests.support.fault_lab import run_lab_program


@pytest.mark.mount
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("lock_mode", "runs"), [("ats", 60), ("reservation", 20)])
def test_next_open_succeeds_on_proof_of_death_alone(tmp_path, lock_mode, runs):
    record = tmp_path / "takeovers.json"

    result = run_lab_program(
        "tests.support.takeover",
        *("--runs", str(runs), "--profile", "production"),
        *("--lock-mode", lock_mode, "--json", str(record)),
    )
    print(result)

    each = json.loads(record.read_text())["each"]
    assert len(each) == runs
    assert [one["proof"] for one in each if "was seen" not in one["proof"]] == []
