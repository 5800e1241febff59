"""Looking again pays on a fast disk, and costs next to nothing on a slow one."""

from vmfs.device.patience import LOOK_SECONDS, SKIPPED_MAX, Patience

MICROSECOND = 1e-6


class Disk:
    """A page comes `seconds` after it was missed; looking takes a microsecond each time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.patience = Patience(lambda: self.now)

    def miss(self) -> bool:
        """Whether looking again brought it."""
        comes = self.now + self.seconds

        def look() -> bool:
            self.now += MICROSECOND
            return self.now >= comes

        return self.patience.wait_for(look)


def test_a_fast_disk_is_waited_for_every_time() -> None:
    disk = Disk(80 * MICROSECOND)

    assert all(disk.miss() for _ in range(1000))


def test_a_look_is_over_in_time() -> None:
    disk = Disk(1.0)

    assert not disk.miss()
    assert LOOK_SECONDS <= disk.now < LOOK_SECONDS + 2 * MICROSECOND


def test_a_slow_disk_is_left_alone_more_and_more() -> None:
    disk = Disk(0.008)

    assert not any(disk.miss() for _ in range(8 * SKIPPED_MAX))
    first = disk.now
    assert first < 16 * LOOK_SECONDS
    assert not any(disk.miss() for _ in range(10 * (SKIPPED_MAX + 1)))

    assert disk.now - first < 11 * LOOK_SECONDS  # once in 256


def test_a_disk_that_is_fast_again_is_waited_for_again() -> None:
    disk = Disk(0.008)
    for _ in range(10_000):
        disk.miss()
    disk.seconds = 80 * MICROSECOND

    found = [disk.miss() for _ in range(2 * SKIPPED_MAX + 2)]

    assert found.index(True) <= SKIPPED_MAX
    assert all(found[found.index(True) :])


def test_one_slow_page_of_a_fast_disk_costs_one_more() -> None:
    disk = Disk(80 * MICROSECOND)
    for _ in range(20):
        disk.seconds = 0.001
        assert not disk.miss()
        disk.seconds = 80 * MICROSECOND

        assert [disk.miss() for _ in range(4)] == [False, True, True, True]
