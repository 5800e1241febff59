"""What the commands share: the error edge, sizes as options, running async code, the mounts.

Commands raise `VmfsError` and nothing else on purpose. `VmfsGroup` turns one into a single line on
stderr and the exit status of its class. Usage errors are click's: exit status 2.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import click
import trio

from vmfs.errors import VmfsError
from vmfs.fuse.mountinfo import MountEntry, parse_mountinfo
from vmfs.units import parse_size

P = ParamSpec("P")
T = TypeVar("T")


class VmfsGroup(click.Group):
    """The group `vmfs`: the one place where errors become text and exit statuses."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except VmfsError as error:
            _report(ctx, error)
        except BaseExceptionGroup as group:
            found = only_vmfs_error(group)
            if found is None:
                raise
            _report(ctx, found)


def only_vmfs_error(group: BaseExceptionGroup[BaseException]) -> VmfsError | None:
    """The first `VmfsError` that a nursery failed with, however deep trio wrapped it.

    None when anything else but cancellation stands beside it: that is a bug, to be seen whole.
    """
    first: VmfsError | None = None
    for member in group.exceptions:
        if isinstance(member, trio.Cancelled):
            continue
        error = only_vmfs_error(member) if isinstance(member, BaseExceptionGroup) else member
        if not isinstance(error, VmfsError):
            return None
        first = first or error
    return first


def run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function to its end, in a trio loop of its own."""
    return trio.run(partial(function, *args, **kwargs))


def mounts_here() -> list[MountEntry]:
    """Every mount that this process can see. Touches none of them: one may hang."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text("utf-8", "replace"))


class SizeType(click.ParamType[int]):
    """A size as people write it: `512`, `64K`, `100G`, `2TiB` (powers of 1024)."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Bytes; a usage error when the text is no size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _report(ctx: click.Context, error: VmfsError) -> NoReturn:
    program = ctx.command_path
    if ctx.invoked_subcommand is not None:
        program += f" {ctx.invoked_subcommand}"
    click.echo(f"{program}: {str(error) or type(error).__name__}", err=True)
    ctx.exit(error.exit_status)
