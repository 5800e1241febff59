"""Who serves which mount: one small file per mount, so that `vmfs umount` can wait for its daemon.

umount(2) returns when the kernel has let go; the daemon then still commits, gives its locks up and
frees its heartbeat slot. Who wants to know when *that* is done has to know the process. The files
are named by the device number of the mount, which the kernel gives to one mount at a time. A file
whose process is gone was left by a crash.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vmfs.fuse.mountinfo import MountEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRecord:
    """One mount that is being served."""

    pid: int
    started: int  # start time of the process in clock ticks since boot: tells it from a later one
    mount_point: str
    lun: str
    label: str
    host: str
    lockd: str  # empty: without locks, read-only
    slot: int  # -1: none
    read_only: bool
    failed: str = ""  # why nothing can be changed through it any more; empty: it works


def runtime_directory() -> Path:
    """Where the files are: /run/vmfs for root, else below $XDG_RUNTIME_DIR or /tmp."""
    override = os.environ.get("VMFS_RUNTIME_DIR")
    if override:
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/vmfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "vmfs" if base else Path(f"/tmp/vmfs-{os.geteuid()}")


def record_path(device: int) -> Path:
    """The file for the mount with this `st_dev`."""
    return runtime_directory() / f"{os.major(device)}-{os.minor(device)}.json"


def write_record(device: int, record: MountRecord) -> Path:
    """Say that the mount is served, whole or not at all. Returns the file, to be removed later."""
    path = record_path(device)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{record.pid}")
    fresh.write_text(json.dumps(asdict(record)) + "\n", "utf-8")
    fresh.rename(path)
    return path


def read_record(entry: MountEntry) -> MountRecord | None:
    """Who serves a mount; None when nobody said so, or nobody can read it."""
    try:
        fields = json.loads(record_path(os.makedev(entry.major, entry.minor)).read_text("utf-8"))
        return MountRecord(**fields)
    except (OSError, ValueError, TypeError):
        return None


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None when there is no such process.

    The second field is the program's name in parentheses, and may have spaces and parentheses.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def is_served(record: MountRecord) -> bool:
    """Whether the process that wrote the record is still there."""
    return start_ticks(record.pid) == record.started
