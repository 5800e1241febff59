"""What is in a file: its bytes, its extents, its directory entries, and the way along a path.

The block list of a file is up to three levels deep (docs/format.md); `BlockList` loads it one page
of addresses at a time and keeps the last page and its index, so a file of 64 TiB with one block in
it costs a few thousand steps and no memory.

Contract: as in `reader`: nothing is written, lengths from disk are held against what the pointers
can hold, damage is a `CorruptRecord`.
"""

from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.check.reader import Node, Reader, ResourceKind
from vmfs.errors import CorruptRecord, InvalidArgument, NotADirectory, NotFound, NotSupported
from vmfs.ondisk import address as addresses
from vmfs.ondisk import file_desc, pointer_block
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.file_desc import META_OFFSET, RESIDENT_MAX, FileType, Zla
from vmfs.units import MIB, div_ceil

DIRECTORY_SIZE_MAX: Final = 256 * MIB
"""1.9 million names: more than 130,000 file descriptors can need, and what is read at once."""

LINK_DEPTH_MAX: Final = 40
"""Symbolic links followed in one path, as Linux does."""

LINK_SIZE_MAX: Final = 64 * 1024
"""Bytes of a symbolic link's target that are read: one sub-block of the largest size."""


class ExtentKind(Enum):
    """What stands behind a range of a file."""

    HOLE = "hole"
    """No block: reads as zero."""
    ZERO = "zero"
    """A block that is allocated, but to be zeroed: reads as zero."""
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A range of a file, alike throughout."""

    kind: ExtentKind
    offset: int
    """In the file."""
    length: int
    lv_offset: int = 0
    """Where it stands on the volume; 0 unless it is data."""


_LEVELS: Final = {
    Zla.FB: (AddressType.FB,),
    Zla.SB: (AddressType.SB,),
    Zla.PB: (AddressType.PB, AddressType.FB),
    Zla.PB2: (AddressType.PB2, AddressType.FB),
    Zla.DOUBLE: (AddressType.PB2, AddressType.PB, AddressType.FB),
}


def levels(zla: Zla) -> tuple[AddressType, ...]:
    """The kinds of address on the way from the file descriptor to the data; empty for none.

    Where a second-level block (PB2) is expected, a genuine ESXi volume may have a pointer block of
    the first kind: `.pbc.sf` and `.pb2.sf` hold alike blocks, and the address says which it is.
    """
    return _LEVELS.get(zla, ())


def reach(node: Node) -> int:
    """The most bytes that the file's kind of block list can hold."""
    if node.desc.zla == Zla.RESIDENT:
        return RESIDENT_MAX
    depth = len(levels(node.desc.zla))
    if depth == 0:
        return 0
    blocks = file_desc.POINTER_COUNT
    for _ in range(depth - 1):
        blocks *= pointer_block.POINTER_COUNT
    return blocks * node.desc.block_size


@dataclass(slots=True)
class BlockList:
    """The addresses of one file, page by page (a page is what one index block holds)."""

    reader: Reader
    node: Node
    _path: tuple[AddressType, ...] = field(init=False)
    _kept: dict[int, tuple[int, NDArray[np.uint32]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._path = levels(self.node.desc.zla)

    @property
    def leaf(self) -> AddressType:
        """File blocks or sub-blocks."""
        return self._path[-1]

    @property
    def page_blocks(self) -> int:
        """Blocks that one page covers."""
        return file_desc.POINTER_COUNT if len(self._path) == 1 else pointer_block.POINTER_COUNT

    async def page(self, index: int) -> NDArray[np.uint32] | None:
        """The addresses of page `index`; None when all of it is a hole."""
        pointers = self.node.pointers
        if len(self._path) == 1:
            return pointers if index == 0 else None
        below = pointer_block.POINTER_COUNT ** (len(self._path) - 2)
        at, rest = divmod(index, below)
        if at >= len(pointers):
            return None
        address = int(pointers[at])
        for depth in range(len(self._path) - 1):
            if address == 0:
                return None
            block = await self._index_block(depth, address)
            if depth == len(self._path) - 2:
                return block
            address = int(block[rest])
        return None

    async def _index_block(self, depth: int, address: int) -> NDArray[np.uint32]:
        kept = self._kept.get(depth)
        if kept is None or kept[0] != address:
            _, block = await self.reader.index_block(address)
            kept = (address, block)
            self._kept[depth] = kept
        return kept[1]

    async def extents(self, page: int) -> list[Extent]:
        """The extents of one page, cut off at the end of the file, alike neighbours joined."""
        unit = self.node.desc.block_size
        start = page * self.page_blocks * unit
        length = min(self.node.desc.length - start, self.page_blocks * unit)
        if length <= 0:
            return []
        pointers = await self.page(page)
        if pointers is None:
            return [Extent(kind=ExtentKind.HOLE, offset=start, length=length)]
        pointers = pointers[: div_ceil(length, unit)]
        if self.leaf == AddressType.SB:
            return self._sub_block_extents(pointers, start, length)
        return _file_block_extents(self.reader, pointers, start, length, unit)

    def _sub_block_extents(
        self, pointers: NDArray[np.uint32], start: int, length: int
    ) -> list[Extent]:
        unit, end = self.node.desc.block_size, start + length
        limit = self.reader.resources[ResourceKind.SBC].header.resource_size
        if unit > limit:
            raise CorruptRecord(
                "file descriptor", self.node.lv_offset + META_OFFSET, "block size", unit, limit
            )
        found: list[Extent] = []
        for index, pointer in enumerate(pointers.tolist()):
            offset = start + index * unit
            size = min(unit, end - offset)
            if pointer == 0:
                found.append(Extent(kind=ExtentKind.HOLE, offset=offset, length=size))
                continue
            for lv_offset, piece in self.reader.sub_block_ranges(pointer, size):
                found.append(
                    Extent(kind=ExtentKind.DATA, offset=offset, length=piece, lv_offset=lv_offset)
                )
                offset += piece
        return found


def _file_block_extents(
    reader: Reader, pointers: NDArray[np.uint32], start: int, length: int, unit: int
) -> list[Extent]:
    """Runs of file blocks that are alike and adjacent become one extent each."""
    if unit != reader.block_size:
        raise CorruptRecord("file descriptor", 0, "block size", unit, reader.block_size)
    hole = pointers == 0
    blocks = addresses.fb_blocks(pointers).astype(np.int64)
    wrong = ~hole & (~addresses.fb_mask(pointers) | (blocks >= reader.block_count))
    if wrong.any():
        index = int(wrong.argmax())
        raise CorruptRecord(
            "block list",
            start + index * unit,
            "address",
            int(pointers[index]),
            f"a file block below {reader.block_count:#x}",
        )
    zero = addresses.tbz_mask(pointers)
    kinds = np.where(hole, 0, np.where(zero, 1, 2))
    # A run breaks where the kind changes, or where data do not follow on the volume.
    breaks = np.flatnonzero((np.diff(kinds) != 0) | ((kinds[1:] == 2) & (np.diff(blocks) != 1))) + 1
    names = (ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA)
    edges = [0, *breaks.tolist(), len(pointers)]
    found: list[Extent] = []
    for first, last in pairwise(edges):
        kind = names[int(kinds[first])]
        size = min(last * unit, length) - first * unit
        where = int(blocks[first]) * unit if kind is ExtentKind.DATA else 0
        found.append(Extent(kind=kind, offset=start + first * unit, length=size, lv_offset=where))
    return found


async def read(reader: Reader, node: Node, offset: int, length: int) -> bytes:
    """Read a range of a file; shorter than asked only at its end.

    The caller bounds `length`: it is the size of what is built in memory.

    Raises:
        CorruptRecord: the block list is not valid there.
    """
    require_within_reach(node)
    length = min(length, node.desc.length - offset)
    if length <= 0:
        return b""
    if node.desc.zla == Zla.RESIDENT:
        return node.data[offset : offset + length]
    target = bytearray(length)
    block_list = BlockList(reader, node)
    page_size = block_list.page_blocks * node.desc.block_size
    for page in range(offset // page_size, div_ceil(offset + length, page_size)):
        for extent in await block_list.extents(page):
            start = max(extent.offset, offset)
            end = min(extent.offset + extent.length, offset + length)
            if extent.kind is ExtentKind.DATA and start < end:
                where = extent.lv_offset + start - extent.offset
                target[start - offset : end - offset] = await reader.read(where, end - start)
    return bytes(target)


def require_within_reach(node: Node) -> None:
    """Refuse a length that the block list cannot hold, before anything is built from it."""
    if node.desc.length > reach(node):
        raise CorruptRecord(
            "file descriptor",
            node.lv_offset + META_OFFSET,
            "length",
            node.desc.length,
            f"at most {reach(node):#x} for its kind of block list",
        )


async def entries(reader: Reader, node: Node) -> list[DirEntry]:
    """The names in a directory, in disk order, `.` and `..` included.

    Raises:
        NotADirectory: it is none.
        CorruptRecord: an entry, or the length, is not valid.
    """
    if not node.is_directory:
        raise NotADirectory(f"file descriptor {node.address:#x} is not a directory")
    if node.desc.length > DIRECTORY_SIZE_MAX or node.desc.length % DirEntry.SIZE:
        raise CorruptRecord(
            "file descriptor",
            node.lv_offset + META_OFFSET,
            "length of a directory",
            node.desc.length,
            f"a multiple of {DirEntry.SIZE}, at most {DIRECTORY_SIZE_MAX:#x}",
        )
    data = await read(reader, node, 0, node.desc.length)
    return [
        DirEntry.unpack(data[at : at + DirEntry.SIZE], address=node.lv_offset)
        for at in range(0, len(data), DirEntry.SIZE)
    ]


async def link_target(reader: Reader, node: Node) -> bytes:
    """The text of a symbolic link."""
    assert node.desc.type == FileType.SYMLINK
    return (await read(reader, node, 0, min(node.desc.length, LINK_SIZE_MAX))).rstrip(b"\0")


async def child(reader: Reader, directory: Node, name: bytes) -> Node:
    """Look one name up.

    Raises:
        NotFound: there is no such name.
        CorruptRecord: the name leads to a file descriptor of another generation.
    """
    for entry in await entries(reader, directory):
        if entry.name == name:
            node = await reader.node(entry.address)
            require_same_file(entry, node)
            return node
    raise NotFound(f"there is no {name!r} in that directory")


def require_same_file(entry: DirEntry, node: Node) -> None:
    """Refuse a name that leads to a descriptor which has been freed, or used again, since.

    Raises:
        CorruptRecord: the descriptor is unused, or of another generation.
    """
    if not node.desc.is_used or node.desc.generation != entry.generation:
        raise CorruptRecord(
            "directory entry",
            node.lv_offset + META_OFFSET,
            f"generation of {entry.name!r}",
            node.desc.generation,
            entry.generation,
        )


async def resolve(reader: Reader, path: bytes, *, follow: bool) -> Node:
    """Walk a path from the root.

    Args:
        reader: the volume.
        path: with slashes; a leading one changes nothing.
        follow: whether a symbolic link at the end is followed too.

    Raises:
        NotFound, NotADirectory: the path does not exist.
        InvalidArgument: more than 40 symbolic links.
        NotSupported: a symbolic link leads out of the volume.
    """
    root = await reader.node(file_desc.ROOT_FD)
    trail, todo, links = [root], _parts(path), 0
    while todo:
        name = todo.pop(0)
        if not trail[-1].is_directory:
            raise NotADirectory(f"{printable(path)}: {printable(name)} is looked up in a file")
        if name == b"..":
            trail = trail[:-1] or trail
            continue
        try:
            node = await child(reader, trail[-1], name)
        except NotFound:
            raise NotFound(f"{printable(path)}: there is no {printable(name)}") from None
        if node.desc.type == FileType.SYMLINK and (todo or follow):
            links += 1
            if links > LINK_DEPTH_MAX:
                raise InvalidArgument(f"{printable(path)}: too many symbolic links")
            target, absolute = _inside_volume(reader, await link_target(reader, node))
            trail = [root] if absolute else trail
            todo = _parts(target) + todo
            continue
        trail.append(node)
    return trail[-1]


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _inside_volume(reader: Reader, target: bytes) -> tuple[bytes, bool]:
    """A link's target as a path of this volume, and whether it starts at its root.

    ESXi writes absolute targets as /vmfs/volumes/<label or UUID>/...
    """
    if not target.startswith(b"/"):
        return target, False
    own = (reader.descriptor.label.encode(), str(reader.descriptor.uuid).encode())
    parts = _parts(target)
    if parts[:2] == [b"vmfs", b"volumes"] and len(parts) > 2 and parts[2] in own:
        return b"/".join(parts[3:]), True
    raise NotSupported(f"symbolic link to {printable(target)} leads out of the volume")


def printable(name: bytes) -> str:
    """A name for a terminal: UTF-8 as it is, everything that could steer one escaped."""
    text = name.decode("utf-8", errors="backslashreplace")
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
