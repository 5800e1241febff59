"""Whether the machine that runs the tests lets a process have an io_uring."""

import pytest

from vmfs.device.linux_uring import UringContext


def has_uring() -> bool:
    """Whether the kernel has it, and neither a sysctl nor a container forbids it."""
    try:
        UringContext(1).close()
    except OSError:
        return False
    return True


needs_uring = pytest.mark.skipif(not has_uring(), reason="no io_uring here")
