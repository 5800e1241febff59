"""`vmfs status`: what is mounted here, and who has a volume open."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from vmfs.check.findings import Findings
from vmfs.check.opening import open_lun
from vmfs.cli.common import mounts_here, run
from vmfs.cli.locks import lun_of
from vmfs.cli.table import table_lines
from vmfs.device.opening import open_lun_device
from vmfs.fuse.registry import MountRecord, is_served, read_record, runtime_directory
from vmfs.ondisk.heartbeat import Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class MountStatus:
    """One vmfs mount of this machine."""

    mount_point: str
    lun: str
    label: str
    host: str
    slot: int | None
    pid: int | None
    access: str  # rw, ro
    state: str  # serving; failed; dead: its process is gone; unknown: nobody said who serves it
    explanation: str  # of a state that is not serving: what happened, what to do; else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStatus:
    """One host that has a volume open, as its heartbeat slot says."""

    slot: int
    host: str
    pid: int
    generation: int
    replayed_by: str  # empty: nobody recovers it


@click.command()
@click.argument(
    "target", required=False, type=click.Path(exists=True, path_type=Path), metavar="[LUN|DIR]"
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON array.")
def status(*, target: Path | None, as_json: bool) -> None:
    """Show the vmfs mounts of this machine, or who has the volume on LUN (or DIR) open.

    A host that died with the volume open is shown too, until another one has recovered it.
    """
    if target is None:
        _show_mounts(mount_statuses(), as_json=as_json)
    else:
        hosts = run(_open_statuses, lun_of(target))
        _show([asdict(host) for host in hosts], as_json=as_json)
        if not hosts:
            click.echo(f"note: no host has {target} open", err=True)


def mount_statuses() -> list[MountStatus]:
    """Every vmfs mount that this process can see. Touches none of them: one may hang."""
    found = []
    for entry in mounts_here():
        if not entry.is_vmfs:
            continue
        record = read_record(entry)
        state, explanation = _state(record)
        found.append(
            MountStatus(
                mount_point=entry.mount_point,
                lun=entry.source,
                label="?" if record is None else record.label,
                host="?" if record is None else record.host,
                slot=None if record is None or record.slot < 0 else record.slot,
                pid=None if record is None else record.pid,
                access="ro" if "ro" in entry.options.split(",") else "rw",
                state=state,
                explanation=explanation,
            )
        )
    return found


def _state(record: MountRecord | None) -> tuple[str, str]:
    """How a mount does, and what there is to say about that."""
    if record is None:
        return "unknown", (
            f"nobody said in {runtime_directory()} who serves it "
            "(was VMFS_RUNTIME_DIR another when it was mounted?)"
        )
    if not is_served(record):
        return "dead", f"process {record.pid} is gone; vmfs umount takes away what is left of it"
    if record.failed:
        return "failed", f"{record.failed}; nothing can be changed through it: unmount it"
    return "serving", ""


async def _open_statuses(lun: Path) -> list[OpenStatus]:
    device = open_lun_device(lun, writable=False)
    try:
        volume = await open_lun(device, Findings())
    finally:
        await device.aclose()
    return [_open_status(slot) for slot in volume.slots.in_use]


def _open_status(slot: Heartbeat) -> OpenStatus:
    return OpenStatus(
        slot=slot.index,
        host=slot.host.name if slot.host is not None else str(slot.owner),
        pid=slot.host.pid if slot.host is not None else 0,
        generation=slot.generation,
        replayed_by=str(slot.replayer) if slot.replayer else "",
    )


def _show_mounts(mounts: list[MountStatus], *, as_json: bool) -> None:
    rows = [asdict(mount) for mount in mounts]
    if as_json:
        _show(rows, as_json=True)
        return
    for row in rows:
        del row["explanation"]  # too long for a column
    _show(rows, as_json=False)
    for mount in mounts:
        if mount.explanation:
            click.echo(f"{mount.mount_point}: {mount.state}: {mount.explanation}")


def _show(rows: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        return
    heading = [name.upper().replace("_", " ") for name in rows[0]]
    body = [["-" if value in (None, "") else str(value) for value in row.values()] for row in rows]
    for line in table_lines([heading, *body]):
        click.echo(line)
