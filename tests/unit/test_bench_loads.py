"""What the benchmark's loads ask of fio, and what its own client does to a plain directory."""

import json
from pathlib import Path

import pytest

from bench.client import make, open_and_close, rate, reread
from bench.loads import (
    BOOT,
    JOB_FILES,
    LOADS,
    Fio,
    LoadFailed,
    Place,
    Scale,
    parse_fio,
    run_program,
)
from bench.main import ALL_LOADS, FULL, PREFIX, QUICK, parse, scale_of, work_directory
from bench.rows import ROWS
from bench.variants import Variant, write_stretches

SCALE = Scale(file_mib=1, disk_mib=64, seconds=0.25, names=3, rounds=1)


def place(path: Path, *, on_disk: bool = False) -> Place:
    return Place(directory=path, outside=path, on_disk=on_disk)


def test_every_row_is_measured_by_exactly_one_load() -> None:
    measured = [name for load in (*ALL_LOADS, BOOT) for name in load.rows]
    assert sorted(measured) == sorted(row.name for row in ROWS)


def test_what_runs_on_which_variant() -> None:
    def on(name: str, *, read_only: bool = False, copies: bool = True) -> set[str]:
        where = place(Path("/x"))
        variant = Variant(name=name, place=where, read_only=read_only, copies=copies)
        return {load.name for load in ALL_LOADS if variant.can(load)}

    everything = {load.name for load in LOADS}
    assert on("vmfs") == everything
    assert on("lockd") == {"lockd"}
    assert on("vmfs-idle", copies=False) == everything - {"cp-in", "cp-out", "convert"}
    assert on("vmfs-fuse", read_only=True).isdisjoint({"write-1m", "names", "cp-in", "convert"})


def test_a_timed_job_says_milliseconds_because_fio_takes_a_fraction_of_a_second_for_none() -> None:
    command = Fio(row="r", rw="randread", block="4k").command(place(Path("/x")), SCALE)
    assert "--runtime=250ms" in command
    assert "--readonly" in command


def test_a_pass_over_the_file_ends_on_the_disk_where_there_is_one() -> None:
    job = Fio(row="r", rw="write", block="1M", whole=True)
    assert "--end_fsync=1" in job.command(place(Path("/x"), on_disk=True), SCALE)
    assert "--end_fsync=1" not in job.command(place(Path("/x")), SCALE)
    assert not any("runtime" in word for word in job.command(place(Path("/x")), SCALE))


def test_jobs_apart_write_the_files_that_were_made_for_them() -> None:
    job = Fio(row="r", rw="randwrite", block="4k", jobs=len(JOB_FILES), apart=True)
    [form] = [word for word in job.command(place(Path("/x")), SCALE) if "filename" in word]

    names = [form.partition("=")[2].replace("$jobnum", str(number)) for number in range(job.jobs)]

    assert tuple(names) == JOB_FILES


def test_reading_and_writing_jobs_have_files_of_their_own() -> None:
    # vmfs-fuse reads the volume while ours writes to it: what it reads must not change.
    commands = [
        Fio(row="r", rw=rw, block="1M").command(place(Path("/x")), SCALE)
        for rw in ("read", "write")
    ]
    names = [word for command in commands for word in command if word.startswith("--filename")]
    assert len(set(names)) == 2


def test_fios_figures_are_found_behind_its_warnings() -> None:
    job = {"read": {"bw_bytes": 5_000_000, "iops": 7.5}, "write": {"bw_bytes": 0, "iops": 0}}
    text = "fio: some {warning}\n" + json.dumps({"jobs": [job]}, indent=1)
    assert parse_fio(text, writes=False) == {"mb_per_second": 5.0, "iops": 7.5}


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(LoadFailed, match="sad"):
        run_program(["sh", "-c", "echo sad; exit 3"])


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(LoadFailed, match="still running"):
        run_program(["sleep", "100"], seconds=0.05)


@pytest.mark.slow
def test_the_sparse_disk_has_a_quarter_of_contents_and_no_two_blocks_alike(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    write_stretches(disk, 128, every=4)
    assert disk.stat().st_size == 128 << 20
    assert disk.stat().st_blocks * 512 == 32 << 20
    data = disk.read_bytes()
    assert data[16 << 20 : 64 << 20] == bytes(48 << 20)
    assert len({data[n << 20 : (n << 20) + 4096] for n in range(16)}) == 16


def test_the_clients_actions(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/{number}" for number in range(3)]
    assert rate(make, paths) > 0
    assert rate(open_and_close, paths) > 0
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(FileExistsError):
        make(paths[0])
    (tmp_path / "0").write_bytes(bytes(3 << 20))
    assert reread(tmp_path / "0", 0.0)["reread"] > 0


def test_the_command_line_changes_the_base_scale() -> None:
    assert scale_of(parse([]), FULL) == FULL
    changed = scale_of(parse(["--rounds", "7", "--names", "5"]), QUICK)
    assert (changed.rounds, changed.names, changed.file_mib) == (7, 5, QUICK.file_mib)


def test_a_run_removes_what_a_killed_one_left_and_nothing_of_one_at_work(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}killed").mkdir()
    (tmp_path / "mine").mkdir()
    with work_directory(tmp_path) as first, work_directory(tmp_path) as second:
        assert {path.name for path in tmp_path.iterdir()} == {"mine", first.name, second.name}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
