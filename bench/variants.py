"""Everything that is measured, mounted at once: a stack of context managers that take it all down.

The caller is in a mount namespace of its own, every server dies with it (`Process`), and a loop
device made by `mount -o loop` goes with its mount: so nothing stays behind even after a SIGKILL but
the directory with the images.
"""

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.loads import (
    DISK_FILE,
    GUEST_DISK,
    JOB_FILES,
    READ_FILE,
    SCRATCH,
    WRITE_FILE,
    Load,
    Place,
    Scale,
    run_program,
)
from bench.rows import IDLE_HOSTS, KERNEL, LOCKD, OURS, RAW, SLEEPS
from tests.support import guest
from tests.support.mounts import (
    BIN,
    Process,
    ProcessFailed,
    force_unmount,
    is_mounted,
    run_vmfs,
)

ADDRESS_SPACE: Final = 1 << 40
"""No limit: lockd and vmfs may map whole images."""

MOUNT_SECONDS_MAX: Final = 30.0
POLL_SECONDS: Final = 0.01
IDLE_COUNT: Final = 4
SPIN_OPTION: Final = "spin_us"
MIB: Final = 1 << 20
STRETCH_MIB: Final = 16
"""Contents of the sparse disk lie in stretches of this length, three such holes behind each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One filesystem under test. A hung one is taken away by `force_unmount(place.directory)`."""

    name: str
    place: Place
    read_only: bool = False
    copies: bool = True  # whether the loads that move whole disks are run on it

    def can(self, load: Load) -> bool:
        """Whether the load is run on it."""
        if load.mountless or self.name == LOCKD:
            return load.mountless and self.name == LOCKD
        return not (load.writes and self.read_only) and (self.copies or not load.copies)


def installed(name: str) -> bool:
    """Whether this machine can run a variant."""
    if name == SLEEPS:
        return SPIN_OPTION in run_vmfs("mount", "--help").stdout
    if name in (RAW, OURS, IDLE_HOSTS, LOCKD):
        return True
    return _program("mkfs.ext4" if name == KERNEL else name) is not None


def _program(name: str) -> str | None:
    """Where a program is; Debian keeps some in sbin, which is not on everybody's path."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Bench:
    """The variants of one run in one directory; `mount` makes them, the stack ends them."""

    def __init__(
        self, work: Path, scale: Scale, stack: ExitStack, *, on_disk: bool, guest_disk: Path | None
    ) -> None:
        self.work, self.scale, self.on_disk = work, scale, on_disk
        self.variants: list[Variant] = []
        self.luns: list[Path] = []
        self._stack = stack
        self._guest_disk = guest_disk
        self._outside = work / "outside"
        self._socket = stack.enter_context(socket_directory()) / "sock"

    def prepare(self) -> None:
        """The plain directory: source of copies, target of copies, backing of the passthroughs."""
        self._fill(self._outside)

    def mount(self, names: Sequence[str]) -> None:
        """Make and mount these variants, in an order in which each finds what it needs."""
        for name in (RAW, LOCKD):
            if name in names:
                self._add(name, self._outside)
        for name in ("bindfs", "mergerfs"):
            if name in names:
                self._passthrough(name)
        for name in (KERNEL, "fuse2fs"):
            if name in names:
                self._ext4(name)
        ours = [name for name in (OURS, IDLE_HOSTS, SLEEPS) if name in names]
        if ours or "vmfs-fuse" in names:
            self._volumes(ours)
        if "vmfs-fuse" in names:  # after ours, so that it finds a volume that has been settled
            self._foreign(self.luns[0])

    def _volumes(self, ours: Sequence[str]) -> None:
        """A volume for each of our variants, or one that is only read by others."""
        luns = {name: self._make_lun(name) for name in ours or [OURS]}
        self._start_lockd(luns)
        for name, lun in luns.items():
            with self._host(lun, name, "filler") as (path, _):
                self._fill(path, copies=name == OURS)
        for name in ours:
            self._mount_ours(name, luns[name])

    def check(self) -> list[str]:
        """What `vmfs check` finds on the LUNs once all is unmounted; an empty list is good."""
        done = [run_vmfs("check", lun) for lun in self.luns]
        return [one.stdout + one.stderr for one in done if one.returncode]

    def _add(self, name: str, path: Path, *, read_only: bool = False) -> None:
        place = Place(directory=path, outside=self._outside, on_disk=self.on_disk)
        copies = name not in (IDLE_HOSTS, SLEEPS)
        self.variants.append(Variant(name=name, place=place, read_only=read_only, copies=copies))

    def _image_bytes(self) -> int:
        """Room for the files, a copy of the disk, its conversion and a guest."""
        mib = 3 * self.scale.file_mib + 3 * self.scale.contents_mib + 2048
        return max(2 << 30, mib * MIB)

    def _passthrough(self, name: str) -> None:
        path = self.work / name
        self._serve([_program(name) or name, "-f", self._outside, path], path)
        self._add(name, path)

    def _ext4(self, name: str) -> None:
        image, path = self.work / f"{name}.img", self.work / name
        with image.open("wb") as target:
            target.truncate(self._image_bytes())
        options = "lazy_itable_init=0,lazy_journal_init=0"
        run_program([_program("mkfs.ext4") or "mkfs.ext4", "-q", "-F", "-E", options, image])
        if name == KERNEL:
            path.mkdir()
            run_program(["mount", "-o", "loop", image, path])
            self._stack.callback(force_unmount, path)
        else:
            self._serve([_program(name) or name, "-f", image, path], path)
        self._fill(path)
        self._add(name, path)

    def _foreign(self, lun: Path) -> None:
        path = self.work / "vmfs-fuse"
        self._serve([_program("vmfs-fuse") or "vmfs-fuse", "-f", lun, path], path)
        self._add("vmfs-fuse", path, read_only=True)

    def _serve(self, command: Sequence[str | Path], path: Path) -> None:
        """A FUSE server in the foreground, until the stack is unwound."""
        path.mkdir()
        process = Process(command, address_space=ADDRESS_SPACE)
        self._stack.callback(_end_server, process, path)
        end = time.monotonic() + MOUNT_SECONDS_MAX
        while not is_mounted(path):
            if not process.is_running or time.monotonic() > end:
                said = "\n".join(process.said)
                raise ProcessFailed(f"{' '.join(map(str, command))}: no mount; it said:\n{said}")
            time.sleep(POLL_SECONDS)

    def _make_lun(self, name: str) -> Path:
        lun = self.work / f"{name}.lun"
        size = f"{-(-self._image_bytes() // (1 << 30))}G"
        run_program([BIN / "vmfs", "mkfs", lun, "--size", size, "--label", name])
        self.luns.append(lun)
        return lun

    def _start_lockd(self, luns: dict[str, Path]) -> None:
        command: list[str | Path] = [BIN / "lockd", "--socket", self._socket]
        command += ["--state", self.work / "state"]
        for name, lun in luns.items():
            command += ["--lun", f"{name}={lun}"]
        process = Process(command, address_space=ADDRESS_SPACE)
        self._stack.callback(process.kill)
        process.wait_for("ready")

    @contextmanager
    def _host(self, lun: Path, name: str, host: str) -> Iterator[tuple[Path, Process]]:
        """A host that has the volume mounted, until the block ends; then cleanly unmounted."""
        path = self.work / f"{name}-{host}"
        path.mkdir()
        command: list[str | Path] = [BIN / "vmfs", "mount", lun, path]
        command += ["--lockd", self._socket, "--host", host]
        if name == SLEEPS:
            command += ["-o", f"{SPIN_OPTION}=0"]
        process = Process(command, address_space=ADDRESS_SPACE)
        try:
            process.wait_for("vmfs: ready:")
            yield path, process
            process.stop()
        finally:
            force_unmount(path)
            process.kill()

    def _mount_ours(self, name: str, lun: Path) -> None:
        if name == IDLE_HOSTS:
            for number in range(IDLE_COUNT):
                self._stack.enter_context(self._host(lun, name, f"idle{number}"))
        path, _ = self._stack.enter_context(self._host(lun, name, "busy"))
        self._add(name, path)

    def _fill(self, path: Path, *, copies: bool = True) -> None:
        """The files that the loads find, settled on the store."""
        path.mkdir(exist_ok=True)
        (path / SCRATCH).mkdir()
        write_stretches(path / READ_FILE, self.scale.file_mib)
        write_stretches(path / WRITE_FILE, self.scale.file_mib)
        for name in JOB_FILES:
            write_stretches(path / name, self.scale.job_mib)
        if copies:
            write_stretches(path / DISK_FILE, self.scale.disk_mib, every=4)
            if self._guest_disk is not None:
                guest.make_vmdk(self._guest_disk, path / GUEST_DISK)
        run_program(["sync", "-f", path])


@contextmanager
def socket_directory() -> Iterator[Path]:
    """A directory whose name is short enough for sockets, wherever the images are."""
    with tempfile.TemporaryDirectory(prefix="bench.", dir="/tmp") as directory:
        yield Path(directory)


def write_stretches(path: Path, size_mib: int, *, every: int = 1) -> None:
    """A file of incompressible stretches; of each `every` of them only the first is written."""
    chunk = random.Random(1).randbytes(MIB)
    with path.open("wb", buffering=0) as target:
        for number in range(0, size_mib, STRETCH_MIB * every):
            target.seek(number * MIB)
            for index in range(min(STRETCH_MIB, size_mib - number)):
                target.write((number + index).to_bytes(8, "little") + chunk[8:])
        target.truncate(size_mib * MIB)


def _end_server(process: Process, path: Path) -> None:
    """Unmount, which ends a FUSE server; kill it when it does not go."""
    subprocess.run(["umount", path], check=False, timeout=MOUNT_SECONDS_MAX, capture_output=True)
    force_unmount(path)
    try:
        process.wait(seconds=MOUNT_SECONDS_MAX)
    except ProcessFailed:
        process.kill()
