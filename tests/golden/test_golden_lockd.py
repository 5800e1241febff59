"""Conversations with lockd, as a newcomer may read them: `tests/golden/lockd/*.txt`.

Each is played anew and must come out as it stands. After a deliberate change of behaviour:
`VMFS_GOLDEN_REWRITE=1 scripts/test tests/golden`; commit the difference only if you understand what
caused it and it is wanted. How to write one: `tests/support/lockd_transcript.py`.
"""

import os
from pathlib import Path

import pytest

from tests.support.lockd_transcript import play

TRANSCRIPTS = sorted((Path(__file__).parent / "lockd").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_conversation_goes_as_written(path: Path) -> None:
    expected = path.read_text(encoding="utf-8")

    actual = play(expected)

    if os.environ.get("VMFS_GOLDEN_REWRITE"):
        path.write_text(actual, encoding="utf-8")
        return
    assert actual == expected


def test_there_are_conversations() -> None:
    assert len(TRANSCRIPTS) >= 10


@pytest.mark.parametrize("line", ["esx1 dances", "nonsense"])
def test_a_transcript_with_an_unknown_command_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        play(line)
