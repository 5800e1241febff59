"""From samples to medians, ratios and verdicts. Pure: no clock, no I/O."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from bench.rows import IDLE_HOSTS, KIN, LOCKD, OURS, PEERS, ROWS, Row, Target

Item = TypeVar("Item")

IDLE_LOSS_MAX: Final = 0.05
"""What four idle hosts may cost, as a part of the one-host figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One figure, in its row's unit. `place` says where the image was: tmpfs or disk."""

    place: str
    row: str
    variant: str
    round: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One target of one row, and what was reached in the same terms."""

    target: Target
    reached: float
    met: bool


class Results:
    """The samples of one place, by row and variant.

    A ratio is always "how many times as fast": for durations it is turned over. It is taken round
    by round, and the median counts, so a machine that drifts from round to round does no harm.
    """

    def __init__(self, samples: Iterable[Sample], *, place: str) -> None:
        self.place = place
        self._values: dict[tuple[str, str], dict[int, float]] = {}
        for sample in samples:
            if sample.place == place:
                rounds = self._values.setdefault((sample.row, sample.variant), {})
                rounds[sample.round] = sample.value

    def rows(self) -> list[Row]:
        """Those that have samples, in the order of `ROWS`."""
        return [row for row in ROWS if any(name == row.name for name, _ in self._values)]

    def median(self, row: Row, variant: str) -> float | None:
        """The median of the rounds; None where the variant has no sample."""
        rounds = self._values.get((row.name, variant))
        return statistics.median(rounds.values()) if rounds else None

    def ratio(self, row: Row, ours: str, rival: str) -> float | None:
        """How many times as fast as `rival`; None where one of them has no sample."""
        mine = self._values.get((row.name, ours), {})
        theirs = self._values.get((row.name, rival), {})
        both = sorted(mine.keys() & theirs.keys())
        if not both:
            return None
        ratio = statistics.median(mine[number] / theirs[number] for number in both)
        return ratio if row.unit.more_is_better else 1 / ratio

    def best_peer(self, row: Row) -> str | None:
        """The fastest of `PEERS` by its median; None where none has a sample."""
        medians = {peer: self.median(row, peer) for peer in PEERS}
        known = {peer: value for peer, value in medians.items() if value is not None}
        if not known:
            return None
        choose = max if row.unit.more_is_better else min
        return choose(known, key=known.__getitem__)

    def verdicts(self, row: Row, *, ours: str = OURS) -> list[Verdict]:
        """Each target of the row that can be judged with the variants that were run."""
        judged = (self._judge(row, target, ours) for target in row.targets)
        return [verdict for verdict in judged if verdict is not None]

    def _judge(self, row: Row, target: Target, ours: str) -> Verdict | None:
        if target.against is None:
            reached = self.median(row, ours) or self.median(row, LOCKD)
            if reached is None:
                return None
            more = row.unit.more_is_better
            met = reached >= target.wanted if more else reached <= target.wanted
            return Verdict(target=target, reached=reached, met=met)
        rival = self.best_peer(row) if target.against == "best" else target.against
        ratio = self.ratio(row, ours, rival) if rival else None
        if ratio is None:
            return None
        return Verdict(target=target, reached=ratio, met=ratio >= target.wanted)

    def behind_kin(self, row: Row, *, ours: str = OURS) -> list[str]:
        """Which of fuse2fs and vmfs-fuse are as fast or faster: the target is none."""
        ratios = {kin: self.ratio(row, ours, kin) for kin in KIN}
        return [kin for kin, ratio in ratios.items() if ratio is not None and ratio <= 1]

    def idle_cost(self) -> float | None:
        """What four idle hosts cost over all rows, as the median ratio; 0.97 is 3 % slower."""
        ratios = (self.ratio(row, IDLE_HOSTS, OURS) for row in self.rows())
        known = [ratio for ratio in ratios if ratio is not None]
        return statistics.median(known) if known else None

    def idle_met(self) -> bool | None:
        """Whether that is within `IDLE_LOSS_MAX`."""
        cost = self.idle_cost()
        return None if cost is None else cost >= 1 - IDLE_LOSS_MAX


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The same items, beginning `number` places later: nobody is always first or last."""
    if not items:
        return []
    start = number % len(items)
    return [*items[start:], *items[:start]]
