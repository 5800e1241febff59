"""The command `lockctl`: look at lockd, and tell it to reset or to fence."""

import functools
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import click
import trio
from rich.console import Console

from lockd.cli import show
from lockd.client import (
    AuditEntry,
    Event,
    EventNotice,
    FenceAnswer,
    FenceResult,
    LockdError,
    Lost,
    Observer,
    StatusReport,
    observe,
)
from lockd.protocol.limits import HISTORY_COUNT_MAX
from lockd.protocol.messages import HostStatus

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

EPILOG = """\b
Exit status: 0 done; 1 failed, or lockd cannot be reached; 2 wrong usage.
`lockctl fence`: 0 fenced; 3 still alive; 4 not known; only 0 is safe.

\b
Shell completion: eval "$(_LOCKCTL_COMPLETE=bash_source lockctl)"
"""
FENCE_STATUS: Final = {FenceResult.FENCED: 0, FenceResult.ALIVE: 3, FenceResult.UNKNOWN: 4}
WIDTH_WITHOUT_TERMINAL: Final = 160
EVENTS_BUFFERED_MAX: Final = 10_000
"""Events that wait for a slow terminal or pipe; beyond it the watch ends and says so."""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmfs", prog_name="lockctl")
@click.option(
    "--socket",
    envvar="LOCKD_SOCKET",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The socket that lockd listens on; needed for all but help.",
)
@click.pass_context
def main(ctx: click.Context, socket: Path | None) -> None:
    """Look at lockd, and tell it to reset a LUN or to fence a host."""
    ctx.obj = socket


def pass_socket(
    command: Callable[Concatenate[Path, Parameters], None],
) -> Callable[Parameters, None]:
    """Give a command the socket. Only here is it asked for, so that its help needs none."""

    def with_socket(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        ctx = click.get_current_context()
        if ctx.obj is None:
            raise click.UsageError("Missing option '--socket' (env var: LOCKD_SOCKET).", ctx.parent)
        command(ctx.obj, *args, **kwargs)

    return functools.update_wrapper(with_socket, command)


JSON_OPTION = click.option("as_json", "--json", is_flag=True, help="Print JSON, for programs.")


@main.command()
@JSON_OPTION
@pass_socket
def status(socket: Path, *, as_json: bool) -> None:
    """Show LUNs, hosts, reservations, and who waits for whom."""
    report = _ask(socket, lambda observer: observer.status())
    if as_json:
        click.echo(json.dumps(show.plain(report), indent=2))
        return
    console = _console()
    console.print(
        f"lockd, incarnation {report.incarnation}, up for {show.age(report.uptime)}, "
        f"{report.sessions} connections"
    )
    for table in show.status_tables(report):
        console.print(table)


@main.command()
@click.option(
    "-n",
    "--count",
    default=50,
    show_default=True,
    type=click.IntRange(1, HISTORY_COUNT_MAX),
    help="How many entries.",
)
@click.option("--before", default=0, help="Only entries older than this number.")
@JSON_OPTION
@pass_socket
def history(socket: Path, *, count: int, before: int, as_json: bool) -> None:
    """Show the newest entries of the audit trail, oldest first."""
    for entry in _ask(socket, lambda observer: observer.history(count=count, before=before)):
        _print_entry(entry, as_json=as_json)


@main.command()
@JSON_OPTION
@pass_socket
def watch(socket: Path, *, as_json: bool) -> None:
    """Show events as they happen, until interrupted."""
    try:
        _run(_watch, socket, as_json)
    except KeyboardInterrupt:
        return


@main.command()
@click.argument("lun")
@pass_socket
def reset(socket: Path, lun: str) -> None:
    """Reset LUN: its reservation ends once its holder's I/O has; all hosts are told."""
    _ask(socket, lambda observer: observer.reset(lun))
    click.echo(f"{lun}: reset")


@main.command()
@click.argument("host")
@click.option("--lun", help="Only on this LUN; otherwise on every LUN where it is registered.")
@JSON_OPTION
@pass_socket
def fence(socket: Path, host: str, lun: str | None, *, as_json: bool) -> None:
    """Make sure that HOST (name or uuid) can never write again: its process is killed."""
    answers = _ask(socket, lambda observer: _fence(observer, host, lun))
    for target, answer in answers:
        if as_json:
            fields = {"lun": target.lun, "host": target.name, "generation": target.generation}
            click.echo(json.dumps({**fields, "result": answer.result.name, "proof": answer.proof}))
        else:
            click.echo(f"{target.lun}: {target.name}: {answer.result.name}: {answer.proof}")
    sys.exit(max(FENCE_STATUS[answer.result] for _, answer in answers))


async def _fence(
    observer: Observer, host: str, lun: str | None
) -> list[tuple[HostStatus, FenceAnswer]]:
    targets = find_hosts(await observer.status(), host, lun)
    return [
        (t, await observer.fence_on(t.lun, t.host_uuid, generation=t.generation)) for t in targets
    ]


def find_hosts(report: StatusReport, host: str, lun: str | None) -> list[HostStatus]:
    """The hosts that a name or a uuid means, one per LUN at most.

    Raises:
        click.ClickException: nobody, or two different hosts, have that name.
    """
    wanted = host.replace("-", "").lower()
    found = [
        status
        for status in report.hosts
        if (status.name == host or status.host_uuid.hex() == wanted) and lun in (None, status.lun)
    ]
    if not found:
        raise click.ClickException(f"no host {host!r}; `lockctl status` lists them")
    if len({status.host_uuid for status in found}) > 1:
        uuids = ", ".join(sorted({status.host_uuid.hex() for status in found}))
        raise click.ClickException(f"{host!r} is the name of several hosts; give the uuid: {uuids}")
    return found


async def _watch(socket: Path, as_json: bool) -> None:
    send, receive = trio.open_memory_channel[AuditEntry](EVENTS_BUFFERED_MAX)

    def on_event(event: Event) -> None:
        if isinstance(event, EventNotice):
            try:
                send.send_nowait(event.entry)
            except trio.WouldBlock:
                send.close()
            except trio.ClosedResourceError:
                return
        elif isinstance(event, Lost):
            send.close()

    async with observe(socket, on_event) as observer:
        await observer.watch()
        click.echo(f"lockctl: watching lockd on {socket}; interrupt to end", err=True)
        async for entry in receive:
            _print_entry(entry, as_json=as_json)
    raise click.ClickException(
        "the watch ended: lockd is gone, or events came faster than they could be printed"
    )


def _print_entry(entry: AuditEntry, *, as_json: bool) -> None:
    text = json.dumps(show.plain(entry)) if as_json else show.audit_line(entry)
    click.echo(text)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


def _ask(socket: Path, question: Callable[[Observer], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with observe(socket) as observer:
            return await question(observer)

    return _run(run)


def _run(work: Callable[..., Awaitable[Result]], *args: object) -> Result:
    try:
        return trio.run(work, *args)
    except LockdError as error:
        raise click.ClickException(str(error)) from error
