"""The plan of a volume: how many of everything, and which blocks every system file gets.

    block 0      .vh.sf      4 MiB: reserve, FS descriptor, heartbeats
    block 4      .fdc.sf     its first block: readers begin here
    block 5      root directory
    block 6      .fbb.sf     one cluster header for every R file blocks
    ...          .fdc.sf     the rest of the file descriptors
    ...          .pbc.sf  .sbc.sf  .pb2.sf  .sdd.sf
    ...          .vlj.sf     journals, one region for each heartbeat slot that we use
    ...          free

This is the order of ESXi's own mkfs. Readers demand that system files are direct (ZLA 1), so that
none has more than 256 blocks; that is where the limits of VMFS-5 come from. Regions are adjacent
and disjoint, which `Geometry` asserts of every plan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from vmfs.errors import InvalidArgument
from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FD_SIZE,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    POINTER_COUNT,
    ROOT_FD,
    SBC_FD,
    SDD_FD,
    VH_FD,
    VLJ_FD,
)
from vmfs.ondisk.heartbeat import HEARTBEAT_REGION, SLOT_COUNT, SLOT_SIZE
from vmfs.ondisk.pointer_block import SIZE as POINTER_BLOCK_SIZE
from vmfs.ondisk.resource import FIRST_GROUP, ResourceHeader
from vmfs.units import GIB, KIB, MIB, TIB, align_up, div_ceil, format_size

BLOCK_SIZE: Final = MIB
SUB_BLOCK_SIZE: Final = 8 * KIB
CLUSTERS_PER_GROUP: Final = 64
SYSTEM_FILE_BLOCKS_MAX: Final = POINTER_COUNT
FB_PER_CLUSTER: Final = 200
SB_PER_CLUSTER: Final = 64
PB_PER_CLUSTER: Final = 16
FD_PER_CLUSTER: Final = 200
FB_PER_CLUSTER_MAX: Final = 512

FDC_OFFSET: Final = LvOffset(4 * MIB)
FILES_MIN: Final = FD_PER_CLUSTER
HOSTS_MAX: Final = SYSTEM_FILE_BLOCKS_MAX
JOURNAL_SIZE_SMALL: Final = MIB
JOURNAL_SIZE_LARGE: Final = 4 * MIB
LARGE_VOLUME: Final = 64 * GIB

_VH_BLOCKS: Final = 4
_DEFAULT_FILES: Final = 20352

assert HEARTBEAT_REGION + SLOT_COUNT * SLOT_SIZE == _VH_BLOCKS * BLOCK_SIZE == FDC_OFFSET


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRun:
    """Adjacent file blocks of the volume."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """The block after the last."""
        return self.start + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFile:
    """A file that mkfs makes, the root directory among them."""

    name: str  # "" for the root
    address: FdAddress
    length: int
    runs: tuple[BlockRun, ...]

    @property
    def block_count(self) -> int:
        """File blocks that it owns."""
        return sum(run.count for run in self.runs)

    def blocks(self) -> list[int]:
        """Its block numbers, in file order."""
        return [block for run in self.runs for block in range(run.start, run.end)]

    def lv_offset(self, file_offset: int) -> LvOffset:
        """Where a byte of the file stands."""
        index, within = divmod(file_offset, BLOCK_SIZE)
        for run in self.runs:
            if index < run.count:
                return LvOffset((run.start + index) * BLOCK_SIZE + within)
            index -= run.count
        raise AssertionError(f"{self.name}: byte {file_offset:#x} lies behind its end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many of everything a volume shall have. They are fixed when it is made."""

    files: int  # file descriptors, the system files' own among them
    sub_blocks: int
    pointer_blocks: int
    pointer_blocks_2: int
    hosts: int  # journals, so also usable heartbeat slots
    journal_size: int  # bytes of one journal region

    @classmethod
    def default(
        cls, block_count: int, *, files: int | None = None, hosts: int | None = None
    ) -> Self:
        """What suits a volume of so many file blocks; `files` and `hosts` where someone asked.

        Raises:
            InvalidArgument: more files or hosts than the format (or we) can have.
        """
        size = block_count * BLOCK_SIZE
        if files is None:
            files = _DEFAULT_FILES if size < TIB else 65536 if size < 8 * TIB else files_max()
        if not FILES_MIN <= files <= files_max():
            raise InvalidArgument(
                f"--files {files}: a volume holds {FILES_MIN} to {files_max()} files"
            )
        if hosts is None:
            hosts = 16 if size < LARGE_VOLUME else 32
        if not 1 <= hosts <= HOSTS_MAX:
            raise InvalidArgument(f"--hosts {hosts}: a volume serves 1 to {HOSTS_MAX} hosts")
        wanted = JOURNAL_SIZE_SMALL if size < LARGE_VOLUME else JOURNAL_SIZE_LARGE
        fitting = SYSTEM_FILE_BLOCKS_MAX // hosts * BLOCK_SIZE
        return cls(
            files=files,
            sub_blocks=min(max(block_count * 4, 1024), _sub_blocks_max()),
            pointer_blocks=min(max(block_count * 4, 4096), _pointer_blocks_max()),
            pointer_blocks_2=256 if size < 4 * TIB else 1024,
            hosts=hosts,
            journal_size=min(wanted, fitting),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Everything that follows from a volume's size and limits."""

    block_count: int  # file blocks of the logical volume
    limits: Limits
    fbb: ResourceHeader
    fdc: ResourceHeader
    sbc: ResourceHeader
    pbc: ResourceHeader
    pb2: ResourceHeader
    files: tuple[SystemFile, ...]  # by FD address: index n is FD (cluster 0, resource n)
    used_blocks: int  # blocks from 0 on that system files own

    @classmethod
    def plan(cls, lv_size: int, limits: Limits) -> Self:
        """Lay a volume out.

        Args:
            lv_size: bytes of the logical volume, whole blocks.
            limits: how many of everything.

        Raises:
            InvalidArgument: the system files leave no room for others.
        """
        assert lv_size % BLOCK_SIZE == 0, "a volume is whole blocks"
        block_count = lv_size // BLOCK_SIZE
        headers = {
            FBB_FD: fbb_header(block_count),
            FDC_FD: _fdc_header(limits.files),
            PBC_FD: _pbc_header(limits.pointer_blocks),
            SBC_FD: _sbc_header(limits.sub_blocks),
            PB2_FD: _pbc_header(limits.pointer_blocks_2),
        }
        files, used = _place(headers, journals=limits.hosts * limits.journal_size)
        if used >= block_count:
            raise InvalidArgument(
                f"a volume of {format_size(lv_size)} has no room for its own metadata of "
                f"{format_size(used * BLOCK_SIZE)}: ask for fewer files or hosts"
            )
        geometry = cls(
            block_count=block_count,
            limits=limits,
            fbb=headers[FBB_FD],
            fdc=headers[FDC_FD],
            sbc=headers[SBC_FD],
            pbc=headers[PBC_FD],
            pb2=headers[PB2_FD],
            files=files,
            used_blocks=used,
        )
        geometry.check_invariants()
        return geometry

    def file(self, address: FdAddress) -> SystemFile:
        """The system file with that FD address."""
        return next(file for file in self.files if file.address == address)

    def resource_header(self, address: FdAddress) -> ResourceHeader:
        """The header of that resource file."""
        return {
            FBB_FD: self.fbb,
            FDC_FD: self.fdc,
            PBC_FD: self.pbc,
            SBC_FD: self.sbc,
            PB2_FD: self.pb2,
        }[address]

    def fd_offset(self, address: FdAddress) -> LvOffset:
        """Where that file descriptor's lock record stands."""
        cluster, resource = address >> 6 & 0xFFFF, address >> 22
        return self.file(FDC_FD).lv_offset(self.fdc.resource_offset(cluster, resource))

    def check_invariants(self) -> None:
        """Regions adjacent and disjoint, system files direct, the boot block complete."""
        runs = sorted((run for file in self.files for run in file.runs), key=lambda r: r.start)
        end = 0
        for run in runs:
            assert run.start == end, f"block {run.start}: gap or overlap, expected {end}"
            end = run.end
        assert end == self.used_blocks < self.block_count
        for index, file in enumerate(self.files):
            assert file.address == index << 22 | 4, f"{file.name} is not FD {index}"
            assert file.block_count <= SYSTEM_FILE_BLOCKS_MAX, f"{file.name} is not direct"
            assert file.length <= file.block_count * BLOCK_SIZE, f"{file.name} is too short"
        # vmfs-tools and dissect.vmfs find everything from the first block of .fdc.sf
        boot = self.fdc.resource_offset(0, 0) + len(self.files) * FD_SIZE
        assert boot <= BLOCK_SIZE, "the first FDC block lacks system files"
        assert self.file(FDC_FD).lv_offset(0) == FDC_OFFSET


def fbb_header(block_count: int) -> ResourceHeader:
    """The bitmap of the volume's own blocks: 200 to a cluster unless it would get too long.

    Raises:
        InvalidArgument: not even the largest cluster makes it fit.
    """
    room = SYSTEM_FILE_BLOCKS_MAX * BLOCK_SIZE - FIRST_GROUP
    clusters_max = room // (CLUSTERS_PER_GROUP * KIB) * CLUSTERS_PER_GROUP
    per_cluster = max(FB_PER_CLUSTER, align_up(div_ceil(block_count, clusters_max), 8))
    if per_cluster > FB_PER_CLUSTER_MAX:
        raise InvalidArgument(f"{block_count} file blocks are more than one volume can have")
    return ResourceHeader.plan(
        resources_per_cluster=per_cluster,
        resource_size=0,
        total=block_count,
        clusters_per_group=CLUSTERS_PER_GROUP,
    )


def files_max() -> int:
    """File descriptors that a direct .fdc.sf holds."""
    return _largest(_fdc_header)


def _sub_blocks_max() -> int:
    return _largest(_sbc_header)


def _pointer_blocks_max() -> int:
    return _largest(_pbc_header)


def _fdc_header(total: int) -> ResourceHeader:
    return ResourceHeader.plan(
        resources_per_cluster=FD_PER_CLUSTER,
        resource_size=FD_SIZE,
        total=total,
        clusters_per_group=CLUSTERS_PER_GROUP,
    )


def _sbc_header(total: int) -> ResourceHeader:
    return ResourceHeader.plan(
        resources_per_cluster=SB_PER_CLUSTER,
        resource_size=SUB_BLOCK_SIZE,
        total=total,
        clusters_per_group=CLUSTERS_PER_GROUP,
    )


def _pbc_header(total: int) -> ResourceHeader:
    return ResourceHeader.plan(
        resources_per_cluster=PB_PER_CLUSTER,
        resource_size=POINTER_BLOCK_SIZE,
        total=total,
        clusters_per_group=CLUSTERS_PER_GROUP,
    )


def _largest(header: Callable[[int], ResourceHeader]) -> int:
    """The most resources of that kind that fit 256 blocks."""
    low, high = 1, SYSTEM_FILE_BLOCKS_MAX * BLOCK_SIZE // header(1).resource_size
    while low < high:
        middle = (low + high + 1) // 2
        if header(middle).file_size <= SYSTEM_FILE_BLOCKS_MAX * BLOCK_SIZE:
            low = middle
        else:
            high = middle - 1
    return low


def _place(
    headers: dict[FdAddress, ResourceHeader], *, journals: int
) -> tuple[tuple[SystemFile, ...], int]:
    """Give every system file its blocks, in the order of the picture above."""
    size = {address: header.file_size for address, header in headers.items()}
    end = 0

    def run(length: int) -> BlockRun:
        nonlocal end
        placed = BlockRun(start=end, count=div_ceil(length, BLOCK_SIZE))
        end = placed.end
        return placed

    vh = run(_VH_BLOCKS * BLOCK_SIZE)
    fdc_first, root, fbb = run(BLOCK_SIZE), run(BLOCK_SIZE), run(size[FBB_FD])
    fdc_rest = run(max(size[FDC_FD] - BLOCK_SIZE, 0))
    pbc, sbc, pb2 = run(size[PBC_FD]), run(size[SBC_FD]), run(size[PB2_FD])
    sdd, vlj = run(BLOCK_SIZE), run(journals)
    fdc_runs = (fdc_first, fdc_rest) if fdc_rest.count else (fdc_first,)
    placed: list[tuple[str, FdAddress, int, tuple[BlockRun, ...]]] = [
        ("", ROOT_FD, 0, (root,)),
        (".fbb.sf", FBB_FD, size[FBB_FD], (fbb,)),
        (".fdc.sf", FDC_FD, size[FDC_FD], fdc_runs),
        (".pbc.sf", PBC_FD, size[PBC_FD], (pbc,)),
        (".sbc.sf", SBC_FD, size[SBC_FD], (sbc,)),
        (".vh.sf", VH_FD, _VH_BLOCKS * BLOCK_SIZE, (vh,)),
        (".pb2.sf", PB2_FD, size[PB2_FD], (pb2,)),
        (".sdd.sf", SDD_FD, 0, (sdd,)),
        (".vlj.sf", VLJ_FD, journals, (vlj,)),
    ]
    files = tuple(
        SystemFile(name=name, address=address, length=length, runs=runs)
        for name, address, length, runs in placed
    )
    return files, end
