"""When a host stops itself, and when others may have it fenced."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.locks.lease import (
    GAPS_MAX,
    HolderPace,
    LeaseClock,
    LeaseState,
    LeaseTiming,
    SlotWatch,
)
from vmfs.volume.timing import PRODUCTION, TEST

PACE: Final = HolderPace(3.0, 16.0)
MOMENTS: Final = st.floats(min_value=0, max_value=1e6)


@pytest.mark.parametrize("timing", [PRODUCTION.leases, TEST.leases], ids=["production", "test"])
def test_host_stops_well_before_others_may_fence(timing: LeaseTiming) -> None:
    assert timing.state(acknowledged=100, now=100) is LeaseState.MAY_WRITE
    assert timing.state(acknowledged=100, now=timing.stops_at(100)) is LeaseState.STOPPED
    assert timing.state(acknowledged=100, now=100 + timing.lease) is LeaseState.OVERDUE
    assert timing.lease - timing.stop >= timing.interval, "a late beat still heals it"
    assert timing.beat + timing.interval >= timing.stop / 2


@pytest.mark.parametrize(
    ("interval", "beat", "stop", "lease"),
    [(3, 8, 16, 16), (3, 8, 17, 16), (3, 10, 10, 16), (0, 8, 10, 16), (3, 2, 10, 16)],
)
def test_timing_that_would_fence_the_healthy_is_none(
    interval: float, beat: float, stop: float, lease: float
) -> None:
    with pytest.raises(AssertionError):
        LeaseTiming(interval=interval, beat=beat, stop=stop, lease=lease)


def test_pace_is_the_holders_own() -> None:
    assert HolderPace.of(interval_ms=100, lease_ms=800, own=PRODUCTION.leases) == HolderPace(
        0.1, 0.8
    )


def test_pace_that_is_missing_is_as_our_own() -> None:
    assert HolderPace.of(interval_ms=0, lease_ms=0, own=PRODUCTION.leases) == PACE


@given(interval=st.integers(0, 2**32 - 1), lease=st.integers(0, 2**32 - 1))
def test_no_pace_ends_the_lease_between_two_beats(interval: int, lease: int) -> None:
    pace = HolderPace.of(interval_ms=interval, lease_ms=lease, own=PRODUCTION.leases)
    assert pace.lease >= 2 * pace.interval > 0


def test_lease_is_over_when_the_slot_stood_still_for_so_long() -> None:
    watch = SlotWatch(PACE, b"1", 0.0)
    for second in range(1, 16):
        watch = watch.looked(b"1", float(second))
        assert not watch.is_over
    assert watch.left == 1.0
    assert watch.looked(b"1", 16.0).is_over


def test_any_change_is_a_beat() -> None:
    watch = SlotWatch(PACE, b"1", 0.0)
    for second in range(1, 16):
        watch = watch.looked(b"1", float(second))
    watch = watch.looked(b"2", 15.9)
    assert watch.still_for == 0
    assert not watch.looked(b"2", 18.0).is_late


def test_observer_that_was_stopped_itself_was_not_watching() -> None:
    watch = SlotWatch(PACE, b"1", 0.0).looked(b"1", 1.0)
    watch = watch.looked(b"1", 1000.0)
    assert watch.still_for == 1.0 + GAPS_MAX * PACE.interval
    assert not watch.is_over


def test_clock_stands_still_under_a_reservation_and_one_interval_more() -> None:
    clock = LeaseClock(interval=3.0)
    assert clock.read(10.0) == 10.0
    clock.reserved(10.0)
    assert clock.read(500.0) == 10.0
    clock.free(500.0)
    assert clock.read(503.0) == 10.0
    assert clock.read(504.0) == 11.0


def test_clock_goes_on_between_short_reservations() -> None:
    clock = LeaseClock(interval=3.0)
    for number in range(1000):
        clock.reserved(number * 0.1)
        clock.free(number * 0.1 + 0.01)
    assert 79 < clock.read(100.0) < 81


def test_reservation_said_twice_is_one() -> None:
    clock = LeaseClock(interval=3.0)
    clock.free(1.0)
    clock.reserved(5.0)
    clock.reserved(6.0)
    clock.free(7.0)
    clock.free(8.0)
    assert clock.read(10.0) == 6.0


@given(st.lists(st.tuples(st.sampled_from(["reserved", "free", "read"]), st.floats(0, 100))))
def test_clock_never_goes_back_and_never_runs_ahead(steps: list[tuple[str, float]]) -> None:
    clock, now, reading = LeaseClock(interval=3.0), 0.0, 0.0
    for what, pause in steps:
        before, now = now, now + pause
        if what == "reserved":
            clock.reserved(now)
        elif what == "free":
            clock.free(now)
        after = clock.read(now)
        assert reading - 1e-9 <= after <= reading + (now - before) + 1e-6
        reading = after


@given(
    phase=st.floats(0, 3),
    looks=st.lists(st.floats(0.01, 60), min_size=1, max_size=60),
    delays=st.lists(st.floats(0, 6.9), min_size=1, max_size=10),
)
def test_host_that_beats_before_it_would_stop_itself_is_never_overdue(
    phase: float, looks: list[float], delays: list[float]
) -> None:
    """However irregular the looks: beats at most 3 + 6.9 s apart keep the lease."""
    beats, at = [phase], phase
    while at < sum(looks):
        at += 3.0 + delays[len(beats) % len(delays)]
        beats.append(at)

    def image(now: float) -> bytes:
        return str(sum(beat <= now for beat in beats)).encode()

    now, watch = 0.0, SlotWatch(PACE, image(0.0), 0.0)
    for pause in looks:
        now += pause
        watch = watch.looked(image(now), now)
        assert not watch.is_over


@given(
    dead_at=st.floats(0, 100),
    looks=st.lists(st.floats(0.01, 60), min_size=1, max_size=200),
)
def test_nobody_is_overdue_before_a_lease_has_passed(dead_at: float, looks: list[float]) -> None:
    now, watch = 0.0, SlotWatch(PACE, b"0.0", 0.0)
    for pause in looks:
        now += pause
        watch = watch.looked(str(min(now, dead_at)).encode(), now)
        assert not watch.is_over or now - dead_at >= PACE.lease - 1e-6


@given(dead_at=st.floats(0, 100))
def test_everybody_dead_is_overdue_after_lease_and_one_look(dead_at: float) -> None:
    now, watch = 0.0, SlotWatch(PACE, b"0.0", 0.0)
    while not watch.is_over:
        now += PACE.look_every
        watch = watch.looked(str(min(now, dead_at)).encode(), now)
    assert now <= dead_at + PACE.lease + 2 * PACE.look_every + 1e-6
