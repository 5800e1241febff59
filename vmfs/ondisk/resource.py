"""Resource files: how .fbb.sf, .fdc.sf, .sbc.sf, .pbc.sf and .pb2.sf hold what can be allocated.

    0        header (512 bytes used of 64 KiB)
    H        group 0:  C x (lock sector + cluster metadata sector)
                       C x R x resource of S bytes
    H + G    group 1   ...

A *cluster* is R resources under one lock. All offsets here are bytes of the resource file;
`vmfs.space.system_file` turns them into LV offsets. File blocks are resources without a body
(S = 0): block n of the volume is resource n % R of cluster n // R.
"""

import dataclasses
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ondisk.record import Buffer, require, require_length, require_within
from vmfs.units import SECTOR_SIZE, div_ceil

RESOURCE_COUNT_MAX: Final = 512
"""Resources in a cluster: as many as its bitmap has bits."""

CLUSTER_HEADER_SIZE: Final = 1024
"""Lock sector, then metadata sector: one read gets both."""

META_OFFSET: Final = 512
"""The metadata sector inside a cluster header."""

FIRST_GROUP: Final = 0x10000
"""The header's room: what mkfs (ours and ESXi's) writes into `first_group`."""

_GROUP_CLUSTER_COUNT_MAX: Final = 1 << 16
_RESOURCE_SIZE_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceHeader:
    """The header of a resource file: its whole geometry."""

    resources_per_cluster: int  # R
    clusters_per_group: int  # C
    first_group: int  # H, bytes
    resource_size: int  # S, bytes; 0: the resources are the volume's own blocks
    group_size: int  # G, bytes
    total: int  # resources in the file
    groups: int
    tail: bytes = bytes(480)

    NAME: ClassVar[str] = "resource file header"
    LAYOUT: ClassVar[Struct] = Struct("<8I480s")
    SIZE: ClassVar[int] = 512

    @classmethod
    def plan(
        cls, *, resources_per_cluster: int, resource_size: int, total: int, clusters_per_group: int
    ) -> Self:
        """The header for so many resources."""
        per_group = clusters_per_group * resources_per_cluster
        return cls(
            resources_per_cluster=resources_per_cluster,
            clusters_per_group=clusters_per_group,
            first_group=FIRST_GROUP,
            resource_size=resource_size,
            group_size=clusters_per_group * CLUSTER_HEADER_SIZE + per_group * resource_size,
            total=total,
            groups=div_ceil(total, per_group),
        )

    def pack(self) -> bytes:
        """The first sector of the file."""
        return self.LAYOUT.pack(
            self.resources_per_cluster,
            self.clusters_per_group,
            self.first_group,
            self.resource_size,
            self.group_size,
            self.total & 0xFFFFFFFF,
            self.groups,
            self.total >> 32,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read the header. It has no magic: its numbers must agree with each other.

        Raises:
            CorruptRecord: a number is out of range, or contradicts the others.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        per_cluster, per_group, first, size, group_size, low, groups, high, tail = (
            cls.LAYOUT.unpack(data)
        )
        header = cls(
            resources_per_cluster=per_cluster,
            clusters_per_group=per_group,
            first_group=first,
            resource_size=size,
            group_size=group_size,
            total=low | high << 32,
            groups=groups,
            tail=tail,
        )
        limits = {
            "resources per cluster": (per_cluster, range(1, RESOURCE_COUNT_MAX + 1)),
            "clusters per group": (per_group, range(1, _GROUP_CLUSTER_COUNT_MAX)),
            "first group": (first, range(cls.SIZE, 1 << 30)),
            "resource size": (size, range(_RESOURCE_SIZE_MAX + 1)),
        }
        for field, (found, allowed) in limits.items():
            require_within(cls.NAME, address, field, found, allowed)
        if first % SECTOR_SIZE or size % SECTOR_SIZE:
            raise CorruptRecord(cls.NAME, address, "alignment", first | size, "whole sectors")
        expected = per_group * (CLUSTER_HEADER_SIZE + per_cluster * size)
        require(cls.NAME, address, "group size", group_size, expected)
        require(
            cls.NAME, address, "groups", groups, div_ceil(header.total, per_group * per_cluster)
        )
        return header

    @property
    def cluster_count(self) -> int:
        """Clusters in the file; the last may hold fewer resources."""
        return div_ceil(self.total, self.resources_per_cluster)

    @property
    def file_size(self) -> int:
        """Bytes that the file must have to hold everything."""
        if self.total == 0:
            return self.first_group
        last = self.cluster_count - 1
        headers = self.first_group + last // self.clusters_per_group * self.group_size
        if self.resource_size == 0:
            return headers + self.clusters_per_group * CLUSTER_HEADER_SIZE
        end = self.resource_offset(last, self.cluster_total(last) - 1) + self.resource_size
        return max(end, headers + self.clusters_per_group * CLUSTER_HEADER_SIZE)

    def cluster_total(self, cluster: int) -> int:
        """Resources in that cluster."""
        self._check_cluster(cluster)
        return min(self.resources_per_cluster, self.total - cluster * self.resources_per_cluster)

    def cluster_offset(self, cluster: int) -> int:
        """File offset of that cluster's lock sector."""
        self._check_cluster(cluster)
        group, index = divmod(cluster, self.clusters_per_group)
        return self.first_group + group * self.group_size + index * CLUSTER_HEADER_SIZE

    def meta_offset(self, cluster: int) -> int:
        """File offset of that cluster's metadata sector."""
        return self.cluster_offset(cluster) + META_OFFSET

    def resource_offset(self, cluster: int, resource: int) -> int:
        """File offset of a resource's body; a body may straddle two file blocks."""
        assert self.resource_size > 0, "file blocks have no body in their resource file"
        assert self.contains(cluster, resource), f"resource {resource} of cluster {cluster}"
        group, index = divmod(cluster, self.clusters_per_group)
        bodies = self.first_group + group * self.group_size
        bodies += self.clusters_per_group * CLUSTER_HEADER_SIZE
        return bodies + (index * self.resources_per_cluster + resource) * self.resource_size

    def contains(self, cluster: int, resource: int) -> bool:
        """Whether there is such a resource: addresses from disk are asked this first."""
        in_cluster = 0 <= resource < self.resources_per_cluster and cluster >= 0
        return in_cluster and cluster * self.resources_per_cluster + resource < self.total

    def _check_cluster(self, cluster: int) -> None:
        assert 0 <= cluster < self.cluster_count, f"cluster {cluster} of {self.cluster_count}"


assert ResourceHeader.LAYOUT.size == ResourceHeader.SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMeta:
    """What a cluster's lock protects: its bitmap (bit 1 = free, least significant bit first)."""

    number: int  # own cluster number: guards against misdirected reads and writes
    total: int  # resources in the cluster, 1..512
    free: int  # bits set in the bitmap
    first_free: int  # index of the lowest bit set; 0 when none is
    bitmap: bytes  # 64 bytes; bits from `total` on are 0
    type_data: bytes = bytes(16)
    priority: int = 0
    tail: bytes = bytes(412)

    NAME: ClassVar[str] = "cluster metadata"
    LAYOUT: ClassVar[Struct] = Struct("<4I64s16sI412s")
    SIZE: ClassVar[int] = 512

    @classmethod
    def with_bits(cls, *, number: int, total: int, free_bits: int) -> Self:
        """A cluster whose free resources are the bits set in `free_bits`."""
        assert 0 < total <= RESOURCE_COUNT_MAX
        assert 0 <= free_bits < 1 << total
        return cls(
            number=number,
            total=total,
            free=free_bits.bit_count(),
            first_free=_lowest_bit(free_bits),
            bitmap=free_bits.to_bytes(64, "little"),
        )

    def pack(self) -> bytes:
        """The sector as it stands on disk."""
        return self.LAYOUT.pack(
            self.number,
            self.total,
            self.free,
            self.first_free,
            self.bitmap,
            self.type_data,
            self.priority,
            self.tail,
        )

    @classmethod
    def unpack(cls, data: Buffer, *, address: int, number: int | None = None) -> Self:
        """Read a cluster's metadata.

        Args:
            data: its sector.
            address: LV offset that it was read from.
            number: the cluster that it must be, when the reader knows.

        Raises:
            CorruptRecord: another cluster's, or bitmap and counts contradict each other.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        found, total, free, first_free, bitmap, type_data, priority, tail = cls.LAYOUT.unpack(data)
        if number is not None:
            require(cls.NAME, address, "cluster number", found, number)
        require_within(cls.NAME, address, "total", total, range(1, RESOURCE_COUNT_MAX + 1))
        bits = int.from_bytes(bitmap, "little")
        if bits >> total:
            raise CorruptRecord(
                cls.NAME, address, "bitmap", bitmap.hex(), f"no free bit from {total} on"
            )
        require(cls.NAME, address, "free", free, bits.bit_count())
        require_within(cls.NAME, address, "first free", first_free, range(total))
        return cls(
            number=found,
            total=total,
            free=free,
            first_free=first_free,
            bitmap=bitmap,
            type_data=type_data,
            priority=priority,
            tail=tail,
        )

    @property
    def free_bits(self) -> int:
        """The bitmap as one integer; bit n is resource n."""
        return int.from_bytes(self.bitmap, "little")

    def with_free_bits(self, free_bits: int) -> Self:
        """The same cluster with another bitmap; the counts follow."""
        assert 0 <= free_bits < 1 << self.total
        return dataclasses.replace(
            self,
            free=free_bits.bit_count(),
            first_free=_lowest_bit(free_bits),
            bitmap=free_bits.to_bytes(64, "little"),
        )


assert ClusterMeta.LAYOUT.size == ClusterMeta.SIZE


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1 if bits else 0
