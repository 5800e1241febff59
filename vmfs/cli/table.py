"""Columns of text, for people and for awk: no frames, no colours, the last column open."""

from collections.abc import Sequence


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, columns aligned and two spaces apart. The first row is the heading."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(word.ljust(w) for word, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
