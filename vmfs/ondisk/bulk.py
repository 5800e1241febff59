"""Thousands of records at once, for mkfs: extent entries, cluster headers, unused descriptors.

The bytes are those of the records' own `pack` (the tests hold one against the other); numpy only
fills in what differs from record to record. Everything here returns bytes ready to be written.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.ids import LvOffset
from vmfs.ondisk.disk_lock import LOCK_SIZE, DiskLock, LockType
from vmfs.ondisk.file_desc import FD_SIZE
from vmfs.ondisk.lvm import EXTENT_SIZE, LV_START, MAP_EXTENT_COUNT, ExtentEntry
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, META_OFFSET, RESOURCE_COUNT_MAX

Offsets = NDArray[np.uint64]
Totals = NDArray[np.int64]

_LOCK: Final = np.dtype(
    {
        "names": ["type", "lv_offset"],
        "formats": ["<u4", "<u8"],
        "offsets": [0, 4],
        "itemsize": LOCK_SIZE,
    }
)
_CLUSTER: Final = np.dtype(
    {
        "names": ["lock", "number", "total", "free", "first_free", "bitmap"],
        "formats": [_LOCK, "<u4", "<u4", "<u4", "<u4", "64u1"],
        "offsets": [0, *(META_OFFSET + at for at in (0, 4, 8, 12, 16))],
        "itemsize": CLUSTER_HEADER_SIZE,
    }
)
_DESCRIPTOR: Final = np.dtype(
    {"names": ["lock"], "formats": [_LOCK], "offsets": [0], "itemsize": FD_SIZE}
)
_EXTENT: Final = np.dtype(
    {
        "names": ["used", "id", "volume", "physical", "logical", "length", "version"],
        "formats": ["u1", "<u4", "<u4", "<u8", "<u8", "<u8", "<u4"],
        "offsets": [0, 1, 5, 9, 17, 25, 33],
        "itemsize": ExtentEntry.SIZE,
    }
)

assert DiskLock.SIZE == LOCK_SIZE


def extent_map(first: int, count: int) -> tuple[bytes, bytes]:
    """Bitmap and entries of one extent map, for extents that follow each other on the device.

    Args:
        first: extent number of the map's first entry.
        count: entries used, up to 8192.
    """
    assert 0 < count <= MAP_EXTENT_COUNT
    ids = np.arange(first, first + count, dtype=np.uint64)
    entries = np.zeros(count, dtype=_EXTENT)
    entries["used"] = 1
    entries["id"] = ids
    entries["logical"] = ids * np.uint64(EXTENT_SIZE)
    entries["physical"] = entries["logical"] + np.uint64(LV_START)
    entries["length"] = EXTENT_SIZE
    entries["version"] = 1
    bits = np.zeros(MAP_EXTENT_COUNT, dtype=np.uint8)
    bits[:count] = 1
    return np.packbits(bits, bitorder="little").tobytes(), entries.tobytes()


def cluster_headers(
    lock_type: LockType, lv_offsets: Offsets, *, first: int, totals: Totals, used: int
) -> bytes:
    """Headers of adjacent clusters: a free lock, then the bitmap.

    Args:
        lock_type: what the clusters hold.
        lv_offsets: where each header stands.
        first: number of the first cluster.
        totals: resources in each cluster.
        used: resources of the first cluster and its followers that are taken, from its first on.
    """
    count = len(lv_offsets)
    before = np.concatenate(([0], np.cumsum(totals)[:-1]))
    taken = np.clip(used - before, 0, totals)
    headers = np.zeros(count, dtype=_CLUSTER)
    headers["lock"]["type"] = lock_type
    headers["lock"]["lv_offset"] = lv_offsets
    headers["number"] = np.arange(first, first + count)
    headers["total"] = totals
    headers["free"] = totals - taken
    headers["first_free"] = np.where(taken < totals, taken, 0)
    index = np.arange(RESOURCE_COUNT_MAX)
    free = (index >= taken[:, None]) & (index < totals[:, None])
    headers["bitmap"] = np.packbits(free, axis=1, bitorder="little")
    return headers.tobytes()


def unused_descriptors(lv_offsets: Offsets) -> bytes:
    """File descriptors that no file ever used: a free lock in front of zeroes."""
    descriptors = np.zeros(len(lv_offsets), dtype=_DESCRIPTOR)
    descriptors["lock"]["type"] = LockType.FILE_DESC
    descriptors["lock"]["lv_offset"] = lv_offsets
    return descriptors.tobytes()


def offsets(start: LvOffset, count: int, *, stride: int) -> Offsets:
    """`count` LV offsets, `stride` bytes apart."""
    return np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(stride)
