"""`vmfs mount`: put a volume at a directory, in the foreground or the background.

Also what mount(8) runs for fstab's type `fuse.vmfs`: mount.fuse3(8) calls `vmfs LUN DIR -o OPTS`
and expects control back when the mount is there; `mount_helper_arguments` recognises that.
"""

import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import ENOTCONN
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from lockd.client import ErrorCode, LockdRefused
from vmfs.cli.background import Announce, go_to_background, log_to_background, log_to_foreground
from vmfs.cli.common import mounts_here, run
from vmfs.cli.mount_report import report_path, serve_report
from vmfs.cli.session import name_of_lun, this_host, wait_for_lockd
from vmfs.errors import InvalidArgument, LockServiceError, VmfsError
from vmfs.fuse.mountinfo import mounted_at
from vmfs.fuse.options import MountOptions, parse_options
from vmfs.fuse.registry import MountRecord, record_path, start_ticks, write_record
from vmfs.fuse.serve import MountPlan, check_mount_point, serve
from vmfs.locks.base import Clock
from vmfs.volume import PRODUCTION, TEST, Volume, VolumeOptions, unix_lockd

log = logging.getLogger("vmfs.mount")

_TIMINGS: Final = {"production": PRODUCTION, "test": TEST}


@click.command()
@click.argument("lun", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--lockd", metavar="SOCKET", help="lockd's socket; without it: read-only, no locks.")
@click.option("--host", metavar="NAME", help="Name of this host  [default: the machine's]")
@click.option("--read-only", "-r", is_flag=True, help="The same as -o ro.")
@click.option("-o", "options", multiple=True, metavar="OPTS", help="As mount(8) gives them.")
@click.option(
    "--background/--foreground",
    default=False,
    help="Return when the mount answers, or serve until unmounted  [default: --foreground]",
)
def mount(  # noqa: PLR0913 - one parameter for each option
    *,
    lun: Path,
    directory: Path,
    lockd: str | None,
    host: str | None,
    read_only: bool,
    options: tuple[str, ...],
    background: bool,
) -> None:
    """Mount the volume on LUN at DIRECTORY.

    Prints `vmfs: ready: ...` when the mount answers. SIGTERM and SIGINT unmount cleanly; so does
    `vmfs umount`, which waits until all locks are given up.

    Options (-o): lockd=SOCKET, host=NAME, lun=NAME (what lockd calls the LUN), ro, rw, allow_other
    (default for root), io=auto|inline|aio, log=FILE, read_ahead_kib=N, max_read=N, nofast,
    spin_us=N, profile=production|test,
    and those of the kernel (nosuid, nodev, noexec, noatime, sync, ...). docs/commands.md says more.
    """
    given = parse_options(*options)
    request = MountRequest(
        lun=_existing(lun),
        directory=check_mount_point(directory),
        options=dataclasses.replace(
            given,
            lockd=_absolute(lockd or given.lockd),
            log=_absolute(given.log),
            host=host or given.host,
            read_only=read_only or given.read_only,
        ),
    )
    _look_at(request)
    announce: Announce = partial(print, flush=True)
    if background:
        announce = go_to_background()
        log_to_background(request.options.log)
    else:
        log_to_foreground(request.options.log)
    run(_mount, request, announce)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What was asked for, checked as far as it can be without the volume."""

    lun: Path
    directory: Path
    options: MountOptions


def mount_helper_arguments(words: Sequence[str], *, commands: Sequence[str]) -> list[str] | None:
    """The arguments of `vmfs` when mount(8) runs it as a helper; None when it does not.

    mount.fuse3(8) calls `vmfs LUN DIR -o OPTS`; a link /sbin/mount.fuse.vmfs is called the same
    way, with -s, -v, -n or -f besides. What is no command and has a slash in it is a LUN.
    """
    if len(words) < 2 or words[0] in commands or "/" not in words[0] or words[1].startswith("-"):
        return None
    lun, directory, *rest = words
    kept = [word for word in rest if word not in ("-s", "-v", "-n")]
    return ["mount", "--background", *kept, "--", lun, directory]


def _look_at(request: MountRequest) -> None:
    """What the mount would cover: one of ours is refused, files are worth a word.

    Raises:
        InvalidArgument: a vmfs volume is mounted there already.
    """
    directory = request.directory
    entry = mounted_at(mounts_here(), str(directory))
    if entry is not None and entry.is_vmfs:
        state = (
            "its process died; umount it" if _is_dead(directory) else "vmfs umount takes it away"
        )
        raise InvalidArgument(
            f"cannot mount on {directory}: {entry.source} is mounted there already ({state})"
        )
    if not request.options.nonempty and any(directory.iterdir()):
        click.echo(
            f"note: {directory} is not empty; what is in it is hidden by the mount "
            "(-o nonempty says nothing)",
            err=True,
        )


def _is_dead(mount_point: Path) -> bool:
    """Whether nobody answers there any more. stat(2) may still be answered from a cache."""
    try:
        os.statvfs(mount_point)
    except OSError as error:
        return error.errno == ENOTCONN
    return False


async def _mount(request: MountRequest, announce: Announce) -> None:
    """Open the volume, serve it, close it. Returns when it is unmounted and closed."""
    stopping = _Stopping()
    with stopping.opening:
        async with trio.open_nursery() as nursery:
            await nursery.start(stopping.watch)
            await _open_and_serve(request, announce, stopping)
            nursery.cancel_scope.cancel()
    if stopping.opening.cancelled_caught:
        raise InvalidArgument("stopped by a signal before the volume was mounted")
    log.info("unmounted: directory=%s", request.directory)


async def _open_and_serve(request: MountRequest, announce: Announce, stopping: "_Stopping") -> None:
    """The volume is open for exactly as long as the mount is there."""
    options = request.options
    host = this_host(options.host)
    timing = _TIMINGS[options.profile]
    session = None
    if options.lockd is not None:
        await wait_for_lockd(options.lockd)
        lun_name = options.lun_name or await name_of_lun(options.lockd, request.lun)
        session = unix_lockd(options.lockd, host, lun_name, timing)
    wanted = VolumeOptions(read_only=options.read_only, io=options.io, timing=timing)
    async with _name_taken_explained(), Volume.open(request.lun, wanted, lockd=session) as volume:
        if volume.read_only and not options.read_only:
            log.warning("mounting read-only: %s", volume.read_only_reason)
        plan = MountPlan(
            mount_point=request.directory,
            source=str(request.lun),
            options=dataclasses.replace(options, read_only=volume.read_only),
        )
        ready = _Ready(request, volume, host.name, announce, stopping)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_say_when_failed, volume, ready)
            nursery.start_soon(_report, volume, ready, wanted.clock)
            try:
                await serve(volume.namespace, plan, on_ready=ready, stop=stopping.event)
            finally:
                stopping.is_mounted = False
                nursery.cancel_scope.cancel()
    ready.forget()


async def _say_when_failed(volume: Volume, ready: "_Ready") -> None:
    """A mount that can change nothing any more stays, to be read; `vmfs status` has to say so."""
    ready.failed(await volume.until_failed())


async def _report(volume: Volume, ready: "_Ready", clock: Clock) -> None:
    """Answer `vmfs locks why` while the mount is there."""
    await ready.answers.wait()
    await serve_report(report_path(ready.device), volume, clock)


@asynccontextmanager
async def _name_taken_explained() -> AsyncIterator[None]:
    """Say what to do when another mount of this machine goes by the same name."""
    try:
        yield
    except LockServiceError as error:
        cause = error.__cause__
        if isinstance(cause, LockdRefused) and cause.code is ErrorCode.STILL_ALIVE:
            raise LockServiceError(
                f"{error} (a second mount of one machine needs a --host of its own)"
            ) from error
        raise


class _Ready:
    """Says that the mount answers, to the caller and to `vmfs umount`."""

    def __init__(
        self,
        request: MountRequest,
        volume: Volume,
        host: str,
        announce: Announce,
        stopping: "_Stopping",
    ) -> None:
        self._request = request
        self._volume = volume
        self._host = host
        self._announce = announce
        self._stopping = stopping
        self.device = 0
        self.answers = trio.Event()
        self._record: MountRecord | None = None

    def __call__(self, device: int) -> None:
        """The mount with this device number has answered its first request."""
        volume, directory = self._volume, self._request.directory
        pid = os.getpid()
        self.device = device
        self._write(
            MountRecord(
                pid=pid,
                started=start_ticks(pid) or 0,
                mount_point=str(directory),
                lun=str(self._request.lun),
                label=volume.label,
                host=self._host,
                lockd=self._request.options.lockd or "",
                slot=-1 if volume.slot is None else volume.slot,
                read_only=volume.read_only,
            )
        )
        self._stopping.is_mounted = True
        self.answers.set()
        where = "read-only, without locks" if volume.slot is None else f"slot {volume.slot}"
        self._announce(
            f"vmfs: ready: {volume.label} mounted on {directory} as host {self._host} ({where})"
        )

    def failed(self, error: VmfsError) -> None:
        """Nothing can be changed through it any more."""
        if self._record is not None:
            self._write(dataclasses.replace(self._record, failed=str(error)))

    def forget(self) -> None:
        """Everything was given back: who waits for us needs not look for a crash."""
        if self._record is not None:
            record_path(self.device).unlink(missing_ok=True)
            report_path(self.device).unlink(missing_ok=True)

    def _write(self, record: MountRecord) -> None:
        try:
            write_record(self.device, record)
        except OSError as error:
            log.warning("vmfs status and vmfs umount know nothing of this mount: %s", error)
        else:
            self._record = record


class _Stopping:
    """SIGTERM and SIGINT: before the mount is there they end the attempt, then they unmount."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.opening = trio.CancelScope()
        self.is_mounted = False

    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Obey signals until cancelled."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("stopping: signal=%s", signal.Signals(number).name)
                if self.is_mounted:
                    self.event.set()
                else:
                    self.opening.cancel()


def _absolute(path: str | None) -> str | None:
    """A path that still holds in the background, where the working directory is another."""
    return None if path is None else str(Path(path).absolute())


def _existing(lun: Path) -> Path:
    """The LUN's path as it goes into /proc/mounts: absolute, links resolved.

    Raises:
        InvalidArgument: there is nothing of that name.
    """
    try:
        return lun.resolve(strict=True)
    except OSError as error:
        raise InvalidArgument(f"{lun}: {error.strerror}") from error
