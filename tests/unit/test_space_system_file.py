"""Where clusters and resources lie, and what a damaged resource file is answered with."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.space import (
    BLOCK_SIZE,
    SUB_BLOCK_SIZE,
    Disk,
    FakeStaging,
    tiny_files,
)
from vmfs.errors import CorruptRecord, Unsupported
from vmfs.ids import FdAddress, LvOffset
from vmfs.locks.order import LockKind
from vmfs.ondisk.address import (
    AddressType,
    FbAddress,
    FdAddr,
    Pb2Address,
    PbAddress,
    SbAddress,
    fb_addresses,
)
from vmfs.ondisk.file_desc import FileDesc, FileType, Zla
from vmfs.ondisk.resource import ResourceHeader
from vmfs.space.system_file import KINDS, cow_mask, is_cow, load_resource_file
from vmfs.units import MIB

TOTALS = {
    AddressType.FB: 30,
    AddressType.SB: 11,
    AddressType.PB: 9,
    AddressType.PB2: 4,
    AddressType.FD: 8,
}
FILES = tiny_files(totals=TOTALS)
PB = AddressType.PB
SB = FILES[AddressType.SB]


@pytest.mark.parametrize("kind", KINDS)
def test_every_resource_has_a_place_of_its_own(kind):
    file = FILES[kind]
    taken: set[int] = set()
    for cluster in range(file.cluster_count):
        taken.add(file.cluster_lock(cluster).lv_offset)
        taken.add(file.cluster_meta_offset(cluster))
        for resource in range(file.header.cluster_total(cluster)):
            runs = file.resource_runs(cluster, resource)
            assert sum(length for _, length in runs) == file.resource_size
            for start, length in runs:
                for sector in range(start, start + length, 512):
                    assert sector not in taken
                    taken.add(sector)


def test_resource_over_two_file_blocks_has_two_places():
    places = [SB.resource_runs(c, r) for c in range(2) for r in range(4)]

    assert any(len(runs) == 2 for runs in places)
    assert all(sum(n for _, n in runs) == SUB_BLOCK_SIZE for runs in places)


def test_lock_of_a_cluster_stands_in_front_of_its_metadata():
    lock = SB.cluster_lock(1)

    assert (lock.kind, lock.index) == (LockKind.SB_CLUSTER, 1)
    assert SB.cluster_meta_offset(1) == lock.lv_offset + 512


@pytest.mark.parametrize("offset", [0, 512, 1024])
async def test_staged_body_reads_back_across_the_seam(offset):
    staging = FakeStaging(Disk(FILES))
    straddling = next(
        int(SB.pack(c, np.array([r]))[0])
        for c in range(2)
        for r in range(4)
        if len(SB.resource_runs(c, r)) == 2
    )
    whole = bytes(range(256)) * 6

    SB.stage(staging, straddling, whole)
    SB.stage(staging, straddling, b"x" * 512, offset=offset)

    expected = whole[:offset] + b"x" * 512 + whole[offset + 512 :]
    assert await SB.read(staging, straddling) == expected


PACKED = {
    AddressType.FB: lambda c, r: FbAddress(block=c * 4 + r),
    AddressType.SB: lambda c, r: SbAddress(cluster=c, resource=r),
    AddressType.PB: lambda c, r: PbAddress(cluster=c, resource=r),
    AddressType.PB2: lambda c, r: Pb2Address(cluster=c, resource=r),
    AddressType.FD: lambda c, r: FdAddr(cluster=c, resource=r),
}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_in_bulk_equals_packed_one_by_one(kind):
    file = FILES[kind]
    for cluster in range(file.cluster_count):
        resources = np.arange(file.header.cluster_total(cluster))

        packed = file.pack(cluster, resources)

        assert packed.tolist() == [PACKED[kind](cluster, int(r)).pack() for r in resources]
        assert packed.tolist() == [file.pack_one(cluster, int(r)) for r in resources]
        assert packed.dtype == np.uint32
        clusters, indices = file.split(packed)
        assert (clusters == cluster).all()
        assert (indices == resources).all()
        assert file.first_wrong(packed) is None


def test_dense_sub_blocks_use_all_six_bits():
    file = dataclasses.replace(
        SB,
        header=dataclasses.replace(SB.header, resources_per_cluster=64, total=640),
    )

    packed = file.pack(9, np.arange(64))

    assert packed.tolist() == [SbAddress(cluster=9, resource=r).pack() for r in range(64)]
    assert (file.split(packed)[1] == np.arange(64)).all()


@given(st.integers(0, 2**32 - 1))
def test_what_no_resource_has_is_wrong(value):
    for kind, file in FILES.items():
        clusters, resources = file.split(np.array([value], dtype=np.uint32))
        right = value & 7 == kind and file.header.contains(int(clusters[0]), int(resources[0]))

        found = file.first_wrong(np.array([0, value], dtype=np.uint32))

        assert found == (None if right or value == 0 else 1)


def test_cow_is_seen_in_every_kind():
    assert is_cow(FbAddress(block=3, cow=True).pack())
    assert is_cow(SbAddress(cluster=1, resource=1, cow=True).pack())
    assert is_cow(PbAddress(cluster=1, resource=1, cow=True).pack())
    assert not is_cow(FbAddress(block=3, tbz=True).pack())
    assert not is_cow(FdAddr(cluster=1, resource=1).pack())
    flagged = np.array([0, FbAddress(block=3, cow=True).pack(), FbAddress(block=3).pack()])
    assert cow_mask(flagged.astype(np.uint32)).tolist() == [False, True, False]


def listed(length: int, **fields: object) -> FileDesc:
    return FileDesc(
        address=FdAddress(0x00800004),
        link_count=1,
        type=FileType.SYSTEM,
        length=length,
        block_size=MIB,
        block_shift=20,
        **({"zla": Zla.FB} | fields),
    )


async def loaded(header: ResourceHeader, desc: FileDesc, pointers: np.ndarray, kind: AddressType):
    disk = Disk(FILES)
    disk.sectors[5 * BLOCK_SIZE] = header.pack()
    return await load_resource_file(
        FakeStaging(disk),
        kind=kind,
        desc=desc,
        pointers=pointers,
        block_size=BLOCK_SIZE,
        desc_offset=LvOffset(0x9000),
    )


HEADER = ResourceHeader.plan(
    resources_per_cluster=16, resource_size=512, total=100, clusters_per_group=2
)


async def test_loaded_file_knows_its_blocks():
    file = await loaded(HEADER, listed(3 * BLOCK_SIZE), fb_addresses(5, 256), AddressType.PB)

    assert file.blocks.tolist() == [5, 6, 7]
    assert file.header == HEADER


async def test_cluster_behind_the_last_block_is_damage():
    file = await loaded(HEADER, listed(3 * BLOCK_SIZE), fb_addresses(5, 256), AddressType.PB)

    with pytest.raises(CorruptRecord, match="blocks of the PB file"):
        file.cluster_lock(0)


@pytest.mark.parametrize(
    ("desc", "pointers", "kind", "error"),
    [
        (listed(3 * BLOCK_SIZE, zla=Zla.PB), fb_addresses(5, 256), AddressType.PB, Unsupported),
        (listed(0), fb_addresses(5, 256), AddressType.PB, CorruptRecord),
        (listed(1), np.zeros(256, np.uint32), AddressType.PB, CorruptRecord),
        (listed(3 * BLOCK_SIZE), fb_addresses(9, 256), AddressType.PB, CorruptRecord),
        (listed(3 * BLOCK_SIZE), fb_addresses(5, 256), AddressType.FB, CorruptRecord),
    ],
)
async def test_damaged_resource_file_is_refused(desc, pointers, kind, error):
    with pytest.raises(error):
        await loaded(HEADER, desc, pointers, kind)


async def test_block_list_in_pointer_blocks_is_followed():
    staging = FakeStaging(Disk(FILES))
    block = int(FILES[PB].pack(0, np.array([2]))[0])
    FILES[PB].stage(staging, block, fb_addresses(5, 128).astype("<u4").tobytes())
    staging.running[5 * BLOCK_SIZE] = HEADER.pack()

    file = await load_resource_file(
        staging,
        kind=PB,
        desc=listed(3 * BLOCK_SIZE, zla=Zla.PB),
        pointers=np.array([block, *[0] * 255], dtype=np.uint32),
        block_size=BLOCK_SIZE,
        desc_offset=LvOffset(0x9000),
        pointer_blocks=FILES[PB],
    )

    assert file.blocks.tolist() == [5, 6, 7]


@pytest.mark.parametrize("slot", [0, 7, FbAddress(block=1).pack()])
async def test_damaged_pointer_to_a_pointer_block_of_a_resource_file_is_refused(slot):
    with pytest.raises(CorruptRecord, match="PB") as caught:
        await load_resource_file(
            FakeStaging(Disk(FILES)),
            kind=PB,
            desc=listed(3 * BLOCK_SIZE, zla=Zla.PB),
            pointers=np.array([slot, *[0] * 255], dtype=np.uint32),
            block_size=BLOCK_SIZE,
            desc_offset=LvOffset(0x9000),
            pointer_blocks=FILES[PB],
        )
    assert caught.value.address == 0x9400


async def test_more_resources_than_an_address_can_tell_apart_is_damage():
    header = ResourceHeader.plan(
        resources_per_cluster=17, resource_size=512, total=100, clusters_per_group=2
    )

    with pytest.raises(CorruptRecord, match="resources per cluster"):
        await loaded(header, listed(BLOCK_SIZE), fb_addresses(5, 256), AddressType.PB)
