"""The workloads: each is one program run on one variant's directory, and the figures it gives."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import guest

READ_FILE: Final = "read-flat.vmdk"
WRITE_FILE: Final = "write-flat.vmdk"
JOB_FILES: Final = tuple(f"job{number}-flat.vmdk" for number in range(4))
DISK_FILE: Final = "disk-flat.vmdk"
"""Sparse: a quarter of it has contents."""

SCRATCH: Final = "scratch"
"""A directory that is empty between loads."""

GUEST_DISK: Final = "guest.vmdk"
TIMEOUT_SECONDS: Final = 120.0


class LoadFailed(Exception):
    """A load ended badly or not in time; the text says which program, and what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much work a run is.

    `file_mib` and `disk_mib` are sizes of the files, `seconds` the length of a load that has no
    natural end, `names` how many files one directory gets. What moves whole disks takes long and is
    steady, so it is run in the first `copy_rounds` of the `rounds` only.
    """

    file_mib: int
    disk_mib: int
    seconds: float
    names: int
    rounds: int
    copy_rounds: int = 1

    @property
    def contents_mib(self) -> int:
        """Of the sparse disk."""
        return self.disk_mib // 4

    @property
    def job_mib(self) -> int:
        """Of the file that one of four jobs has."""
        return max(1, self.file_mib // len(JOB_FILES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one variant is measured.

    Attributes:
        directory: has the prepared files.
        outside: a plain directory on the same store, for what is copied out and in.
        on_disk: writes must reach a disk before a load ends.
    """

    directory: Path
    outside: Path
    on_disk: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One program run.

    Attributes:
        name: what `--only` calls it.
        rows: the rows that it gives figures for.
        run: does it; figures by row name, in their units.
        writes: a read-only variant cannot run it.
        cold: on a disk, nothing may be in the page cache before: neither file nor image.
        copies: moves a whole disk: left out for the variants of ours that differ in latency only.
        mountless: is for lockd alone.
    """

    name: str
    rows: tuple[str, ...]
    run: Callable[[Place, Scale], dict[str, float]]
    writes: bool = False
    cold: bool = False
    copies: bool = False
    mountless: bool = False


def run_program(words: Sequence[str | Path], *, seconds: float = TIMEOUT_SECONDS) -> str:
    """Run a program to its end; what it printed.

    Raises:
        LoadFailed: it failed, or took longer than `seconds` and was killed.
    """
    command = [str(word) for word in words]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C too: the program must not outlive us
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise LoadFailed(f"{' '.join(command)}: still running after {seconds} s") from None
            raise
    if process.returncode:
        raise LoadFailed(f"{' '.join(command)}: status {process.returncode}\n{said[-2000:]}")
    return said


def timed(words: Sequence[str | Path]) -> float:
    """How long a program takes, in seconds."""
    start = time.perf_counter()
    run_program(words)
    return time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Fio:
    """One fio job on one of the prepared files.

    With `whole` it passes over the file once, else it goes on for the scale's seconds. With `apart`
    each of four jobs has a file of its own, as the disks of four machines are, of a quarter of the
    size: the kernel lets one direct write into a file at a time.
    """

    row: str
    rw: str
    block: str
    engine: str = "psync"
    direct: bool = False
    jobs: int = 1
    fsync: int = 0
    whole: bool = False
    apart: bool = False

    @property
    def writes(self) -> bool:
        """A read-only variant cannot run it."""
        return "write" in self.rw

    def command(self, place: Place, scale: Scale) -> list[str]:
        """The words to run."""
        # No job may be called as something in the working directory is: fio would take that.
        words = ["fio", "--name=a load", "--output-format=json", "--thread", "--gtod_reduce=1"]
        if self.apart:
            words += [f"--directory={place.directory}", "--filename_format=job$jobnum-flat.vmdk"]
            words.append(f"--size={scale.job_mib}M")
        else:
            path = place.directory / (WRITE_FILE if self.writes else READ_FILE)
            words += [f"--filename={path}", f"--size={scale.file_mib}M"]
        words += [f"--rw={self.rw}", f"--bs={self.block}", f"--ioengine={self.engine}"]
        words += [f"--direct={int(self.direct)}", "--invalidate=1"]
        words += ["--fallocate=none", f"--numjobs={self.jobs}", "--group_reporting"]
        if self.fsync:
            words.append(f"--fsync={self.fsync}")
        if not self.whole:
            words += ["--time_based", f"--runtime={round(scale.seconds * 1000)}ms"]
        elif self.writes and place.on_disk:
            words.append("--end_fsync=1")  # else the page cache is measured, not the disk
        if not self.writes:
            words.append("--readonly")
        return words

    def run(self, place: Place, scale: Scale) -> dict[str, float]:
        """Throughput of blocks from 64 KiB, operations of smaller ones."""
        figures = parse_fio(run_program(self.command(place, scale)), writes=self.writes)
        return {self.row: figures["iops" if self.block == "4k" else "mb_per_second"]}

    def load(self) -> Load:
        """As one of the loads."""
        return Load(
            name=self.row,
            rows=(self.row,),
            run=self.run,
            writes=self.writes,
            cold=not self.writes,
        )


def parse_fio(text: str, *, writes: bool) -> dict[str, float]:
    """The two figures that count of fio's JSON, which has warnings in front of it at times."""
    job = json.loads(text[text.index("{\n") :])["jobs"][0]
    side = job["write" if writes else "read"]
    return {"mb_per_second": side["bw_bytes"] / 1e6, "iops": side["iops"]}


def run_client(load: str, target: Path, amount: float) -> dict[str, float]:
    """The figures of one run of `bench.client`."""
    words = [sys.executable, "-m", "bench.client", load, str(target), str(amount)]
    return {row: float(value) for row, value in json.loads(run_program(words)).items()}


def names(place: Place, scale: Scale) -> dict[str, float]:
    """The life of many empty files."""
    return run_client("names", place.directory / SCRATCH, scale.names)


def reread(place: Place, scale: Scale) -> dict[str, float]:
    """A file that was just read."""
    return run_client("reread", place.directory / READ_FILE, scale.seconds)


def copy_in(place: Place, scale: Scale) -> dict[str, float]:
    """`cp` of a sparse disk onto the variant."""
    return {"cp-in": _copied(place.outside / DISK_FILE, place.directory / SCRATCH, place)}


def copy_out(place: Place, scale: Scale) -> dict[str, float]:
    """`cp` of a sparse disk from the variant to a plain directory."""
    return {"cp-out": _copied(place.directory / DISK_FILE, place.outside / SCRATCH, place)}


def _copied(source: Path, directory: Path, place: Place) -> float:
    target = directory / DISK_FILE
    words: list[str | Path] = ["cp", source, target]
    if place.on_disk:
        words = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', source, target]
    try:
        return timed(words)
    finally:
        target.unlink(missing_ok=True)


def convert(place: Place, scale: Scale) -> dict[str, float]:
    """`qemu-img convert` of a raw disk to a sparse VMDK beside it."""
    target = place.directory / SCRATCH / "converted.vmdk"
    words: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk"]
    try:
        return {"convert": timed([*words, place.directory / DISK_FILE, target])}
    finally:
        target.unlink(missing_ok=True)


def boot(place: Place, scale: Scale) -> dict[str, float]:
    """From qemu's start to its end; the guest checks 64 MiB that an earlier boot wrote."""
    start = time.perf_counter()
    said = run_program(guest.command(place.directory / GUEST_DISK))
    if "GUEST-VERIFIED" not in said:
        raise LoadFailed(f"the guest did not verify its data; it said:\n{said[-2000:]}")
    return {"boot": time.perf_counter() - start}


_FIOS: Final = (
    Fio(row="read-1m-direct", rw="read", block="1M", direct=True),
    Fio(row="read-1m", rw="read", block="1M", whole=True),
    Fio(row="mmap-read", rw="read", block="1M", engine="mmap", whole=True),
    Fio(row="write-1m-direct", rw="write", block="1M", direct=True),
    Fio(row="write-1m", rw="write", block="1M", whole=True),
    Fio(row="write-64k", rw="write", block="64k", whole=True),
    Fio(row="read-4k", rw="randread", block="4k", direct=True),
    Fio(row="read-4k-4", rw="randread", block="4k", direct=True, jobs=4),
    Fio(row="write-4k", rw="randwrite", block="4k", direct=True),
    Fio(row="write-4k-4", rw="randwrite", block="4k", direct=True, jobs=4),
    Fio(row="write-4k-4-apart", rw="randwrite", block="4k", direct=True, jobs=4, apart=True),
    Fio(row="write-4k-fsync", rw="randwrite", block="4k", fsync=1),
)
_NAMES: Final = ("create", "open", "stat", "ls", "ls-cold", "unlink")

LOADS: Final = (
    *(fio.load() for fio in _FIOS),
    Load(name="reread", rows=("reread",), run=reread),
    Load(name="names", rows=_NAMES, run=names, writes=True),
    *(
        Load(name=name, rows=(name,), run=run, writes=writes, cold=True, copies=True)
        for name, run, writes in (
            ("cp-in", copy_in, True),
            ("cp-out", copy_out, False),
            ("convert", convert, True),
        )
    ),
)
BOOT: Final = Load(name="boot", rows=("boot",), run=boot, writes=True, copies=True)
"""By option only: it fetches a kernel, and TCG makes it long."""
