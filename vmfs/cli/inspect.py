"""`vmfs inspect`: any structure of a volume, field by field, with its place on the LUN."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from vmfs.check.inspection import (
    Inspector,
    Section,
    descriptor_sections,
    heartbeat_sections,
    hex_lines,
    lvm_sections,
    open_window,
    parse_number,
)
from vmfs.check.reader import ResourceKind
from vmfs.cli.common import run
from vmfs.device.opening import open_lun_device
from vmfs.device.window import Window

_KINDS: Final = {kind.name.lower(): kind for kind in ResourceKind}

_USAGE: Final = {
    "descriptor": "",
    "lvm": "",
    "heartbeats": "[SLOT]",
    "fd": "ADDRESS|PATH",
    "lock": "ADDRESS|PATH | KIND CLUSTER",
    "resource": "KIND",
    "cluster": "KIND CLUSTER",
    "journal": "SLOT",
    "orphans": "SLOT",
    "directory": "ADDRESS|PATH",
    "block": "ADDRESS",
}
"""What can be asked for, and with which arguments."""

_HELP: Final = """\
Show a structure of the volume on LUN as it stands there, damaged or not.

\b
descriptor                 the FS descriptor (the default)
lvm                        LVM header, volume entry, first extent
heartbeats [SLOT] [--all]  the slots in use, one slot, or all
fd ADDRESS|PATH            a file descriptor: lock, metadata, pointers or data
lock ADDRESS|PATH          the lock of a file
lock KIND CLUSTER          the lock of a resource cluster
resource KIND              header of a resource file
cluster KIND CLUSTER       a resource cluster: lock and bitmap
journal SLOT               commit sectors and runs
orphans SLOT               files that are still to be freed or cut
directory ADDRESS|PATH     directory entries
block ADDRESS              what a block address names, and its first bytes

KIND is fbb, fdc, sbc, pbc or pb2. Numbers may be hex (0x...). Places are LV offsets; of LVM
records they are offsets on the LUN.
"""


@click.command(help=_HELP)
@click.argument("lun", type=click.Path(path_type=Path))
@click.argument("what", type=click.Choice(list(_USAGE)), default="descriptor")
@click.argument("args", nargs=-1, metavar="[ARG]...")
@click.option("--all", "shows_all", is_flag=True, help="heartbeats: free slots too.")
@click.option("--hex", "shows_hex", is_flag=True, help="Add the bytes.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON array.")
def inspect(  # noqa: PLR0913 - one parameter for each option
    *,
    lun: Path,
    what: str,
    args: tuple[str, ...],
    shows_all: bool,
    shows_hex: bool,
    as_json: bool,
) -> None:
    """Show structures of a volume; `_HELP` is what the user sees."""
    sections = run(_inspect, lun, what, args, shows_all=shows_all)
    if as_json:
        click.echo(json.dumps([section_dict(section) for section in sections], indent=2))
        return
    click.echo("\n\n".join("\n".join(text(section, shows_hex=shows_hex)) for section in sections))


async def _inspect(
    lun: Path, what: str, args: tuple[str, ...], *, shows_all: bool
) -> list[Section]:
    device = open_lun_device(lun, writable=False)
    try:
        if what == "lvm":
            _require_count(what, args, (0,))
            return await lvm_sections(device)
        window = await open_window(device)
        if what == "descriptor":
            _require_count(what, args, (0,))
            return await descriptor_sections(window)
        if what == "heartbeats":
            _require_count(what, args, (0, 1))
            slots = [parse_number(args[0])] if args else None
            return await heartbeat_sections(window, slots, shows_all=shows_all)
        return await _inspect_inside(window, what, args)
    finally:
        await device.aclose()


async def _inspect_inside(window: Window, what: str, args: tuple[str, ...]) -> list[Section]:
    """The structures that are found through the volume's system files."""
    _require_count(what, args, {"cluster": (2,), "lock": (1, 2)}.get(what, (1,)))
    inspector = await Inspector.open(window)
    match what, args:
        case "cluster", (kind, cluster):
            return await inspector.cluster_sections(_kind(kind), parse_number(cluster))
        case "lock", (kind, cluster):
            return (await inspector.cluster_sections(_kind(kind), parse_number(cluster)))[:1]
        case "resource", (kind,):
            return await inspector.resource_sections(_kind(kind))
        case "journal", (slot,):
            return await inspector.journal_sections(parse_number(slot))
        case "orphans", (slot,):
            return await inspector.orphan_sections(parse_number(slot))
        case "block", (address,):
            return await inspector.block_sections(parse_number(address))
        case "lock", (where,):
            return await inspector.lock_sections(await inspector.address_of(where))
        case "directory", (where,):
            return await inspector.directory_sections(await inspector.address_of(where))
        case _:
            return await inspector.fd_sections(await inspector.address_of(args[0]))


def _require_count(what: str, args: tuple[str, ...], counts: Sequence[int]) -> None:
    if len(args) not in counts:
        raise click.UsageError(f"usage: vmfs inspect LUN {what} {_USAGE[what]}".rstrip())


def _kind(text: str) -> ResourceKind:
    if text.lower() not in _KINDS:
        raise click.UsageError(f"{text!r} is no kind of resource: {', '.join(_KINDS)}")
    return _KINDS[text.lower()]


def text(section: Section, *, shows_hex: bool) -> list[str]:
    """A section for people: place, offset in the record, name, value, meaning."""
    lines = [click.style(f"{section.title} at {section.address:#x}", bold=True)]
    names = max((len(row.name) for row in section.rows), default=0)
    values = min(max((len(row.value) for row in section.rows), default=0), 48)
    for row in section.rows:
        line = f"{row.address:#12x} +{row.offset:03x}  {row.name:<{names}}  {row.value:<{values}}"
        lines.append(f"{line}  {row.meaning}".rstrip())
    lines += section.lines
    if shows_hex:
        lines += hex_lines(section.data, section.address)
    return lines


def section_dict(section: Section) -> dict[str, Any]:
    """A section for programs."""
    return {
        "title": section.title,
        "address": section.address,
        "fields": [
            {
                "address": row.address,
                "offset": row.offset,
                "name": row.name,
                "value": row.value,
                "raw": row.raw.hex(),
            }
            for row in section.rows
        ],
        "lines": section.lines,
        "raw": section.data.hex(),
    }
