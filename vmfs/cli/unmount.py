"""`vmfs umount`: unmount, and wait until the daemon has given everything up."""

import os
import select
import subprocess
from pathlib import Path
from typing import Final

import click

from vmfs.cli.common import mounts_here, run
from vmfs.cli.mount_report import report_path
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.errors import DeviceError, InvalidArgument, VmfsError
from vmfs.fuse.mountinfo import MountEntry, mounted_at
from vmfs.fuse.registry import MountRecord, is_served, read_record, record_path
from vmfs.locks.heartbeat import read_slots

WAIT_SECONDS: Final = 60.0
"""How long the daemon may take to commit, give its locks up and free its slot. In reservation mode
another host's reservation may stand in the way; longer than this nobody should have to wonder."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--lazy", "-l", is_flag=True, help="Detach now, even if files are open.")
@click.option("--force", "-f", is_flag=True, help="Abort requests that hang, then unmount.")
def umount(*, directory: Path, lazy: bool, force: bool) -> None:
    """Unmount the volume that is mounted on DIRECTORY.

    Returns when the process that served it has ended: everything is on the LUN then, and no lock
    is held any more.
    """
    entry = _mount_on(directory)
    record = read_record(entry)
    pidfd = _open_process(record)
    try:
        _unmount(entry.mount_point, lazy=lazy, force=force)
        if record is None:
            click.echo(f"vmfs: {directory} is unmounted; nobody said who served it", err=True)
            return
        if pidfd is not None and not _wait(pidfd):
            raise DeviceError(
                f"{directory} is unmounted, but process {record.pid} is still there after "
                f"{WAIT_SECONDS:.0f} s; its locks may still be held"
            )
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if read_record(entry) == record:  # who ends cleanly takes it away
        device = os.makedev(entry.major, entry.minor)
        record_path(device).unlink(missing_ok=True)
        report_path(device).unlink(missing_ok=True)
        raise DeviceError(
            f"{directory} is unmounted, but process {record.pid} did not end cleanly: "
            f"{run(_recovery_of, record)}; its log says more"
        )


def _mount_on(directory: Path) -> MountEntry:
    """The vmfs mount on a directory, found without touching the mount, which may hang.

    Raises:
        InvalidArgument: there is none.
    """
    parent = directory.absolute().parent
    wanted = str(parent.resolve() / directory.name) if directory.name else "/"
    entries = mounts_here()
    entry = mounted_at(entries, wanted)
    if entry is None and directory.is_symlink():
        entry = mounted_at(entries, str(directory.resolve()))
    if entry is None or not entry.is_vmfs:
        raise InvalidArgument(f"{directory} is not a vmfs mount")
    return entry


async def _recovery_of(record: MountRecord) -> str:
    """In words, what has become of the journal of a mount that died, or what will."""
    later = "its journal will be replayed by the next host that mounts, or wants what it held"
    if record.slot < 0:
        return "it was read-only, and left nothing behind"
    try:
        device = open_lun_device(record.lun, writable=False)
    except DeviceError:
        return later
    try:
        slots = await read_slots(await find_lv(device))
    except VmfsError:
        return later
    finally:
        await device.aclose()
    slot = slots[record.slot]
    info = slot.host
    if slot.is_in_use and info is not None and (info.pid, info.name) == (record.pid, record.host):
        return later
    return "its journal has been replayed by another host already"


def _open_process(record: MountRecord | None) -> int | None:
    """A pidfd of the daemon; None when it is gone or not known."""
    if record is None or not is_served(record):
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if not is_served(record):  # the number may have been given to another process meanwhile
        os.close(pidfd)
        return None
    return pidfd


def _wait(pidfd: int) -> bool:
    """Wait for the end of a process. False when it takes too long."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(WAIT_SECONDS * 1000))


def _unmount(mount_point: str, *, lazy: bool, force: bool) -> None:
    """Have the system do it: it knows about permissions, propagation and user mounts.

    Raises:
        DeviceError: it did not; the text is what it said.
    """
    if os.geteuid() == 0:
        command = ["umount", "--internal-only"]
        command += ["--force"] if force else []
        command += ["--lazy"] if lazy else []
    else:
        command = ["fusermount3", "-u"]
        command += ["-z"] if lazy or force else []
    done = subprocess.run([*command, mount_point], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise DeviceError(f"cannot unmount {mount_point}: {said}")
