"""Reading /proc/self/mountinfo: which mounts there are, from where, and on which device number.

Pure: the text goes in. The columns are those of proc(5): mount id, parent id, major:minor, root,
mount point, options, optional fields up to a dash, type, source, options of the superblock.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

FILESYSTEM_TYPE: Final = "fuse.vmfs"

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One mount."""

    major: int
    minor: int
    mount_point: str
    filesystem_type: str
    source: str  # for a vmfs mount: the path of the LUN
    options: str

    @property
    def is_vmfs(self) -> bool:
        """Whether it is one of ours."""
        return self.filesystem_type == FILESYSTEM_TYPE


def parse_mountinfo(text: str) -> list[MountEntry]:
    """All mounts, in the order of mounting. Lines that are no mounts are left out."""
    entries = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, types = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(types) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        entries.append(
            MountEntry(
                major=int(major),
                minor=int(minor),
                mount_point=_unescape(fields[4]),
                filesystem_type=types[0],
                source=_unescape(types[1]),
                options=fields[5],
            )
        )
    return entries


def mounted_at(entries: Iterable[MountEntry], mount_point: str) -> MountEntry | None:
    """The topmost mount on a directory, which is the one that was mounted last."""
    found = [entry for entry in entries if entry.mount_point == mount_point]
    return found[-1] if found else None


def with_device(entries: Iterable[MountEntry], *, major: int, minor: int) -> MountEntry | None:
    """A mount of the file system with this device number."""
    return next((e for e in entries if (e.major, e.minor) == (major, minor)), None)


def _unescape(text: str) -> str:
    """Space, tab, newline and backslash stand there as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
