"""What the figures of `bench.scale` say: tables, and a picture in which what does not grow is flat.

Each figure is drawn as a multiple of its own first point: the picture shows the course of a cost,
the tables its height.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmfs.units import format_size

Row = dict[str, float]
"""One point: its place on the curve under the curve's name, then a figure by name."""

Figures = Mapping[str, Sequence[Row]]
"""The points of each curve that was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What grows."""

    title: str  # of the panel
    column: str  # of its points in the table
    point: Callable[[int], str]  # how one is written


CURVES: Final = {
    "volume": Curve(title="size of the volume", column="volume", point=format_size),
    "file": Curve(title="size of a sparse file", column="file, on 64 TiB", point=format_size),
    "files": Curve(title="files in a directory", column="files", point="{:,}".format),
    "hosts": Curve(title="hosts mounted", column="hosts", point="{:,}".format),
}


def courses(name: str, rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Every figure of one curve as points: (place on the curve, multiple of its first value).

    A figure that begins with 0 (there was nothing to measure yet) starts at the next point.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for figure in [key for key in rows[0] if key != name]:
        points = [(row[name], row[figure]) for row in rows]
        while points and not points[0][1]:
            del points[0]
        found[figure] = [(place, value / points[0][1]) for place, value in points]
    return found


def tables(figures: Figures) -> str:
    """Markdown: one table for each curve."""
    return "\n\n".join(table(name, rows) for name, rows in figures.items() if rows)


def table(name: str, rows: Sequence[Row]) -> str:
    """Markdown: a line for each point."""
    curve, columns = CURVES[name], [key for key in rows[0] if key != name]
    lines = [f"| {curve.column} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [f"{row[key]:,.3g}" if row[key] < 1000 else f"{row[key]:,.0f}" for key in columns]
        lines.append(f"| {curve.point(int(row[name]))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(figures: Figures, out: Path) -> None:
    """Write `scale.svg` and `scale.png` into the directory `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "scale"
    drawn = {name: rows for name, rows in figures.items() if len(rows) > 1}
    picture, axes = pyplot.subplots(
        1,
        max(1, len(drawn)),
        figsize=(4.2 * max(1, len(drawn)), 4.2),
        squeeze=False,
        layout="constrained",
    )
    for (name, rows), axis in zip(drawn.items(), axes[0], strict=False):
        places = [row[name] for row in rows]
        for figure, points in courses(name, rows).items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=figure)
        axis.plot(
            [places[0], places[-1]],
            [1, places[-1] / places[0]],
            linestyle=":",
            color="#9e9e9e",
            label="grows as much",
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(0.1, 10_000)
        axis.set_xticks(places, [CURVES[name].point(int(place)) for place in places])
        axis.minorticks_off()
        axis.tick_params(axis="x", labelrotation=35)
        axis.set_title(CURVES[name].title)
        axis.set_ylabel("times its first value")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    picture.savefig(out / "scale.svg", metadata={"Date": None})
    picture.savefig(out / "scale.png", dpi=110)
    pyplot.close(picture)
