"""`vmfs ls`, `cat` and `cp`: what they show, what they keep, what they refuse, how they end."""

import hashlib
import os
from pathlib import Path

import pytest
import trio

from tests.support.build import tiny_request
from tests.support.commands import vmfs
from tests.support.handmade import HandMade, build_handmade, pattern, save
from vmfs.ondisk.file_desc import FileType
from vmfs.ondisk.partition import TableKind
from vmfs.units import GIB, MIB


def names(directory: Path) -> list[str]:
    return sorted(child.name for child in directory.iterdir())


@pytest.fixture(scope="module")
def volume() -> HandMade:
    return trio.run(build_handmade)


@pytest.fixture(scope="module")
def lun(volume: HandMade, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("read") / "lun.img"
    trio.run(save, volume.lun, path)
    return path


def test_ls_shows_names_sorted_without_the_hidden(lun: Path) -> None:
    result = vmfs("ls", f"{lun}:/")

    assert result.exit_code == 0
    assert result.stdout.split() == ["dir", "huge", "link", "resident", "sparse", "sub", "three"]
    assert vmfs("ls", lun).stdout == result.stdout


def test_ls_all_shows_system_files_and_dots(lun: Path) -> None:
    names = vmfs("ls", "-a", f"{lun}:/").stdout.split()

    assert names[:3] == [".", "..", ".fbb.sf"]
    assert ".vlj.sf" in names


def test_ls_long_shows_mode_links_size_and_target(lun: Path) -> None:
    lines = vmfs("ls", "-l", f"{lun}:/").stdout.splitlines()

    by_name = {line.split()[7]: line.split() for line in lines}
    assert by_name["dir"][0] == "drwxr-xr-x"
    assert by_name["sub"][:2] == ["-rw-r--r--", "2"]
    assert by_name["huge"][4] == str(300 * GIB)
    assert lines[2].endswith("link -> dir/one")


def test_ls_recursive_names_each_directory(lun: Path) -> None:
    result = vmfs("ls", "-R", f"{lun}:/")

    assert "/dir:\ndeep\nhard\none" in result.stdout
    assert "/dir/deep:" in result.stdout


def test_ls_of_one_file(lun: Path) -> None:
    assert vmfs("ls", f"{lun}:/dir/one").stdout == "one\n"


@pytest.mark.parametrize("path", ["/resident", "/sub", "/three", "/dir/one", "/dir/hard"])
def test_cat_writes_the_bytes(volume: HandMade, lun: Path, path: str) -> None:
    result = vmfs("cat", f"{lun}:{path}")

    assert result.exit_code == 0
    assert result.stdout_bytes == volume.files[path]


def test_cat_follows_links(volume: HandMade, lun: Path) -> None:
    assert vmfs("cat", f"{lun}:/link").stdout_bytes == volume.files["/dir/one"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing", "there is no nothing"),
        ("/dir", "is a directory"),
        ("/sub/x", "looked up in a file"),
        ("/dir/../../sub/..", "looked up in a file"),
    ],
)
def test_cat_says_why_not(lun: Path, path: str, message: str) -> None:
    result = vmfs("cat", f"{lun}:{path}")

    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_cp_keeps_holes_and_zeroes(lun: Path, tmp_path: Path) -> None:
    target = tmp_path / "sparse"

    result = vmfs("cp", f"{lun}:/sparse", target)

    assert result.exit_code == 0, result.output
    data = target.read_bytes()
    assert len(data) == 300 * MIB
    assert data[:MIB] == pattern(5, MIB)
    assert data[290 * MIB : 291 * MIB] == pattern(6, MIB)
    assert data.count(0) == 298 * MIB  # the block that is to be zeroed shows nothing of its past
    assert target.stat().st_blocks * 512 < 4 * MIB


def test_cp_of_a_file_far_larger_than_its_data(lun: Path, tmp_path: Path) -> None:
    target = tmp_path / "huge"

    assert vmfs("cp", f"{lun}:/huge", target).exit_code == 0

    assert target.stat().st_size == 300 * GIB
    with target.open("rb") as copy:
        copy.seek(260 * GIB)
        assert copy.read(MIB) == pattern(7, MIB)
    assert target.stat().st_blocks * 512 < 4 * MIB


def test_cp_recursive_copies_the_tree_without_system_files(
    volume: HandMade, lun: Path, tmp_path: Path
) -> None:
    result = vmfs("cp", "-r", f"{lun}:/", tmp_path / "all")

    assert result.exit_code == 0, result.output
    found = names(tmp_path / "all")
    assert found == ["dir", "huge", "link", "resident", "sparse", "sub", "three"]
    for path in ("/three", "/dir/one", "/dir/hard"):
        assert (tmp_path / "all" / path[1:]).read_bytes() == volume.files[path]
    assert (tmp_path / "all" / "link").readlink() == Path("dir/one")
    assert (tmp_path / "all" / "dir" / "deep").is_dir()


def test_cp_keeps_mode_and_time(volume: HandMade, lun: Path, tmp_path: Path) -> None:
    vmfs("cp", f"{lun}:/sub", tmp_path / "sub")

    status = (tmp_path / "sub").stat()
    assert status.st_mode & 0o777 == 0o644
    assert status.st_mtime == volume.made["/sub"].desc.mtime


def test_cp_into_a_directory_keeps_the_name(lun: Path, tmp_path: Path) -> None:
    vmfs("cp", f"{lun}:/dir/one", tmp_path)

    assert (tmp_path / "one").exists()


def test_cp_overwrites_only_with_force(volume: HandMade, lun: Path, tmp_path: Path) -> None:
    target = tmp_path / "sub"
    target.write_text("mine")

    refused = vmfs("cp", f"{lun}:/sub", target)
    untouched = target.read_text()
    forced = vmfs("cp", "--force", f"{lun}:/sub", target)

    assert (refused.exit_code, untouched) == (1, "mine")
    assert "--force overwrites it" in refused.stderr
    assert forced.exit_code == 0
    assert target.read_bytes() == volume.files["/sub"]
    assert names(tmp_path) == ["sub"]


def test_cp_replaces_nothing_but_files_even_with_force(lun: Path, tmp_path: Path) -> None:
    target = tmp_path / "pipe"  # stands for a device node, which only root can make
    os.mkfifo(target)

    result = vmfs("cp", "--force", f"{lun}:/sub", target)

    assert result.exit_code == 1
    assert "is not a regular file" in result.stderr
    assert target.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_cp_of_a_directory_needs_recursive(lun: Path, tmp_path: Path) -> None:
    result = vmfs("cp", f"{lun}:/dir", tmp_path / "dir")

    assert result.exit_code == 1
    assert "add -r" in result.stderr
    assert not (tmp_path / "dir").exists()


def test_cp_to_where_nothing_can_be_written(lun: Path, tmp_path: Path) -> None:
    result = vmfs("cp", f"{lun}:/sub", tmp_path / "no" / "sub")

    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def test_cp_sparse_makes_holes_of_zeroes(tmp_path: Path) -> None:
    volume = trio.run(build_handmade)
    block = (volume.made["/three"].blocks[0] >> 6) * MIB
    trio.run(volume.patch, block, bytes(MIB))
    trio.run(save, volume.lun, tmp_path / "lun.img")

    vmfs("cp", f"{tmp_path}/lun.img:/three", tmp_path / "plain")
    vmfs("cp", "--sparse", f"{tmp_path}/lun.img:/three", tmp_path / "sparse")

    assert (tmp_path / "plain").read_bytes() == (tmp_path / "sparse").read_bytes()
    plain, sparse = (tmp_path / name for name in ("plain", "sparse"))
    assert sparse.stat().st_blocks * 512 <= plain.stat().st_blocks * 512 - MIB


def test_cp_leaves_out_what_is_damaged_and_says_so(tmp_path: Path) -> None:
    volume = trio.run(build_handmade)
    trio.run(volume.patch, volume.fd_offset("/dir/one") + 512, b"\xff")
    trio.run(save, volume.lun, tmp_path / "lun.img")

    result = vmfs("cp", "-r", f"{tmp_path}/lun.img:/dir", tmp_path / "out")

    assert result.exit_code == 1
    assert "one: left out: corrupt file descriptor" in result.stderr
    assert names(tmp_path / "out") == ["deep", "hard"]


def test_hostile_name_cannot_leave_the_target(tmp_path: Path) -> None:
    """An entry `..` in the middle of a directory, leading to a file, is not written anywhere."""
    volume = trio.run(build_handmade)
    entry = volume.made["/dir"].entries[2].pack()
    at = volume.entry_offset("/dir", 2)
    trio.run(volume.patch, at, entry[:12] + b"..".ljust(128, b"\0"))
    trio.run(save, volume.lun, tmp_path / "lun.img")
    (tmp_path / "out").mkdir()

    result = vmfs("cp", "-r", f"{tmp_path}/lun.img:/dir", tmp_path / "out" / "in")

    assert result.exit_code == 0
    assert names(tmp_path / "out") == ["in"]
    assert names(tmp_path / "out" / "in") == ["deep", "hard"]


def test_ls_of_directories_that_hold_each_other_ends(tmp_path: Path) -> None:
    volume = trio.run(build_handmade)
    for index, path in ((2, "/dir"), (2, "/dir/deep")):
        other = volume.made["/dir/deep" if path == "/dir" else "/dir"]
        entry = volume.made["/dir"].entries[0]
        raw = type(entry)(
            type=FileType.DIRECTORY,
            address=other.address,
            generation=other.desc.generation,
            name=b"loop",
        )
        trio.run(volume.patch, volume.entry_offset(path, index), raw.pack())
    trio.run(lambda: volume.rewrite("/dir/deep", length=3 * 140))
    trio.run(save, volume.lun, tmp_path / "lun.img")

    assert vmfs("ls", "-R", f"{tmp_path}/lun.img:/").exit_code == 0
    assert vmfs("cp", "-r", f"{tmp_path}/lun.img:/", tmp_path / "out").exit_code == 0


def test_terminal_controls_in_names_are_shown_harmless(tmp_path: Path) -> None:
    volume = trio.run(build_handmade)
    entry = volume.made["/dir"].entries[2].pack()
    raw = entry[:12] + b"red\x1b[31m\xff".ljust(128, b"\0")
    trio.run(volume.patch, volume.entry_offset("/dir", 2), raw)
    trio.run(save, volume.lun, tmp_path / "lun.img")

    result = vmfs("ls", f"{tmp_path}/lun.img:/dir")

    assert "\x1b" not in result.stdout
    assert "red\\x1b[31m\\xff" in result.stdout


@pytest.mark.parametrize("table", [TableKind.MBR, TableKind.GPT])
def test_volume_in_a_partition_is_found(table: TableKind, tmp_path: Path) -> None:
    volume = trio.run(build_handmade, tiny_request(table=table))
    trio.run(save, volume.lun, tmp_path / "lun.img")

    result = vmfs("cat", f"{tmp_path}/lun.img:/three")

    assert hashlib.sha256(result.stdout_bytes).digest() == (
        hashlib.sha256(volume.files["/three"]).digest()
    )


def test_what_is_no_volume_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(32 * MIB))

    for command in ("ls", "cat"):
        result = vmfs(command, f"{tmp_path}/noise:/x")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"vmfs {command}: no VMFS volume")
    assert vmfs("ls", f"{tmp_path}/missing:/").exit_code == 1
    assert vmfs("ls", ":/x").exit_code == 2
