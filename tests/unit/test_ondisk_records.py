"""Every record: packs to its size, unpacks to itself, and is found out when it is damaged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import SAMPLES, Sample
from vmfs.errors import CorruptRecord, Unsupported


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_record_unpacked_equals_what_was_packed(sample: Sample) -> None:
    data = sample.record.pack()

    assert len(data) == sample.record.SIZE
    assert sample.unpack(data) == sample.record
    assert sample.unpack(data).pack() == data
    assert sample.unpack(memoryview(bytearray(data))) == sample.record


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@pytest.mark.parametrize("change", [-1, 1])
def test_record_of_wrong_length_is_corrupt(sample: Sample, change: int) -> None:
    data = sample.record.pack()
    wrong = data[:-1] if change < 0 else data + b"\0"

    with pytest.raises(CorruptRecord) as caught:
        sample.unpack(wrong)

    assert caught.value.field == "length"
    assert caught.value.address == sample.address


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@given(flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 255)), max_size=6))
def test_mutated_record_is_refused_or_kept_to_the_byte(
    sample: Sample, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(sample.record.pack())
    for position, mask in flips:
        data[position % len(data)] ^= mask

    try:
        read = sample.unpack(bytes(data))
    except (CorruptRecord, Unsupported):
        return

    assert read.pack() == bytes(data)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@given(noise=st.binary(max_size=600))
def test_noise_is_never_anything_but_corrupt_or_itself(sample: Sample, noise: bytes) -> None:
    data = noise[: sample.record.SIZE].ljust(sample.record.SIZE, b"\0")

    try:
        read = sample.unpack(data)
    except (CorruptRecord, Unsupported):
        return

    assert read.pack() == data
