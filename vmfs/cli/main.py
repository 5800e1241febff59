"""The command `vmfs`: nothing but the list of its commands, one file each."""

import sys

import click

from vmfs.cli.check import check
from vmfs.cli.common import VmfsGroup
from vmfs.cli.completion import completion
from vmfs.cli.copy_out import cp
from vmfs.cli.hosts import hosts
from vmfs.cli.inspect import inspect
from vmfs.cli.journal import journal
from vmfs.cli.locks import lockmode, locks
from vmfs.cli.mkfs import mkfs
from vmfs.cli.mount import mount, mount_helper_arguments
from vmfs.cli.read import cat, ls
from vmfs.cli.status import status
from vmfs.cli.unmount import umount


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
cli.add_command(hosts)
cli.add_command(inspect)
cli.add_command(journal)
cli.add_command(ls)
cli.add_command(lockmode)
cli.add_command(locks)
cli.add_command(mkfs)
cli.add_command(mount)
cli.add_command(status)
cli.add_command(umount)


def main() -> None:
    """What the installed command runs; mount(8) too, when fstab says `fuse.vmfs`."""
    words = sys.argv[1:]
    helper = mount_helper_arguments(words, commands=list(cli.commands))
    cli(args=helper or words, prog_name="vmfs")
