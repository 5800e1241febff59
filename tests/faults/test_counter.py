"""Four hosts add to one number under its lock, whatever befalls them: none lost, none doubled."""

import pytest

from tests.support.counters import check_increments
from tests.support.fault_lab import run_lab_program
from tests.support.linearizability import UNKNOWN, Operation

KINDS = "kill,stop,cut,restart"
"""SIGKILL; SIGSTOP until the others have got on; the socket cut; lockd killed and restarted."""


def increment(number: int, *, known: bool = True) -> Operation:
    return Operation(
        client="a",
        key="counter",
        verb="increment",
        argument=number,
        result=number if known else UNKNOWN,
        called=float(number),
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("protocol", "increments", "faults"), [("ats", 10_000, 24), ("reservation", 1_000, 8)]
)
def test_no_increment_is_lost_or_doubled(protocol, increments, faults):
    result = run_lab_program(
        "tests.support.counters",
        *("--protocol", protocol, "--increments", str(increments)),
        *("--faults", str(faults), "--kinds", KINDS, "--seed", "1"),
    )
    print(result)

    assert result["increments"] >= increments


def test_lost_increment_is_noticed():
    with pytest.raises(AssertionError, match="made twice"):
        check_increments([increment(1), increment(1)], final=1)


def test_acknowledged_increment_that_is_not_there_is_noticed():
    with pytest.raises(AssertionError, match="acknowledged, and lost"):
        check_increments([increment(1), increment(2)], final=1)


def test_number_that_nobody_made_is_noticed():
    with pytest.raises(AssertionError, match="made by nobody"):
        check_increments([increment(1), increment(3)], final=3)


def test_increment_of_a_host_that_died_may_count_once_or_not_at_all():
    check_increments([increment(1), increment(2, known=False)], final=2)
    check_increments([increment(1), increment(2, known=False)], final=1)
