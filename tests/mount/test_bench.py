"""The benchmark as people run it, with tiny sizes: all variants that are installed; all loads."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.rows import LOCKD, OURS, ROWS, TITLES
from bench.variants import installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TINY = ["--file-mib", "4", "--disk-mib", "64", "--seconds", "0.02", "--names", "20"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the images go; nothing may be left in it."""
    images = tmp_path / "images"
    images.mkdir()
    yield images
    assert list(images.iterdir()) == []


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.main", *TINY, "--rounds", "1", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def loop_devices() -> str:
    return subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout


def figures(document: dict[str, Any], variant: str) -> dict[str, float]:
    return {s["row"]: s["value"] for s in document["samples"] if s["variant"] == variant}


def test_all_variants_are_measured_side_by_side_and_all_is_gone_afterwards(
    tmp_path: Path, directory: Path
) -> None:
    before, out = loop_devices(), tmp_path / "out.json"
    done = bench("--dir", directory, "--json", out, "--only", "read-1m", "lockd")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["failures"] == []
    for variant in TITLES:
        if installed(variant):
            row = "lockd-8" if variant == LOCKD else "read-1m"
            assert figures(document, variant).get(row, 0) > 0, variant
    assert str(directory) not in loop_devices().removeprefix(before)


def test_every_load_gives_its_figures_on_ours(tmp_path: Path, directory: Path) -> None:
    out = tmp_path / "out.json"
    done = bench("--dir", directory, "--json", out, "--variants", OURS)
    assert done.returncode == 0, done.stderr
    found = figures(json.loads(out.read_text()), OURS)
    wanted = {row.name for row in ROWS if not row.name.startswith("lockd")} - {"boot"}
    assert {name for name, value in found.items() if value > 0} >= wanted
