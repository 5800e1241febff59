"""What stands inside a volume that was just made, as (LV offset, bytes) pieces, zeroes left out.

Every lock record of every cluster and every file descriptor is written, also where nothing is in
use yet: a free lock is never an all-zero sector, and compare-and-write needs something to compare.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk import bulk
from vmfs.ondisk.address import fb_addresses
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import DiskLock, LockType
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FD_SIZE,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    ROOT_FD,
    SBC_FD,
    SDD_FD,
    FileDesc,
    FileType,
    Zla,
    pack_pointers,
)
from vmfs.ondisk.heartbeat import SLOT_COUNT, Heartbeat, slot_offset
from vmfs.ondisk.layout import BLOCK_SIZE, Geometry, SystemFile
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, ResourceHeader
from vmfs.units import MIB

Piece = tuple[LvOffset, bytes]

_CLUSTERS_PER_PIECE: Final = 1024
"""1 MiB of cluster headers in one write."""

_DESCRIPTORS_PER_PIECE: Final = MIB // FD_SIZE


def pieces(
    geometry: Geometry, *, now: int, root_owner: tuple[int, int] = (0, 0)
) -> Iterator[Piece]:
    """Everything inside a fresh volume but its FS descriptor.

    Args:
        geometry: the volume's plan.
        now: seconds since 1970, the time of every file.
        root_owner: uid and gid of the root directory; the system files are root's.
    """
    yield slot_offset(0), heartbeats()
    yield from resource_file(geometry, FBB_FD, LockType.FB_CLUSTER, used=geometry.used_blocks)
    yield from resource_file(geometry, FDC_FD, LockType.FD_CLUSTER, used=len(geometry.files))
    yield from _unused_descriptors(geometry)
    yield from resource_file(geometry, PBC_FD, LockType.PB_CLUSTER, used=0)
    yield from resource_file(geometry, SBC_FD, LockType.SB_CLUSTER, used=0)
    yield from resource_file(geometry, PB2_FD, LockType.PB2_CLUSTER, used=0)
    root, device_names = root_entries(geometry), sdd_entries()
    yield geometry.file(ROOT_FD).lv_offset(0), root
    yield geometry.file(SDD_FD).lv_offset(0), device_names
    lengths = {ROOT_FD: len(root), SDD_FD: len(device_names)}
    for file in geometry.files:
        yield (
            geometry.fd_offset(file.address),
            system_descriptor(
                file,
                lv_offset=geometry.fd_offset(file.address),
                length=lengths.get(file.address, file.length),
                now=now,
                owner=root_owner if file.address == ROOT_FD else (0, 0),
            ),
        )


def heartbeats() -> bytes:
    """2048 free slots, each with its own address."""
    return b"".join(Heartbeat(lv_offset=slot_offset(index)).pack() for index in range(SLOT_COUNT))


def system_descriptor(
    file: SystemFile,
    *,
    lv_offset: LvOffset,
    length: int,
    now: int,
    owner: tuple[int, int] = (0, 0),
) -> bytes:
    """The whole file descriptor, 2048 bytes, of a file that mkfs makes."""
    is_root, is_sdd = file.address == ROOT_FD, file.address == SDD_FD
    pointers = np.concatenate([fb_addresses(run.start, run.count) for run in file.runs])
    desc = FileDesc(
        address=file.address,
        generation=1,
        # the root counts .sdd.sf among its sub-directories, as ESXi's does
        link_count=3 if is_root else 2 if is_sdd else 1,
        type=FileType.DIRECTORY if is_root else FileType.SYSTEM,
        length=length,
        block_size=BLOCK_SIZE,
        allocated_blocks=file.block_count,
        mtime=now,
        ctime=now,
        atime=now,
        uid=owner[0],
        gid=owner[1],
        mode=0o1755 if is_root else 0o40700 if is_sdd else 0o400,
        zla=Zla.FB,
        new_blocks=file.block_count,
        affinity_fd=file.address,
        tbz_shift=20,
        block_shift=20,
    )
    lock = DiskLock(type=LockType.FILE_DESC, lv_offset=lv_offset, token=1)
    return lock.pack() + desc.pack() + pack_pointers(pointers)


def root_entries(geometry: Geometry) -> bytes:
    """The root directory: itself, twice, and the system files."""
    names = [(b".", ROOT_FD), (b"..", ROOT_FD)]
    names += [(file.name.encode(), file.address) for file in geometry.files if file.name]
    return b"".join(_entry(name, address) for name, address in names)


def sdd_entries() -> bytes:
    """.sdd.sf holds "." and ".." only; its own entry has the system type, as on ESXi's."""
    return _entry(b".", SDD_FD) + _entry(b"..", ROOT_FD)


def resource_file(
    geometry: Geometry, address: FdAddress, lock_type: LockType, *, used: int
) -> Iterator[Piece]:
    """The header of a resource file, and all its cluster headers.

    Args:
        geometry: the volume's plan.
        address: which of the resource files.
        lock_type: of its clusters.
        used: resources that are taken, from the first on.
    """
    file, header = geometry.file(address), geometry.resource_header(address)
    yield file.lv_offset(0), header.pack()
    per_group = header.clusters_per_group
    # without bodies, headers of all groups follow each other: take many groups at once
    step = per_group if header.resource_size else _CLUSTERS_PER_PIECE // per_group * per_group
    for first in range(0, header.cluster_count, step):
        count = min(step, header.cluster_count - first)
        start = file.lv_offset(header.cluster_offset(first))
        last = file.lv_offset(header.cluster_offset(first + count - 1))
        assert last - start == (count - 1) * CLUSTER_HEADER_SIZE, "headers in separate runs"
        yield (
            start,
            bulk.cluster_headers(
                lock_type,
                bulk.offsets(start, count, stride=CLUSTER_HEADER_SIZE),
                first=first,
                totals=_cluster_totals(header, first, count),
                used=used - first * header.resources_per_cluster,
            ),
        )


def _unused_descriptors(geometry: Geometry) -> Iterator[Piece]:
    """Locks of all file descriptors that mkfs gives to nobody, in runs that lie together."""
    file, header = geometry.file(FDC_FD), geometry.fdc
    index = len(geometry.files)
    while index < header.total:
        cluster, resource = divmod(index, header.resources_per_cluster)
        in_group = header.clusters_per_group * header.resources_per_cluster
        offset = header.resource_offset(cluster, resource)
        count = min(
            header.total - index,
            in_group - index % in_group,
            (BLOCK_SIZE - offset % BLOCK_SIZE) // FD_SIZE,
            _DESCRIPTORS_PER_PIECE,
        )
        start = file.lv_offset(offset)
        yield start, bulk.unused_descriptors(bulk.offsets(start, count, stride=FD_SIZE))
        index += count


def _cluster_totals(header: ResourceHeader, first: int, count: int) -> bulk.Totals:
    totals = np.full(count, header.resources_per_cluster, dtype=np.int64)
    totals[-1] = header.cluster_total(first + count - 1)
    return totals


def _entry(name: bytes, address: FdAddress) -> bytes:
    kind = FileType.DIRECTORY if address == ROOT_FD else FileType.SYSTEM
    return DirEntry(type=kind, address=address, generation=1, name=name).pack()
