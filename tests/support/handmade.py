"""A volume with every kind of file on it, written record by record: no filesystem code involved.

The tests of `check` and of the reading commands need files whose every byte is known to them, and
that do not change when the filesystem learns something. Names and contents are in `HandMade.files`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from tests.support.build import TIME, build_volume, tiny_request
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.device.window import Window
from vmfs.ids import FdAddress, LvOffset
from vmfs.mkfs import Plan, Request
from vmfs.ondisk.address import FbAddress, FdAddr, Pb2Address, PbAddress, SbAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import DiskLock, LockType
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    ROOT_FD,
    SBC_FD,
    FileDesc,
    FileType,
    Zla,
    pack_pointers,
)
from vmfs.ondisk.resource import ClusterMeta
from vmfs.units import GIB, KIB, MIB

_SUB_BLOCK: Final = 8 * KIB
_SHIFT: Final = {MIB: 20, _SUB_BLOCK: 13}


@dataclass(slots=True, kw_only=True)
class Made:
    """One file that was made."""

    address: FdAddress
    desc: FileDesc
    blocks: dict[int, int]
    """Index of the block in the file, and its packed address."""
    entries: list[DirEntry] = field(default_factory=list)
    """Names, of a directory."""


@dataclass(slots=True)
class HandMade:
    """A volume, and what was put on it. Make one with `build_handmade`."""

    lun: MemoryDevice
    lv: Window
    plan: Plan
    taken: dict[FdAddress, int]
    """How many resources of each resource file are in use: always the first ones."""
    made: dict[str, Made] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of the small files, by path."""

    def fd_offset(self, path: str) -> LvOffset:
        """LV offset of a file's lock record."""
        return self.plan.geometry.fd_offset(self.made[path].address)

    def cluster_offset(self, kind: FdAddress, cluster: int) -> LvOffset:
        """LV offset of a cluster's lock record."""
        header = self.plan.geometry.resource_header(kind)
        return self.plan.geometry.file(kind).lv_offset(header.cluster_offset(cluster))

    def resource_offset(self, kind: FdAddress, index: int) -> LvOffset:
        """LV offset of a resource's body."""
        header = self.plan.geometry.resource_header(kind)
        cluster, resource = divmod(index, header.resources_per_cluster)
        offset = header.resource_offset(cluster, resource)
        return self.plan.geometry.file(kind).lv_offset(offset)

    def entry_offset(self, path: str, index: int) -> LvOffset:
        """LV offset of an entry of a directory that has one block."""
        address = self.made[path].blocks[0]
        if address & 7 == 1:
            return LvOffset((address >> 6) * MIB + index * DirEntry.SIZE)
        resource = (address >> 28) | (address >> 3 & 3) << 4
        start = self.resource_offset(SBC_FD, (address >> 6 & 0x3FFFFF) * 64 + resource)
        return LvOffset(start + index * DirEntry.SIZE)

    async def patch(self, offset: int, data: bytes) -> None:
        """Overwrite bytes of the logical volume."""
        await self.lv.write(offset, data)

    async def rewrite(self, path: str, **changes: object) -> None:
        """Write a file's metadata again with some fields changed."""
        desc = replace(self.made[path].desc, **changes)  # type: ignore[arg-type]
        await self.lv.write(self.fd_offset(path) + 512, desc.pack())

    def take(self, kind: FdAddress) -> int:
        """Take the next resource."""
        index = self.taken[kind]
        self.taken[kind] += 1
        return index

    def take_block(self, *, tbz: bool = False) -> int:
        """Take a file block; returns its packed address."""
        return FbAddress(block=self.take(FBB_FD), tbz=tbz).pack()

    def take_sub_block(self) -> int:
        """Take a sub-block; returns its packed address."""
        cluster, resource = divmod(self.take(SBC_FD), 64)
        return SbAddress(cluster=cluster, resource=resource).pack()

    async def add(
        self,
        path: str,
        *,
        kind: FileType = FileType.FILE,
        zla: Zla = Zla.RESIDENT,
        length: int = 0,
        blocks: dict[int, bytes | None] | None = None,
    ) -> Made:
        """Put a file on the volume. It gets its name in `finish`.

        Args:
            path: where it will be.
            kind: of file.
            zla: of its block list.
            length: bytes.
            blocks: content by block index; None for a block that is to be zeroed.
        """
        cluster, resource = divmod(self.take(FDC_FD), 200)
        address = FdAddr(cluster=cluster, resource=resource).pack()
        unit = _SUB_BLOCK if zla in (Zla.RESIDENT, Zla.SB) else MIB
        placed: dict[int, int] = {}
        data = b""
        if zla == Zla.RESIDENT:
            data = (blocks or {}).get(0) or b""
        else:
            for index, body in (blocks or {}).items():
                placed[index] = await self._place(zla, body)
        desc = FileDesc(
            address=address,
            generation=100 + len(self.made),
            link_count=2 if kind == FileType.DIRECTORY else 1,
            type=kind,
            length=length,
            block_size=unit,
            allocated_blocks=len(placed),
            mtime=TIME,
            ctime=TIME,
            atime=TIME,
            mode=0o755 if kind == FileType.DIRECTORY else 0o644,
            zla=zla,
            tbz_blocks=sum(body is None for body in (blocks or {}).values()),
            affinity_fd=address,
            tbz_shift=_SHIFT[unit],
            block_shift=_SHIFT[unit],
        )
        made = self.made[path] = Made(address=address, desc=desc, blocks=placed)
        area = data.ljust(1024, b"\0") if zla == Zla.RESIDENT else await self._map(zla, placed)
        lock = DiskLock(type=LockType.FILE_DESC, lv_offset=self.fd_offset(path), token=1)
        await self.lv.write(self.fd_offset(path), lock.pack() + desc.pack() + area)
        return made

    async def _place(self, zla: Zla, body: bytes | None) -> int:
        if zla == Zla.SB:
            address = self.take_sub_block()
            assert body is not None
            await self.lv.write(self.resource_offset(SBC_FD, self.taken[SBC_FD] - 1), body)
            return address
        address = self.take_block(tbz=body is None)
        if body is not None:
            await self.lv.write((address >> 6) * MIB, body)
        else:
            await self.lv.write((address >> 6) * MIB, b"old data that nobody may see")
        return address

    async def _map(self, zla: Zla, placed: dict[int, int]) -> bytes:
        """Write pointer blocks as needed; returns the data area."""
        if zla in (Zla.FB, Zla.SB):
            pointers = np.zeros(256, dtype=np.uint32)
            for index, address in placed.items():
                pointers[index] = address
            return pack_pointers(pointers)
        level = await self._pointer_blocks(PBC_FD, placed)
        if zla == Zla.DOUBLE:
            level = await self._pointer_blocks(PB2_FD, level)
        pointers = np.zeros(256, dtype=np.uint32)
        for index, address in level.items():
            pointers[index] = address
        return pack_pointers(pointers)

    async def _pointer_blocks(self, kind: FdAddress, below: dict[int, int]) -> dict[int, int]:
        level: dict[int, int] = {}
        for top in sorted({index // 1024 for index in below}):
            block = np.zeros(1024, dtype="<u4")
            for index, address in below.items():
                if index // 1024 == top:
                    block[index % 1024] = address
            number = self.take(kind)
            cluster, resource = divmod(number, 16)
            await self.lv.write(self.resource_offset(kind, number), block.tobytes())
            made = PbAddress if kind == PBC_FD else Pb2Address
            level[top] = made(cluster=cluster, resource=resource).pack()
        return level

    async def finish(self, names: dict[str, str]) -> None:
        """Write directories and bitmaps.

        Args:
            names: path of each name, and the path that the file was added under.
        """
        root = self.made["/"]
        for path, target in {**{path: path for path in self.made if path != "/"}, **names}.items():
            parent = self.made[path.rpartition("/")[0] or "/"]
            made = self.made[target]
            parent.entries.append(_entry(path.rpartition("/")[2].encode(), made))
            if made.desc.type == FileType.DIRECTORY:
                dots = [_entry(b".", made), _entry(b"..", parent)]
                made.entries[:0] = dots
                parent.desc = replace(parent.desc, link_count=parent.desc.link_count + 1)
            elif path in names:
                made.desc = replace(made.desc, link_count=made.desc.link_count + 1)
        del root
        for path, made in self.made.items():
            if made.desc.type == FileType.DIRECTORY:
                data = b"".join(entry.pack() for entry in made.entries)
                made.desc = replace(made.desc, length=len(data))
                await self.lv.write(self.entry_offset(path, 0), data)
            await self.lv.write(self.fd_offset(path) + 512, made.desc.pack())
        for kind in (FBB_FD, FDC_FD, PBC_FD, SBC_FD, PB2_FD):
            await self._write_bitmaps(kind)

    async def _write_bitmaps(self, kind: FdAddress) -> None:
        header, taken = self.plan.geometry.resource_header(kind), self.taken[kind]
        for cluster in range(header.cluster_count):
            total = header.cluster_total(cluster)
            used = min(max(taken - cluster * header.resources_per_cluster, 0), total)
            bits = ((1 << total) - 1) >> used << used
            meta = ClusterMeta.with_bits(number=cluster, total=total, free_bits=bits)
            await self.lv.write(self.cluster_offset(kind, cluster) + 512, meta.pack())


def _entry(name: bytes, made: Made) -> DirEntry:
    return DirEntry(
        type=made.desc.type, address=made.address, generation=made.desc.generation, name=name
    )


def pattern(seed: int, length: int) -> bytes:
    """Bytes without zeroes or a short period, different for each seed."""
    values = (np.arange(length, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed)) >> 11
    return (values % np.uint32(255) + np.uint32(1)).astype(np.uint8).tobytes()


async def empty_handmade(request: Request | None = None) -> HandMade:
    """A fresh volume, with its root directory taken apart."""
    lun, plan = await build_volume(request or tiny_request())
    lv = await find_lv(lun)
    geometry = plan.geometry
    volume = HandMade(
        lun,
        lv,
        plan,
        taken={
            FBB_FD: geometry.used_blocks,
            FDC_FD: len(geometry.files),
            PBC_FD: 0,
            SBC_FD: 0,
            PB2_FD: 0,
        },
    )
    at = geometry.fd_offset(ROOT_FD)
    desc = FileDesc.unpack(await lv.read(at + 512, 512), address=at + 512)
    block = int.from_bytes(await lv.read(at + 1024, 4), "little")
    names = await lv.read((block >> 6) * MIB, desc.length)
    entries = [
        DirEntry.unpack(names[start : start + DirEntry.SIZE], address=start)
        for start in range(0, len(names), DirEntry.SIZE)
    ]
    volume.made["/"] = Made(address=ROOT_FD, desc=desc, blocks={0: block}, entries=entries)
    return volume


async def build_handmade(request: Request | None = None) -> HandMade:
    """A volume with one file of each kind."""
    volume = await empty_handmade(request)
    small = {
        "/resident": pattern(1, 700),
        "/sub": pattern(2, 5000),
        "/three": pattern(3, 2 * MIB + 4321),
        "/dir/one": pattern(4, 10),
    }
    volume.files.update(small)
    await volume.add("/resident", length=700, blocks={0: small["/resident"]})
    await volume.add("/sub", zla=Zla.SB, length=5000, blocks={0: small["/sub"]})
    three = small["/three"]
    await volume.add(
        "/three",
        zla=Zla.FB,
        length=len(three),
        blocks={index: three[index * MIB : (index + 1) * MIB] for index in range(3)},
    )
    await volume.add(
        "/sparse",
        zla=Zla.PB,
        length=300 * MIB,
        blocks={0: pattern(5, MIB), 7: None, 290: pattern(6, MIB)},
    )
    await volume.add(
        "/huge", zla=Zla.DOUBLE, length=300 * GIB, blocks={260 * 1024: pattern(7, MIB)}
    )
    await volume.add("/dir", kind=FileType.DIRECTORY, zla=Zla.SB, blocks={0: bytes(_SUB_BLOCK)})
    await volume.add("/dir/one", length=10, blocks={0: small["/dir/one"]})
    await volume.add("/dir/deep", kind=FileType.DIRECTORY, zla=Zla.FB, blocks={0: bytes(MIB)})
    await volume.add("/link", kind=FileType.SYMLINK, length=7, blocks={0: b"dir/one"})
    await volume.finish({"/dir/hard": "/sub"})
    volume.files["/dir/hard"] = small["/sub"]
    return volume


async def save(lun: MemoryDevice, path: Path) -> None:
    """Write a LUN into an image file, sparse: for commands, which take a path."""
    step = MIB
    with path.open("wb") as image:
        image.truncate(lun.size)
        for offset in range(0, lun.size, step):
            data = await lun.read(offset, min(step, lun.size - offset))
            if data.count(0) != len(data):
                image.seek(offset)
                image.write(data)
