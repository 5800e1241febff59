"""What a check can find: one stable code each, its weight, and what it means.

The catalogue below is the contract with scripts and people: a code never changes its meaning, and
`docs/check.md` has a section for each (a test compares the two). A finding is one fact about one
place; a `Report` is all of them, bounded, with counts that are exact even where findings were left
out.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from vmfs.ids import FdAddress

KEPT_PER_CODE_MAX: Final = 100
"""Findings of one code that are kept whole. A wrecked volume can have millions; a person reads a
screen, and the counts say the rest."""


class Severity(IntEnum):
    """How much a finding weighs; only errors make the exit status 4."""

    INFO = 0
    """A state worth knowing, and legal."""
    WARNING = 1
    """Legal, but the next mount has something to do, or a foreign reader may stumble."""
    ERROR = 2
    """The volume is not what the format says it must be."""


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

CATALOGUE: Final[Mapping[str, tuple[Severity, str]]] = MappingProxyType(
    {
        "lvm-corrupt": (_ERROR, "the LVM header, volume entry or an extent entry is not valid"),
        "descriptor-corrupt": (_ERROR, "the filesystem descriptor is not valid"),
        "heartbeat-corrupt": (_ERROR, "a heartbeat slot has a wrong magic, address or field"),
        "host-active": (_INFO, "a host has the volume open: findings may be of the moment"),
        "system-file-corrupt": (_ERROR, "a system file's descriptor or block list is not valid"),
        "resource-total": (_ERROR, "a resource file's totals do not add up"),
        "cluster-corrupt": (_ERROR, "a resource cluster's metadata is not valid"),
        "cluster-lock-corrupt": (_ERROR, "the lock record of a resource cluster is not valid"),
        "cluster-free-count": (_ERROR, "a cluster's free count is not what its bitmap holds"),
        "cluster-first-free": (_INFO, "a cluster's first-free hint is not its first free bit"),
        "fd-corrupt": (_ERROR, "an allocated file descriptor is not valid"),
        "fd-lock-corrupt": (_ERROR, "the lock record of a file descriptor is not valid"),
        "fd-empty": (_ERROR, "a file descriptor is allocated, but has no links"),
        "fd-not-allocated": (_ERROR, "a file descriptor is in use, but marked free"),
        "fd-length": (_ERROR, "a file's length is beyond what its block list can hold"),
        "fd-block-count": (_ERROR, "a file's block count is not what its pointers hold"),
        "fd-tbz-count": (_ERROR, "a file's count of to-be-zeroed blocks is not what they are"),
        "pointer-bad": (_ERROR, "a pointer has the wrong type, or points outside its resource"),
        "pointer-beyond-length": (_WARNING, "a file owns blocks past its length"),
        "block-doubly-owned": (_ERROR, "two owners point to the same block"),
        "block-not-allocated": (_ERROR, "a block is owned, but marked free in its bitmap"),
        "block-lost": (_ERROR, "a block is marked used, but nobody owns it"),
        "foreign-journal": (_INFO, "a block is the journal of an ESXi host"),
        "directory-corrupt": (_ERROR, "a directory's length or content cannot be read"),
        "directory-hole": (_ERROR, "a directory has an empty entry: foreign readers stop there"),
        "directory-two-parents": (_ERROR, "a directory is reached by two names"),
        "dirent-corrupt": (_ERROR, "a directory entry has no legal name, type or address"),
        "dirent-dot": (_ERROR, "`.` or `..` is missing, misplaced or wrong"),
        "dirent-duplicate": (_ERROR, "a name stands twice in a directory"),
        "dirent-dangling": (_ERROR, "a name leads to a file descriptor that is not there"),
        "dirent-generation": (_ERROR, "a name leads to an older or newer file than it names"),
        "dirent-type": (_ERROR, "a name says another type than the file descriptor"),
        "link-count": (_ERROR, "a link count is not the number of names"),
        "fd-unreachable": (_ERROR, "a file descriptor has links, but no name leads to it"),
        "orphan-pending": (_INFO, "a file still to be freed or cut, noted in an orphan table"),
        "orphan-stale": (_WARNING, "an orphan table names a file that is not there any more"),
        "orphan-table-corrupt": (_ERROR, "an orphan table is not valid"),
        "lock-held": (_INFO, "a live host holds locks"),
        "stale-lock": (_INFO, "a lock's holder is gone: the next host simply takes it"),
        "lock-holder-bad": (_ERROR, "a lock names a holder that cannot exist"),
        "journal-corrupt": (_ERROR, "a journal's header is not valid"),
        "needs-replay": (_WARNING, "a journal holds transactions that the next mount replays"),
        "journal-overlap": (_ERROR, "two journals hold a transaction for the same sector"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about one place."""

    code: str
    severity: Severity
    text: str
    """One sentence: what was found, and what was expected."""
    address: int | None = None
    """LV offset of what is wrong (device offset for `lvm-corrupt`)."""
    fd: FdAddress | None = None
    """The file descriptor it concerns."""
    path: str | None = None
    """A path of that file descriptor, when the walk came across one."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "code": self.code,
            "severity": self.severity.name.lower(),
            "address": self.address,
            "fd": self.fd,
            "path": self.path,
            "text": self.text,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one check found.

    Invariant: `counts[code]` is exact; `findings` holds at most KEPT_PER_CODE_MAX of each code.
    """

    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    statistics: Mapping[str, int]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make a volume unclean."""
        return tuple(found for found in self.findings if found.severity is Severity.ERROR)

    @property
    def codes(self) -> frozenset[str]:
        """The codes that were found at all."""
        return frozenset(self.counts)

    def total(self, severity: Severity) -> int:
        """How many findings of a severity there are, those left out included."""
        return sum(count for code, count in self.counts.items() if CATALOGUE[code][0] is severity)

    def confirmed_by(self, second: "Report") -> "Report":
        """What a second look at a volume in use found again: the rest was of the moment.

        Two findings are the same if code, place and file are; texts may count on.
        """
        again = {(found.code, found.address, found.fd) for found in second.findings}
        kept = tuple(
            found
            for found in self.findings
            if found.severity is Severity.INFO or (found.code, found.address, found.fd) in again
        )
        counts = dict(self.counts)
        for code, count in self.counts.items():
            told = sum(found.code == code for found in self.findings)
            left = sum(found.code == code for found in kept)
            # past the bound of what is told one by one, only the numbers can be held together
            counts[code] = left if told == count else min(count, second.counts.get(code, 0))
        return Report(
            findings=kept,
            counts={code: count for code, count in counts.items() if count},
            statistics=second.statistics,
        )

    @property
    def exit_status(self) -> int:
        """As fsck(8): 0 clean, 4 errors left uncorrected."""
        return 4 if self.total(Severity.ERROR) else 0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; the keys are documented in docs/check.md."""
        return {
            "clean": self.exit_status == 0,
            "counts": dict(self.counts),
            "statistics": dict(self.statistics),
            "findings": [found.as_dict() for found in self.findings],
        }


@dataclass(slots=True)
class Findings:
    """The list that a running check adds to."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    statistics: Counter[str] = field(default_factory=Counter)

    def add(
        self, code: str, text: str, *, address: int | None = None, fd: FdAddress | None = None
    ) -> None:
        """Note one finding; past the bound of its code only the count grows."""
        severity, _ = CATALOGUE[code]
        self.counts[code] += 1
        if self.counts[code] <= KEPT_PER_CODE_MAX:
            self.kept.append(
                Finding(code=code, severity=severity, text=text, address=address, fd=fd)
            )

    def add_untold(self, code: str, count: int) -> None:
        """Note `count` more of a code that cannot each be told."""
        if count > 0:
            self.counts[code] += count

    def report(self, path_of: Callable[[FdAddress], str | None] = lambda _: None) -> Report:
        """Close the list: errors first, each with the path that the walk found for it."""
        named = [
            replace(found, path=path_of(found.fd)) if found.fd is not None else found
            for found in self.kept
        ]
        named.sort(key=lambda found: -found.severity)
        return Report(
            findings=tuple(named),
            counts=dict(sorted(self.counts.items())),
            statistics=dict(self.statistics),
        )
