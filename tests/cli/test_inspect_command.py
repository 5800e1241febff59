"""`vmfs inspect`: every structure, text and JSON, damaged ones too."""

import json
from pathlib import Path

import pytest
import trio

from tests.support.commands import vmfs
from tests.support.handmade import HandMade, build_handmade, save
from tests.support.records import HOST_A
from vmfs.check import fields
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET
from vmfs.ondisk.disk_lock import DiskLock, Holder
from vmfs.ondisk.file_desc import FDC_FD
from vmfs.ondisk.heartbeat import slot_offset


@pytest.fixture(scope="module")
def volume() -> HandMade:
    return trio.run(build_handmade)


@pytest.fixture(scope="module")
def lun(volume: HandMade, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "lun.img"
    trio.run(save, volume.lun, path)
    return path


EVERYTHING = [
    [],
    ["descriptor"],
    ["lvm"],
    ["heartbeats", "--all"],
    ["heartbeats", "3"],
    ["fd", "/three"],
    ["fd", "/resident"],
    ["fd", "/huge"],
    ["fd", "0x00800004"],
    ["lock", "/three"],
    ["lock", "fbb", "0"],
    ["resource", "sbc"],
    ["cluster", "fdc", "1"],
    ["journal", "0"],
    ["orphans", "1"],
    ["directory", "/dir"],
    ["block", "0x00000143"],
]


@pytest.mark.parametrize("args", EVERYTHING, ids=lambda args: "-".join(args) or "default")
def test_every_structure_is_shown_in_every_form(lun: Path, args: list[str]) -> None:
    for form in ([], ["--hex"], ["--json"]):
        result = vmfs("inspect", lun, *args, *form)
        assert result.exit_code in (0, 1), result.output
        if result.exit_code == 1:  # the one address above that names a block past the resource
            assert args == ["block", "0x00000143"]
            continue
        if form == ["--json"]:
            for section in json.loads(result.stdout):
                assert bytes.fromhex(section["raw"])


def test_fd_shows_places_names_and_values(volume: HandMade, lun: Path) -> None:
    text = vmfs("inspect", lun, "fd", "/three").stdout

    at = volume.fd_offset("/three")
    assert f"{at + 512 + 0x14:#12x} +014  length" in text
    assert str(volume.made["/three"].desc.length) in text
    assert f"(file block {volume.made['/three'].blocks[2] >> 6:#x})" in text


def test_resident_file_shows_its_data(lun: Path) -> None:
    text = vmfs("inspect", lun, "fd", "/link").stdout

    assert "dir/one" in text


def test_bitmap_is_shown_as_ranges(lun: Path) -> None:
    text = vmfs("inspect", lun, "cluster", "pbc", "0").stdout

    assert "2-15" in text


def test_lock_shows_shared_holders(volume: HandMade, tmp_path: Path) -> None:
    own = trio.run(build_handmade)
    at = own.fd_offset("/three")
    record = DiskLock.unpack(trio.run(own.lv.read, at, 512), address=at)
    holder = Holder(heartbeat_offset=slot_offset(1), generation=7, owner=HOST_A)
    trio.run(own.patch, at, record.taken_shared(holder, 5).pack())
    trio.run(save, own.lun, tmp_path / "lun.img")

    text = vmfs("inspect", tmp_path / "lun.img", "lock", "/three").stdout

    assert "0x2 (shared)" in text
    assert f"holder 0 owner       {HOST_A}" in text


def test_corrupt_record_is_shown_not_refused(tmp_path: Path) -> None:
    own = trio.run(build_handmade)
    trio.run(own.patch, own.fd_offset("/three") + 512, b"\xff" * 20)
    trio.run(own.patch, own.cluster_offset(FDC_FD, 1) + 512, b"\xff" * 20)
    trio.run(own.patch, slot_offset(5), b"\xff" * 20)
    trio.run(save, own.lun, tmp_path / "lun.img")
    image = tmp_path / "lun.img"

    descriptor = vmfs("inspect", image, "fd", f"{own.made['/three'].address:#x}")

    assert descriptor.exit_code == 0
    assert "0xffffffff" in descriptor.stdout
    assert vmfs("inspect", image, "cluster", "fdc", "1").exit_code == 0
    assert "(unknown)" in vmfs("inspect", image, "heartbeats", "5").stdout


def test_descriptor_is_shown_even_if_nothing_behind_it_can_be_found(tmp_path: Path) -> None:
    own = trio.run(build_handmade)
    trio.run(own.patch, DESCRIPTOR_OFFSET, b"\xff" * 8)
    trio.run(save, own.lun, tmp_path / "lun.img")

    shown = vmfs("inspect", tmp_path / "lun.img")
    refused = vmfs("inspect", tmp_path / "lun.img", "fd", "4")

    assert "0xffffffff" in shown.stdout
    assert refused.exit_code == 1
    assert "corrupt FS descriptor" in refused.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["fd"], 2, "usage: vmfs inspect LUN fd ADDRESS|PATH"),
        (["cluster", "xyz", "1"], 2, "no kind of resource"),
        (["cluster", "fbb", "99999"], 1, "clusters 0 to"),
        (["fd", "5"], 1, "file descriptor"),
        (["fd", "zebra"], 1, "not a number"),
        (["fd", "/zebra"], 1, "there is no zebra"),
        (["fd", "0xffffffffffffffff"], 1, "address"),
        (["directory", "/three"], 1, "is of type file, no directory"),
        (["heartbeats", "2048"], 1, "0 to 2047"),
        (["journal", "64"], 1, "there are 4"),
        (["block", "7"], 1, "no address"),
        (["block", "0xfffffffffff1"], 1, "address"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_questions_are_answered_in_a_line(
    lun: Path, args: list[str], status: int, message: str
) -> None:
    result = vmfs("inspect", lun, *args)

    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_field_tables_do_not_overlap() -> None:
    for name in (
        "DEVICE_HEADER",
        "VOLUME_ENTRY",
        "EXTENT_ENTRY",
        "DESCRIPTOR",
        "PARAMETERS",
        "HEARTBEAT",
        "HOST_INFO",
        "LOCK",
        "HOLDER",
        "RESOURCE_HEADER",
        "CLUSTER",
        "FILE_DESC",
        "COMMIT",
        "ORPHAN",
        "DIRENT",
    ):
        end = 0
        for row in getattr(fields, name):
            assert row.offset >= end, (name, row.name)
            end = row.offset + row.size
