"""One open volume: where all floors are put together."""

from vmfs.volume.lockd_session import LockdSession, unix_lockd
from vmfs.volume.options import VolumeOptions
from vmfs.volume.timing import PRODUCTION, TEST, Timing
from vmfs.volume.volume import Volume

__all__ = [
    "PRODUCTION",
    "TEST",
    "LockdSession",
    "Timing",
    "Volume",
    "VolumeOptions",
    "unix_lockd",
]
