"""Staged metadata: whole sectors that are newer than what stands on the device. Pure.

    granule (1 MiB) ─► sector index ─► 512 bytes

The two levels make both questions cheap: a lookup of one sector, and "is any sector of these many
gigabytes staged?", which every direct write of file data asks.
"""

from collections.abc import Iterator
from typing import Final

from vmfs.units import MIB, SECTOR_SIZE

_GRANULE_SECTORS: Final = MIB // SECTOR_SIZE

Run = tuple[int, bytes]
"""LV offset, and whole sectors of data that belong there."""


class StagedSectors:
    """A set of new sectors, by LV offset. The later image of a sector replaces the earlier one."""

    def __init__(self) -> None:
        self._granules: dict[int, dict[int, bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes of staged sectors."""
        return self._count * SECTOR_SIZE

    def stage(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take a copy of `data` (whole sectors) as the new contents at `offset`."""
        assert offset % SECTOR_SIZE == 0, f"staged at {offset:#x}: not on a sector"
        assert len(data) % SECTOR_SIZE == 0, f"staged {len(data)} bytes: not whole sectors"
        frozen = bytes(data)
        first = offset // SECTOR_SIZE
        for at in range(0, len(frozen), SECTOR_SIZE):
            sector = first + at // SECTOR_SIZE
            granule = self._granules.setdefault(sector // _GRANULE_SECTORS, {})
            if sector not in granule:
                self._count += 1
            granule[sector] = frozen[at : at + SECTOR_SIZE]

    def discard(self, offset: int, length: int) -> None:
        """Forget what is staged in the range: the resource is free, its contents are nobody's."""
        for granule, sector in list(self._sectors_in(offset, length)):
            del granule[sector]
            self._count -= 1
        for index in [index for index, granule in self._granules.items() if not granule]:
            del self._granules[index]

    def touches(self, offset: int, length: int) -> bool:
        """Whether any sector that the range touches is staged."""
        return next(self._sectors_in(offset, length), None) is not None

    def overlay(self, offset: int, target: bytearray) -> None:
        """Lay what is staged over `target`, which holds device bytes from `offset` on."""
        end = offset + len(target)
        for granule, sector in self._sectors_in(offset, len(target)):
            start = sector * SECTOR_SIZE
            first, last = max(start, offset), min(start + SECTOR_SIZE, end)
            target[first - offset : last - offset] = granule[sector][first - start : last - start]

    def runs(self) -> list[Run]:
        """Everything staged, in ascending order, neighbours joined."""
        runs: list[Run] = []
        pieces: list[bytes] = []
        start = following = -1
        for index in sorted(self._granules):
            granule = self._granules[index]
            for sector in sorted(granule):
                if sector != following:
                    if pieces:
                        runs.append((start * SECTOR_SIZE, b"".join(pieces)))
                    pieces, start = [], sector
                pieces.append(granule[sector])
                following = sector + 1
        if pieces:
            runs.append((start * SECTOR_SIZE, b"".join(pieces)))
        return runs

    def check_invariants(self) -> None:
        """For tests: the counter is right, and no granule is empty or misplaced."""
        assert self._count == sum(map(len, self._granules.values())), "count of sectors"
        for index, granule in self._granules.items():
            assert granule, f"granule {index} is empty"
            for sector, data in granule.items():
                assert sector // _GRANULE_SECTORS == index, f"sector {sector} in granule {index}"
                assert len(data) == SECTOR_SIZE, f"sector {sector} has {len(data)} bytes"

    def _sectors_in(self, offset: int, length: int) -> Iterator[tuple[dict[int, bytes], int]]:
        """Each staged sector that the range touches, with the granule that it is in."""
        if not self._count or length <= 0:
            return
        first, end = offset // SECTOR_SIZE, -(-(offset + length) // SECTOR_SIZE)
        indices = _granules_in(offset, length)
        present: list[int] | range = indices
        if len(indices) > len(self._granules):
            present = sorted(index for index in self._granules if index in indices)
        for index in present:
            granule = self._granules.get(index)
            if granule is None:
                continue
            low = max(first, index * _GRANULE_SECTORS)
            high = min(end, (index + 1) * _GRANULE_SECTORS)
            if high - low <= len(granule):
                for sector in range(low, high):
                    if sector in granule:
                        yield granule, sector
            else:
                for sector in granule:
                    if low <= sector < high:
                        yield granule, sector


def _granules_in(offset: int, length: int) -> range:
    if length <= 0:
        return range(0)
    return range(offset // MIB, (offset + length - 1) // MIB + 1)
