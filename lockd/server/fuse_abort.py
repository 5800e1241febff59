"""Aborting the FUSE connections of a process that SIGKILL did not end.

A FUSE server that waits in the kernel for a page of its own mount waits for itself, in D state:
SIGKILL does not reach it, and its exit is never seen. Aborting the connection ends it (measured: 25
deadlocks out of 25). Requests under way fail; the mount would be dead without its server anyhow.

Which connections a process serves is the kernel's own word: `fuse_connection:` in the fdinfo of its
descriptors of /dev/fuse, the device number of the mount (Linux 6.17; before, none are found and the
fence stays ALIVE). Nothing here asks a filesystem: a `stat` of such a mount would never return.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

FUSECTL: Final = Path("/sys/fs/fuse/connections")
MNT_FORCE: Final = 1  # umount(2): abort what is under way; even if the mount is then found busy


def abort_connections(pid: int) -> tuple[str, ...]:
    """Abort what `pid` serves, and only that. May hang, so it is run in a thread of its own.

    A number that another process serves, too, is left alone: it is a later mount, which got the
    number after ours was unmounted, or a connection that is shared.

    Returns:
        What was aborted, in words.
    """
    connections = served_by(pid)
    if not connections:
        return ()
    for other in _pids():
        if other != pid:
            connections -= served_by(other)
    return tuple(text for minor in sorted(connections) if (text := _abort(minor)))


def served_by(pid: int) -> frozenset[int]:
    """The numbers of the FUSE connections that a process has descriptors of."""
    found: set[int] = set()
    for thread in _entries(Path(f"/proc/{pid}/task")):  # the first thread may have ended alone
        for descriptor in _entries(thread / "fd"):
            try:
                if str(descriptor.readlink()) != "/dev/fuse":
                    continue
                info = (thread / "fdinfo" / descriptor.name).read_text(encoding="ascii")
            except OSError:
                continue  # closed meanwhile
            found.update(connection_numbers(info))
        if thread.name == str(pid) and found:
            break  # threads share their descriptors
    return frozenset(found)


def connection_numbers(info: str) -> Iterator[int]:
    """The number in the text of an fdinfo; a descriptor that is not mounted yet has none."""
    for line in info.splitlines():
        name, _, value = line.partition(":")
        if name == "fuse_connection" and int(value):
            yield int(value)


def mount_points(mountinfo: Iterable[str], minor: int) -> list[bytes]:
    """Where the FUSE filesystem with this number is mounted, by the lines of a mountinfo."""
    found = []
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")[0]
        if fields[2] == f"0:{minor}" and kind.partition(".")[0] in ("fuse", "fuseblk"):
            path = os.fsencode(fields[4])
            for blank in (b" ", b"\t", b"\n", b"\\"):  # proc(5): as three octal digits
                path = path.replace(b"\\%03o" % ord(blank), blank)
            found.append(path)
    return found


def _abort(minor: int) -> str:
    try:
        with (FUSECTL / str(minor) / "abort").open("w", encoding="ascii") as switch:
            switch.write("1")
    except OSError:  # fusectl is not mounted here
        return _unmount_by_force(minor)
    return f"FUSE connection {minor}"


def _unmount_by_force(minor: int) -> str:
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        paths = mount_points(lines, minor)
    for path in paths[:1]:  # all of them are the same connection
        ctypes.CDLL(None, use_errno=True).umount2(path, MNT_FORCE)
        return f"FUSE connection {minor} ({os.fsdecode(path)})"
    return ""


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _entries(Path("/proc")) if entry.name.isdigit())


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # it ended, or may not be looked at
