"""Who holds which lock of a volume, as the lock records on the LUN say.

The records are the truth, so this asks no host and disturbs none: it reads every lock record that
is not free, the heartbeat slot of each holder (for its name and pid), and finds the paths by a walk
of the directories. On a live volume all of it is of the moment.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmfs.check import content
from vmfs.check.content import printable
from vmfs.check.opening import OpenVolume
from vmfs.check.reader import Reader, ResourceFile, ResourceKind
from vmfs.check.slots import is_holding
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk.address import FdAddr, parse_fd
from vmfs.ondisk.disk_lock import DiskLock, Holder
from vmfs.ondisk.file_desc import FD_SIZE, ROOT_FD
from vmfs.ondisk.heartbeat import Heartbeat
from vmfs.ondisk.resource import CLUSTER_HEADER_SIZE

_MODE_WORD: Final = 9
"""Where the mode stands in a lock record, counted in u32: bytes 0x24 to 0x27."""

_DOTS: Final = (b".", b"..")


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderFacts:
    """One holder, in words a person can act on."""

    host: str  # its name; its UUID when the slot does not say
    pid: int  # 0: not known
    slot: int
    generation: int
    is_stale: bool  # that mount has ended: the lock is free in all but name
    held_seconds: int | None  # None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFacts:
    """One lock that somebody holds."""

    what: str  # the path, or which cluster
    lv_offset: LvOffset
    mode: str
    token: int
    holders: tuple[HolderFacts, ...]
    corrupt: str = ""  # what is wrong with the record; then nothing else is known


async def find_locks(volume: OpenVolume) -> list[LockFacts]:
    """Every lock that is held, files first, in the order of the volume."""
    reader = volume.reader
    files = [found async for found in _file_records(reader)]
    paths = await find_paths(reader, {address for address, _, _ in files})
    facts = [
        _facts(volume, paths.get(address, f"<file descriptor {address:#010x}>"), offset, data)
        for address, offset, data in files
    ]
    for kind in ResourceKind:
        for cluster, offset, data in await _cluster_records(reader, kind):
            facts.append(_facts(volume, f"{kind.file_name} cluster {cluster}", offset, data))
    return facts


async def lock_of_file(volume: OpenVolume, address: FdAddress, what: str) -> LockFacts:
    """The lock of one file, held or free. Its metadata need not be on the LUN yet.

    Raises:
        CorruptRecord: there is no place for such a file descriptor.
    """
    fdc, parts = volume.reader.resources[ResourceKind.FDC], parse_fd(address)
    if not fdc.header.contains(parts.cluster, parts.resource):
        raise CorruptRecord("file descriptor", address, "address", address, "one in .fdc.sf")
    offset = fdc.resource_lv_offset(parts.cluster, parts.resource)
    return _facts(volume, what, offset, await volume.reader.read(offset, DiskLock.SIZE))


async def find_paths(reader: Reader, wanted: set[FdAddress]) -> dict[FdAddress, str]:
    """A path for each of these files, as far as directories can be read. Breadth first."""
    found: dict[FdAddress, str] = {ROOT_FD: "/"}
    todo: list[tuple[FdAddress, bytes]] = [(ROOT_FD, b"")]
    seen = {ROOT_FD}
    for directory, path in todo:  # grows while it is walked
        if wanted <= found.keys():
            break
        try:
            node = await reader.node(directory)
            entries = await content.entries(reader, node) if node.is_directory else []
        except CorruptRecord:
            continue  # `vmfs check` says what is wrong; here its names are merely missing
        for entry in entries:
            if entry.name in _DOTS or entry.address in seen:
                continue
            seen.add(entry.address)
            full = path + b"/" + entry.name
            found[entry.address] = printable(full)
            todo.append((entry.address, full))
    return found


async def _file_records(
    reader: Reader,
) -> AsyncIterator[tuple[FdAddress, LvOffset, bytes]]:
    """The lock records of all file descriptors that are not free."""
    fdc = reader.resources[ResourceKind.FDC]
    for cluster in range(fdc.header.cluster_count):
        count = fdc.header.cluster_total(cluster)
        start = fdc.header.resource_offset(cluster, 0)
        data = await reader.read_system(fdc.file, start, count * FD_SIZE)
        for index in _held(data, stride=FD_SIZE):
            address = FdAddress(FdAddr(cluster=cluster, resource=index).pack())
            offset = fdc.resource_lv_offset(cluster, index)
            yield address, offset, data[index * FD_SIZE : index * FD_SIZE + DiskLock.SIZE]


async def _cluster_records(reader: Reader, kind: ResourceKind) -> list[tuple[int, LvOffset, bytes]]:
    """The lock records of all clusters of one resource file that are not free."""
    file, found = reader.resources[kind], []
    for clusters in _groups(file):
        start = file.header.cluster_offset(clusters[0])
        data = await reader.read_system(file.file, start, len(clusters) * CLUSTER_HEADER_SIZE)
        for index in _held(data, stride=CLUSTER_HEADER_SIZE):
            at = index * CLUSTER_HEADER_SIZE
            offset = file.cluster_lv_offset(clusters[index])
            found.append((clusters[index], offset, data[at : at + DiskLock.SIZE]))
    return found


def _groups(file: ResourceFile) -> Iterator[range]:
    """Clusters whose headers stand next to one another."""
    step, count = file.header.clusters_per_group, file.header.cluster_count
    for first in range(0, count, step):
        yield range(first, min(first + step, count))


def _held(data: bytes, *, stride: int) -> Sequence[int]:
    """Which of the records in `data`, one every `stride` bytes, are not free."""
    words = np.frombuffer(data, dtype="<u4").reshape(-1, stride // 4)
    found: list[int] = np.flatnonzero(words[:, _MODE_WORD]).tolist()
    return found


def _facts(volume: OpenVolume, what: str, offset: LvOffset, data: bytes) -> LockFacts:
    try:
        record = DiskLock.unpack(data, address=offset)
    except CorruptRecord as error:
        return LockFacts(
            what=what, lv_offset=offset, mode="corrupt", token=0, holders=(), corrupt=str(error)
        )
    holders = tuple(
        _holder(volume.slots.by_offset.get(holder.heartbeat_offset), holder, record)
        for holder in record.all_holders
    )
    return LockFacts(
        what=what,
        lv_offset=offset,
        mode=record.mode.name.lower().replace("_", "-"),
        token=record.token,
        holders=holders,
    )


def _holder(slot: Heartbeat | None, holder: Holder, record: DiskLock) -> HolderFacts:
    """Who a holder is. The record keeps one moment of acquisition: the last holder's."""
    is_there = slot is not None and is_holding(holder, slot)
    info = slot.host if slot is not None and is_there else None
    held = None
    if slot is not None and is_there and record.heartbeat_offset == holder.heartbeat_offset:
        held = max(slot.stamp_us // 1_000_000 - record.acquired_at, 0)
    return HolderFacts(
        host=info.name if info is not None else str(holder.owner),
        pid=info.pid if info is not None else 0,
        slot=slot.index if slot is not None else -1,
        generation=holder.generation,
        is_stale=slot is not None and not is_there,
        held_seconds=held,
    )
