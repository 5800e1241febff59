"""The resource files: every cluster header's lock, numbers and bitmap.

What the bitmaps say is gathered in an `Ownership` for each kind; `owners` and `tree` add who owns
what, and `compare` says where the two disagree.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from vmfs.check.findings import Findings
from vmfs.check.ownership import Ownership, runs
from vmfs.check.reader import Reader, ResourceFile, ResourceKind
from vmfs.check.slots import Slots
from vmfs.errors import CorruptRecord
from vmfs.ondisk.disk_lock import LOCK_SIZE
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE, META_OFFSET, ClusterMeta

Progress = Callable[[str, int, int], None]
"""Called with (what is being looked at, how many are done, how many there are)."""

_CODE_OF_COUNT: Final = {"free": "cluster-free-count", "first free": "cluster-corrupt"}
"""Fields whose damage leaves the bitmap itself usable, and the code for each."""


async def check_clusters(
    reader: Reader, slots: Slots, findings: Findings, progress: Progress
) -> dict[ResourceKind, Ownership]:
    """Check every cluster of every resource file; returns what their bitmaps say."""
    owners: dict[ResourceKind, Ownership] = {}
    for kind, file in reader.resources.items():
        ownership = owners[kind] = Ownership(file.header.total)
        header, total = file.header, 0
        for first in range(0, header.cluster_count, header.clusters_per_group):
            progress(f"clusters of {kind.file_name}", first, header.cluster_count)
            count = min(header.clusters_per_group, header.cluster_count - first)
            data = await reader.read_system(
                file.file, header.cluster_offset(first), count * CLUSTER_HEADER_SIZE
            )
            for cluster in range(first, first + count):
                at = (cluster - first) * CLUSTER_HEADER_SIZE
                head = data[at : at + CLUSTER_HEADER_SIZE]
                total += _check_cluster(file, cluster, head, slots, findings, ownership)
        if total != header.total:
            text = f"{kind.file_name}: the clusters hold {total}, the header says {header.total}"
            findings.add("resource-total", text, address=file.file.ranges(0, 1)[0][0])
        findings.statistics[f"{kind.name.lower()}_total"] = header.total
        findings.statistics[f"{kind.name.lower()}_used"] = ownership.count_allocated()
    return owners


def _check_cluster(  # noqa: PLR0913 - all of them are what a cluster is held against
    file: ResourceFile,
    cluster: int,
    head: bytes,
    slots: Slots,
    findings: Findings,
    ownership: Ownership,
) -> int:
    """Check one cluster header; returns how many resources it says that it has."""
    address = file.cluster_lv_offset(cluster)
    slots.check_lock(head[:LOCK_SIZE], address=address, expected=file.kind.lock)
    expected, first = file.header.cluster_total(cluster), file.index_of(cluster, 0)
    where = f"{file.kind.file_name} cluster {cluster}"
    meta, sector = _unpack_meta(head[META_OFFSET:], address + META_OFFSET, cluster)
    if isinstance(meta, CorruptRecord):
        code = _CODE_OF_COUNT.get(meta.field, "cluster-corrupt")
        findings.add(code, f"{where}: {meta}", address=address + META_OFFSET)
        if meta.field not in _CODE_OF_COUNT:
            ownership.set_unknown(first, expected)
            return expected  # its own finding is enough; the sum shall not say it again
    total, free_bits = sector
    if total != expected:
        text = f"{where}: holds {total} resources, its place in the file says {expected}"
        findings.add("cluster-corrupt", text, address=address + META_OFFSET)
        ownership.set_unknown(first, expected)
        return total
    free = np.unpackbits(np.frombuffer(free_bits, dtype=np.uint8), bitorder="little")[:total]
    ownership.set_allocated(first, free == 0)
    if isinstance(meta, ClusterMeta):
        lowest = int(free.argmax())
        if meta.first_free != lowest:
            text = f"{where}: first free is {meta.first_free}, the bitmap's first is {lowest}"
            findings.add("cluster-first-free", text, address=address + META_OFFSET)
    return total


def _unpack_meta(
    data: bytes, address: int, cluster: int
) -> tuple[ClusterMeta | CorruptRecord, tuple[int, bytes]]:
    """The record or what is wrong with it, and (total, bitmap) as they stand."""
    raw = int.from_bytes(data[4:8], "little"), data[0x10:0x50]
    try:
        return ClusterMeta.unpack(data, address=address, number=cluster), raw
    except CorruptRecord as error:
        return error, raw


def compare(
    reader: Reader,
    owners: Mapping[ResourceKind, Ownership],
    findings: Findings,
    *,
    foreign_journals: Mapping[int, str],
) -> None:
    """Say where bitmaps and owners disagree (file descriptors are `tree`'s own business).

    Args:
        reader: the volume.
        owners: what the bitmaps say, and who pointed where.
        findings: where to say it.
        foreign_journals: file blocks that an ESXi host uses as its journal, with its description.
    """
    for kind, ownership in owners.items():
        if kind is ResourceKind.FDC:
            continue
        file = reader.resources[kind]
        for start, end in runs(ownership.not_allocated()):
            text = f"{_range_text(kind, start, end)} owned, but marked free in {kind.file_name}"
            findings.add("block-not-allocated", text, address=_address(reader, file, start))
        lost = ownership.lost()
        if kind is ResourceKind.FBB and foreign_journals:
            known = np.array(sorted(foreign_journals), dtype=np.int64)
            for block in lost[np.isin(lost, known)].tolist():
                text = f"file block {block:#x} is the journal of {foreign_journals[block]}"
                findings.add("foreign-journal", text, address=_address(reader, file, block))
            lost = lost[~np.isin(lost, known)]
        for start, end in runs(lost):
            text = f"{_range_text(kind, start, end)} marked used, but owned by nobody"
            findings.add("block-lost", text, address=_address(reader, file, start))


def _range_text(kind: ResourceKind, start: int, end: int) -> str:
    if end - start == 1:
        return f"{kind.noun} {start:#x} is"
    return f"{end - start} {kind.noun}s from {start:#x} to {end - 1:#x} are"


def _address(reader: Reader, file: ResourceFile, index: int) -> int:
    if file.kind is ResourceKind.FBB:
        return index * reader.block_size
    return file.resource_lv_offset(*file.place_of(index))
