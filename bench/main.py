"""The command behind scripts/bench: parse, run, print, write."""

import argparse
import datetime
import fcntl
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from bench import machine, picture, report, runner
from bench.loads import BOOT, LOADS, Load, Scale
from bench.lockd_load import LOAD as LOCKD_LOAD
from bench.results import Results, Sample
from bench.rows import OURS, TITLES
from bench.variants import installed
from tests.support import guest
from tests.support.mounts import can_mount, enter_private_namespace

ALL_LOADS: Final = (*LOADS, LOCKD_LOAD)
DOCS: Final = Path(__file__).parents[1] / "docs"
PREFIX: Final = "vmfs-bench."
PARENTS: Final = {"tmpfs": Path("/dev/shm"), "disk": Path("/var/tmp")}

FULL: Final = Scale(file_mib=256, disk_mib=4096, seconds=0.6, names=2000, rounds=4, copy_rounds=2)
QUICK: Final = Scale(file_mib=64, disk_mib=512, seconds=0.2, names=2000, rounds=1)
RECORDED: Final = Scale(file_mib=128, disk_mib=4096, seconds=0.3, names=2000, rounds=3)
RECORD_SECONDS: Final = 600.0
"""For each place: on cores that are not quiet there are fewer rounds."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names, variants = [load.name for load in ALL_LOADS], list(TITLES)
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="vmfs beside its peers, in one run; ratios count."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a minute")
    parser.add_argument(
        "--record", action="store_true", help="tmpfs and disk; rewrite docs/performance.*"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="page and picture from docs/performance.json; no run"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --record writes")
    parser.add_argument(
        "--where", choices=tuple(PARENTS), default="tmpfs", help="the image (tmpfs)"
    )
    parser.add_argument("--dir", type=Path, help="a directory for the images, if not the usual")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", choices=names, help=str(names))
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", choices=variants, help=str(variants)
    )
    parser.add_argument("--rounds", type=int, help="rounds of everything (4)")
    parser.add_argument("--seconds", type=float, help="of a load that has no natural end (0.6)")
    parser.add_argument("--file-mib", type=int, help="MiB of the files (256)")
    parser.add_argument("--disk-mib", type=int, help="MiB of the sparse VMDK (4096)")
    parser.add_argument("--names", type=int, help="files in one directory (2000)")
    parser.add_argument("--guest", action="store_true", help="also boot a guest, under TCG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args(words)


def scale_of(options: argparse.Namespace, base: Scale) -> Scale:
    """The base with what the command line says otherwise."""
    given = {
        name: getattr(options, name)
        for name in ("rounds", "seconds", "file_mib", "disk_mib", "names")
        if getattr(options, name) is not None
    }
    return replace(base, **given)


def plans(options: argparse.Namespace, guest_disk: Path | None) -> list[runner.Plan]:
    """What to run, in order.

    Raises:
        SystemExit: a variant is wanted that is not installed.
    """
    wanted = options.variants or [name for name in TITLES if installed(name)]
    missing = [name for name in wanted if not installed(name)]
    if missing:
        raise SystemExit(f"bench: not installed: {', '.join(missing)}")
    loads: list[Load] = [
        load for load in ALL_LOADS if not options.only or load.name in options.only
    ]
    if guest_disk is not None:
        loads.append(BOOT)
    places = tuple(PARENTS) if options.record else (options.where,)
    return [
        runner.Plan(
            place=place,
            parent=options.dir or PARENTS[place],
            scale=scale_of(options, _base(options)),
            loads=loads,
            variants=wanted,
            seconds_max=RECORD_SECONDS if options.record else math.inf,
            guest_disk=guest_disk,
        )
        for place in places
    ]


def _base(options: argparse.Namespace) -> Scale:
    if options.quick:
        return QUICK
    return RECORDED if options.record else FULL


@contextmanager
def work_directory(parent: Path) -> Iterator[Path]:
    """A new directory, and its certain end; those of runs that were killed end now.

    A run holds a lock on its directory, so one that can be locked is nobody's.
    """
    for old in parent.glob(f"{PREFIX}*"):
        with locked(old) as is_ours:
            if is_ours:
                shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    with locked(path):
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold a lock (flock) on a directory, if nobody else does; whether it is held."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        is_held = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(fd)


def run_plan(plan: runner.Plan) -> runner.Outcome:
    """One plan in a directory of its own.

    Raises:
        SystemExit: its images would not fit.
    """
    wanted, left = runner.room_wanted(plan), runner.room_left(plan.parent)
    if wanted > left:
        raise SystemExit(
            f"bench: {plan.parent} has {left >> 20} MiB left, {wanted >> 20} MiB are needed; "
            "see --file-mib, --disk-mib, --variants, --dir"
        )
    with work_directory(plan.parent) as work:
        return runner.run(plan, work)


def prepared_guest(work: Path) -> Path:
    """A raw disk that has been booted once: it holds data for later boots to verify."""
    disk = work / "guest.raw"
    guest.make_root_disk(work, disk, size_mib=runner.GUEST_MIB)
    guest.make_vmdk(disk, work / "guest.vmdk")
    said = guest.boot(work / "guest.vmdk")
    if "GUEST-WRITTEN" not in said:
        raise SystemExit(f"bench: the guest did not boot:\n{said[-2000:]}")
    return work / "guest-flat.vmdk"


def about(options: argparse.Namespace, load_before: list[float]) -> dict[str, Any]:
    """Everything in the JSON document that is not a sample."""
    plain = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
    }
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.facts(),
        "versions": machine.versions(),
        "filesystems": {place: machine.filesystem_of(path) for place, path in PARENTS.items()},
        "options": plain,
        "load_before": load_before,
        "load_after": machine.load_average(),
    }


def record(document: dict[str, Any], docs: Path) -> None:
    """JSON, picture, and the tables of the page."""
    (docs / "performance.json").write_text(report.to_json(document))
    samples = [Sample(**sample) for sample in document["samples"]]
    picture.draw([Results(samples, place=place) for place in report.PLACES], docs)
    page = docs / "performance.md"
    text = report.markdown(document, picture="performance.png")
    page.write_text(report.replaced(page.read_text(), text))


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0: all was run and every volume is sound; 1: one of our variants failed."""
    options = parse(words)
    if options.redraw:
        record(json.loads((options.docs / "performance.json").read_text()), options.docs)
        return 0
    if not can_mount():
        raise SystemExit("bench: needs root and /dev/fuse")
    enter_private_namespace()
    load_before = machine.load_average()
    outcomes: list[runner.Outcome] = []
    with runner.ended_by_signals(), work_directory(PARENTS["disk"]) as scratch:
        guest_disk = prepared_guest(scratch) if options.guest else None
        outcomes += [run_plan(plan) for plan in plans(options, guest_disk)]
    failures = [asdict(failure) for outcome in outcomes for failure in outcome.failures]
    document = report.document_of(
        (sample for outcome in outcomes for sample in outcome.samples),
        failures=failures,
        about=about(options, load_before),
    )
    print(report.markdown(document))
    if options.json:
        options.json.write_text(report.to_json(document))
    if options.record:
        record(document, options.docs)
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    for finding in findings:
        print(f"bench: vmfs check found:\n{finding}", file=sys.stderr)
    ours = [
        one for one in failures if one["variant"].startswith(OURS) and one["variant"] != "vmfs-fuse"
    ]
    return 1 if findings or ours else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
