"""One mount from beginning to end: mount, answer, unmount, clean up.

    mounted ── ready ── answering ──► unmounted by umount(8), or asked to stop ──► cleaned up

`serve` returns when the mount is gone, however that came about, and everything that the kernel had
open or known is closed and forgotten. The caller then closes the volume, which commits and gives
the locks up.

Everything that touches the own mount (stat, syncfs, umount) happens in a thread: the loop has to
answer it meanwhile.
"""

import ctypes
import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOENT, ENOTCONN
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final

import pyfuse3
import trio

from vmfs.errors import DeviceError, InvalidArgument, NotSupported
from vmfs.files.attributes import ROOT_ADDRESS
from vmfs.fuse import fast_wait
from vmfs.fuse.descriptors import SESSION, descriptors_of
from vmfs.fuse.notify import Session
from vmfs.fuse.operations import Operations
from vmfs.fuse.options import MountOptions, libfuse_options
from vmfs.fuse.tree import Tree

log = logging.getLogger("vmfs.fuse")

TASKS_MAX: Final = 32
"""Requests answered at once; each has a buffer of 1 MiB. The kernel queues what is above."""

SYNC_SECONDS: Final = 30.0
"""How long stopping waits for dirty mapped pages to be written before it goes on without them."""

DRAIN_SECONDS: Final = 10.0
"""How long stopping waits for requests under way; one may be waiting for another host for ever."""

_MNT_DETACH: Final = 2


def check_mount_point(mount_point: Path) -> Path:
    """The directory to mount on, absolute and without symbolic links.

    Raises:
        InvalidArgument: it is not there, or no directory, or a mount whose daemon died.
        NotSupported: there is no FUSE here.
    """
    if not Path("/dev/fuse").exists():
        raise NotSupported("/dev/fuse is not there: is the fuse module loaded?")
    try:
        resolved = mount_point.resolve(strict=True)
        is_directory = resolved.is_dir()
    except OSError as error:
        hint = ": a mount whose process died; umount it" if error.errno == ENOTCONN else ""
        raise InvalidArgument(f"cannot mount on {mount_point}: {error.strerror}{hint}") from error
    if not is_directory:
        raise InvalidArgument(f"cannot mount on {mount_point}: it is no directory")
    return resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """What is to be mounted, and where."""

    mount_point: Path  # from `check_mount_point`
    source: str  # the LUN's path, for /proc/mounts
    options: MountOptions  # `read_only` as the volume really is
    drain_seconds: float = DRAIN_SECONDS


async def serve(
    namespace: Tree, plan: MountPlan, *, on_ready: Callable[[int], None], stop: trio.Event
) -> None:
    """Mount, answer until unmounted or until `stop` is set, clean up.

    Args:
        namespace: the tree to show.
        plan: what and where.
        on_ready: called with the mount's device number, once it has answered a first request.
        stop: unmounts when set; at once if nobody uses the mount, else under their feet.

    Raises:
        VmfsError: the root cannot be looked at; nothing was mounted.
        DeviceError: the kernel or fusermount3 did not mount (they say why on stderr).
    """
    await namespace.getattr(ROOT_ADDRESS)
    operations, mount_point, options = Operations(namespace), plan.mount_point, plan.options
    before = descriptors_of(SESSION)
    passed = libfuse_options(options, source=plan.source, is_root=os.geteuid() == 0)
    try:
        pyfuse3.init(operations, str(mount_point), passed)
    except RuntimeError as error:
        raise DeviceError(f"cannot mount on {mount_point}: {error}") from error
    unmount = _Unmount(plan)
    [fd] = descriptors_of(SESSION) - before
    restore = _wait_fast(fd, options.spin_us) if options.fast else _nothing
    session = Session(fd)
    operations.cache.attach(session)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, nursery.cancel_scope)
            nursery.start_soon(operations.cache.settle)
            on_ready(await _first_answer(mount_point, options.read_ahead_kib))
            nursery.start_soon(unmount.when, stop, nursery.cancel_scope)
    finally:
        restore()
        session.close()
        pyfuse3.close(unmount=not unmount.done)
        with trio.CancelScope(shield=True):
            await operations.close_everything()


async def _answer(everything: trio.CancelScope) -> None:
    """pyfuse3's loop; its end is the end of the mount."""
    await pyfuse3.main(max_tasks=TASKS_MAX)
    everything.cancel()


async def _first_answer(mount_point: Path, read_ahead_kib: int) -> int:
    """Wait until the mount answers, have the kernel read ahead further; return its `st_dev`."""

    def ask() -> int:
        try:
            os.statvfs(mount_point)
            device = mount_point.stat().st_dev
        except OSError as error:
            raise DeviceError(f"{mount_point} does not answer: {error.strerror}") from error
        _set_read_ahead(device, read_ahead_kib)
        return device

    return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)


def _set_read_ahead(device: int, kib: int) -> None:
    """Buffered reads then arrive as 1 MiB, not 128 KiB. Root only; without it we are slower."""
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        path.write_text(str(kib))
    except OSError as error:
        log.info("read-ahead stays as it is: path=%s error=%s", path, error)


def _wait_fast(fd: int, spin_us: int) -> Callable[[], None]:
    try:
        return fast_wait.install(fd, perf_counter, spin_seconds=spin_us / 1e6)
    except NotSupported as error:
        log.info("waiting without poll: %s", error)
        return _nothing


def _nothing() -> None:
    """There was nothing to restore."""


class _Unmount:
    """Taking the mount away from within."""

    def __init__(self, plan: MountPlan) -> None:
        self._mount_point = plan.mount_point
        self._drain_seconds = plan.drain_seconds
        self._libc = ctypes.CDLL(None, use_errno=True)  # its calls let go of the GIL
        self.done = False

    async def when(self, stop: trio.Event, everything: trio.CancelScope) -> None:
        """Wait for `stop`, then unmount. Ends `everything` if the loop does not end by itself."""
        await stop.wait()
        with trio.move_on_after(SYNC_SECONDS):
            await trio.to_thread.run_sync(self._sync, abandon_on_cancel=True)
        busy = not await trio.to_thread.run_sync(partial(self._unmount, lazily=False))
        if busy:
            log.warning("stopping a mount that is in use: mount_point=%s", self._mount_point)
            await trio.to_thread.run_sync(partial(self._unmount, lazily=True))
        self.done = True
        if busy:
            pyfuse3.terminate()
        await trio.sleep(self._drain_seconds)  # the loop's end cancels this
        log.warning("requests under way are dropped: mount_point=%s", self._mount_point)
        everything.cancel()

    def _sync(self) -> None:
        """Have the kernel write the dirty pages of mapped files while we still answer.

        Not by `pyfuse3.syncfs`, which holds the GIL, without which nobody answers.
        """
        try:
            fd = os.open(self._mount_point, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            log.error("sync failed: mount_point=%s error=%s", self._mount_point, error)
            return
        try:
            if self._libc.syncfs(fd) != 0:
                error_text = os.strerror(ctypes.get_errno())
                log.error("sync failed: mount_point=%s error=%s", self._mount_point, error_text)
        finally:
            os.close(fd)

    def _unmount(self, *, lazily: bool) -> bool:
        """False when the mount is in use. Gone already counts as done."""
        if os.geteuid() != 0:
            flags = "-uz" if lazily else "-u"
            command = ["fusermount3", flags, str(self._mount_point)]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        path = os.fsencode(self._mount_point)
        if self._libc.umount2(path, _MNT_DETACH if lazily else 0) == 0:
            return True
        error = ctypes.get_errno()
        if error not in (EBUSY, EINVAL, ENOENT):
            log.error("umount2: mount_point=%s error=%s", self._mount_point, os.strerror(error))
        return error != EBUSY
