"""The picture: every variant as a multiple of the best C peer, log axis, one row per workload."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.report import PLACES
from bench.results import Results
from bench.rows import IDLE_HOSTS, KERNEL, OURS, RAW, TITLES, Row

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.axes import Axes

_OTHERS: Final = {
    RAW: ("x", "#9e9e9e"),
    KERNEL: ("D", "#5c6bc0"),
    "fuse2fs": ("s", "#b0782a"),
    "bindfs": ("^", "#8d8d8d"),
    "mergerfs": ("v", "#8d8d8d"),
    "vmfs-fuse": ("p", "#ab47bc"),
    IDLE_HOSTS: ("+", "#2e7d32"),
}
MET: Final = "#2e7d32"
MISSED: Final = "#c62828"
FREE: Final = "#00838f"


def draw(results: Sequence[Results], out: Path) -> None:
    """Write `performance.svg` and `performance.png` into the directory `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "performance"
    panels = [(one, _comparable(one)) for one in results]
    panels = [(one, rows) for one, rows in panels if rows]
    height = 2.2 + 0.36 * max((len(rows) for _, rows in panels), default=1)
    figure, axes = pyplot.subplots(
        1,
        max(1, len(panels)),
        figsize=(6.4 + 5.2 * (len(panels) - 1), height),
        squeeze=False,
        sharey=len(panels) > 1,
        layout="constrained",
    )
    order = _ordered([rows for _, rows in panels])
    for (one, rows), axis in zip(panels, axes[0], strict=False):
        _panel(axis, one, rows, order)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(out / "performance.svg", metadata={"Date": None})
    figure.savefig(out / "performance.png", dpi=110)
    pyplot.close(figure)


def _comparable(results: Results) -> list[Row]:
    """Rows that have both us and a C peer."""
    return [
        row
        for row in results.rows()
        if results.best_peer(row) is not None and results.median(row, OURS) is not None
    ]


def _ordered(panels: Sequence[Sequence[Row]]) -> list[Row]:
    """Every row of any panel, once, as the tables have them."""
    seen: dict[str, Row] = {}
    for rows in panels:
        for row in rows:
            seen.setdefault(row.name, row)
    return list(seen.values())


def _panel(axis: "Axes", results: Results, rows: Sequence[Row], order: Sequence[Row]) -> None:
    places = {row.name: len(order) - 1 - number for number, row in enumerate(order)}
    for name, (marker, colour) in _OTHERS.items():
        points = [(_relative(results, row, name), places[row.name]) for row in rows]
        known = [(x, y) for x, y in points if x is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            axis.scatter(
                xs, ys, marker=marker, s=34, color=colour, alpha=0.75, label=TITLES[name], zorder=2
            )
    for met, colour, label in (
        (True, MET, "vmfs, meets its target"),
        (False, MISSED, "vmfs, misses its target"),
        (None, FREE, "vmfs, no target"),
    ):
        chosen = [row for row in rows if _met(results, row) is met]
        ends = [_relative(results, row, OURS) or 1.0 for row in chosen]
        lines = [places[row.name] for row in chosen]
        axis.hlines(lines, 1, ends, color=colour, linewidth=2.5, zorder=3)
        axis.scatter(ends, lines, marker="o", s=60, color=colour, label=label, zorder=4)
    _targets(axis, results, rows, places)
    axis.axvline(1, color="black", linewidth=0.8, zorder=1)
    axis.set_xscale("log")
    axis.grid(axis="x", which="major", alpha=0.3)
    axis.set_yticks(
        [places[row.name] for row in order], [row.title.replace("`", "") for row in order]
    )
    axis.set_ylim(-0.7, len(order) - 0.3)
    axis.set_title(PLACES[results.place])
    axis.set_xlabel("times as fast as the best C peer")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} x")


def _targets(axis: "Axes", results: Results, rows: Sequence[Row], places: dict[str, int]) -> None:
    """A tick where the target is; one against the kernel is where the kernel puts it."""
    points = []
    for row in rows:
        for target in row.targets:
            if target.against is None:
                continue
            rival = 1.0 if target.against == "best" else _relative(results, row, target.against)
            if rival is not None:
                points.append((target.wanted * rival, places[row.name]))
    if points:
        xs, ys = zip(*points, strict=True)
        axis.scatter(xs, ys, marker="|", s=160, color="black", label="target", zorder=5)


def _met(results: Results, row: Row) -> bool | None:
    """Whether all its targets are met; None where it has none."""
    verdicts = results.verdicts(row)
    return all(verdict.met for verdict in verdicts) if verdicts else None


def _relative(results: Results, row: Row, name: str) -> float | None:
    best = results.best_peer(row)
    return results.ratio(row, name, best) if best else None
