"""`vmfs mkfs`: make a datastore on an image file or a block device."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from shlex import quote
from struct import Struct
from typing import Final

import click

from vmfs.cli.common import SizeType, run
from vmfs.cli.served import require_idle
from vmfs.device.opening import open_lun_device
from vmfs.errors import DeviceError, InvalidArgument, WouldOverwrite
from vmfs.ids import VmfsUuid
from vmfs.mkfs import (
    Identity,
    Plan,
    Request,
    find_obstacles,
    make_volume,
    plan_volume,
    require_lun_size,
)
from vmfs.ondisk.descriptor import LockProtocol, VolumeFlag
from vmfs.ondisk.layout import BLOCK_SIZE, Limits
from vmfs.ondisk.partition import TableKind
from vmfs.units import SECTOR_SIZE, align_down, format_size

_BLKID_SECONDS_MAX: Final = 30
_BLKROGET: Final = 0x125E
"""ioctl(2) on a block device: whether it is read-only, as an int (linux/fs.h)."""

_INT: Final = Struct("i")
_PROTOCOLS: Final = {"ats": LockProtocol.ATS, "reservation": LockProtocol.RESERVATION}


class _UuidType(click.ParamType[VmfsUuid]):
    name = "uuid"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> VmfsUuid:
        if isinstance(value, VmfsUuid):
            return value
        try:
            return VmfsUuid.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("lun", type=click.Path(path_type=Path))
@click.option("--size", type=SizeType(), help="Size of the LUN, for example 100G; for new files.")
@click.option("--label", required=True, help="Name of the datastore, up to 127 bytes.")
@click.option("--hosts", type=int, help="Hosts that can have it open at once  [default: 16 or 32]")
@click.option("--files", type=int, help="Files that it can hold  [default: by size]")
@click.option(
    "--partition",
    "table",
    type=click.Choice([kind.value for kind in TableKind]),
    default=TableKind.NONE.value,
    show_default=True,
    help="Put the volume into a partition, as ESXi does.",
)
@click.option(
    "--lock-mode",
    type=click.Choice(list(_PROTOCOLS)),
    default="ats",
    show_default=True,
    help="How hosts take locks; `vmfs lockmode` changes it later.",
)
@click.option(
    "--no-resident",
    is_flag=True,
    help="Never keep a small file in its descriptor: fsck.vmfs then finds nothing to complain of.",
)
@click.option("--force", is_flag=True, help="Overwrite whatever the LUN holds.")
@click.option("--uuid", type=_UuidType(), hidden=True, help="Make this very volume again.")
def mkfs(  # noqa: PLR0913 - one parameter for each option
    *,
    lun: Path,
    size: int | None,
    label: str,
    hosts: int | None,
    files: int | None,
    table: str,
    lock_mode: str,
    no_resident: bool,
    force: bool,
    uuid: VmfsUuid | None,
) -> None:
    """Make a VMFS-5 datastore on LUN, an image file or a block device.

    The root directory belongs to who makes the datastore.

    A file that does not exist is created, sparse, with --size (1 GiB to 64 TiB). A LUN that holds
    a filesystem, a partition table, or anything but zeroes in its first 2 MiB is only overwritten
    with --force. A LUN that lockd serves, or that
    another process has open for writing, is never overwritten.
    """
    if not label or not label.isprintable():
        raise InvalidArgument(f"the label {label!r} is empty, or cannot be printed")
    if uuid is None:
        identity = Identity.from_seed(os.urandom(32), now=int(time.time()))
    else:
        identity = Identity.from_seed(uuid.raw, now=int.from_bytes(uuid.raw[:4], "little"))
    lun_size = _lun_size(lun, size, force=force)
    require_lun_size(lun_size)
    request = Request(
        lun_size=lun_size,
        label=label,
        identity=identity,
        table=TableKind(table),
        lock_protocol=_PROTOCOLS[lock_mode],
        flags=VolumeFlag.NO_RESIDENT if no_resident else VolumeFlag.NONE,
        limits=Limits.default(lun_size // BLOCK_SIZE, files=files, hosts=hosts),
        root_owner=(os.geteuid(), os.getegid()),
    )
    plan = plan_volume(request)
    created = not lun.exists()
    if not created:
        require_idle(lun)
        if not force:
            run(_refuse_to_overwrite, lun)
    try:
        _set_size(lun, lun_size)
        run(_make, lun, plan)
    except BaseException:
        if created:
            lun.unlink(missing_ok=True)
        raise
    click.echo(summary(lun, plan))


def summary(lun: Path, plan: Plan) -> str:
    """What was made, and what to type next."""
    request, geometry = plan.request, plan.geometry
    limits = geometry.limits
    lun_word, label_word = quote(str(lun)), quote(request.label)
    where = "" if request.table is TableKind.NONE else f", in a {request.table.value} partition"
    resident = "off" if VolumeFlag.NO_RESIDENT in request.flags else "on"
    free = geometry.block_count - geometry.used_blocks
    mode = next(name for name, value in _PROTOCOLS.items() if value == request.lock_protocol)
    return "\n".join(
        (
            f"{request.label}: VMFS-5 datastore on {lun} ({format_size(request.lun_size)}{where})",
            f"  uuid     {request.identity.fs}",
            f"  size     {format_size(plan.lv_size)}: {geometry.block_count} blocks of 1 MiB, "
            f"{free} free",
            f"  limits   {limits.files} files, {limits.hosts} hosts "
            f"(journals of {format_size(limits.journal_size)})",
            f"  locks    {mode}; resident files {resident}",
            "Next:",
            f"  lockd --lun {label_word}={lun_word} --socket /run/vmfs/lockd.sock "
            "--state /var/lib/lockd",
            f"  vmfs mount {lun_word} /mnt/{label_word} --lockd /run/vmfs/lockd.sock --host a",
        )
    )


async def _make(lun: Path, plan: Plan) -> None:
    device = open_lun_device(lun, writable=True)
    try:
        await make_volume(device, plan)
    finally:
        await device.aclose()


async def _refuse_to_overwrite(lun: Path) -> None:
    device = open_lun_device(lun, writable=False)
    try:
        found = await find_obstacles(device)
    finally:
        await device.aclose()
    found = _blkid(lun) + found
    if found:
        raise WouldOverwrite(f"{lun} is not empty: {'; '.join(found)}. --force overwrites it")


def _blkid(lun: Path) -> list[str]:
    """What blkid knows of the LUN; nothing where it is not installed, or finds nothing."""
    program = shutil.which("blkid", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return []
    try:
        result = subprocess.run(
            [program, "-p", "-o", "export", str(lun)],
            capture_output=True,
            text=True,
            timeout=_BLKID_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []  # our own look at the LUN still stands between the user and a mistake
    types = [line[5:] for line in result.stdout.splitlines() if line.startswith("TYPE=")]
    return [f"blkid finds {found} on it" for found in types]


def _lun_size(lun: Path, size: int | None, *, force: bool) -> int:
    """How large the LUN is, or will be; nothing is changed here."""
    try:
        status = lun.stat()
    except FileNotFoundError:
        if size is None:
            raise InvalidArgument(f"{lun} does not exist: --size says how large to make it") from (
                None
            )
        return size
    except OSError as error:
        raise DeviceError(f"cannot look at {lun}: {error.strerror}") from error
    if stat.S_ISBLK(status.st_mode):
        return _block_device_size(lun, size)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"{lun} is neither a file nor a block device")
    if size is None:
        return align_down(status.st_size, SECTOR_SIZE)
    if size < status.st_size and not force:
        raise WouldOverwrite(
            f"{lun} has {format_size(status.st_size)}, more than --size {format_size(size)}: "
            "--force cuts it short"
        )
    return size


def _block_device_size(lun: Path, size: int | None) -> int:
    try:
        # O_EXCL on a block device fails while the kernel has it in use (mounted, swap, RAID, ...)
        fd = os.open(lun, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise WouldOverwrite(f"{lun} is in use by this machine: unmount it first") from error
        raise DeviceError(f"cannot open {lun}: {error.strerror}") from error
    try:
        found = os.lseek(fd, 0, os.SEEK_END)
        (read_only,) = _INT.unpack(fcntl.ioctl(fd, _BLKROGET, bytes(_INT.size)))
    finally:
        os.close(fd)
    if read_only:
        raise InvalidArgument(
            f"{lun} is read-only (blockdev --setrw changes that, where the device allows it)"
        )
    if size is not None and size != found:
        raise InvalidArgument(f"{lun} is a block device of {format_size(found)}: leave --size out")
    return align_down(found, SECTOR_SIZE)


def _set_size(lun: Path, size: int) -> None:
    """Create the file, or give it its size; a block device has its own."""
    if lun.is_block_device():
        return
    try:
        fd = os.open(lun, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot create {lun}: {error.strerror}") from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        hint = ""
        if error.errno == errno.EFBIG:
            hint = " (ext4 holds files up to 16 TiB; XFS and block devices hold more)"
        raise DeviceError(
            f"cannot make {lun} {format_size(size)} long: {error.strerror}{hint}"
        ) from error
    finally:
        os.close(fd)
