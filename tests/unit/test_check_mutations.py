"""Corrupted volumes: whatever bytes become, every reader ends with a finding or a clear error.

Each record type has its places on a volume with every kind of file. hypothesis writes over them;
`check`, the reader under `ls`, `cat` and `cp`, and `inspect` must come to an end, raise nothing but
a `VmfsError`, and never ask the LUN for more than a bounded amount.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.handmade import HandMade, build_handmade
from vmfs.check import check_device, content
from vmfs.check.content import BlockList
from vmfs.check.findings import Findings
from vmfs.check.inspection import (
    Inspector,
    descriptor_sections,
    heartbeat_sections,
    lvm_sections,
    open_window,
)
from vmfs.check.opening import open_lun
from vmfs.check.reader import Node, Reader, ResourceKind
from vmfs.device.base import Buffer
from vmfs.device.memory import MemoryDevice
from vmfs.errors import VmfsError
from vmfs.ids import FdAddress
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    ROOT_FD,
    SBC_FD,
    VLJ_FD,
)
from vmfs.ondisk.heartbeat import slot_offset
from vmfs.ondisk.lvm import FIRST_MAP, HEADER_OFFSET, LV_START, VOLUME_TABLE
from vmfs.units import GIB, MIB

ONE_READ_MAX: Final = 64 * MIB
ALL_READS_MAX: Final = 8 * GIB
PAGES_MAX: Final = 300
"""Pages of a block list that the reading test looks at: past the one with the data of /huge."""


class Watched(MemoryDevice):
    """A LUN that is not to be asked for too much."""

    total = 0

    async def read(self, offset: int, length: int) -> bytes:
        assert length <= ONE_READ_MAX, f"a read of {length} bytes"
        self.total += length
        assert self.total <= ALL_READS_MAX, "reading without an end"
        return await super().read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await super().write(offset, data)


@pytest.fixture(scope="module")
def volume() -> HandMade:
    return trio.run(build_handmade)


@pytest.fixture(scope="module")
def places(volume: HandMade) -> dict[str, list[int]]:
    """LUN offsets of sectors, by record type."""
    geometry = volume.plan.geometry
    lv: dict[str, list[int]] = {
        "descriptor": [DESCRIPTOR_OFFSET],
        "heartbeat": [slot_offset(0), slot_offset(1)],
        "resource header": [
            geometry.file(kind).lv_offset(0) for kind in (FBB_FD, FDC_FD, PBC_FD, SBC_FD, PB2_FD)
        ],
        "cluster lock": [volume.cluster_offset(kind, 0) for kind in (FBB_FD, FDC_FD, SBC_FD)],
        "cluster": [
            volume.cluster_offset(kind, 0) + 512 for kind in (FBB_FD, FDC_FD, PBC_FD, SBC_FD)
        ],
        "system descriptor": [
            geometry.fd_offset(kind) + 512 for kind in (FBB_FD, FDC_FD, PBC_FD, SBC_FD, VLJ_FD)
        ],
        "system pointers": [
            geometry.fd_offset(kind) + 1024 for kind in (FBB_FD, FDC_FD, PBC_FD, SBC_FD, VLJ_FD)
        ],
        "lock": [volume.fd_offset(path) for path in volume.made],
        "file descriptor": [volume.fd_offset(path) + 512 for path in volume.made],
        "data area": [volume.fd_offset(path) + 1024 for path in volume.made],
        "pointer block": [volume.resource_offset(PBC_FD, n) for n in (0, 1)]
        + [volume.resource_offset(PB2_FD, 0)],
        "directory": [volume.entry_offset(path, 0) for path in ("/", "/dir", "/dir/deep")],
        "journal": [geometry.file(VLJ_FD).lv_offset(0)],
        "orphan table": [geometry.file(VLJ_FD).lv_offset(MIB - 64 * 1024)],
    }
    lun = {
        "lvm header": [HEADER_OFFSET],
        "lvm volume": [HEADER_OFFSET + VOLUME_TABLE],
        "lvm extents": [HEADER_OFFSET + FIRST_MAP + 1024],
        "partition table": [0, 512],
    }
    return {name: [LV_START + at for at in found] for name, found in lv.items()} | lun


KINDS = [
    "descriptor",
    "heartbeat",
    "resource header",
    "cluster lock",
    "cluster",
    "system descriptor",
    "system pointers",
    "lock",
    "file descriptor",
    "data area",
    "pointer block",
    "directory",
    "journal",
    "orphan table",
    "lvm header",
    "lvm volume",
    "lvm extents",
    "partition table",
]

NASTY = st.sampled_from(
    [
        b"\0",
        b"\xff",
        bytes(4),
        b"\xff" * 4,
        b"\xff" * 8,
        b"\xff\xff\xff\x7f",
        b"\0\0\0\x80",
        b"\x01\0\0\0",
        b"\x00\x00\x10\x00",
        (1 << 46).to_bytes(8, "little"),
        (1 << 40).to_bytes(8, "little"),
        bytes(64),
        b"\x55\xaa",
    ]
)
MUTATION = st.tuples(
    st.integers(0, 30),
    st.one_of(st.integers(0, 511), st.integers(0, 40).map(lambda index: index * 4)),
    st.one_of(NASTY, st.binary(min_size=1, max_size=16)),
)


@asynccontextmanager
async def mutated(
    volume: HandMade, places: list[int], mutations: list[tuple[int, int, bytes]]
) -> AsyncIterator[Watched]:
    """The volume with bytes overwritten; as it was, afterwards."""
    lun = Watched(volume.lun.size)
    lun._pages = volume.lun._pages
    undo: list[tuple[int, bytes]] = []
    for place, offset, data in mutations:
        at = places[place % len(places)] + min(offset, 512 - len(data))
        undo.append((at, await lun.read(at, len(data))))
        await lun.write(at, data)
    try:
        yield lun
    finally:
        for at, data in reversed(undo):
            await lun.write(at, data)


async def read_everything(lun: MemoryDevice) -> None:
    """What `ls -lR`, `cat` and `cp -r` do, bounded."""
    reader = (await open_lun(lun, Findings())).reader
    seen: set[FdAddress] = set()
    todo = [await reader.node(ROOT_FD)]
    while todo:
        directory = todo.pop()
        try:
            entries = await content.entries(reader, directory)
        except VmfsError:
            continue
        for entry in entries:
            try:
                node = await reader.node(entry.address)
                content.require_same_file(entry, node)
                await read_some(reader, node)
            except VmfsError:
                continue
            if node.is_directory and node.address not in seen:
                seen.add(node.address)
                todo.append(node)


async def read_some(reader: Reader, node: Node) -> None:
    await content.read(reader, node, 0, 2 * MIB)
    await content.read(reader, node, max(node.desc.length - 1000, 0), 2 * MIB)
    if content.levels(node.desc.zla):
        block_list = BlockList(reader, node)
        for page in range(PAGES_MAX):
            await block_list.extents(page)


async def inspect_everything(volume: HandMade, lun: MemoryDevice) -> None:
    window = await open_window(lun)
    await descriptor_sections(window)
    await heartbeat_sections(window, None, shows_all=True)
    inspector = await Inspector.open(window)
    for made in volume.made.values():
        await inspector.fd_sections(made.address)
        for address in made.blocks.values():
            await inspector.block_sections(address)
    for kind in ResourceKind:
        await inspector.resource_sections(kind)
        await inspector.cluster_sections(kind, 0)
    await inspector.journal_sections(0)
    await inspector.orphan_sections(0)
    await inspector.directory_sections(ROOT_FD)


async def trial(
    volume: HandMade, places: list[int], mutations: list[tuple[int, int, bytes]]
) -> None:
    """Read a mutated volume in every way."""
    async with mutated(volume, places, mutations) as lun:
        for reading in (check(lun), read_everything(lun), inspect_everything(volume, lun)):
            with suppress(VmfsError):  # no VMFS-5 volume any more, or damaged at its root
                await reading
        with suppress(VmfsError):
            await lvm_sections(lun)


async def check(lun: MemoryDevice) -> None:
    report = await check_device(lun)
    assert report.exit_status in (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_records_of_one_type_never_break_a_reader(
    volume: HandMade, places: dict[str, list[int]], kind: str
) -> None:
    @given(st.lists(MUTATION, min_size=1, max_size=3))
    def run(mutations: list[tuple[int, int, bytes]]) -> None:
        trio.run(trial, volume, places[kind], mutations)

    run()


@pytest.mark.slow
def test_mutated_records_never_break_a_reader(
    volume: HandMade, places: dict[str, list[int]]
) -> None:
    @settings(max_examples=6)
    @given(st.sampled_from(KINDS), st.lists(MUTATION, min_size=1, max_size=3))
    def run(kind: str, mutations: list[tuple[int, int, bytes]]) -> None:
        trio.run(trial, volume, places[kind], mutations)

    run()


def test_volume_is_whole_again_after_the_mutations(volume: HandMade) -> None:
    """The trials share one volume: this one would show a trial that did not put it back."""
    assert trio.run(check_device, volume.lun).codes == frozenset()
