"""Genuine ESXi volumes, read by us and by dissect.vmfs: the same names, facts and bytes.

The expectations are not ours: dissect.vmfs was written against ESXi, independently of this project.
"""

import hashlib
import stat
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner
from dissect.vmfs import lvm as dissect_lvm
from dissect.vmfs import vmfs as dissect_vmfs

from tests.support.checked import describe
from tests.support.genuine import genuine_image
from vmfs.check import CATALOGUE, Severity, check_device, check_volume, content
from vmfs.check.findings import Findings
from vmfs.check.opening import open_lun
from vmfs.check.reader import Node, Reader, open_volume
from vmfs.cli.main import cli
from vmfs.device.image import ImageDevice
from vmfs.errors import Unsupported
from vmfs.ondisk.file_desc import ROOT_FD, FileType
from vmfs.units import GIB, MIB

WITH_LVM = ["vmfs5", "vmfs5-no-dense-sbpc", "vmfs5-resource-optimized", "zero5"]
BARE = ["vmfs5d"]
"""Volumes without an LVM header: byte 0 is LV byte 0."""

VMFS_L = ["vmfs5l", "vmfs5ld"]
HASHED_MAX = 300 * MIB


@dataclass(frozen=True)
class Facts:
    """What two readers must agree on."""

    kind: str
    permissions: int
    size: int
    links: int
    digest: str


@asynccontextmanager
async def our_reader(name: str) -> AsyncIterator[Reader]:
    device = ImageDevice.open(genuine_image(name), writable=False)
    try:
        if name in BARE:
            yield await open_volume(device)
        else:
            yield (await open_lun(device, Findings())).reader
    finally:
        await device.aclose()


async def our_tree(reader: Reader) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    todo = [("", await reader.node(ROOT_FD))]
    while todo:
        path, directory = todo.pop()
        for entry in await content.entries(reader, directory):
            name = f"{path}/{entry.name.decode()}"
            node = await reader.node(entry.address)
            found[name] = await our_facts(reader, node)
            if node.is_directory and entry.name not in (b".", b".."):
                todo.append((name, node))
    return found


async def our_facts(reader: Reader, node: Node) -> Facts:
    desc = node.desc
    digest = ""
    if desc.type != FileType.RDM and desc.length <= HASHED_MAX:
        digest = hashlib.sha256(await content.read(reader, node, 0, desc.length)).hexdigest()
    return Facts(
        kind="dir" if node.is_directory else desc.type.name,
        permissions=desc.mode & 0o7777,
        size=desc.length,
        links=desc.link_count,
        digest=digest,
    )


def dissect_volume(stack: ExitStack, name: str) -> Any:
    image = stack.enter_context(genuine_image(name).open("rb"))
    if name in BARE:
        return dissect_vmfs.VMFS(image)
    return dissect_vmfs.VMFS(dissect_lvm.LVM(image).volumes[0].open())


def dissect_tree(volume: Any) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    todo = [("", volume.get("/"))]
    while todo:
        path, directory = todo.pop()
        for entry_name, entry in directory.listdir().items():
            name = f"{path}/{entry_name}"
            found[name] = dissect_facts(entry.fd)
            if entry.fd.is_dir() and entry_name not in (".", ".."):
                todo.append((name, entry.fd))
    return found


def dissect_facts(fd: Any) -> Facts:
    kinds = {2: "dir", 3: "FILE", 4: "SYMLINK", 5: "SYSTEM", 6: "RDM"}
    raw_type = int.from_bytes(fd.metadata.dumps()[0x0C:0x10], "little")
    digest = ""
    if not fd.is_rdm() and fd.size <= HASHED_MAX:
        digest = hashlib.sha256(fd.open().read()).hexdigest()
    return Facts(
        kind="dir" if fd.is_dir() else kinds[raw_type],
        permissions=stat.S_IMODE(fd.mode),
        size=fd.size,
        links=int.from_bytes(fd.metadata.dumps()[0x08:0x0C], "little"),
        digest=digest,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_LVM + BARE)
async def test_genuine_tree_is_what_dissect_reads(name: str) -> None:
    with ExitStack() as stack:
        expected = dissect_tree(dissect_volume(stack, name))

    async with our_reader(name) as reader:
        assert await our_tree(reader) == expected


@pytest.mark.parametrize("name", WITH_LVM + BARE)
async def test_genuine_volume_checks_without_error(name: str) -> None:
    device = ImageDevice.open(genuine_image(name), writable=False)

    report = await (check_volume(device) if name in BARE else check_device(device))
    await device.aclose()

    assert report.total(Severity.ERROR) == 0, "\n".join(describe(report))
    assert report.total(Severity.WARNING) == 0, "\n".join(describe(report))
    # docs/check.md names these as what genuine volumes show
    assert report.codes <= {"host-active", "foreign-journal", "cluster-first-free", "lock-held"}
    assert report.codes <= set(CATALOGUE)


@pytest.mark.parametrize(("path", "offset"), [("/normal-flat.vmdk", 42), ("/large-flat.vmdk", 117)])
async def test_genuine_disk_with_one_block_reads_where_dissect_does(path: str, offset: int) -> None:
    with ExitStack() as stack:
        disk = dissect_volume(stack, "vmfs5").get(path.lstrip("/")).open()
        disk.seek(offset * GIB - 4096)
        expected = disk.read(2 * MIB)

    async with our_reader("vmfs5") as reader:
        node = await content.resolve(reader, path.encode(), follow=True)
        found = await content.read(reader, node, offset * GIB - 4096, 2 * MIB)

    assert found == expected
    assert any(found)


async def test_genuine_symlink_is_followed_to_its_own_volume() -> None:
    async with our_reader("vmfs5") as reader:
        link = await content.resolve(reader, b"/symlink", follow=False)
        node = await content.resolve(reader, b"/symlink", follow=True)

        assert await content.link_target(reader, link) == b"/vmfs/volumes/vmfs5/small"
        assert await content.read(reader, node, 0, 100) == b"tiny\n"


@pytest.mark.parametrize("name", VMFS_L)
async def test_vmfs_l_is_refused_by_name(name: str) -> None:
    device = ImageDevice.open(genuine_image(name), writable=False)
    try:
        with pytest.raises(Unsupported, match="VMFS-L"):
            await (check_volume(device) if name == "vmfs5ld" else check_device(device))
    finally:
        await device.aclose()


def test_genuine_volume_in_the_commands() -> None:
    image = genuine_image("vmfs5")

    listing = CliRunner().invoke(cli, ["ls", "-l", f"{image}:/"])
    small = CliRunner().invoke(cli, ["cat", f"{image}:/small"])
    mapping = CliRunner().invoke(cli, ["cat", f"{image}:/rdm-rdm.vmdk"])
    pointer = CliRunner().invoke(cli, ["inspect", str(image), "block", "0x10034483"])

    assert listing.exit_code == 0
    assert "symlink -> /vmfs/volumes/vmfs5/small" in listing.stdout
    assert "has the volume open" in listing.stderr
    assert small.stdout_bytes == b"tiny\n"
    assert mapping.exit_code == 1
    assert "raw device mapping" in mapping.stderr
    assert "PB 2 of cluster 3346" in pointer.stdout
