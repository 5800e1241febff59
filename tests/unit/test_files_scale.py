"""What operations cost as a directory grows, counted in I/O and words to lockd, not in time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from trio.testing import MockClock

from tests.support.build import TINY_LIMITS, tiny_request
from tests.support.volumes import VolumeLab, creation, volume_lab
from vmfs.files.attributes import ROOT_ADDRESS, Attributes
from vmfs.ids import FdAddress
from vmfs.volume import Volume

NAMES = 1000


@dataclass
class Cost:
    """Of one operation."""

    reads: int = 0
    read_bytes: int = 0
    words: int = 0  # changes of lock records that lockd carried out

    def __le__(self, other: "Cost") -> bool:
        return (
            self.reads <= other.reads
            and self.read_bytes <= other.read_bytes
            and self.words <= other.words
        )


@asynccontextmanager
async def crowded() -> AsyncIterator[tuple[VolumeLab, Volume, FdAddress]]:
    """A host that has made a directory with many names."""
    limits = replace(TINY_LIMITS, files=NAMES + 200)
    async with volume_lab(tiny_request(limits=limits)) as lab, lab.host("a") as a:
        made = await a.namespace.mkdir(ROOT_ADDRESS, b"many", creation(0o755))
        for number in range(NAMES):
            await a.namespace.mknod(made.address, b"name-%d" % number, creation())
        await a.sync()
        yield lab, a, made.address


async def cost(
    lab: VolumeLab,
    volume: Volume,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[], Awaitable[object]],
) -> Cost:
    """Do it, and count."""
    found, device = Cost(), lab.hosts[id(volume)].device
    plain = device.read

    async def read(offset: int, length: int) -> bytes:
        found.reads += 1
        found.read_bytes += length
        return await plain(offset, length)

    before = len(lab.lockd.store.audit(count=5000, before=0))
    with monkeypatch.context() as patched:
        patched.setattr(device, "read", read)
        await operation()
    found.words = len(lab.lockd.store.audit(count=5000, before=0)) - before
    return found


async def test_one_name_more_costs_the_same_in_a_large_directory(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crowded() as (lab, a, directory):
        names = a.namespace
        known: Attributes = await names.lookup(directory, b"name-7")

        async def opened() -> None:
            await (await names.open(known.address, writing=False)).release()

        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: names.mknod(directory, b"one more", creation()),
            "lookup": lambda: names.lookup(directory, b"name-8"),
            "open": opened,
            "rename": lambda: names.rename(directory, b"name-9", directory, b"renamed"),
            "unlink": lambda: names.unlink(directory, b"name-10"),
        }

        for what, operation in operations.items():
            found = await cost(lab, a, monkeypatch, operation)
            assert found <= Cost(reads=4, read_bytes=4096, words=0), what

        await a.sync()
        await lab.assert_clean()


async def test_a_large_directory_is_handed_over_without_a_word_for_each_file(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crowded() as (lab, a, directory), lab.host("b") as b:
        found = await cost(lab, b, monkeypatch, lambda: b.namespace.lookup(ROOT_ADDRESS, b"many"))
        found_inside = await cost(
            lab, b, monkeypatch, lambda: b.namespace.lookup(directory, b"name-0")
        )

        assert found.words + found_inside.words < 10
        assert a.namespace.tenure(directory) == 0
