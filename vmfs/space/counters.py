"""How much is free: one small number per cluster, for statfs and for choosing where to look.

The numbers are hints. Those of clusters that this host holds are exact; those of the others are as
old as the last `load`. Two bytes per cluster: a volume of 64 TiB takes some 600 KiB.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from vmfs.ondisk.address import AddressType
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, META_OFFSET
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFile, ResourceFiles
from vmfs.units import MIB

_log = logging.getLogger("vmfs.space")

_WINDOW: Final = 4 * MIB
"""Cluster headers read at once: bounds memory, and costs 4096 clusters one read."""

_WORDS: Final = CLUSTER_HEADER_SIZE // 4
_NUMBER: Final = META_OFFSET // 4
_TOTAL: Final = _NUMBER + 1
_FREE: Final = _NUMBER + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeCount:
    """Resources of one kind."""

    total: int
    free: int


class FreeCounters:
    """Free resources per cluster, of all five kinds."""

    def __init__(self, files: ResourceFiles) -> None:
        """All zero until `load`."""
        self._files = files
        self._free: dict[AddressType, NDArray[np.uint16]] = {
            kind: np.zeros(file.cluster_count, dtype=np.uint16) for kind, file in files.items()
        }

    def of(self, kind: AddressType) -> NDArray[np.uint16]:
        """Free resources per cluster of one kind; do not write to it."""
        return self._free[kind]

    def note(self, kind: AddressType, cluster: int, free: int) -> None:
        """That cluster has so many free now."""
        self._free[kind][cluster] = free

    def total(self, kind: AddressType) -> FreeCount:
        """Sums of one kind."""
        free = int(self._free[kind].sum(dtype=np.int64))
        return FreeCount(total=self._files[kind].header.total, free=free)

    async def load(self, staging: Staging, kinds: Iterable[AddressType]) -> None:
        """Read the counts of all clusters of these kinds, staged changes included.

        A header that is damaged counts as full, so that nothing is allocated there, and is
        logged; whoever needs that cluster gets the CorruptRecord.

        Raises:
            DeviceError: the LUN could not be read.
            CorruptRecord: the resource file has no block where a cluster header must be.
        """
        for kind in kinds:
            await self._load(staging, self._files[kind])

    async def _load(self, staging: Staging, file: ResourceFile) -> None:
        window = _WINDOW // CLUSTER_HEADER_SIZE
        per_group = file.header.clusters_per_group
        cluster = 0
        while cluster < file.cluster_count:
            in_group = per_group - cluster % per_group
            count = min(in_group, window, file.cluster_count - cluster)
            runs = file.runs(file.header.cluster_offset(cluster), count * CLUSTER_HEADER_SIZE)
            data = b"".join([await staging.read(*run) for run in runs])
            self._note_headers(file, cluster, data)
            await trio.lowlevel.checkpoint()  # large volumes take long; heartbeats go on
            cluster += count

    def _note_headers(self, file: ResourceFile, first: int, data: bytes) -> None:
        headers = np.frombuffer(data, dtype="<u4").reshape(-1, _WORDS)
        numbers = np.arange(first, first + len(headers))
        totals, free = headers[:, _TOTAL], headers[:, _FREE]
        wrong = (headers[:, _NUMBER] != numbers) | (free > totals)
        wrong |= totals > file.header.resources_per_cluster
        if wrong.any():
            _log.warning(
                "damaged cluster headers count as full: kind=%s clusters=%d first=%d",
                file.kind.name,
                int(wrong.sum()),
                first + int(wrong.argmax()),
            )
        self._free[file.kind][first : first + len(headers)] = np.where(wrong, 0, free)
