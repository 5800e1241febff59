"""`vmfs locks` and `vmfs lockmode`: who holds what, and how locks are taken."""

import dataclasses
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from vmfs.check.findings import Findings
from vmfs.check.opening import OpenVolume, open_lun
from vmfs.check.slots import describe
from vmfs.cli.common import VmfsGroup, mounts_here, run
from vmfs.cli.held_locks import HolderFacts, LockFacts, find_locks, lock_of_file
from vmfs.cli.lock_waits import break_lock, history, why
from vmfs.cli.open_files import open_file_lines, open_files
from vmfs.cli.places import Place, address_at, place_of
from vmfs.cli.served import require_idle
from vmfs.cli.table import table_lines
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.errors import InvalidArgument, LockBusy
from vmfs.fuse.mountinfo import MountEntry, with_device
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET, FsDescriptor, LockProtocol
from vmfs.ondisk.heartbeat import HEARTBEAT_REGION, SLOT_COUNT, SLOT_SIZE, Heartbeat

_PROTOCOLS: Final = {"ats": LockProtocol.ATS, "reservation": LockProtocol.RESERVATION}


@click.group(cls=VmfsGroup)
def locks() -> None:
    """Show who holds which lock, who waits for it, and why."""


locks.add_command(why)
locks.add_command(history)
locks.add_command(break_lock)


@locks.command(name="ls")
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="LUN|DIR")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON array.")
def list_locks(*, target: Path, as_json: bool) -> None:
    """List every lock that a host holds on the volume on LUN, or mounted on DIR.

    A lock that is cached, not in use, is listed too: its holder gives it up when it is asked to.
    A stale one is what a host left that has ended: the next that wants it takes it.
    """
    found = run(_find_locks, lun_of(target))
    if as_json:
        click.echo(json.dumps([asdict(lock) for lock in found], indent=2))
        return
    for line in lock_lines(found, now=time.time()):
        click.echo(line)


@locks.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON object.")
def who(*, path: str, as_json: bool) -> None:
    """Say who holds the lock of PATH, a file or directory on a mounted volume.

    Names the processes too that have it open, those of this machine. When nobody holds it, but a
    host has a directory on the way there exclusively, that is shown: it may use what is new in it.
    """
    place = place_of(path)
    (found, *way), users = run(_find_lock_and_way, place), open_files(place)
    above = next((lock for lock in way if lock.mode == "exclusive"), None)
    if as_json:
        facts = asdict(found) | {"open_files": [asdict(user) for user in users]}
        click.echo(json.dumps(facts, indent=2))
        return
    shown = [found]
    if found.mode == "free":
        click.echo(f"{path}: nobody holds it" + (", but:" if above is not None else ""))
        shown = [above] if above is not None else []
    for line in (lock_lines(shown, now=time.time()) if shown else []) + open_file_lines(users):
        click.echo(line)


@click.group(cls=VmfsGroup)
def lockmode() -> None:
    """Show or change how hosts take the locks of a volume: ats or reservation."""


@lockmode.command(name="get")
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="LUN|DIR")
def get_mode(*, target: Path) -> None:
    """Print `ats` (one sector is compared and written) or `reservation` (the whole LUN waits)."""
    click.echo(run(_get_mode, lun_of(target)))


@lockmode.command(name="set")
@click.argument("mode", type=click.Choice(sorted(_PROTOCOLS)))
@click.argument("lun", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def set_mode(*, mode: str, lun: Path) -> None:
    """Change how locks are taken. No host may have the volume on LUN open, no lockd serve it."""
    require_idle(lun)
    before = run(_set_mode, lun, _PROTOCOLS[mode])
    click.echo(f"{lun}: {mode}" + ("" if before == mode else f" (was {before})"))


def mount_of(path: Path) -> MountEntry:
    """The vmfs mount that `path` is on.

    Raises:
        InvalidArgument: it is on none.
    """
    device = path.stat(follow_symlinks=False).st_dev
    entries = mounts_here()
    entry = with_device(entries, major=os.major(device), minor=os.minor(device))
    if entry is None or not entry.is_vmfs:
        raise InvalidArgument(f"{path} is not on a vmfs mount")
    return entry


def lun_of(target: Path) -> Path:
    """The LUN that is meant: itself, or what is mounted on a directory.

    Raises:
        InvalidArgument: a directory where no volume is mounted.
    """
    return Path(mount_of(target).source) if target.is_dir() else target


def lock_lines(found: Sequence[LockFacts], *, now: float) -> list[str]:
    """One line per holder: mode, host, pid, since when, what."""
    rows = [("MODE", "HOST", "PID", "SLOT", "SINCE", "LOCK")]
    for lock in found:
        if lock.corrupt:
            rows.append((lock.mode, "?", "?", "?", "?", f"{lock.what}: {lock.corrupt}"))
        for holder in lock.holders:
            mode = f"{lock.mode} (stale)" if holder.is_stale else lock.mode
            pid, since = str(holder.pid or "?"), _since(holder, now)
            rows.append((mode, holder.host, pid, str(holder.slot), since, lock.what))
    return table_lines(rows)


def _since(holder: HolderFacts, now: float) -> str:
    if holder.held_seconds is None:
        return "?"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - holder.held_seconds))


@asynccontextmanager
async def _opened(lun: Path) -> AsyncIterator[OpenVolume]:
    device = open_lun_device(lun, writable=False)
    try:
        yield await open_lun(device, Findings())
    finally:
        await device.aclose()


async def _find_locks(lun: Path) -> list[LockFacts]:
    async with _opened(lun) as volume:
        return await find_locks(volume)


async def _find_lock_and_way(place: Place) -> list[LockFacts]:
    """The lock of a path, then those of the directories on the way there, the nearest first."""
    async with _opened(place.lun) as volume:
        return [
            await lock_of_file(volume, await address_at(volume, where), where.absolute)
            for where in (place, *place.way)
        ]


async def _get_mode(lun: Path) -> str:
    device = open_lun_device(lun, writable=False)
    try:
        volume = await find_lv(device)
        data = await volume.read(DESCRIPTOR_OFFSET, FsDescriptor.SIZE)
        descriptor = FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET)
        return descriptor.must_be_ours().lock_protocol.name.lower()
    finally:
        await device.aclose()


async def _set_mode(lun: Path, protocol: LockProtocol) -> str:
    """Write the descriptor with the new mode; returns the old one. Durable on return.

    Raises:
        LockBusy: a host has the volume open, or died with it open and was not recovered.
    """
    device = open_lun_device(lun, writable=True)
    try:
        volume = await find_lv(device)
        data = await volume.read(DESCRIPTOR_OFFSET, FsDescriptor.SIZE)
        descriptor = FsDescriptor.unpack(data, address=DESCRIPTOR_OFFSET)
        parameters = descriptor.must_be_ours()
        slots = await volume.read(HEARTBEAT_REGION, SLOT_COUNT * SLOT_SIZE)
        for index in range(SLOT_COUNT):
            raw = slots[index * SLOT_SIZE : (index + 1) * SLOT_SIZE]
            slot = Heartbeat.unpack(raw, address=HEARTBEAT_REGION + index * SLOT_SIZE)
            if slot.is_in_use:
                raise LockBusy(
                    f"{describe(slot)} has the volume open: unmount it everywhere first "
                    "(after a crash: mount and unmount it once)",
                    holder=describe(slot),
                )
        changed = dataclasses.replace(parameters, lock_protocol=protocol)
        await volume.write(DESCRIPTOR_OFFSET, descriptor.with_parameters(changed).pack())
        await volume.flush()
        return parameters.lock_protocol.name.lower()
    finally:
        await device.aclose()
