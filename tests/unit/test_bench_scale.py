"""Figures of growing things to courses, tables and a page: on made-up figures."""

import json
from pathlib import Path

import pytest

from bench import growth, scale
from vmfs.units import GIB, TIB

VOLUMES: list[growth.Row] = [
    {"volume": GIB, "mount s": 0.5, "statfs us": 1234.5},
    {"volume": 64 * TIB, "mount s": 2.0, "statfs us": 1234.5},
]
HOSTS: list[growth.Row] = [
    {"hosts": 1, "last mount s": 0.0, "create us": 100},
    {"hosts": 2, "last mount s": 0.4, "create us": 110},
    {"hosts": 4, "last mount s": 0.8, "create us": 120},
]


def test_a_course_is_told_in_multiples_of_its_first_point() -> None:
    assert growth.courses("volume", VOLUMES) == {
        "mount s": [(GIB, 1), (64 * TIB, 4)],
        "statfs us": [(GIB, 1), (64 * TIB, 1)],
    }


def test_what_was_not_there_at_first_begins_where_it_is() -> None:
    courses = growth.courses("hosts", HOSTS)
    assert courses["last mount s"] == [(2, 1), (4, 2)]
    assert growth.courses("hosts", HOSTS[:1])["last mount s"] == []


def test_a_table_has_a_line_for_each_point() -> None:
    assert growth.tables({"volume": VOLUMES, "file": []}).splitlines() == [
        "| volume | mount s | statfs us |",
        "|---|---|---|",
        "| 1 GiB | 0.5 | 1,234 |",
        "| 64 TiB | 2 | 1,234 |",
    ]


@pytest.mark.slow
def test_a_record_is_table_json_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- scale:begin -->old<!-- scale:end -->\nafter\n")
    scale.record({"volume": VOLUMES, "hosts": HOSTS}, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 4 | 0.8 | 120 |" in text
    assert json.loads((tmp_path / "scale.json").read_text())["volume"] == VOLUMES
    assert (tmp_path / "scale.svg").read_text().count("times its first value") == 2
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_a_part_of_the_curves_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--record", "--curve", "hosts"])
    assert "all curves" in capsys.readouterr().err
