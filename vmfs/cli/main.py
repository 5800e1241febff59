"""The command `vmfs`: nothing but the list of its commands, one file each."""

import click

from vmfs.cli.check import check
from vmfs.cli.common import VmfsGroup
from vmfs.cli.completion import completion
from vmfs.cli.copy_out import cp
from vmfs.cli.inspect import inspect
from vmfs.cli.mkfs import mkfs
from vmfs.cli.read import cat, ls


@click.group(
    cls=VmfsGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="vmfs", prog_name="vmfs")
def cli() -> None:
    """Make, mount and examine VMFS-5 datastores that several hosts share.

    Exit status: 0 done, 1 failed, 2 usage; vmfs check follows fsck(8).
    """


cli.add_command(cat)
cli.add_command(check)
cli.add_command(completion)
cli.add_command(cp)
cli.add_command(inspect)
cli.add_command(ls)
cli.add_command(mkfs)


def main() -> None:
    """What the installed command runs."""
    cli(prog_name="vmfs")
