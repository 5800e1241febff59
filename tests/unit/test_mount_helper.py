"""How mount(8) calls us, and what identity a mount has."""

import pytest

from vmfs.cli.mount import mount_helper_arguments
from vmfs.cli.session import this_host
from vmfs.errors import InvalidArgument

COMMANDS = ["mount", "ls", "mkfs"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["/srv/a.img", "/mnt", "-o", "rw,lockd=/run/x"],
            ["mount", "--background", "-o", "rw,lockd=/run/x", "--", "/srv/a.img", "/mnt"],
        ),
        (
            ["./a.img", "mnt", "-s", "-n", "-v", "-o", "ro"],
            ["mount", "--background", "-o", "ro", "--", "./a.img", "mnt"],
        ),
        (["mount", "/srv/a.img", "/mnt"], None),
        (["ls", "a:/x"], None),
        (["/srv/a.img"], None),
        (["/srv/a.img", "--help"], None),
        (["mont", "/mnt"], None),
        ([], None),
    ],
)
def test_mount_helper_arguments_are_told_from_commands(words, expected):
    assert mount_helper_arguments(words, commands=COMMANDS) == expected


def test_host_identity_is_kept_but_for_its_nonce():
    first, second = this_host("esx-a"), this_host("esx-a")

    assert first.host_uuid == second.host_uuid
    assert first.nonce != second.nonce
    assert first.nonce > 0
    assert this_host("esx-b").host_uuid != first.host_uuid
    assert this_host(None).name


def test_host_name_too_long_for_the_slot_is_refused():
    with pytest.raises(InvalidArgument, match="longer than 64"):
        this_host("x" * 65)


def test_host_name_that_cannot_be_shown_is_refused():
    with pytest.raises(InvalidArgument, match="cannot be printed"):
        this_host("two\nlines")
