"""Addresses: bits as ESXi writes them, and everything else refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import CorruptRecord
from vmfs.ondisk import address
from vmfs.ondisk.address import (
    Address,
    FbAddress,
    FdAddr,
    Pb2Address,
    PbAddress,
    SbAddress,
    parse,
    parse_fd,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # the first six stand on a genuine ESXi volume
        (0x00000141, FbAddress(block=5)),
        (0x01C00004, FdAddr(cluster=0, resource=7)),
        (0x00400104, FdAddr(cluster=4, resource=1)),
        (0x00000004, FdAddr(cluster=0, resource=0)),
        (0x00017EC1, FbAddress(block=1531)),
        (0x1B800044, FdAddr(cluster=1, resource=110)),
        (0x00000061, FbAddress(block=1, tbz=True)),
        (0x00000051, FbAddress(block=1, cow=True)),
        (0xFFFFFFF1, FbAddress(block=(1 << 26) - 1, tbz=True, cow=True)),
        (0x50000082, SbAddress(cluster=2, resource=5)),
        (0xF000009A, SbAddress(cluster=2, resource=63)),
        (0x000000A2, SbAddress(cluster=2, resource=0, cow=True)),
        (0xF0000043, PbAddress(cluster=1, resource=15)),
        (0x10000065, Pb2Address(cluster=1, resource=1, cow=True)),
    ],
)
def test_address_packs_and_parses_as_on_disk(value: int, expected: Address) -> None:
    assert parse(value) == expected
    assert expected.pack() == value


def test_zero_is_a_hole() -> None:
    assert parse(0) is None


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (0x00000006, "type"),  # VMFS-6 journal block
        (0x00000007, "type"),  # VMFS-6 large file block
        (0x00000008, "type"),  # type 0 that is not 0
        (0x00000149, "unused bits"),  # FB with bit 3
        (0x0000004B, "unused bits"),  # PB with bit 3
        (0x00000024, "unused bits"),  # FD with bit 5
    ],
)
def test_address_that_vmfs5_cannot_have_is_corrupt(value: int, field: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        parse(value, at=0x1234)

    assert caught.value.field == field
    assert caught.value.address == 0x1234
    assert caught.value.found == value


@given(st.integers(0, 0xFFFFFFFF))
def test_any_u32_parses_to_itself_or_is_corrupt(value: int) -> None:
    try:
        parsed = parse(value)
    except CorruptRecord:
        return

    assert (parsed.pack() if parsed else 0) == value


@pytest.mark.parametrize("value", [0, 0x141, 0x24])
def test_parse_fd_takes_nothing_else(value: int) -> None:
    with pytest.raises(CorruptRecord):
        parse_fd(value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (FbAddress, {"block": 1 << 26}),
        (FbAddress, {"block": -1}),
        (SbAddress, {"cluster": 0, "resource": 64}),
        (PbAddress, {"cluster": 1 << 22, "resource": 0}),
        (Pb2Address, {"cluster": 0, "resource": 16}),
        (FdAddr, {"cluster": 1 << 16, "resource": 0}),
        (FdAddr, {"cluster": 0, "resource": 1 << 10}),
    ],
)
def test_address_out_of_range_is_our_mistake(kind: type, fields: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        kind(**fields)


def test_bulk_helpers_agree_with_single_addresses() -> None:
    singles = [
        FbAddress(block=7),
        FbAddress(block=8, tbz=True),
        FbAddress(block=9, cow=True),
        PbAddress(cluster=1, resource=2, cow=True),
    ]
    values = np.array([one.pack() for one in singles] + [0], dtype=np.uint32)

    assert address.fb_mask(values).tolist() == [True, True, True, False, False]
    assert address.tbz_mask(values).tolist() == [False, True, False, False, False]
    assert address.fb_blocks(values)[:3].tolist() == [7, 8, 9]
    assert address.fb_addresses(7, 3).tolist() == [FbAddress(block=n).pack() for n in (7, 8, 9)]
    assert len(address.fb_addresses(0, 0)) == 0
    assert address.fb_addresses((1 << 26) - 1, 1)[0] == 0xFFFFFFC1
