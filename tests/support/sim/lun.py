"""The LUN: sectors that have landed, which of them are durable, and what a power cut leaves.

A sector is old or new, never a mixture. A flush speaks for the writes of the host that issued it,
and only for those that had landed when it began. After a power cut each sector is as it durably
was, or as any write since then left it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from vmfs.units import SECTOR_SIZE

ZERO = bytes(SECTOR_SIZE)

OnWrite = Callable[[str, int, bytes, bytes], None]
"""(who, sector, old, new), before it lands."""


@dataclass(frozen=True, slots=True)
class _Version:
    serial: int
    who: str
    data: bytes


class Lun:
    """Contents of the LUN, by sector."""

    def __init__(self, size: int, sectors: dict[int, bytes] | None = None) -> None:
        """`sectors` are what it holds durably at the start."""
        self.size = size
        self._sectors = dict(sectors or {})
        self._base: dict[int, bytes] = {}  # durable contents, where they differ
        self._pending: dict[int, list[_Version]] = {}
        self._serial = 0
        self.on_write: OnWrite = lambda who, sector, old, new: None

    def sector(self, index: int) -> bytes:
        """One sector as a reader sees it."""
        return self._sectors.get(index, ZERO)

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes."""
        first, last = offset // SECTOR_SIZE, (offset + length - 1) // SECTOR_SIZE
        get = self._sectors.get
        data = b"".join([get(index, ZERO) for index in range(first, last + 1)])
        start = offset - first * SECTOR_SIZE
        return data[start : start + length]

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Every sector that was ever written, with its index."""
        return iter(self._sectors.items())

    def write(self, who: str, offset: int, data: bytes) -> None:
        """Whole sectors land."""
        assert offset % SECTOR_SIZE == 0 == len(data) % SECTOR_SIZE, "not in whole sectors"
        for at in range(0, len(data), SECTOR_SIZE):
            self.write_sector(who, (offset + at) // SECTOR_SIZE, data[at : at + SECTOR_SIZE])

    def write_sector(self, who: str, index: int, data: bytes) -> None:
        """One sector lands."""
        old = self._sectors.get(index, ZERO)
        self.on_write(who, index, old, data)
        self._serial += 1
        versions = self._pending.get(index)
        if versions is None:
            self._base[index] = old
            versions = self._pending[index] = []
        versions.append(_Version(self._serial, who, data))
        self._sectors[index] = data

    @property
    def serial(self) -> int:
        """Number of the last sector that landed: what a flush that begins now covers."""
        return self._serial

    def flush(self, who: str, serial: int) -> None:
        """What `who` wrote up to `serial` is durable, and what it replaced never returns."""
        for index, versions in list(self._pending.items()):
            for place in range(len(versions) - 1, -1, -1):
                version = versions[place]
                if version.who == who and version.serial <= serial:
                    self._base[index] = version.data
                    del versions[: place + 1]
                    break
            if not versions:
                del self._pending[index], self._base[index]

    def power_cut(self, rng: Random) -> list[int]:
        """Lose what was not flushed, or some of it. Returns the sectors that have changed."""
        changed = []
        share = rng.choice((0.0, 0.3, 0.7))
        for index, versions in self._pending.items():
            before = self._sectors[index]
            kept = self._base[index]
            for version in versions:
                if rng.random() < share:
                    kept = version.data
            self._sectors[index] = kept
            if kept != before:
                changed.append(index)
        self._pending.clear()
        self._base.clear()
        return changed
