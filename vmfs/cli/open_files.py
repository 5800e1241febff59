"""Which processes of this machine have a file of a volume open, through whichever mount.

A lock record names the host; what a person ends is a process. /proc says which, by the text of its
links: no mount is touched, as one of them may hang. Another user's processes are seen by root only.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from vmfs.cli.common import mounts_here
from vmfs.cli.places import Place
from vmfs.cli.proc import descriptors, name_of
from vmfs.fuse.registry import read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One process that has the file open."""

    host: str  # as which the mount is known; "?" when nobody said
    process: str
    pid: int


def open_files(place: Place) -> tuple[OpenFile, ...]:
    """Who has the file open, by path, through any mount of its LUN on this machine."""
    hosts = {}
    for entry in mounts_here():
        if entry.is_vmfs and entry.source == place.entry.source:
            record = read_record(entry)
            path = entry.mount_point.rstrip("/") + place.inside
            hosts[path] = record.host if record is not None else "?"
    return tuple(
        OpenFile(host=hosts[path], process=name_of(pid), pid=pid)
        for pid, path in sorted(set(_links()))
        if path in hosts and pid != os.getpid()  # a descriptor that the shell gave us
    )


def open_file_lines(found: tuple[OpenFile, ...]) -> list[str]:
    """For people: one line for each host."""
    lines = []
    for host in sorted({one.host for one in found}):
        processes = [f"{one.process} (pid {one.pid})" for one in found if one.host == host]
        lines.append(f"open on {host} by {', '.join(processes)}")
    return lines


def _links() -> Iterator[tuple[int, str]]:
    """(pid, path) of every descriptor that can be seen."""
    for pid, link in descriptors("fd"):
        try:
            yield pid, str(link.readlink())
        except OSError:
            continue  # closed meanwhile
