"""The plan of a volume, for every size, and the bulk writers against the records themselves."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import TINY_LIMITS
from vmfs.errors import InvalidArgument
from vmfs.ids import LvOffset
from vmfs.ondisk import bulk, fresh, layout
from vmfs.ondisk.disk_lock import DiskLock, LockType
from vmfs.ondisk.file_desc import FDC_FD, PBC_FD, ROOT_FD, SBC_FD, VLJ_FD
from vmfs.ondisk.layout import BLOCK_SIZE, Geometry, Limits
from vmfs.ondisk.lvm import EXTENT_SIZE, LV_START, ExtentEntry
from vmfs.ondisk.resource import ClusterMeta
from vmfs.units import GIB, MIB, TIB

EXTENT_BLOCKS = EXTENT_SIZE // BLOCK_SIZE


def plan(lv_size: int, **asked: int | None) -> Geometry:
    return Geometry.plan(lv_size, Limits.default(lv_size // BLOCK_SIZE, **asked))


@given(st.integers(3, 262143))
def test_every_size_can_be_laid_out(extents: int) -> None:
    geometry = plan(extents * EXTENT_SIZE)  # check_invariants runs inside

    assert geometry.used_blocks < geometry.block_count // 4
    assert 200 <= geometry.fbb.resources_per_cluster <= 264
    assert geometry.fbb.cluster_count * geometry.fbb.resources_per_cluster >= geometry.block_count


@given(
    st.integers(1, 600),
    st.integers(200, 130688),
    st.integers(1, 256),
)
def test_any_limits_can_be_laid_out_or_are_refused(extents: int, files: int, hosts: int) -> None:
    try:
        geometry = plan(extents * EXTENT_SIZE, files=files, hosts=hosts)
    except InvalidArgument as error:
        assert "no room" in str(error)  # noqa: PT017 - only some examples raise
        assert extents <= 8
        return

    assert geometry.fdc.total == files
    assert geometry.file(VLJ_FD).length == hosts * geometry.limits.journal_size


def test_system_files_stand_where_esxi_puts_them() -> None:
    limits = Limits(
        files=20352,
        sub_blocks=8192,
        pointer_blocks=64512,
        pointer_blocks_2=256,
        hosts=16,
        journal_size=MIB,
    )

    geometry = Geometry.plan(2 * GIB, limits)

    starts = {file.name: [run.start for run in file.runs] for file in geometry.files}
    assert starts == {
        "": [5],
        ".fbb.sf": [6],
        ".fdc.sf": [4, 7],
        ".pbc.sf": [46],
        ".sbc.sf": [302],
        ".vh.sf": [0],
        ".pb2.sf": [367],
        ".sdd.sf": [369],
        ".vlj.sf": [370],
    }
    assert geometry.fd_offset(ROOT_FD) == 0x420000
    assert geometry.file(PBC_FD).length == 268435456
    assert geometry.file(SBC_FD).length == 67305472


def test_offsets_follow_a_file_through_its_runs() -> None:
    fdc = plan(GIB).file(FDC_FD)

    assert fdc.lv_offset(0) == 4 * MIB
    assert fdc.lv_offset(MIB - 1) == 5 * MIB - 1
    assert fdc.lv_offset(MIB) == 7 * MIB
    assert fdc.blocks()[:3] == [4, 7, 8]
    with pytest.raises(AssertionError):
        fdc.lv_offset(fdc.block_count * MIB)


@pytest.mark.parametrize(
    ("lv_size", "hosts", "journal"),
    [(GIB, 16, MIB), (100 * GIB, 32, 4 * MIB), (60 * TIB, 32, 4 * MIB)],
)
def test_hosts_and_journals_follow_the_size(lv_size: int, hosts: int, journal: int) -> None:
    limits = plan(lv_size).limits

    assert (limits.hosts, limits.journal_size) == (hosts, journal)


@pytest.mark.parametrize(("hosts", "journal"), [(64, 4 * MIB), (65, 3 * MIB), (256, MIB)])
def test_many_hosts_share_the_room_for_journals(hosts: int, journal: int) -> None:
    assert plan(100 * GIB, hosts=hosts).limits.journal_size == journal


@pytest.mark.parametrize("files", [0, 199, 130689, -1])
def test_number_of_files_out_of_range_is_refused(files: int) -> None:
    with pytest.raises(InvalidArgument, match="--files"):
        Limits.default(1024, files=files)


@pytest.mark.parametrize("hosts", [0, 257, -5])
def test_number_of_hosts_out_of_range_is_refused(hosts: int) -> None:
    with pytest.raises(InvalidArgument, match="--hosts"):
        Limits.default(1024, hosts=hosts)


def test_volume_without_room_for_its_metadata_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no room"):
        plan(256 * MIB, files=130688)


def test_bitmap_of_too_many_blocks_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than one volume"):
        layout.fbb_header(1 << 28)


def test_bulk_cluster_headers_are_what_the_records_pack() -> None:
    totals = np.array([200, 200, 200, 48], dtype=np.int64)

    data = bulk.cluster_headers(
        LockType.FB_CLUSTER,
        bulk.offsets(LvOffset(0x610000), 4, stride=1024),
        first=9,
        totals=totals,
        used=205,
    )

    for index, (total, used) in enumerate(zip(totals.tolist(), [200, 5, 0, 0], strict=True)):
        at, header = 0x610000 + index * 1024, data[index * 1024 : (index + 1) * 1024]
        lock = DiskLock(type=LockType.FB_CLUSTER, lv_offset=LvOffset(at))
        meta = ClusterMeta.with_bits(
            number=9 + index, total=total, free_bits=(1 << total) - (1 << used)
        )
        assert header == lock.pack() + meta.pack()


def test_bulk_descriptors_are_free_locks_before_zeroes() -> None:
    data = bulk.unused_descriptors(bulk.offsets(LvOffset(0x424800), 2, stride=2048))

    for index in range(2):
        at = LvOffset(0x424800 + index * 2048)
        lock = DiskLock(type=LockType.FILE_DESC, lv_offset=at)
        assert data[index * 2048 : (index + 1) * 2048] == lock.pack() + bytes(1536)


def test_bulk_extents_are_what_the_records_pack() -> None:
    bitmap, entries = bulk.extent_map(8192, 11)

    assert bitmap == b"\xff\x07" + bytes(1022)
    assert entries == b"".join(
        ExtentEntry(
            extent_id=n, physical=LV_START + n * EXTENT_SIZE, logical=n * EXTENT_SIZE
        ).pack()
        for n in range(8192, 8203)
    )


def test_pieces_of_a_volume_never_overlap_and_stay_inside() -> None:
    geometry = Geometry.plan(EXTENT_SIZE, TINY_LIMITS)
    end = 0

    for offset, data in sorted(fresh.pieces(geometry, now=1), key=lambda piece: piece[0]):
        assert offset >= end
        end = offset + len(data)

    assert end <= geometry.used_blocks * BLOCK_SIZE


def test_every_lock_of_a_volume_is_written() -> None:
    geometry = dataclasses.replace(Geometry.plan(EXTENT_SIZE, TINY_LIMITS))
    image = bytearray(geometry.used_blocks * BLOCK_SIZE)
    for offset, data in fresh.pieces(geometry, now=1):
        image[offset : offset + len(data)] = data

    kinds = {
        layout.FBB_FD: LockType.FB_CLUSTER,
        layout.FDC_FD: LockType.FD_CLUSTER,
        layout.PBC_FD: LockType.PB_CLUSTER,
        layout.SBC_FD: LockType.SB_CLUSTER,
        layout.PB2_FD: LockType.PB2_CLUSTER,
    }
    for address, kind in kinds.items():
        header, file = geometry.resource_header(address), geometry.file(address)
        free = 0
        for cluster in range(header.cluster_count):
            at = file.lv_offset(header.cluster_offset(cluster))
            assert DiskLock.unpack(image[at : at + 512], address=at).type == kind
            meta = ClusterMeta.unpack(image[at + 512 : at + 1024], address=at, number=cluster)
            free += meta.free
        used = {layout.FBB_FD: geometry.used_blocks, layout.FDC_FD: 9}.get(address, 0)
        assert free == header.total - used
    for index in range(geometry.fdc.total):
        cluster, resource = divmod(index, 200)
        at = geometry.file(FDC_FD).lv_offset(geometry.fdc.resource_offset(cluster, resource))
        assert DiskLock.unpack(image[at : at + 512], address=at).type == LockType.FILE_DESC
