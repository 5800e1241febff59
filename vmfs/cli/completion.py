"""`vmfs completion`: the script that teaches a shell our commands and options."""

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For example, in ~/.bashrc:  eval "$(vmfs completion bash)"
    """
    root = ctx.find_root()
    script = get_completion_class(shell)
    assert script is not None, f"click knows no {shell}"
    click.echo(script(root.command, {}, "vmfs", "_VMFS_COMPLETE").source())
