"""What things cost as they grow (scripts/scale).

Real mounts of sparse images, one point after the other. Each point is a fresh volume with a lockd
and mounts of its own, so that nothing is left from the point before. Processor time is that of the
mount's process: the machine's other work is not in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import growth, report
from bench.growth import Row
from tests.support.mounts import BIN, Mount, Process, force_unmount, run
from vmfs.units import GIB, MIB, TIB

VOLUMES: Final = (GIB, 64 * GIB, TIB, 16 * TIB, 64 * TIB)
FILE_SIZES: Final = (GIB, 64 * GIB, TIB, 16 * TIB, 60 * TIB)
FILES: Final = (100, 1_000, 10_000, 100_000)
HOSTS: Final = (1, 2, 4, 8, 16)

NAMES_TIMED: Final = 1_000
"""Names that each figure per name is the mean of."""

DOCS: Final = Path(__file__).parents[1] / "docs"


def main(words: list[str]) -> int:
    """Measure what is asked for; exit status 0."""
    curves: dict[str, tuple[tuple[int, ...], Callable[[Path, int], Row]]] = {
        "volume": (VOLUMES, volume_point),
        "file": (FILE_SIZES, file_point),
        "files": (FILES, files_point),
        "hosts": (HOSTS, hosts_point),
    }
    parser = argparse.ArgumentParser(prog="scripts/scale", description=__doc__)
    parser.add_argument("--curve", choices=curves, action="append", help="default: all")
    parser.add_argument("--most", type=int, help="leave out points above this")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where images go")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--record", action="store_true", help="rewrite docs/scale.* and its page")
    chosen = parser.parse_args(words)
    if chosen.record and (chosen.curve or chosen.most is not None):
        parser.error("a record is of all curves, whole")
    figures: dict[str, list[Row]] = {}
    for name in chosen.curve or curves:
        points, measure = curves[name]
        figures[name] = []
        for point in points:
            if chosen.most is not None and point > chosen.most:
                continue
            with tempfile.TemporaryDirectory(prefix="vmfs-scale-", dir=chosen.dir) as directory:
                figures[name].append({name: point} | measure(Path(directory), point))
            show(figures[name], heading=len(figures[name]) == 1)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    if chosen.record:
        record(figures, DOCS)
    return 0


def record(figures: growth.Figures, docs: Path) -> None:
    """JSON, picture, and the tables of the page."""
    (docs / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")
    growth.draw(figures, docs)
    page = docs / "performance.md"
    text = f"{growth.tables(figures)}\n\n![Cost as things grow](scale.png)"
    page.write_text(report.replaced(page.read_text(), text, part="scale"))


def show(rows: list[Row], *, heading: bool) -> None:
    """Print the last row, under the names of the figures if it is the first."""
    if heading:
        print("".join(f"{name:>16}" for name in rows[-1]), flush=True)
    print("".join(f"{value:16,.4g}" for value in rows[-1].values()), flush=True)


def volume_point(directory: Path, size: int) -> Row:
    """A volume of `size` bytes: making it, mounting it, statfs."""
    start = time.perf_counter()
    lun = make(directory, size)
    made = time.perf_counter() - start
    with served(directory, lun) as mount:
        start = time.perf_counter()
        host = mount("a")
        mounted = time.perf_counter() - start
        used = cpu_seconds(host)
        asked = timed(lambda: [os.statvfs(host.path) for _ in range(100)]) / 100
        return {
            "mkfs s": made,
            "mount s": mounted,
            "mount cpu s": used,
            "statfs us": asked * 1e6,
            "memory MiB": memory_mib(host),
        }


def file_point(directory: Path, size: int) -> Row:
    """A sparse file of `size` bytes on a 64 TiB volume: its far end, stat, truncation."""
    with served(directory, make(directory, 64 * TIB)) as mount:
        host = mount("a")
        path = host.path / "large"
        with path.open("w+b", buffering=0) as file:
            grown = timed(lambda: file.truncate(size))

            def write() -> None:
                file.seek(size - MIB)
                file.write(b"x" * MIB)
                os.fsync(file.fileno())

            written = timed(write)
        with path.open("rb", buffering=0) as file:

            def read() -> None:
                file.seek(size - MIB)
                assert file.read(MIB) == b"x" * MIB

            was_read = timed(read)
        looked = timed(path.stat)
        cut = timed(lambda: os.truncate(path, 0))
        return {
            "grow ms": grown * 1e3,
            "write end ms": written * 1e3,
            "read end ms": was_read * 1e3,
            "stat us": looked * 1e6,
            "cut ms": cut * 1e3,
            "memory MiB": memory_mib(host),
        }


def files_point(directory: Path, count: int) -> Row:
    """One directory of so many files."""
    lun = make(directory, 16 * GIB, "--files", str(count + 1000))
    with served(directory, lun) as mount:
        host = mount("a")
        many = host.path / "many"
        many.mkdir()
        last = range(max(0, count - NAMES_TIMED), count)
        touch(many, range(last.start))
        used = cpu_seconds(host)
        created = timed(lambda: touch(many, last)) / len(last)
        used = (cpu_seconds(host) - used) / len(last)
        memory = memory_mib(host)
        host.stop()
        start = time.perf_counter()
        host = mount("a")
        mounted = time.perf_counter() - start
        many = host.path / "many"
        looked = timed(lambda: [(many / f"file-{n:06}").stat() for n in last]) / len(last)
        listed = timed(lambda: run("ls", "-l", many))
        host.stop()
        checked = timed(lambda: run(BIN / "vmfs", "check", lun, seconds=600))
        return {
            "create us": created * 1e6,
            "create cpu us": used * 1e6,
            "look up us": looked * 1e6,
            "ls -l s": listed,
            "mount s": mounted,
            "check s": checked,
            "memory MiB": memory,
        }


def hosts_point(directory: Path, count: int) -> Row:
    """So many hosts on one LUN; one of them works."""
    with served(directory, make(directory, 16 * GIB, "--hosts", "16")) as mount:
        host = mount("h0")
        hosts, mounted = [host], 0.0
        for number in range(1, count):
            start = time.perf_counter()
            hosts.append(mount(f"h{number}"))
            mounted = time.perf_counter() - start
        used = cpu_seconds(host)
        numbers = range(NAMES_TIMED)
        created = timed(lambda: touch(host.path, numbers)) / len(numbers)
        used = (cpu_seconds(host) - used) / len(numbers)
        return {
            "last mount s": mounted,
            "create us": created * 1e6,
            "create cpu us": used * 1e6,
            "memory MiB": memory_mib(hosts[-1]),
        }


@contextmanager
def served(directory: Path, lun: Path) -> Iterator[Callable[[str], Mount]]:
    """A lockd on the LUN for the length of the block, and a way to mount it as a host."""
    socket = directory / "lockd.sock"
    with ExitStack() as stack:
        state = directory / "state"
        words: list[str | Path] = [
            BIN / "lockd",
            "--lun",
            f"ds1={lun}",
            "--socket",
            socket,
            "--state",
            state,
        ]
        state.mkdir()
        lockd = Process(words)
        stack.callback(lockd.stop)
        while not socket.exists():
            time.sleep(0.01)

        def mount(name: str) -> Mount:
            path = directory / f"mount-{name}"
            path.mkdir(exist_ok=True)
            command: list[str | Path] = [BIN / "vmfs", "mount", lun, path]
            command += ["--lockd", socket, "--host", name]
            host = Mount(name, path, Process(command))
            stack.callback(force_unmount, path)
            stack.callback(lambda: host.stop() if host.process.is_running else None)
            host.process.wait_for("vmfs: ready:", seconds=60)
            return host

        yield mount


def make(directory: Path, size: int, *options: str) -> Path:
    """A fresh volume on a sparse image."""
    lun = directory / "lun.img"
    run(BIN / "vmfs", "mkfs", lun, "--size", str(size), "--label", "scale", *options, seconds=120)
    return lun


def touch(directory: Path, numbers: range) -> None:
    """Make empty files."""
    for number in numbers:
        (directory / f"file-{number:06}").touch()


def timed(work: Callable[[], object]) -> float:
    """How long it takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(host: Mount) -> float:
    """Processor time of a mount so far."""
    fields = Path(f"/proc/{host.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(host: Mount) -> float:
    """The most memory that a mount has had, in MiB."""
    lines = Path(f"/proc/{host.pid}/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
