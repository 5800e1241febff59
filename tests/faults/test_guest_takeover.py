"""The mount under a running guest is killed; the guest, restarted on another host, lost nothing.

The guest writes items, and says of each that it was synced. Then its host's mount gets SIGKILL in
the middle of its writing. Another host opens the disk at once; the guest's own journal is replayed
there, and every item that it had said is there, byte for byte.
"""

import random
import re
from pathlib import Path

import pytest

from tests.support import guest
from tests.support.mounts import Process, datastore

pytestmark = [pytest.mark.mount, pytest.mark.guest, pytest.mark.timeout(900)]

SEED = 1
"""Of the number of items that the guest may sync before the kill."""


@pytest.fixture(scope="module")
def root_disk(tmp_path_factory) -> Path:
    return guest.root_disk_or_skip(tmp_path_factory.mktemp("guest"), init=guest.SYNCED_INIT)


def items(lines: list[str], word: str) -> dict[str, str]:
    """Number and checksum of each item in lines that begin with `word`."""
    found = (re.search(rf"{word} (\d+) ([0-9a-f]{{64}})", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}


@pytest.mark.usefixtures("private_mounts")
def test_guest_has_all_that_it_synced_after_its_host_was_killed(root_disk, tmp_path):
    count = random.Random(SEED).randrange(20, 60)
    with datastore(tmp_path, hosts=("a", "b"), size="4G") as ds:
        guest.make_vmdk(root_disk, ds.a.path / "vm.vmdk")
        first = Process(guest.command(ds.a.path / "vm.vmdk"), address_space=8 << 30)
        try:
            for _ in range(count):
                first.wait_for("GUEST-SYNCED", seconds=guest.BOOT_SECONDS_MAX)
            # Not what it says later: sync(1) tells nothing of the errors that it gets then.
            synced = items(list(first.said), "GUEST-SYNCED")
            ds.a.process.kill()
        finally:
            first.kill()

        second = guest.boot(ds.b.path / "vm.vmdk")

        assert len(synced) >= count
        there = items(second.splitlines(), "GUEST-HAS")
        assert {n: there.get(n) for n in synced} == synced, second
        assert "GUEST-DONE" in second, second
