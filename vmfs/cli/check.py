"""`vmfs check`: say what is wrong with a volume, in the manner of fsck(8)."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vmfs.check import CATALOGUE, Report, Severity, check_device
from vmfs.cli.common import run
from vmfs.device.opening import open_lun_device
from vmfs.errors import VmfsError
from vmfs.units import MIB, format_size

EXIT_OPERATIONAL: Final = 8
EXIT_USAGE: Final = 16

_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


class FsckUsageError(click.UsageError):
    """A usage error that ends with fsck(8)'s status for it."""

    exit_code = EXIT_USAGE


class FsckCommand(click.Command):
    """A command whose usage errors end with 16, as fsck(8) has it; 2 means something else there."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401 - click's
        """Parse the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise FsckUsageError(error.format_message(), error.ctx) from error


@click.command(cls=FsckCommand)
@click.argument("lun", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON object.")
@click.option("--quiet", "-q", is_flag=True, help="Errors and warnings only, no summary.")
@click.pass_context
def check(ctx: click.Context, *, lun: Path, as_json: bool, quiet: bool) -> None:
    """Check the VMFS-5 volume on LUN. Nothing is written, no lock is taken.

    Bitmaps, block owners, file descriptors, directories, link counts, locks, heartbeats and
    journals are read and held against each other. Transactions that the next mount would replay
    are laid over the volume in memory, so what is checked is what that mount will see. On a volume
    that a host has open, findings may be of the moment.

    docs/check.md says of each finding what it means, how it arises and what to do.

    Exit status: 0 clean (warnings and notes allowed), 4 errors left uncorrected, 8 the check could
    not be made (LUN unreadable, no VMFS-5 volume), 16 usage.
    """
    try:
        report = run(_check, lun)
    except VmfsError as error:
        click.echo(f"{ctx.command_path}: {error}", err=True)
        ctx.exit(EXIT_OPERATIONAL)
    if as_json:
        click.echo(json.dumps({"lun": str(lun), **report.as_dict()}, indent=2))
    else:
        for line in report_lines(report, least=Severity.WARNING if quiet else Severity.INFO):
            click.echo(line)
        if not quiet:
            click.echo(summary(lun, report))
    ctx.exit(report.exit_status)


async def _check(lun: Path) -> Report:
    device = open_lun_device(lun, writable=False)
    try:
        with _progress_bar() as progress:
            return await check_device(device, progress=progress)
    finally:
        await device.aclose()


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on a terminal, and nothing anywhere else."""
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total
        )


def report_lines(report: Report, *, least: Severity) -> Iterator[str]:
    """The findings of at least that weight for people, most severe first."""
    for found in report.findings:
        if found.severity < least:
            continue
        weight = click.style(f"{found.severity.name.lower():<7}", fg=_COLOURS[found.severity])
        where = [f"LV {found.address:#x}"] if found.address is not None else []
        if found.fd is not None:
            where.append(f"FD {found.fd:#x}")
        if found.path is not None:
            where.append(found.path)
        place = f"  ({', '.join(where)})" if where else ""
        yield f"{weight} {found.code}: {found.text}{place}"
    for code, count in report.counts.items():
        kept = sum(found.code == code for found in report.findings)
        if count > kept and CATALOGUE[code][0] >= least:
            yield f"        {code}: {count - kept} more, not shown"


def summary(lun: Path, report: Report) -> str:
    """The last line: what there is, and how it stands."""
    numbers = report.statistics
    errors, warnings = report.total(Severity.ERROR), report.total(Severity.WARNING)
    verdict = "clean" if not errors and not warnings else f"{errors} errors, {warnings} warnings"
    if "fbb_total" not in numbers:
        return f"{lun}: {verdict}; the walk could not go on"
    used, total = numbers["fbb_used"], numbers["fbb_total"]
    return (
        f"{lun}: {verdict}; {numbers.get('files', 0)} files, "
        f"{numbers.get('directories', 0)} directories, {used} of {total} file blocks in use "
        f"({format_size(used * numbers.get('block_size', MIB))})"
    )
