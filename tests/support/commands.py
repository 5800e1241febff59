"""`vmfs` as typed, in this process."""

from click.testing import CliRunner, Result

from vmfs.cli.main import cli


def vmfs(*words: object) -> Result:
    """Run one command: its output, what it said on stderr, and its exit status."""
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="vmfs")
