"""What real processes did with blocks and locks under faults has an order that explains it."""

import pytest

from tests.support.fault_lab import run_lab_program

KINDS = "kill,stop,cut,restart"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_compare_and_write_is_linearizable_under_faults(seed):
    result = run_lab_program(
        "tests.support.histories",
        *("--what", "blocks", "--faults", "16", "--kinds", KINDS, "--seed", str(seed)),
    )
    print(result)

    assert result["operations"] > 500
    assert result["unknown"] > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("protocol", "seed"), [("ats", 1), ("reservation", 3)])
def test_acquire_release_and_fence_are_linearizable_under_faults(protocol, seed):
    result = run_lab_program(
        "tests.support.histories",
        *("--what", "locks", "--protocol", protocol, "--faults", "12"),
        *("--kinds", KINDS, "--seed", str(seed)),
    )
    print(result)

    assert result["operations"] > 500
