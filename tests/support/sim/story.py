"""What a place on the LUN may hold, given what was written there, acknowledged, and by whom.

Every version of a place has a serial of its own. Whoever looks under the lock finds one of them;
those that came after it are lost, and may be only if their writers are dead and nobody was promised
anything. What is lost never returns. Two places written in one transaction are lost together.
"""

from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from tests.support.sim.host import SimHost
from vmfs.units import SECTOR_SIZE

_STAMP: Final = Struct("<8sQQQQ")
_MAGIC: Final = b"VMFSSIM1"


class Violation(AssertionError):
    """An invariant does not hold; the text begins with its number."""


@dataclass(eq=False, slots=True)
class Version:
    """One version of a place."""

    serial: int
    counter: int  # how many increments it has behind it
    writer: SimHost | None  # None: as made
    token: int
    transaction: int
    promised: bool = False  # fsync was acknowledged, or another host has seen it
    lost: bool = False


@dataclass(eq=False, slots=True)
class Place:
    """One sector with its history."""

    index: int
    journaled: bool  # written through the journal, not directly
    versions: list[Version] = field(default_factory=list)

    def pack(self, version: Version) -> bytes:
        """The sector that carries a version."""
        stamp = _STAMP.pack(_MAGIC, self.index, version.serial, version.counter, version.token)
        return stamp.ljust(SECTOR_SIZE, bytes([version.serial % 251]))

    def read(self, data: bytes, by: SimHost | None) -> Version:
        """What `by` found under its lock (None: everybody has ended)."""
        magic, index, serial, _, _ = _STAMP.unpack(data[: _STAMP.size])
        found = next((v for v in self.versions if v.serial == serial), None)
        if magic != _MAGIC or index != self.index or found is None or data != self.pack(found):
            raise Violation(f"I8: place {self.index} holds what nobody wrote there: {data[:40]!r}")
        if found.lost:
            raise Violation(f"I8: place {self.index}: version {serial}, which was lost, is back")
        for later in self.versions[self.versions.index(found) + 1 :]:
            if later.lost:
                continue
            who = later.writer.key if later.writer is not None else "nobody"
            if later.promised:
                raise Violation(
                    f"I8: place {self.index}: version {later.serial} of {who} was promised; "
                    f"{by.key if by else 'the end'} finds {serial}"
                )
            if later.writer is not None and not later.writer.dead:
                raise Violation(
                    f"I1: place {self.index}: {by.key if by else 'the end'} finds {serial}, "
                    f"but {who} is alive and wrote {later.serial}"
                )
            later.lost = True
        if self.journaled and by is not found.writer:
            for version in self.versions:
                version.promised = version.promised or not version.lost
                if version is found:
                    break
        return found


@dataclass(eq=False)
class Story:
    """All places, and the transactions that tie them."""

    places: list[Place] = field(default_factory=list)
    serial: int = 0
    transactions: int = 0

    def place(self, *, journaled: bool) -> Place:
        """A new place, with its first version."""
        place = Place(len(self.places), journaled)
        self.places.append(place)
        self.serial += 1
        place.versions.append(Version(self.serial, 0, None, 0, 0, promised=True))
        return place

    def write(
        self, place: Place, found: Version, writer: SimHost, token: int, transaction: int
    ) -> Version:
        """The next version, on top of what was found."""
        self.serial += 1
        version = Version(self.serial, found.counter + 1, writer, token, transaction)
        place.versions.append(version)
        return version

    def transaction(self) -> int:
        """A number for what must be lost together."""
        self.transactions += 1
        return self.transactions

    def written_by(self, writer: SimHost) -> list[Version]:
        """What a host has written so far and was not promised: an fsync now promises it."""
        return [
            version
            for place in self.places
            for version in place.versions
            if version.writer is writer and not version.promised and not version.lost
        ]

    def check_end(self) -> None:
        """Everybody has ended, and every place was read: nothing counted twice, nothing torn."""
        fates: dict[int, set[bool]] = {}
        for place in self.places:
            kept = [version for version in place.versions if not version.lost]
            for count, version in enumerate(kept):
                if version.counter != count:
                    raise Violation(
                        f"I8: place {place.index}: {count} increments are kept, "
                        f"its counter says {version.counter}"
                    )
            if place.journaled:
                for version in place.versions:
                    if version.transaction:
                        fates.setdefault(version.transaction, set()).add(version.lost)
        for transaction, fate in fates.items():
            if len(fate) > 1:
                raise Violation(f"I8: transaction {transaction} is there in part")
