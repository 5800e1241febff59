"""Every file descriptor: is it what the bitmap says, and which blocks does it own?

The descriptors of a cluster are read at once. Each that is in use is taken apart, and its block
list is walked down to the last pointer, past the file's length too. What is found goes to
`Ownership` (who owns what) and to `FileFacts` (what `tree` holds names against).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vmfs.check.clusters import Progress
from vmfs.check.content import reach
from vmfs.check.findings import KEPT_PER_CODE_MAX, Findings
from vmfs.check.ownership import Indices, Ownership
from vmfs.check.pointers import PointerWalk, Tally
from vmfs.check.reader import Node, Reader, ResourceKind, is_directory, split_node
from vmfs.check.slots import Slots
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress
from vmfs.ondisk.address import FdAddr
from vmfs.ondisk.disk_lock import LockType
from vmfs.ondisk.file_desc import FD_SIZE, LOCK_SIZE, META_OFFSET, FileDesc, FileType, Zla

_WORDS: Final = FD_SIZE // 4
_LOCK_MODE_WORD: Final = 0x24 // 4
_ADDRESS_WORD: Final = META_OFFSET // 4
_LINKS_WORD: Final = (META_OFFSET + 8) // 4

_OWNERS_NAMED_MAX: Final = 4
"""Owners of one block that a finding names."""


@dataclass(slots=True)
class FileFacts:
    """What the walk of the descriptors learned of a file, and what the names then add."""

    address: FdAddress
    generation: int
    type: FileType
    link_count: int
    is_directory: bool
    name_count: int = 0
    directory_count: int = 0
    """Sub-directories, of a directory."""
    parent: FdAddress | None = None
    name: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _RawFd:
    """A file descriptor worth a look, as its bytes."""

    address: FdAddress
    lv_offset: int
    data: bytes
    is_allocated: bool
    is_known: bool
    """Whether its cluster's bitmap could be read."""
    has_links: bool


@dataclass(slots=True, kw_only=True)
class OwnerWalk:
    """The walk over all file descriptors."""

    reader: Reader
    slots: Slots
    findings: Findings
    owners: Mapping[ResourceKind, Ownership]
    orphans: Mapping[FdAddress, int]
    """Generation of each file that an orphan table names."""
    files: dict[FdAddress, FileFacts] = field(default_factory=dict)
    damaged: set[FdAddress] = field(default_factory=set)
    """Descriptors in use that could not be read: they have their own finding."""

    async def run(self, progress: Progress) -> None:
        """Walk everything once; and once more, to name the owners, if a block has two."""
        await self._first_walk(progress)
        if any(len(ownership.doubly_owned()) for ownership in self.owners.values()):
            await self._second_walk(progress)

    async def _first_walk(self, progress: Progress) -> None:
        sink = _Claiming(self.owners)
        for cluster in range(self._cluster_count):
            progress("file descriptors", cluster, self._cluster_count)
            for raw in await self._load_cluster(cluster):
                self.slots.check_lock(
                    raw.data[:LOCK_SIZE],
                    address=raw.lv_offset,
                    expected=LockType.FILE_DESC,
                    fd=raw.address,
                )
                node = self._examine(raw)
                if node is not None:
                    await self._check_blocks(node, sink)

    async def _second_walk(self, progress: Progress) -> None:
        sink = _Naming(self.owners)
        for cluster in range(self._cluster_count):
            progress("owners of doubly owned blocks", cluster, self._cluster_count)
            for raw in await self._load_cluster(cluster):
                if raw.address not in self.files:
                    continue
                node = split_node(raw.data, lv_offset=raw.lv_offset, address=raw.address)
                sink.owner = raw.address
                await PointerWalk(
                    reader=self.reader,
                    node=node,
                    sink=sink,
                    report_bad=lambda text, at: None,  # the first walk has said it
                    tally=Tally(),
                ).run()
        for (kind, index), named in sink.named.items():
            file = self.reader.resources[kind]
            if kind is ResourceKind.FBB:
                place = index * self.reader.block_size
            else:
                place = file.resource_lv_offset(*file.place_of(index))
            who = ", ".join(f"{owner:#x}" for owner in named)
            text = f"{kind.noun} {index:#x} is owned by file descriptors {who}"
            self.findings.add("block-doubly-owned", text, address=place, fd=named[-1])
        total = sum(len(ownership.doubly_owned()) for ownership in self.owners.values())
        self.findings.add_untold("block-doubly-owned", total - len(sink.named))

    @property
    def _cluster_count(self) -> int:
        return self.reader.resources[ResourceKind.FDC].header.cluster_count

    async def _load_cluster(self, cluster: int) -> list[_RawFd]:
        fdc, ownership = self.reader.resources[ResourceKind.FDC], self.owners[ResourceKind.FDC]
        count = fdc.header.cluster_total(cluster)
        start = fdc.header.resource_offset(cluster, 0)
        data = await self.reader.read_system(fdc.file, start, count * FD_SIZE)
        words = np.frombuffer(data, dtype="<u4").reshape(count, _WORDS)
        first = fdc.index_of(cluster, 0)
        allocated = ownership.allocated_mask(first, count)
        own = (np.arange(count, dtype=np.uint32) << np.uint32(22)) | np.uint32(cluster << 6 | 4)
        linked = (
            (words[:, 0] == LockType.FILE_DESC)
            & (words[:, _ADDRESS_WORD] == own)
            & (words[:, _LINKS_WORD] != 0)
        )
        locked = (words[:, 0] == LockType.FILE_DESC) & (words[:, _LOCK_MODE_WORD] != 0)
        return [
            _RawFd(
                address=FdAddr(cluster=cluster, resource=resource).pack(),
                lv_offset=fdc.resource_lv_offset(cluster, resource),
                data=data[resource * FD_SIZE : (resource + 1) * FD_SIZE],
                is_allocated=bool(allocated[resource]),
                is_known=not ownership.is_unknown(first + resource),
                has_links=bool(linked[resource]),
            )
            for resource in np.flatnonzero(allocated | linked | locked).tolist()
        ]

    def _examine(self, raw: _RawFd) -> Node | None:
        """Take one descriptor apart; None when nobody uses it, or it cannot be read."""
        if not raw.is_allocated and not raw.has_links:
            return None  # free, and was looked at for its lock alone
        try:
            node = split_node(raw.data, lv_offset=raw.lv_offset, address=raw.address)
        except CorruptRecord as error:
            self._add("fd-corrupt", str(error), raw)
            self.damaged.add(raw.address)
            return None
        desc = node.desc
        if not raw.is_allocated and raw.is_known:
            text = f"it has {desc.link_count} links, but is marked free in .fdc.sf"
            self._add("fd-not-allocated", text, raw)
        if raw.is_allocated and not desc.is_used:
            if self.orphans.get(raw.address) == desc.generation:
                self._add("orphan-pending", "it has no name any more, and is to be freed", raw)
            else:
                self._add("fd-empty", "it is marked used in .fdc.sf, but has no links", raw)
        self.files[raw.address] = FileFacts(
            address=raw.address,
            generation=desc.generation,
            type=desc.type,
            link_count=desc.link_count,
            is_directory=is_directory(desc),
        )
        return node

    def _add(self, code: str, text: str, raw: _RawFd) -> None:
        self.findings.add(code, text, address=raw.lv_offset + META_OFFSET, fd=raw.address)

    async def _check_blocks(self, node: Node, sink: "_Claiming") -> None:
        def add(code: str, text: str, at: int = node.lv_offset + META_OFFSET) -> None:
            self.findings.add(code, text, address=at, fd=node.address)

        desc = node.desc
        for text in block_size_problems(self.reader, desc):
            add("fd-corrupt", text)
        tally = await PointerWalk(
            reader=self.reader,
            node=node,
            sink=sink,
            report_bad=lambda text, at: add("pointer-bad", text, at),
            tally=Tally(),
        ).run()
        if not desc.is_used:
            return  # its counts are in flux while it is being freed
        pending = self.orphans.get(node.address) == desc.generation
        if pending:
            add("orphan-pending", "blocks past its length are to be freed")
        if desc.zla != Zla.NONE and desc.length > reach(node):
            add("fd-length", f"length {desc.length:#x}, but its pointers reach {reach(node):#x}")
        if tally.beyond_length and not pending:
            add("pointer-beyond-length", f"{tally.beyond_length} blocks past {desc.length:#x}")
        if not tally.is_complete:
            return
        if desc.allocated_blocks != tally.blocks:
            add("fd-block-count", f"says {desc.allocated_blocks} blocks, points to {tally.blocks}")
        if desc.tbz_blocks != tally.tbz_blocks:
            add("fd-tbz-count", f"says {desc.tbz_blocks} to be zeroed, has {tally.tbz_blocks}")


def block_size_problems(reader: Reader, desc: FileDesc) -> Iterator[str]:
    """What is wrong with the block size of a file that has blocks: it must be its resource's."""
    if desc.zla in (Zla.FB, Zla.PB, Zla.PB2, Zla.DOUBLE):
        expected = reader.block_size
    elif desc.zla == Zla.SB:
        expected = reader.resources[ResourceKind.SBC].header.resource_size
    else:
        return
    if desc.block_size != expected:
        yield f"block size is {desc.block_size:#x}, expected {expected:#x} for {desc.zla.name}"


class _Claiming:
    """The first walk's sink."""

    def __init__(self, owners: Mapping[ResourceKind, Ownership]) -> None:
        self._owners = owners

    def claim(self, kind: ResourceKind, indices: Indices) -> None:
        """Note one more owner of each."""
        self._owners[kind].claim(indices)

    def enter(self, kind: ResourceKind, index: int) -> bool:
        """Only the first owner of a pointer block walks it."""
        return not self._owners[kind].is_claimed(index)


class _Naming:
    """The second walk's sink: who owns what was claimed twice, for as many as will be shown."""

    def __init__(self, owners: Mapping[ResourceKind, Ownership]) -> None:
        self._owners = owners
        self._entered: set[tuple[ResourceKind, int]] = set()
        self.owner = FdAddress(0)
        self.named: dict[tuple[ResourceKind, int], list[FdAddress]] = defaultdict(list)

    def claim(self, kind: ResourceKind, indices: Indices) -> None:
        """Note the file that is being walked as an owner of what has several."""
        for index in self._owners[kind].claimed_twice(indices).tolist():
            key = kind, index
            if key not in self.named and len(self.named) >= KEPT_PER_CODE_MAX:
                return
            if len(self.named[key]) < _OWNERS_NAMED_MAX:
                self.named[key].append(self.owner)

    def enter(self, kind: ResourceKind, index: int) -> bool:
        """Each pointer block once, as in the first walk."""
        key = kind, index
        known = key in self._entered
        self._entered.add(key)
        return not known
