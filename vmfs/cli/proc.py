"""Processes and their descriptors, as /proc shows them: all to root, to others their own."""

from collections.abc import Iterator
from pathlib import Path


def descriptors(kind: str) -> Iterator[tuple[int, Path]]:
    """Every (pid, path) of /proc/PID/`kind`/NUMBER; who ends meanwhile is left out.

    Args:
        kind: `fd` (links) or `fdinfo` (texts).
    """
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            paths = list((process / kind).iterdir())
        except OSError:
            continue  # it has ended, or is another user's
        for path in paths:
            yield int(process.name), path


def name_of(pid: int) -> str:
    """The name of a process; `?` when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"
