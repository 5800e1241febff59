"""A Debian kernel boots from a `createType="vmfs"` VMDK on the mount, and finds what it wrote."""

from pathlib import Path

import pytest

from tests.support import guest
from tests.support.mounts import datastore

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def root_disk(tmp_path_factory) -> Path:
    return guest.root_disk_or_skip(tmp_path_factory.mktemp("guest"))


def test_guest_on_vmdk_writes_and_verifies_after_a_second_boot_on_another_host(root_disk, tmp_path):
    with datastore(tmp_path, hosts=("a", "b"), size="4G") as ds:
        guest.make_vmdk(root_disk, ds.a.path / "vm.vmdk")

        first = guest.boot(ds.a.path / "vm.vmdk")
        second = guest.boot(ds.b.path / "vm.vmdk")

        assert "GUEST-WRITTEN" in first, first
        assert "GUEST-DONE" in first, first
        assert "GUEST-VERIFIED" in second, second
