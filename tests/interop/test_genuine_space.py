"""The space floor on genuine ESXi volumes: every cluster, every block list."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.genuine import genuine_image
from vmfs.device.base import Device
from vmfs.device.image import ImageDevice
from vmfs.device.locate import find_lv
from vmfs.files.ground import UnwrittenMetadata
from vmfs.ids import FdAddress
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.file_desc import FileDesc, Zla, unpack_pointers
from vmfs.ondisk.resource import ClusterMeta
from vmfs.space.block_map import BlockMap
from vmfs.space.counters import FreeCounters
from vmfs.space.extent import ExtentKind
from vmfs.space.staging import Staging
from vmfs.space.system_file import ResourceFiles
from vmfs.units import GIB, MIB
from vmfs.volume.structure import read_descriptor, read_structure

pytestmark = pytest.mark.slow
IMAGES = ["vmfs5", "vmfs5-no-dense-sbpc", "vmfs5-resource-optimized"]


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[tuple[Staging, ResourceFiles]]:
    device = ImageDevice.open(genuine_image(name), writable=False)
    try:
        volume: Device = await find_lv(device)
        staging = UnwrittenMetadata(volume)
        structure = await read_structure(staging, await read_descriptor(volume))
        yield staging, structure.resources
    finally:
        await device.aclose()


@pytest.mark.parametrize("name", IMAGES)
async def test_counts_are_those_of_every_single_cluster(name):
    async with opened(name) as (staging, files):
        counters = FreeCounters(files)
        await counters.load(staging, files)

        for kind, file in files.items():
            free = 0
            for cluster in range(file.cluster_count):
                place = file.cluster_meta_offset(cluster)
                data = await staging.read(place, ClusterMeta.SIZE)
                meta = ClusterMeta.unpack(data, address=place, number=cluster)
                assert meta.total == file.header.cluster_total(cluster)
                free += meta.free
            assert counters.total(kind).free == free
            assert counters.total(kind).total == file.header.total


async def map_of(staging: Staging, files: ResourceFiles, address: int) -> BlockMap:
    place = files[AddressType.FD].address_runs(address)[0][0]
    data = await staging.read(place + 512, 1536)
    desc = FileDesc.unpack(data[:512], address=place + 512, expected=FdAddress(address))
    return BlockMap(desc=desc, pointers=unpack_pointers(data[512:]), staging=staging, files=files)


async def test_double_indirect_file_of_esxi_has_pbs_at_both_levels():
    async with opened("vmfs5") as (staging, files):
        block_map = await map_of(staging, files, 0x1AC00104)

        await block_map.load(116 * GIB, 2 * GIB)
        extents = block_map.extents(116 * GIB, 2 * GIB)

        assert block_map.zla is Zla.DOUBLE
        assert int(block_map.pointers[0]) & 7 == AddressType.PB
        [data] = [extent for extent in extents if extent.kind is ExtentKind.DATA]
        assert (data.file_offset, data.length) == (117 * GIB, MIB)


async def test_sub_blocks_of_a_resource_file_in_pointer_blocks_are_found():
    async with opened("vmfs5-resource-optimized") as (staging, files):
        blocks = files[AddressType.SB].blocks
        block_map = await map_of(staging, files, 0x01000004)
        length = len(blocks) * files[AddressType.FB].resource_size

        await block_map.load(0, length)
        extents = block_map.extents(0, length)

        assert block_map.zla is Zla.PB
        assert len(blocks) > 256
        listed = [
            block
            for extent in extents
            for block in range(
                extent.lv_offset // block_map.block_size,
                (extent.lv_offset + extent.length) // block_map.block_size,
            )
        ]
        assert blocks.tolist() == listed
