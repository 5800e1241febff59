"""The load generator behind scripts/bench: fio on three variants, interleaved, medians and ratios.

The machine drifts, so absolute figures mean little: every round runs every variant once, in a
shuffled order, and the ratio of two variants is the median of the ratios round by round.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One fio job. `unit` says which of fio's figures counts."""

    name: str
    rw: str
    block: str
    unit: str  # "MB/s" or "IOPS"
    direct: bool = False
    jobs: int = 1
    fsync: int = 0

    @property
    def writes(self) -> bool:
        """A read-only variant cannot run it."""
        return "write" in self.rw


WORKLOADS = (
    Workload(name="sequential read 1 MiB, direct", rw="read", block="1M", unit="MB/s", direct=True),
    Workload(name="sequential read 1 MiB, buffered", rw="read", block="1M", unit="MB/s"),
    Workload(name="random read 4 KiB, direct", rw="randread", block="4k", unit="IOPS", direct=True),
    Workload(
        name="random read 4 KiB, direct, 4 jobs",
        rw="randread",
        block="4k",
        unit="IOPS",
        direct=True,
        jobs=4,
    ),
    Workload(
        name="sequential write 1 MiB, direct", rw="write", block="1M", unit="MB/s", direct=True
    ),
    Workload(name="sequential write 1 MiB, buffered", rw="write", block="1M", unit="MB/s"),
    Workload(name="sequential write 64 KiB, buffered", rw="write", block="64k", unit="MB/s"),
    Workload(
        name="random write 4 KiB, direct", rw="randwrite", block="4k", unit="IOPS", direct=True
    ),
    Workload(name="write 4 KiB + fsync", rw="randwrite", block="4k", unit="IOPS", fsync=1),
)


def measure(workload: Workload, path: Path, seconds: float) -> float:
    """Run the workload on an existing file; MB/s or IOPS."""
    command = [
        *("fio", "--name=bench", "--output-format=json", "--ioengine=psync", "--time_based"),
        *(f"--filename={path}", f"--rw={workload.rw}", f"--bs={workload.block}"),
        *(f"--runtime={seconds}s", f"--direct={int(workload.direct)}"),
        *(f"--numjobs={workload.jobs}", "--group_reporting", f"--fsync={workload.fsync}"),
        *(f"--size={path.stat().st_size}", "--invalidate=1", "--overwrite=0", "--fallocate=none"),
        *(["--readonly"] if not workload.writes else []),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 10 + 120, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: fio failed on {path}:\n{done.stderr}{done.stdout}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["write" if workload.writes else "read"]
    return float(side["bw_bytes"] / 1e6 if workload.unit == "MB/s" else side["iops"])


@contextmanager
def service(command: list[str], ready: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program, wait for its ready line, and end it (SIGTERM, by pid) afterwards."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if ready in line:
                break
        else:
            raise SystemExit(f"bench: {command[0]} did not start:\n{log.read_text()}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=READY_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def foreign_mount(lun: Path, directory: Path) -> Iterator[bool]:
    """vmfs-fuse of vmfs-tools on the same volume, read-only; False where it is not installed."""
    program = shutil.which("vmfs-fuse") or "/usr/sbin/vmfs-fuse"
    if not Path(program).exists():
        yield False
        return
    directory.mkdir()
    subprocess.run([program, lun, directory], check=True, timeout=READY_SECONDS_MAX)
    try:
        yield True
    finally:
        subprocess.run(["umount", directory], check=False, timeout=READY_SECONDS_MAX)


def fill(path: Path, size_mib: int) -> None:
    """Write `size_mib` of incompressible bytes."""
    chunk = random.Random(1).randbytes(1 << 20)
    with path.open("wb", buffering=0) as target:
        for index in range(size_mib):
            target.write(index.to_bytes(8, "little") + chunk[8:])
        os.fsync(target.fileno())


def run(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Set everything up, measure, take everything down. Figures by workload and variant."""
    bin_dir = Path(sys.executable).parent
    figures: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="vmfs-bench.", dir=options.dir))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        lun, mount, socket = work / "lun", work / "mnt", work / "lockd/sock"
        socket.parent.mkdir(mode=0o700)
        mount.mkdir()
        volume_size = f"{max(2, options.size // 256)}G"
        subprocess.run(
            [bin_dir / "vmfs", "mkfs", lun, "--size", volume_size, "--label", "bench"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        lockd = [str(bin_dir / "lockd"), "--lun", f"ds1={lun}"]
        lockd += ["--socket", str(socket), "--state", str(work / "state")]
        stack.enter_context(service(lockd, "lockd: ready", work / "lockd.log"))
        mounted = [str(bin_dir / "vmfs"), "mount", str(lun), str(mount)]
        mounted += ["--lockd", str(socket), "--host", "bench"]
        stack.enter_context(service(mounted, "vmfs: ready", work / "mount.log"))
        fill(mount / "file", options.size)
        fill(work / "raw", options.size)
        variants = {"raw file": work / "raw", "vmfs": mount / "file"}
        with foreign_mount(lun, work / "foreign") as present:
            if present:
                variants["vmfs-fuse"] = work / "foreign/file"
            measure_all(options, variants, figures)
    return figures


def measure_all(
    options: argparse.Namespace,
    variants: dict[str, Path],
    figures: dict[str, dict[str, list[float]]],
) -> None:
    """Every round, every workload, every variant, in a shuffled order."""
    order = random.Random(options.rounds)
    for number in range(options.rounds):
        for workload in WORKLOADS:
            able = [name for name in variants if not (workload.writes and name == "vmfs-fuse")]
            for name in order.sample(able, len(able)):
                figure = measure(workload, variants[name], options.seconds)
                figures.setdefault(workload.name, {}).setdefault(name, []).append(figure)
        print(f"bench: round {number + 1} of {options.rounds} done", file=sys.stderr)


def ratio(row: dict[str, list[float]], peer: str) -> str:
    """Median of vmfs / peer, round by round."""
    if peer not in row:
        return "-"
    pairs = zip(row["vmfs"], row[peer], strict=True)
    return f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"


def report(figures: dict[str, dict[str, list[float]]]) -> None:
    """A Markdown table on stdout."""
    print("| workload | raw file | vmfs | vmfs-fuse | vmfs / raw | vmfs / vmfs-fuse |")
    print("|---|---|---|---|---|---|")
    for workload in WORKLOADS:
        row = figures[workload.name]
        cells = [
            f"{statistics.median(row[name]):,.0f} {workload.unit}" if name in row else "-"
            for name in ("raw file", "vmfs", "vmfs-fuse")
        ]
        cells += [ratio(row, "raw file"), ratio(row, "vmfs-fuse")]
        print(f"| {workload.name} | {' | '.join(cells)} |")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description="What the mount costs, as ratios in one run.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of everything (3)")
    parser.add_argument("--seconds", type=float, default=2, help="length of one load (2)")
    parser.add_argument("--size", type=int, default=512, help="MiB of the file (512)")
    parser.add_argument("--dir", default=None, help="where the image lies (a tmpfs shows software)")
    parser.add_argument("--json", type=Path, default=None, help="write every figure there")
    options = parser.parse_args()
    figures = run(options)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
