"""Samples to medians, ratios, verdicts and tables: on made-up figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.main import main, record
from bench.results import Results, Sample, rotated
from bench.rows import ROWS, Row

BY_NAME = {row.name: row for row in ROWS}
READ: Row = BY_NAME["read-1m"]  # MB/s, at least 1.5 times the best C peer
LISTING: Row = BY_NAME["ls"]  # ms, at least 0.7 times the best C peer and at most 15 ms
REREAD: Row = BY_NAME["reread"]  # MB/s, at least 0.9 times ext4's
REQUESTS: Row = BY_NAME["lockd-1"]  # /s, at least 10,000


def samples(row: Row, place: str = "tmpfs", **variants: list[float]) -> list[Sample]:
    return [
        Sample(place=place, row=row.name, variant=name.replace("_", "-"), round=number, value=value)
        for name, values in variants.items()
        for number, value in enumerate(values)
    ]


def results(row: Row, **variants: list[float]) -> Results:
    return Results(samples(row, **variants), place="tmpfs")


def test_a_ratio_is_taken_round_by_round_so_a_drifting_machine_does_no_harm() -> None:
    # The machine slows down tenfold: the ratio of the medians would say 1.0 or worse.
    drift = results(READ, vmfs=[2000, 200, 20], bindfs=[1000, 100, 10])
    assert drift.ratio(READ, "vmfs", "bindfs") == pytest.approx(2.0)


def test_a_ratio_uses_only_rounds_that_both_have() -> None:
    found = samples(READ, vmfs=[100, 300])
    found += [Sample(place="tmpfs", row=READ.name, variant="raw", round=1, value=100)]
    assert Results(found, place="tmpfs").ratio(READ, "vmfs", "raw") == 3


def test_a_ratio_of_durations_still_means_times_as_fast() -> None:
    assert results(LISTING, vmfs=[10], bindfs=[20]).ratio(LISTING, "vmfs", "bindfs") == 2


def test_no_sample_gives_no_ratio_and_no_verdict() -> None:
    alone = results(READ, vmfs=[10])
    assert alone.ratio(READ, "vmfs", "raw") is None
    assert alone.best_peer(READ) is None
    assert alone.verdicts(READ) == []


def test_the_best_peer_is_the_fastest_one_by_its_median_and_never_one_of_us_or_the_kernel() -> None:
    figures = {"raw": [9999.0] * 3, "ext4": [9999.0] * 3, "vmfs": [9999.0] * 3}
    found = results(READ, bindfs=[5, 5, 500], mergerfs=[6, 6, 6], **figures)
    assert found.best_peer(READ) == "mergerfs"
    assert results(LISTING, bindfs=[30], fuse2fs=[20], vmfs=[1]).best_peer(LISTING) == "fuse2fs"


@pytest.mark.parametrize(
    ("row", "figures", "met"),
    [
        (READ, {"vmfs": [150], "bindfs": [100]}, [True]),
        (READ, {"vmfs": [149], "bindfs": [100]}, [False]),
        (LISTING, {"vmfs": [14], "bindfs": [10]}, [True, True]),
        (LISTING, {"vmfs": [16], "bindfs": [100]}, [True, False]),
        (LISTING, {"vmfs": [14], "bindfs": [5]}, [False, True]),
        (REREAD, {"vmfs": [90], "ext4": [100], "bindfs": [1000]}, [True]),
        (REREAD, {"vmfs": [89], "ext4": [100], "bindfs": [1]}, [False]),
        (REQUESTS, {"lockd": [10_000]}, [True]),
        (REQUESTS, {"lockd": [9_999]}, [False]),
    ],
)
def test_targets_are_judged(row: Row, figures: dict[str, list[float]], met: list[bool]) -> None:
    assert [verdict.met for verdict in results(row, **figures).verdicts(row)] == met


def test_equal_to_kin_is_not_ahead_of_it() -> None:
    found = results(READ, vmfs=[100], fuse2fs=[100], vmfs_fuse=[99], bindfs=[500])
    assert found.behind_kin(READ) == ["fuse2fs"]


def test_idle_hosts_may_cost_a_twentieth() -> None:
    assert results(READ, vmfs=[100], vmfs_idle=[95]).idle_met() is True
    assert results(READ, vmfs=[100], vmfs_idle=[94]).idle_met() is False
    assert results(READ, vmfs=[100]).idle_met() is None


def test_places_are_kept_apart() -> None:
    both = samples(READ, vmfs=[1]) + samples(READ, place="disk", vmfs=[2])
    assert Results(both, place="disk").median(READ, "vmfs") == 2


def test_rotation_gives_every_item_every_place() -> None:
    turns = [rotated("abc", number) for number in range(3)]
    assert turns == [list("abc"), list("bca"), list("cab")]
    assert rotated([], 5) == []


def document() -> dict[str, Any]:
    found = samples(READ, vmfs=[149.5], bindfs=[100], raw=[1000], vmfs_idle=[140])
    found += samples(LISTING, vmfs=[12], bindfs=[10])
    about = {
        "date": "2026-01-01",
        "machine": {"cpus": 2, "cpu": "X", "kernel": "6", "python": "3.11"},
        "versions": {"pyfuse3": "3.5.0"},
        "load_before": [0.5],
    }
    failure = {"place": "tmpfs", "load": "names", "variant": "fuse2fs", "text": "it broke"}
    return report.document_of(found, failures=[failure, failure], about=about)


def test_the_tables_say_ratio_target_and_verdict() -> None:
    text = report.markdown(document(), picture="p.png")
    assert "| bindfs, 100 MB/s | 1.50 x | ≥ 1.5 x best C peer | **missed** |" in text
    assert "≥ 0.7 x best C peer; ≤ 15 ms | met |" in text
    assert "2 of 3 targets met" in text
    assert text.count("names on fuse2fs (tmpfs), in 2 rounds") == 1
    assert "![" in text


def test_the_json_document_keeps_every_sample() -> None:
    found = document()
    assert json.loads(report.to_json(found)) == found


def test_only_the_text_between_the_markers_is_replaced() -> None:
    page = "before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n"
    once = report.replaced(page, "new")
    assert once == "before\n<!-- bench:begin -->\n\nnew\n\n<!-- bench:end -->\nafter\n"
    assert report.replaced(once, "newer") == once.replace("new", "newer")
    with pytest.raises(ValueError, match="one"):
        report.replaced("no markers", "new")


@pytest.mark.slow
def test_a_record_is_table_json_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "performance.md"
    page.write_text("# Page\n<!-- bench:begin -->\n<!-- bench:end -->\n")
    record(document(), tmp_path)
    assert json.loads((tmp_path / "performance.json").read_text()) == document()
    assert "| `ls -l` of 2,000 names |" in page.read_text()
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "performance.svg").read_text()


def test_a_page_can_be_drawn_again_without_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "performance.md"
    page.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    (tmp_path / "performance.json").write_text(report.to_json(document()))
    assert main(["--redraw", "--docs", str(tmp_path)]) == 0
    assert "**missed**" in page.read_text()
