"""Memory is made ready before a load, and never more than there is."""

import os
import resource
from pathlib import Path

import pytest

from bench import memory


def test_memory_was_touched_and_is_free_again() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (before << 10) + (64 << 20)  # so that it shows in the peak
    assert memory.touch(size) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > before
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < size


def test_no_more_is_touched_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 512}
    monkeypatch.setattr(os, "sysconf", free.__getitem__)
    assert memory.touch(1 << 30) == 1 << 20
    free["SC_AVPHYS_PAGES"] = 0
    assert memory.touch(1 << 30) == 0
