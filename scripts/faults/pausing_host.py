"""`vmfs`, as a host that stops itself (SIGSTOP) between its permit check and its write to the LUN.

    python scripts/faults/pausing_host.py SWITCH mount LUN DIR ...

Everything is the real command's, but for one thing: while the file SWITCH exists, the next write of
a whole block of data is held up where it matters most. The permit has been checked, the pwrite has
not begun, and the process stops, for as long as nobody continues it. SWITCH is removed just before.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Final
from unittest.mock import patch

from vmfs.cli.main import main
from vmfs.device.base import Buffer
from vmfs.device.image import ImageDevice
from vmfs.units import MIB

PAUSE_SIZE: Final = MIB
"""Bytes of the write that stops it: more than metadata and heartbeats ever have at once."""


class PausingDevice(ImageDevice):
    """The LUN, with a pause before a write."""

    switch: Path

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, and stop first when told to."""
        self._pause(data)
        await super().write(offset, data)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write without await, and stop first when told to."""
        self._pause(data)
        return super().write_now(offset, data)

    def _pause(self, data: Buffer) -> None:
        """`GuardedDevice` has just passed the permit on the way here."""
        if memoryview(data).nbytes >= PAUSE_SIZE and self.switch.exists():
            self.switch.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    PausingDevice.switch = Path(sys.argv.pop(1))
    with patch("vmfs.device.opening.ImageDevice", PausingDevice):
        main()
