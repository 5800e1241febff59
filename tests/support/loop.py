"""Loop devices for tests: real block devices that this machine can make, and their certain end.

with loop_device(image) as node:
    DirectDevice.open(node, writable=True)
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def can_loop() -> bool:
    """Whether this machine and this user can make loop devices."""
    return (
        os.geteuid() == 0
        and Path("/dev/loop-control").exists()
        and shutil.which("losetup") is not None
    )


needs_loop = pytest.mark.skipif(not can_loop(), reason="needs root, losetup and /dev/loop-control")


@contextmanager
def loop_device(image: Path, *, sector_size: int = 512, read_only: bool = False) -> Iterator[Path]:
    """A block device of the bytes of `image`, as long as the block lasts.

    It is detached at its end, whatever happens; while something has it still open, the kernel
    detaches it at the last close.
    """
    command = ["losetup", "--find", "--show", "--sector-size", str(sector_size)]
    if read_only:
        command.append("--read-only")
    made = subprocess.run([*command, str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    node = Path(made.stdout.strip())
    try:
        if not read_only:
            subprocess.run(["blockdev", "--setrw", str(node)], check=True)
        yield node
    finally:
        # What `blockdev --setro` said of it would hold for whoever gets the device next.
        subprocess.run(["blockdev", "--setrw", str(node)], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["losetup", "--detach", str(node)], check=True)
