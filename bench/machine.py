"""Facts about the machine that a figure is worth nothing without."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "fuse2fs",
    "bindfs",
    "mergerfs",
    "vmfs-tools",
    "fio",
    "qemu-utils",
    "libfuse3-3",
    "e2fsprogs",
)
MODULES: Final = ("pyfuse3", "trio", "vmfs", "lmdb", "msgpack")


def facts() -> dict[str, Any]:
    """Processor, memory, kernel; read from the system, nothing that names the machine."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_mib": memory >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the peers (Debian's), of our libraries, and of this checkout."""
    found = {name: importlib.metadata.version(name) for name in MODULES}
    for package in PACKAGES:
        version = _said("dpkg-query", "-W", "-f", "${Version}", package)
        if version:
            found[package] = version
    commit = _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    return found | ({"commit": commit} if commit else {})


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that has `path`, as stat(1) names it."""
    return _said("stat", "-f", "-c", "%T", str(path))


def _said(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
