"""What is measured, in which unit, and which target was set for it. Pure values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OURS: Final = "vmfs"
IDLE_HOSTS: Final = "vmfs-idle"
SLEEPS: Final = "vmfs-sleeps"
KERNEL: Final = "ext4"
RAW: Final = "raw"
PEERS: Final = ("fuse2fs", "bindfs", "mergerfs", "vmfs-fuse")
"""Filesystems in C and C++ behind the same FUSE interface."""

KIN: Final = ("fuse2fs", "vmfs-fuse")
"""Those that keep a filesystem in an image, as we do: the target is to be ahead everywhere."""

LOCKD: Final = "lockd"
"""The variant of the rows that have no mount under them."""

TITLES: Final = {
    RAW: "raw",
    KERNEL: "ext4 loop",
    "fuse2fs": "fuse2fs",
    "bindfs": "bindfs",
    "mergerfs": "mergerfs",
    "vmfs-fuse": "vmfs-fuse",
    OURS: "vmfs",
    IDLE_HOSTS: "vmfs, 4 idle hosts",
    SLEEPS: "vmfs, spin_us=0",
    LOCKD: "lockd",
}
"""Every variant and its column head, in the order of the tables."""


class Unit(StrEnum):
    """Of a sample; `MB` is 10^6 bytes."""

    THROUGHPUT = "MB/s"
    IOPS = "IOPS"
    RATE = "/s"
    MILLISECONDS = "ms"
    SECONDS = "s"

    @property
    def more_is_better(self) -> bool:
        """Whether a larger figure is the better one: it is not for durations."""
        return self not in (Unit.MILLISECONDS, Unit.SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a row must reach: a ratio to a rival, or, with no rival, a figure in the row's unit.

    `against` is a variant, or `best` for the fastest of `PEERS`.
    """

    wanted: float
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: a line of the tables."""

    name: str
    title: str
    unit: Unit
    targets: tuple[Target, ...] = ()


def best(wanted: float) -> tuple[Target, ...]:
    """A target in terms of the best C peer."""
    return (Target(wanted=wanted, against="best"),)


def figure(wanted: float) -> tuple[Target, ...]:
    """A target in the row's own unit."""
    return (Target(wanted=wanted),)


# "The kernel's own speed": no request leaves the kernel. A tenth is left for noise and for FUSE's
# own look at its time-outs.
_KERNELS_OWN: Final = (Target(wanted=0.9, against=KERNEL),)

ROWS: Final = (
    Row(
        name="read-1m-direct",
        title="sequential read 1 MiB, direct",
        unit=Unit.THROUGHPUT,
        targets=best(1.5),
    ),
    Row(
        name="read-1m",
        title="sequential read 1 MiB, buffered, cold",
        unit=Unit.THROUGHPUT,
        targets=best(1.5),
    ),
    Row(name="mmap-read", title="mmap read, cold", unit=Unit.THROUGHPUT, targets=best(1.5)),
    Row(name="reread", title="warm re-read", unit=Unit.THROUGHPUT, targets=_KERNELS_OWN),
    Row(
        name="write-1m-direct",
        title="sequential write 1 MiB, direct",
        unit=Unit.THROUGHPUT,
        targets=best(0.9),
    ),
    Row(
        name="write-1m",
        title="sequential write 1 MiB, buffered",
        unit=Unit.THROUGHPUT,
        targets=best(0.9),
    ),
    Row(
        name="write-64k",
        title="sequential write 64 KiB, buffered",
        unit=Unit.THROUGHPUT,
        targets=best(0.5),
    ),
    Row(name="read-4k", title="random read 4 KiB, depth 1", unit=Unit.IOPS, targets=best(0.7)),
    Row(name="read-4k-4", title="random read 4 KiB, 4 jobs", unit=Unit.IOPS, targets=best(0.9)),
    Row(name="write-4k", title="random write 4 KiB, depth 1", unit=Unit.IOPS, targets=best(0.7)),
    Row(name="write-4k-4", title="random write 4 KiB, 4 jobs", unit=Unit.IOPS, targets=best(0.9)),
    Row(
        name="write-4k-4-apart",
        title="random write 4 KiB, 4 jobs, a file each",
        unit=Unit.IOPS,
        targets=best(0.9),
    ),
    Row(name="write-4k-fsync", title="random write 4 KiB, fsync each", unit=Unit.IOPS),
    Row(name="create", title="create of 2,000 names", unit=Unit.RATE, targets=best(0.7)),
    Row(name="open", title="open of 2,000 names", unit=Unit.RATE, targets=best(0.7)),
    Row(name="stat", title="cached stat", unit=Unit.RATE, targets=_KERNELS_OWN),
    Row(
        name="ls",
        title="`ls -l` of 2,000 names",
        unit=Unit.MILLISECONDS,
        targets=best(0.7) + figure(15.0),
    ),
    Row(name="ls-cold", title="`ls -l` of 2,000 names, nothing cached", unit=Unit.MILLISECONDS),
    Row(name="unlink", title="unlink of 2,000 names", unit=Unit.RATE, targets=best(0.7)),
    Row(name="cp-in", title="`cp` of a VMDK onto it", unit=Unit.SECONDS),
    Row(name="cp-out", title="`cp` of a VMDK from it", unit=Unit.SECONDS),
    Row(name="convert", title="`qemu-img convert` on it", unit=Unit.SECONDS),
    Row(name="boot", title="boot of a guest (TCG)", unit=Unit.SECONDS),
    Row(name="lockd-1", title="lockd requests, one client", unit=Unit.RATE, targets=figure(10_000)),
    Row(
        name="lockd-8",
        title="lockd requests, eight clients",
        unit=Unit.RATE,
        targets=figure(25_000),
    ),
    Row(
        name="lockd-caw",
        title="lockd compare-and-write, cached image, one client",
        unit=Unit.RATE,
        targets=figure(8_000),
    ),
    Row(name="lockd-caw-8", title="the same, eight clients", unit=Unit.RATE),
    Row(name="lockd-caw-durable", title="the same, one client, durable", unit=Unit.RATE),
)
