"""The command `lockd`: serve the lock logic of one or more LUNs."""

import logging
import signal
import sys
from pathlib import Path

import click
import trio

from lockd.protocol.limits import NAME_SIZE_MAX
from lockd.server import AlreadyServed, Config, DatabaseLost, LunError, SocketUnusable, serve
from lockd.state import Timing
from lockd.store import StoreError

EPILOG = """\b
Exit status: 0 ended by SIGTERM or SIGINT; 1 could not start, or its state
could not be written any more; 2 wrong usage.

\b
Shell completion: eval "$(_LOCKD_COMPLETE=bash_source lockd)"
"""


class LunOption(click.ParamType[tuple[str, Path]]):
    """NAME=PATH."""

    name = "NAME=PATH"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Take the text apart; what is wrong with it is a usage error."""
        name, equals, path = str(value).partition("=")
        if not (name and equals and path):
            self.fail(f"{value!r} is not NAME=PATH, for example ds1=/srv/lun1.img", param, ctx)
        if len(name.encode()) > NAME_SIZE_MAX or not name.isprintable():
            self.fail(f"{name!r}: a name has up to {NAME_SIZE_MAX} printable bytes", param, ctx)
        return name, Path(path)


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmfs", prog_name="lockd")
@click.option(
    "luns",
    "--lun",
    type=LunOption(),
    multiple=True,
    required=True,
    help="A LUN to serve, and its name; may be given several times.",
)
@click.option(
    "--socket",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where hosts connect. Its directory is made, mode 0700, if it is missing.",
)
@click.option(
    "--state",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for what must outlive lockd: generations, blocklist, audit trail.",
)
@click.option(
    "--recall-seconds",
    default=Timing().recall,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="How long a RESERVE or a reset waits for other hosts to drain.",
)
@click.option(
    "--fence-seconds",
    default=Timing().fence,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="How long a fence waits for the exit of what it killed.",
)
@click.option(
    "--lease-seconds",
    default=Timing().lease,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="A host that holds up all others, and says nothing for so long, is fenced.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="The state was lost or is damaged: begin a new one although hosts are at work. They "
    "register again by themselves; no reservation is granted before all have.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every change of a lock, too.")
def main(  # noqa: PLR0913 - one per option
    *,
    luns: tuple[tuple[str, Path], ...],
    socket: Path,
    state: Path,
    recall_seconds: float,
    fence_seconds: float,
    lease_seconds: float,
    rebuild: bool,
    verbose: bool,
) -> None:
    """Serve the lock logic of shared LUNs: compare-and-write, reservations, fencing.

    Runs in the foreground, and prints "lockd: ready, ..." once it accepts connections. Log lines go
    to standard error. Two lockds never serve one LUN, nor one state directory.
    """
    names = [name for name, _ in luns]
    if len(set(names)) != len(names):
        raise click.UsageError("two LUNs have the same name")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    timing = Timing(recall=recall_seconds, fence=fence_seconds, lease=lease_seconds)
    config = Config(luns=luns, socket=socket, state=state, timing=timing, rebuild=rebuild)
    try:
        trio.run(_run, config)
    except* (AlreadyServed, DatabaseLost, LunError, SocketUnusable, StoreError) as group:
        for error in _leaves(group):
            click.echo(f"lockd: {error}", err=True)
        sys.exit(1)


async def _run(config: Config) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await nursery.start(_serve, config)
        names = ", ".join(name for name, _ in config.luns)
        click.echo(f"lockd: ready, serving {names} on {config.socket}")
        sys.stdout.flush()


async def _serve(config: Config, *, task_status: trio.TaskStatus[None]) -> None:
    await serve(config, task_status=task_status)


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logging.getLogger("lockd").info("ended by %s", signal.Signals(number).name)
            scope.cancel()
            return


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
