"""What a name may hold, given who changed it when, and what was promised.

A change (a file renamed into place, a deletion) is atomic, and happens at some moment between its
begin and its end; one whose outcome was not learned, at any time or never. Whoever looks finds a
change that no *sure* one has followed: sure is what was synced, or ended on a host that lives.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from tests.support.sim.host import SimHost
from tests.support.sim.story import Violation

_STAMP: Final = Struct("<8sQQ")
_MAGIC: Final = b"VMFSNAME"


def stamped(serial: int, length: int) -> bytes:
    """Contents that tell which change they belong to, all through."""
    unit = _STAMP.pack(_MAGIC, serial, length)
    return (unit * (length // len(unit) + 1))[:length]


@dataclass(eq=False, slots=True)
class Change:
    """One change of one name."""

    name: bytes
    serial: int
    writer: SimHost | None  # None: as mkfs left it
    data: bytes | None = None  # None: no such name
    begun: float = math.inf
    ended: float = math.inf
    promised: bool = False

    @property
    def is_sure(self) -> bool:
        """Nobody may find the name as it was before."""
        if self.promised:
            return True
        ended = self.ended < math.inf
        return ended and self.writer is not None and not (self.writer.dead or self.writer.reported)


@dataclass(eq=False)
class Names:
    """All names, and their changes."""

    serial: int = 0
    _moment: int = 0
    _changes: dict[bytes, list[Change]] = field(default_factory=dict)
    _looks: int = 0

    def moment(self) -> int:
        """Now; no two are the same."""
        self._moment += 1
        return self._moment

    def known(self) -> list[bytes]:
        """Names that somebody has begun to change."""
        return list(self._changes)

    def version(self, name: bytes, writer: SimHost) -> Change:
        """A change that `writer` is about to prepare."""
        self.serial += 1
        return Change(name, self.serial, writer)

    @contextmanager
    def changing(self, change: Change, data: bytes | None) -> Iterator[None]:
        """It happens inside, or nobody knows, when the block is left with an error."""
        first = Change(change.name, 0, None, begun=0, ended=0, promised=True)
        change.data, change.begun = data, self.moment()
        self._changes.setdefault(change.name, [first]).append(change)
        yield
        change.ended = self.moment()

    def changed_by(self, writer: SimHost) -> list[Change]:
        """What ended and was not promised: a sync now promises it."""
        return [
            change
            for changes in self._changes.values()
            for change in changes
            if change.writer is writer and change.ended < math.inf and not change.promised
        ]

    def promise(self, changes: Sequence[Change]) -> None:
        """They are durable."""
        for change in changes:
            change.promised = True

    def left(self, writer: SimHost) -> None:
        """It has unmounted: all of it is durable."""
        self.promise(self.changed_by(writer))

    def kept_by(self, host: SimHost) -> list[bytes]:
        """Names that only this start of a host has changed, and that are there."""
        return [
            name
            for name, changes in self._changes.items()
            if all(change.writer in (None, host) for change in changes)
            and changes[-1].data is not None
            and changes[-1].ended < math.inf
        ]

    def check(self, name: bytes, data: bytes | None, *, began: int, by: str) -> None:
        """Hold what `by` found, from moment `began` on, to what may be there.

        Raises:
            Violation: nobody wrote that there, or something sure has followed it.
        """
        self._looks += 1
        found = [c for c in self._changes.get(name, []) if c.data == data]
        if not found and (data is not None or name in self._changes):
            raise Violation(f"I8: {by} finds in {name!r} what nobody wrote there: {data!r:.80}")
        after = [
            change
            for change in self._changes.get(name, [])
            if change.is_sure and change.ended < began
        ]
        for change in after:
            if all(each.ended < change.begun for each in found):
                what = "nothing" if data is None else f"change {found[0].serial}"
                raise Violation(
                    f"I8: {by} finds {what} in {name!r}; "
                    f"change {change.serial} was made after that, and is lost"
                )

    def counts(self) -> dict[str, int]:
        """For the summary."""
        changes = [c for each in self._changes.values() for c in each[1:]]
        return {
            "changes": len(changes),
            "promised": sum(change.promised for change in changes),
            "looks": self._looks,
        }
