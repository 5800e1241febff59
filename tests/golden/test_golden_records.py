"""Golden hex: every record's bytes, annotated by hand-made tables, compared both ways.

A golden file has one line for each field: `offset: hex  # name = value`; `00*N` stands for N zero
bytes. After a deliberate change of format: `VMFS_GOLDEN_REWRITE=1 scripts/test tests/golden`.
"""

import os
import re
from pathlib import Path

import pytest

from tests.golden.fields import RECORDS, Field
from tests.support.records import SAMPLES, Sample
from vmfs.ids import VmfsUuid

HERE = Path(__file__).parent
INTEGERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
LINE = re.compile(r"^([0-9a-f]{3}): ([0-9a-f ]*?) ?(?:00\*(\d+))?  # .+$")


def size_of(kind: str) -> int:
    if kind in INTEGERS:
        return INTEGERS[kind]
    return 16 if kind == "uuid" else int(kind.removeprefix("text").removeprefix("bytes"))


def value_of(kind: str, data: bytes) -> str:
    if kind in INTEGERS:
        value = int.from_bytes(data, "little")
        return f"{value:#x}" if value > 9 else str(value)
    if kind == "uuid":
        return str(VmfsUuid(data)) if any(data) else "nobody"
    if kind.startswith("text"):
        return repr(data.rstrip(b"\0").decode())
    return f"{int.from_bytes(data, 'little').bit_count()} bits set"


def render(data: bytes, fields: list[Field]) -> str:
    """The golden file of a record."""
    lines, at = [], 0
    for offset, kind, name in [*fields, (len(data), "end", "")]:
        if offset > at:
            gap = data[at:offset]
            assert not any(gap), f"reserved bytes at {at:#x} are not zero"
            lines.append(f"{at:03x}: {hex_of(gap)}  # reserved")
        assert offset >= at, f"{name} overlaps the field before it"
        if kind != "end":
            at = offset + size_of(kind)
            field = data[offset:at]
            lines.append(f"{offset:03x}: {hex_of(field)}  # {name} = {value_of(kind, field)}")
    return "\n".join(lines) + "\n"


def hex_of(data: bytes) -> str:
    """Hex digits; a long run of zeroes at the end is counted."""
    stripped = data.rstrip(b"\0")
    zeroes = len(data) - len(stripped)
    if zeroes <= 8:
        return data.hex(" ")
    return f"{stripped.hex(' ')} 00*{zeroes}".lstrip()


def parse(text: str) -> bytes:
    """The bytes of a golden file; each line must begin where the one before ended."""
    data = b""
    for line in text.splitlines():
        found = LINE.match(line)
        assert found is not None, f"not a golden line: {line}"
        assert int(found[1], 16) == len(data), f"wrong offset: {line}"
        data += bytes.fromhex(found[2]) + bytes(int(found[3] or 0))
    return data


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_record_has_its_golden_bytes(sample: Sample) -> None:
    path = HERE / f"{sample.name}.hex.txt"
    rendered = render(sample.record.pack(), RECORDS[sample.name])
    if os.environ.get("VMFS_GOLDEN_REWRITE"):
        path.write_text(rendered)

    golden = path.read_text()

    assert rendered == golden
    assert sample.record.pack() == parse(golden)
    assert sample.unpack(parse(golden)) == sample.record


def test_every_golden_file_belongs_to_a_record() -> None:
    names = {path.name.removesuffix(".hex.txt") for path in HERE.glob("*.hex.txt")}

    assert set(RECORDS) <= names
    assert set(RECORDS) == {sample.name for sample in SAMPLES}
