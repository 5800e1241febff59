"""A writer that was stopped anywhere never writes after the next one's grant (docs/locking.md).

The same program with fences switched off must find stale writes: else it would find none anywhere.
"""

import pytest

from tests.support.fault_lab import run_lab_program

POINTS = 256
"""Per lock mode; random moments at which a writer is stopped."""

UNFENCED_POINTS = 12
"""Each stops the writer with a payload under way more often than not."""


def stale_writers(*words: str, seed: int) -> dict[str, list[object]]:
    result = run_lab_program("tests.support.stale_writers", *words, "--seed", str(seed))
    print(result)
    return result


@pytest.mark.timeout(400)
@pytest.mark.parametrize("protocol", ["ats", "reservation"])
def test_no_stale_write_lands_after_the_next_grant(protocol):
    result = stale_writers("--protocol", protocol, "--points", str(POINTS), seed=1)

    assert result["points"] == POINTS
    assert result["stale"] == []


def test_no_stale_write_lands_when_the_lease_decides():
    result = stale_writers("--by-lease", "--points", "16", seed=2)

    assert result["stale"] == []


def test_stale_writes_are_found_when_fences_are_switched_off():
    result = stale_writers("--unfenced", "--points", str(UNFENCED_POINTS), seed=1)

    assert result["stale"], "fences were not done, and nothing was noticed"
