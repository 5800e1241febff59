"""Where a path leads: which mount, which LUN, which file descriptor.

The path is taken as text, and looked up on the LUN: what is asked about a lock must not itself wait
behind that lock. Only what is not there, because its host has not committed it yet (5 s), is looked
up through the mount, and not for long.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from vmfs.check import content
from vmfs.check.opening import OpenVolume
from vmfs.cli.common import mounts_here
from vmfs.errors import InvalidArgument, NotFound, VmfsError
from vmfs.files.attributes import ROOT_ADDRESS
from vmfs.fuse.known_nodes import address_of
from vmfs.fuse.mountinfo import MountEntry
from vmfs.ids import FdAddress

PATIENCE_SECONDS: Final = 2.0
"""How long the mount is given to answer. It may hang, and then never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path on a vmfs mount."""

    entry: MountEntry
    absolute: str

    @property
    def lun(self) -> Path:
        """The LUN that is mounted there."""
        return Path(self.entry.source)

    @property
    def inside(self) -> str:
        """The path from the root of the volume."""
        return self.absolute[len(self.entry.mount_point.rstrip("/")) :] or "/"

    @property
    def way(self) -> "tuple[Place, ...]":
        """The directories on the way to it, from the nearest one to the root of the volume."""
        if self.inside == "/":
            return ()
        parent = Place(entry=self.entry, absolute=str(Path(self.absolute).parent))
        return parent, *parent.way


def place_of(path: str) -> Place:
    """Where `path` leads, by its text and the table of mounts alone.

    Raises:
        InvalidArgument: it is on no vmfs mount.
    """
    absolute = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would touch the mount
    entry = mount_above(mounts_here(), absolute)
    if entry is None:
        raise InvalidArgument(f"{path} is not on a vmfs mount")
    return Place(entry=entry, absolute=absolute)


def mount_above(entries: Sequence[MountEntry], path: str) -> MountEntry | None:
    """The mount that an absolute path is on, if that is one of ours."""
    above = [e for e in entries if f"{path}/".startswith(f"{e.mount_point.rstrip('/')}/")]
    nearest = max(above, key=lambda entry: len(entry.mount_point), default=None)
    return nearest if nearest is not None and nearest.is_vmfs else None


async def address_at(volume: OpenVolume, place: Place) -> FdAddress:
    """The file descriptor that a path leads to.

    Raises:
        NotFound: neither the LUN nor the mount knows it, or the mount does not answer.
        NotADirectory, CorruptRecord: the way there is none.
    """
    try:
        node = await content.resolve(volume.reader, os.fsencode(place.inside), follow=False)
    except NotFound as error:
        return await _through_the_mount(place, error)
    return node.address


async def _through_the_mount(place: Place, unknown: VmfsError) -> FdAddress:
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            found = await trio.to_thread.run_sync(os.lstat, place.absolute, abandon_on_cancel=True)
    except trio.TooSlowError:
        said = f"{place.entry.mount_point} does not answer"
    except OSError as error:
        said = f"{place.entry.mount_point} says: {error.strerror}"
    else:
        return address_of(found.st_ino, root=ROOT_ADDRESS)
    raise NotFound(f"{unknown} on the LUN, and {said}") from unknown
