"""Resource files: geometry as in ESXi's own volumes, and bitmaps that must add up."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import CorruptRecord
from vmfs.ondisk.resource import ClusterMeta, ResourceHeader

AT = 0x610200


def plan(resources: int, size: int, total: int, clusters: int = 64) -> ResourceHeader:
    return ResourceHeader.plan(
        resources_per_cluster=resources,
        resource_size=size,
        total=total,
        clusters_per_group=clusters,
    )


@pytest.mark.parametrize(
    ("header", "file_size", "groups"),
    [
        # lengths of the system files of a genuine ESXi volume of 2 GiB
        (plan(200, 0, 2048), 131072, 1),
        (plan(200, 2048, 20352), 41877504, 2),
        (plan(64, 8192, 8192), 67305472, 2),
        (plan(16, 4096, 64512), 268435456, 63),
        (plan(16, 4096, 256), 1179648, 1),
    ],
)
def test_geometry_is_that_of_esxi(header: ResourceHeader, file_size: int, groups: int) -> None:
    assert header.file_size == file_size
    assert header.groups == groups
    assert ResourceHeader.unpack(header.pack(), address=0) == header


def test_offsets_in_a_tiny_file() -> None:
    header = plan(2, 512, 7, clusters=2)  # groups of 2 x 1024 + 4 x 512 = 4096

    assert header.group_size == 4096
    assert header.cluster_count == 4
    assert [header.cluster_offset(c) - 0x10000 for c in range(4)] == [0, 1024, 4096, 5120]
    assert header.meta_offset(1) == header.cluster_offset(1) + 512
    assert header.resource_offset(0, 0) == 0x10000 + 2048
    assert header.resource_offset(3, 0) == 0x10000 + 4096 + 2048 + 1024
    assert [header.cluster_total(c) for c in range(4)] == [2, 2, 2, 1]
    assert header.contains(3, 0)
    assert not header.contains(3, 1)
    assert not header.contains(4, 0)
    assert not header.contains(-1, 0)


def test_offset_of_a_resource_that_is_not_there_is_our_mistake() -> None:
    header = plan(2, 512, 7, clusters=2)

    with pytest.raises(AssertionError):
        header.resource_offset(3, 1)
    with pytest.raises(AssertionError):
        header.cluster_offset(4)
    with pytest.raises(AssertionError):
        plan(2, 0, 7).resource_offset(0, 0)


def test_empty_file_is_its_header() -> None:
    assert plan(16, 4096, 0).file_size == 0x10000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"resources_per_cluster": 0}, "resources per cluster"),
        ({"resources_per_cluster": 513}, "resources per cluster"),
        ({"clusters_per_group": 0}, "clusters per group"),
        ({"first_group": 100}, "first group"),
        ({"first_group": 0x10001}, "alignment"),
        ({"resource_size": 1 << 30}, "resource size"),
        ({"group_size": 1}, "group size"),
        ({"groups": 77}, "groups"),
    ],
)
def test_header_that_contradicts_itself_is_corrupt(change: dict[str, int], field: str) -> None:
    damaged = dataclasses.replace(plan(200, 2048, 20352), **change)  # type: ignore[arg-type]

    with pytest.raises(CorruptRecord) as caught:
        ResourceHeader.unpack(damaged.pack(), address=AT)

    assert caught.value.field == field


def cluster() -> ClusterMeta:
    return ClusterMeta.with_bits(number=3, total=200, free_bits=0b1100)


def test_cluster_counts_follow_its_bitmap() -> None:
    meta = cluster()

    assert (meta.free, meta.first_free) == (2, 2)
    assert meta.with_free_bits(0).first_free == 0
    assert meta.with_free_bits(1 << 199).first_free == 199
    assert ClusterMeta.unpack(meta.pack(), address=AT, number=3) == meta


@given(st.integers(1, 512).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, (1 << n) - 1))))
def test_cluster_of_any_size_and_content_round_trips(case: tuple[int, int]) -> None:
    total, bits = case
    meta = ClusterMeta.with_bits(number=0, total=total, free_bits=bits)

    assert ClusterMeta.unpack(meta.pack(), address=0).free_bits == bits


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"total": 0}, "total"),
        ({"total": 513}, "total"),
        ({"total": 3}, "bitmap"),
        ({"free": 3}, "free"),
        ({"first_free": 200}, "first free"),
        ({"bitmap": b"\xff" + bytes(63)}, "free"),
    ],
)
def test_cluster_whose_counts_are_wrong_is_corrupt(change: dict[str, object], field: str) -> None:
    damaged = dataclasses.replace(cluster(), **change)  # type: ignore[arg-type]

    with pytest.raises(CorruptRecord) as caught:
        ClusterMeta.unpack(damaged.pack(), address=AT)

    assert caught.value.field == field


def test_cluster_of_another_number_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="cluster number"):
        ClusterMeta.unpack(cluster().pack(), address=AT, number=4)


def test_bit_beyond_the_cluster_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        ClusterMeta.with_bits(number=0, total=4, free_bits=16)
