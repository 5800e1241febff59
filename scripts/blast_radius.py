"""The experiment behind scripts/blast-radius: freeze one of 8 hosts, count the others' I/O.

Every other host has its own VMDK open and offers one 4 KiB operation each 10 ms (O_DIRECT, a write
and a read in turn; one at a time, and what was missed is not made up for). The victim grows and
truncates its own VMDK without end, so it allocates all the time. It is stopped (SIGSTOP) with its
file open for writing. In reservation mode only a stop that finds it holding the reservation, by
lockd's own status, counts: any other is continued at once. A host keeps the locks it has, so there
a second small file goes to and fro between the victim and a rival: both take its lock all the time.
"""

import argparse
import contextlib
import json
import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import trio

from lockd.client import observe
from tests.support.doctored_mount import NO_PACE
from tests.support.mounts import Datastore, Mount, datastore, enter_private_namespace
from vmfs.units import MIB

BLOCK: Final = 4096
PACE_SECONDS: Final = 0.01
SLOT_SECONDS: Final = 0.1
AROUND_SECONDS: Final = 4.0  # measured before the freeze, and after its end
SETTLE_SECONDS: Final = 1.0  # left out at the start of each phase: what was in flight ends
TUG_SECONDS: Final = 0.05
FIRE_SECONDS_MAX: Final = 20.0
FILE_SIZE: Final = 4 * MIB


@dataclass(slots=True, kw_only=True)
class Run:
    """One lock mode. Times are seconds of the monotonic clock, then relative to the freeze."""

    mode: str
    done: dict[str, list[float]] = field(default_factory=dict)  # by host: ends of operations
    tries: int = 0  # stops until one found the victim where it should be
    first_try: float = 0.0
    frozen: float = 0.0
    ended: float = 0.0  # the exit of the fenced victim was seen
    finished: float = 0.0

    def rate(self, host: str, start: float, end: float) -> float:
        """Operations per 100 ms between two moments."""
        count = sum(start <= moment < end for moment in self.done[host])
        return count * SLOT_SECONDS / (end - start)

    def phases(self, host: str) -> tuple[float, float, float]:
        """Operations per 100 ms before, during and after."""
        return (
            self.rate(host, self.first_try - AROUND_SECONDS + SETTLE_SECONDS, self.first_try),
            self.rate(host, self.frozen, self.ended),
            self.rate(host, self.ended + SETTLE_SECONDS, self.finished),
        )


@contextmanager
def at_work(workers: Sequence[threading.Thread], stop: threading.Event) -> Iterator[None]:
    """These threads work for the length of the block; `stop` ends them."""
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join(FIRE_SECONDS_MAX)


@contextmanager
def load(mounts: list[Mount], done: dict[str, list[float]]) -> Iterator[None]:
    """Every mount's paced I/O on its own open file, from a thread each."""
    stop = threading.Event()

    def work(fd: int, ends: list[float], place: int) -> None:
        buffer, number = mmap.mmap(-1, BLOCK), place
        while not stop.is_set():
            begun, offset = time.monotonic(), number * BLOCK % FILE_SIZE
            if number % 2:
                os.pwrite(fd, buffer, offset)
            else:
                os.preadv(fd, [buffer], offset)
            ends.append(time.monotonic())
            number += 1
            time.sleep(max(0.0, begun + PACE_SECONDS - time.monotonic()))

    with contextlib.ExitStack() as stack:
        workers = []
        for place, mount in enumerate(mounts):
            directory = mount.path / mount.name
            directory.mkdir()
            (directory / "disk-flat.vmdk").write_bytes(os.urandom(FILE_SIZE))
            fd = os.open(directory / "disk-flat.vmdk", os.O_RDWR | os.O_DIRECT)
            stack.callback(os.close, fd)
            os.fsync(fd)
            done[mount.name] = []
            arguments = (fd, done[mount.name], place)
            workers.append(threading.Thread(target=work, args=arguments, daemon=True))
        with at_work(workers, stop):
            yield


@contextmanager
def metadata_storm(victim: Mount) -> Iterator[Path]:
    """The victim makes files, allocates and frees without end; gives the file it holds open."""
    stop = threading.Event()
    directory = victim.path / victim.name
    directory.mkdir()
    path = directory / "disk-flat.vmdk"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def work() -> None:
        number = 0
        with contextlib.suppress(OSError):  # the host is fenced
            while not stop.is_set():
                os.pwrite(fd, bytes(BLOCK), number % 16 * MIB)
                os.fsync(fd)
                if number % 16 == 15:
                    os.ftruncate(fd, 0)
                number += 1
                (directory / f"new{number % 2}").write_bytes(b"x")
                (directory / f"new{number % 2}").unlink()

    try:
        with at_work([threading.Thread(target=work, daemon=True)], stop):
            yield path
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


@contextmanager
def tug_of_war(hosts: list[Mount]) -> Iterator[None]:
    """These hosts write one small file in turn: its lock record changes hands, under RESERVE."""
    stop = threading.Event()

    def work(path: Path) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):  # the other has it open, or this host is fenced
                path.write_bytes(b"mine")
            time.sleep(TUG_SECONDS)

    workers = [
        threading.Thread(target=work, args=(host.path / "rope",), daemon=True) for host in hosts
    ]
    with at_work(workers, stop):
        yield


def holds_reservation(socket: Path, host: Mount) -> bool:
    """Whether lockd says that this host has the LUN reserved (`lockctl status`)."""
    holder = f"{host.name} (pid {host.pid})"

    async def ask() -> bool:
        async with observe(socket, lambda _: None) as observer:
            report = await observer.status()
        return any(held.holder == holder and held.granted for held in report.luns[0].reservation)

    return trio.run(ask)


def freeze(ds: Datastore, victim: Mount, run: Run) -> None:
    """Stop the victim where it holds what its lock mode takes for a metadata operation."""
    run.first_try = time.monotonic()
    while time.monotonic() < run.first_try + FIRE_SECONDS_MAX:
        run.tries += 1
        moment = time.monotonic()
        victim.process.send(signal.SIGSTOP)
        if run.mode == "ats" or holds_reservation(ds.socket, victim):
            run.frozen = moment
            return
        victim.process.send(signal.SIGCONT)
        time.sleep(0.003 + run.tries % 7 * 0.001)  # no beat with the victim's own rhythm
    raise SystemExit("blast-radius: the victim was never found with the reservation")


def touch(mount: Mount, path: str) -> None:
    """Open a file for writing until that succeeds: what its dead holder left is recovered."""
    end = time.monotonic() + FIRE_SECONDS_MAX
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.close(os.open(mount.path / path, os.O_RDWR))
            return
        time.sleep(0.01)
    raise SystemExit("blast-radius: the victim's file stays closed")


def experiment(mode: str, *, hosts: int, seconds: float) -> Run:
    """Set a cluster up, freeze a host, take all down again: about 15 s more than `seconds`."""
    run = Run(mode=mode)
    names = [f"h{number}" for number in range(1, hosts + 1)]
    lockd_options = ("--lease-seconds", str(seconds))
    with (
        tempfile.TemporaryDirectory(prefix="blast-radius-") as directory,
        datastore(
            Path(directory),
            hosts=names,
            mkfs=("--lock-mode", mode),
            lockd_options=lockd_options,
        ) as ds,
    ):
        others = list(ds.hosts.values())[1:]
        victim = ds.mount(names[0], doctored=NO_PACE)  # frozen for as long as lockd is told
        pullers = [victim, others[-1]] if mode == "reservation" else []
        with load(others, run.done), metadata_storm(victim) as path, tug_of_war(pullers):
            time.sleep(AROUND_SECONDS)
            freeze(ds, victim, run)
            wanted = str(path.relative_to(victim.path))
            needs_it = threading.Thread(target=touch, args=(others[0], wanted), daemon=True)
            if mode == "ats":  # nobody else is in its way, so somebody must want its file
                time.sleep(seconds)
                needs_it.start()
            victim.process.wait()
            run.ended = time.monotonic()
            time.sleep(AROUND_SECONDS)
            run.finished = time.monotonic()
            if mode == "reservation":
                needs_it.start()
            needs_it.join(FIRE_SECONDS_MAX)
    return run


def table(runs: list[Run]) -> str:
    """Markdown: operations per 100 ms and host, and the fraction that was left."""
    lines = [
        "| lock mode | frozen for | before | during | after | during / before | slowest host |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        phases = [run.phases(host) for host in run.done]
        before, during, after = (sum(column) / len(phases) for column in zip(*phases, strict=True))
        worst = min(phase[1] / phase[0] for phase in phases)
        lines.append(
            f"| {run.mode} | {run.ended - run.frozen:.1f} s | {before:.2f} | {during:.2f} | "
            f"{after:.2f} | **{during / before:.1%}** | {worst:.1%} |"
        )
    return "\n".join(lines)


def draw(runs: list[Run], out: Path) -> None:
    """One strip per host and mode over time: the picture `blast-radius.svg` and `.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "blast-radius"
    figure, panels = pyplot.subplots(
        len(runs), 1, figsize=(10, 7.5), sharex=True, layout="constrained"
    )
    for run, panel in zip(runs, panels, strict=True):
        first = -round(AROUND_SECONDS / SLOT_SECONDS)
        last = int((run.finished - run.frozen) / SLOT_SECONDS)
        rows = [
            [
                run.rate(host, run.frozen + n * SLOT_SECONDS, run.frozen + (n + 1) * SLOT_SECONDS)
                for n in range(first, last)
            ]
            for host in run.done
        ]
        panel.imshow(
            rows,
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=SLOT_SECONDS / PACE_SECONDS,
            interpolation="nearest",
            extent=(first * SLOT_SECONDS, last * SLOT_SECONDS, len(rows) - 0.5, -0.5),
        )
        length = run.ended - run.frozen
        for moment, text, side in ((0.0, "frozen ", "right"), (length, " fenced", "left")):
            panel.axvline(moment, color="crimson", linewidth=2)
            panel.text(moment, -0.6, text, color="crimson", ha=side, va="bottom")
        phases = [run.phases(host) for host in run.done]
        share = sum(p[1] for p in phases) / sum(p[0] for p in phases)
        panel.set_title(f"{run.mode} mode: {share:.0%} of the others' I/O went on", pad=18)
        panel.set_yticks(range(len(rows)), list(run.done))
        panel.set_ylabel("host")
    panels[-1].set_xlabel("seconds since one host was frozen")
    heat = panels[-1].images[0]
    figure.colorbar(heat, ax=list(panels), label="4 KiB operations completed per 100 ms")
    figure.savefig(out / "blast-radius.svg", metadata={"Date": None})
    figure.savefig(out / "blast-radius.png", dpi=110)


def main() -> None:
    """Parse, run both modes, print and draw."""
    parser = argparse.ArgumentParser(description="What one frozen host stops.")
    parser.add_argument("--hosts", type=int, default=8, help="mounts, the victim included (8)")
    parser.add_argument("--freeze", type=float, default=4.0, help="seconds until it is fenced (4)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="for the picture (docs)")
    parser.add_argument("--json", type=Path, default=None, help="write every moment there")
    options = parser.parse_args()
    enter_private_namespace()
    runs = [
        experiment(mode, hosts=options.hosts, seconds=options.freeze)
        for mode in ("reservation", "ats")
    ]
    print(table(runs))
    print("stops until the victim held it:", {run.mode: run.tries for run in runs})
    draw(runs, options.out)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
