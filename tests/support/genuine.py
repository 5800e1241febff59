"""Genuine ESXi volumes: test images in the source package of dissect.vmfs, fetched when needed.

They are not ours to copy (AGPL), so they live in a cache directory outside the tree. Offline, tests
that need them are skipped with the reason.
"""

import gzip
import os
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = "dissect.vmfs==3.13"
_FOLDER: Final = "dissect_vmfs-3.13/tests/_data/vmfs"
_CHUNK: Final = 1 << 20
_FETCH_SECONDS_MAX: Final = 120


def cache_directory() -> Path:
    """Where fetched packages and unpacked images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vmfs-tests"


def genuine_image(name: str) -> Path:
    """The path of an unpacked image, for example `vmfs5`; the test is skipped when offline.

    The image is sparse and shared between tests: open it read-only, or copy it.
    """
    target = cache_directory() / f"{name}.bin"
    if not target.exists():
        package = _package()
        if isinstance(package, str):
            pytest.skip(package)
        _unpack(package, name, target)
    return target


@cache
def _package() -> Path | str:
    """The downloaded source package, or why there is none."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    found = sorted(directory.glob("dissect_vmfs-*.tar.gz"))
    if found:
        return found[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "dissect.vmfs", "--dest", str(directory), PACKAGE]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_FETCH_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot fetch {PACKAGE}: {error}"
    found = sorted(directory.glob("dissect_vmfs-*.tar.gz"))
    if not found:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"cannot fetch {PACKAGE} (ESXi's own images): {reason}"
    return found[0]


def _unpack(package: Path, name: str, target: Path) -> None:
    """Unpack one image, sparse, under another name first so that no half image is ever found."""
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with tarfile.open(package) as archive:
        member = archive.extractfile(f"{_FOLDER}/{name}.bin.gz")
        assert member is not None, f"{package} has no image {name}"
        with gzip.open(member) as source, partial.open("wb") as image:
            while chunk := source.read(_CHUNK):
                if chunk.count(0) == len(chunk):  # many times faster than any(chunk)
                    image.seek(len(chunk), os.SEEK_CUR)
                else:
                    image.write(chunk)
            image.truncate()
    partial.rename(target)
