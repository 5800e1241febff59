"""Whole volumes under power cuts: a workload on a recorded LUN, and what must be left of it.

    lun = await prepared_lun()                     a volume with a small tree, all of it durable
    history = await run(lun, WORKLOAD)             one host does the steps, and dies with the power
    await explore(lun, ..., check=history.check)   the next mount recovers every image

A step is data: a verb and its arguments, for example ``("rename", b"A/foo", b"B/foo")``. The model
tells what the tree is after each; `history.check` requires of a recovered image

* that it can be mounted, and that a check finds nothing after a clean unmount;
* that its tree is the one after step k, acknowledged <= k <= begun;
* that each sector of each file is one that the file had in such a state: never another file's;
* that it can be written again.
"""

import random
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tests.support.build import TINY_LIMITS, build_volume, tiny_request
from tests.support.checked import assert_clean
from tests.support.journal_scenarios import promised
from tests.support.lockd import memory_lockd
from tests.support.lockservice import LUN, DeviceBlocks
from tests.support.model import ROOT, Model, Sparse
from tests.support.powercut import RecordingDevice, Snapshot
from tests.support.volumes import VolumeLab, creation
from vmfs.device.locate import find_lv
from vmfs.device.memory import MemoryDevice
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges, Attributes, RenameFlag
from vmfs.ids import FdAddress
from vmfs.locks.heartbeat import read_slots
from vmfs.ondisk.file_desc import FileType
from vmfs.ondisk.layout import Limits
from vmfs.units import MIB, SECTOR_SIZE
from vmfs.volume import Volume

Step = tuple[Any, ...]

READ_SIZE_MAX = 16 * MIB
"""Files above this only take up space: their contents are not compared."""

SLOTS_LOOKED_AT = 16
"""Heartbeat slots that the hosts of these tests use, and more."""

SETUP: tuple[Step, ...] = (
    ("mkdir", b"A"),
    ("mkdir", b"B"),
    ("creat", b"A/foo"),
    ("write", b"A/foo", 0, 9_000, 1),
    ("creat", b"B/bar"),
    ("write", b"B/bar", 0, 300, 2),
    ("creat", b"A/big"),
    ("write", b"A/big", 0, 1_300_000, 3),
    ("sync",),
)


class RecordedBlocks(DeviceBlocks):
    """A recorded LUN as lockd has it: with writes and flushes of its own."""

    def __init__(self, device: RecordingDevice) -> None:
        recorded = device.as_host("lockd")
        super().__init__(cast(MemoryDevice, recorded))
        self._recorded = recorded

    def sync(self) -> str | None:
        self._recorded.flush_at_once()
        return super().sync()


@asynccontextmanager
async def recorded_lab(device: RecordingDevice) -> AsyncIterator[VolumeLab]:
    """A lockd that knows nothing yet, as after a power cut, and room for hosts.

    No start of a host has the nonce of an earlier one that is still on the LUN: a mount would take
    that slot for its own.
    """
    slots = await read_slots(await find_lv(device), SLOTS_LOOKED_AT)
    nonces = max((slot.host.nonce for slot in slots if slot.host is not None), default=0)
    async with memory_lockd(blocks={LUN: RecordedBlocks(device)}, timing=None) as lockd:
        yield VolumeLab(cast(MemoryDevice, device), lockd, nonces=nonces)


async def empty_lun(limits: Limits = TINY_LIMITS) -> RecordingDevice:
    """A new volume, durable, without history."""
    memory, _ = await build_volume(tiny_request(limits=limits))
    parent: dict[int, bytes] = {}
    chunk = 1 << 20
    zero = bytes(SECTOR_SIZE)
    for offset in range(0, memory.size, chunk):
        data = await memory.read(offset, min(chunk, memory.size - offset))
        if not any(data):
            continue
        for at in range(0, len(data), SECTOR_SIZE):
            sector = data[at : at + SECTOR_SIZE]
            if sector != zero:
                parent[(offset + at) // SECTOR_SIZE] = sector
    return RecordingDevice(Snapshot(memory.size, parent))


async def prepared_lun(setup: Sequence[Step] = SETUP) -> tuple[RecordingDevice, Model]:
    """A volume on which `setup` was done and unmounted, durable, without history; its tree."""
    device = await empty_lun()
    model = Model()
    async with recorded_lab(device) as lab, lab.host("setup") as volume:
        for step in setup:
            await do(volume, step)
            foresee(model, step)
    device.forget_history()
    return device, model


async def full_lun() -> tuple[RecordingDevice, Model]:
    """The same with three free file blocks and few free sub-blocks: what is freed is used again."""
    device = await empty_lun(replace(TINY_LIMITS, sub_blocks=64))
    model = Model()
    async with recorded_lab(device) as lab, lab.host("setup") as volume:
        for step in SETUP:
            await do(volume, step)
            foresee(model, step)
        filler: list[Step] = [("creat", b"B/filler")]
        filler += [
            ("write", b"B/filler", index * MIB, 1, 7)
            for index in range(volume.namespace.statistics().blocks_free - 3)
        ]
        filler += [
            step
            for index in range(60)
            for step in (("creat", b"B/%d" % index), ("write", b"B/%d" % index, 0, 1_200, index))
        ]
        for step in filler:
            await do(volume, step)
            foresee(model, step)
    device.forget_history()
    return device, model


@dataclass
class History:
    """What a workload did: the tree after each of its steps."""

    states: list[Model]
    checked: int = field(default=0)

    async def check(self, device: RecordingDevice, marks: tuple[object, ...]) -> None:
        """Mount an image that a crash left; see the module for what is required."""
        acked, begun = promised(marks, "acked"), promised(marks, "begun")
        async with recorded_lab(device) as lab, lab.host("survivor") as volume:
            await self._compare(volume, acked, begun)
            await _write_something(volume)
        await assert_clean(device, allowed=frozenset())
        self.checked += 1

    async def _compare(self, volume: Volume, acked: int, begun: int) -> None:
        found, files = await observe(volume)
        window = self.states[acked : begun + 1]
        for state in window:
            if found == outline(state):
                _compare_data(files, state, window)
                return
        wanted = outline(self.states[acked])
        changed = {path for path in found | wanted if found.get(path) != wanted.get(path)}
        raise AssertionError(
            f"the tree is none of those after steps {acked} to {begun}; against {acked} differ: "
            + "; ".join(f"{path!r}: {found.get(path)}" for path in sorted(changed))
        )


async def run(
    device: RecordingDevice, model: Model, steps: Sequence[Step], *, host: str = "doomed"
) -> History:
    """Do the steps as one host that dies at their end; the recording has all of it.

    A ``sync``, ``fsync`` or ``unmount`` step acknowledges everything before it.
    """
    history = History([model.clone()])
    device.mark(("acked", 0))
    async with recorded_lab(device) as lab, lab.host(host) as volume:
        for number, step in enumerate(steps, 1):
            model = model.clone()
            foresee(model, step)
            history.states.append(model)
            device.mark(("begun", number))
            await do(volume, step)
            if step[0] in ("sync", "fsync"):
                device.mark(("acked", number))
        lab.kill(volume)
    return history


async def run_in_turn(
    device: RecordingDevice, model: Model, steps: Sequence[Step], *, hosts: Sequence[str]
) -> History:
    """The same by several hosts in turn, one step each; each flushes only its own writes.

    The steps must be under one lock (names in one directory): giving that up writes back, so what
    a crash leaves is still a beginning of all the steps.
    """
    history = History([model.clone()])
    device.mark(("acked", 0))
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(recorded_lab(device))
        volumes = []
        for host in hosts:
            lab.device = cast(MemoryDevice, device.as_host(host))
            volumes.append(await stack.enter_async_context(lab.host(host)))
        for number, step in enumerate(steps, 1):
            model = model.clone()
            foresee(model, step)
            history.states.append(model)
            volume = volumes[number % len(volumes)]
            device.mark(("begun", number))
            await do(volume, step)
            if number % 3 == 0:
                await volume.sync()
                device.mark(("acked", number))
        for volume in volumes:
            lab.kill(volume)
    return history


async def do(volume: Volume, step: Step) -> None:  # noqa: C901 - a table of verbs
    """One step, on the volume."""
    names = volume.namespace
    verb, *arguments = step
    match verb:
        case "sync":
            await volume.sync()
        case "fsync":
            file = await names.open((await _resolve(volume, arguments[0])).address, writing=False)
            await file.fsync()
            await file.release()
        case "creat":
            parent, name = await _parent(volume, arguments[0])
            _, file = await names.create(parent, name, creation())
            await file.release()
        case "mkdir":
            await names.mkdir(*await _parent(volume, arguments[0]), creation(0o755))
        case "symlink":
            await names.symlink(*await _parent(volume, arguments[0]), arguments[1], creation(0o777))
        case "link":
            source = await _resolve(volume, arguments[0])
            await names.link(source.address, *await _parent(volume, arguments[1]))
        case "unlink":
            await names.unlink(*await _parent(volume, arguments[0]))
        case "rmdir":
            await names.rmdir(*await _parent(volume, arguments[0]))
        case "rename" | "exchange":
            flags = RenameFlag.EXCHANGE if verb == "exchange" else RenameFlag.NONE
            source_parent, source_name = await _parent(volume, arguments[0])
            target_parent, target_name = await _parent(volume, arguments[1])
            await names.rename(source_parent, source_name, target_parent, target_name, flags)
        case "hold":  # open to the end: what is promised to the file stays promised
            await names.open((await _resolve(volume, arguments[0])).address, writing=True)
        case "write":
            path, offset, size, seed = arguments
            file = await names.open((await _resolve(volume, path)).address, writing=True)
            await file.write(offset, contents(size, seed))
            await file.release()
        case "truncate":
            found = await _resolve(volume, arguments[0])
            await names.setattr(found.address, AttributeChanges(size=arguments[1]))
        case "chmod":
            found = await _resolve(volume, arguments[0])
            await names.setattr(found.address, AttributeChanges(mode=arguments[1]))
        case _:
            raise AssertionError(f"no such step: {verb}")


def foresee(model: Model, step: Step) -> None:  # noqa: C901 - a table of verbs
    """One step, on the model."""
    verb, *arguments = step
    match verb:
        case "creat":
            model.make(*_model_parent(model, arguments[0]), stat.S_IFREG, 0o644)
        case "mkdir":
            model.make(*_model_parent(model, arguments[0]), stat.S_IFDIR, 0o755)
        case "symlink":
            model.symlink(*_model_parent(model, arguments[0]), arguments[1])
        case "link":
            number = _model_resolve(model, arguments[0])
            model.link(number, *_model_parent(model, arguments[1]))
        case "unlink":
            model.unlink(*_model_parent(model, arguments[0]))
        case "rmdir":
            model.rmdir(*_model_parent(model, arguments[0]))
        case "rename" | "exchange":
            source, target = (_model_parent(model, path) for path in arguments)
            model.rename(*source, *target, exchange=verb == "exchange")
        case "write":
            path, offset, size, seed = arguments
            model.nodes[_model_resolve(model, path)].data.write(offset, contents(size, seed))
        case "truncate":
            model.nodes[_model_resolve(model, arguments[0])].data.truncate(arguments[1])
        case "chmod":
            model.nodes[_model_resolve(model, arguments[0])].mode = arguments[1]
        case _:
            assert verb in ("sync", "fsync", "hold"), f"no such step: {verb}"


def contents(size: int, seed: int) -> bytes:
    """Bytes of a file; no two sectors of two seeds are alike."""
    return random.Random(seed).randbytes(size)


def outline(model: Model) -> dict[bytes, object]:
    """The tree of a model, with the size of each file instead of its contents."""
    return {
        path: (*facts[:-1], facts[-1][0] if facts[0] == stat.S_IFREG else facts[-1])
        for path, facts in cast(dict[bytes, tuple[Any, ...]], model.tree()).items()
    }


async def observe(volume: Volume) -> tuple[dict[bytes, object], dict[bytes, bytes]]:
    """The tree of a volume in the same form, and the contents of its files by path."""
    found: dict[bytes, object] = {}
    files: dict[bytes, bytes] = {}
    first: dict[FdAddress, bytes] = {}
    pending = [(b"/", await volume.namespace.getattr(ROOT_ADDRESS))]
    while pending:
        path, facts = pending.pop()
        is_first = first.setdefault(facts.address, path) == path
        what: object = facts.size
        if facts.type is FileType.DIRECTORY:
            names = await _listed(volume, facts.address)
            what = tuple(names)
            for name in names:
                below = await volume.namespace.lookup(facts.address, name)
                pending.append((path + name + b"/", below))
        elif facts.type is FileType.SYMLINK:
            what = await volume.namespace.readlink(facts.address)
        elif facts.size <= READ_SIZE_MAX:
            file = await volume.namespace.open(facts.address, writing=False)
            files[path] = await file.read(0, facts.size)
            await file.release()
        kind, mode, links = stat.S_IFMT(facts.st_mode), facts.mode, facts.link_count
        if facts.address == ROOT_ADDRESS:
            mode, links = 0o755, links - 1  # its mode is mkfs's choice; .sdd.sf is a directory too
        found[path] = (kind, mode, facts.uid, facts.gid, links, is_first, what)
    return found, files


def _compare_data(files: dict[bytes, bytes], state: Model, window: Sequence[Model]) -> None:
    for path, data in files.items():
        number = _model_resolve(state, path.strip(b"/"))
        versions = [one.nodes[number].data for one in window if number in one.nodes]
        for at in range(0, len(data), SECTOR_SIZE):
            sector = data[at : at + SECTOR_SIZE]
            allowed = {_padded(version, at, len(sector)) for version in versions}
            assert sector in allowed, (
                f"{path!r}: bytes {at} to {at + len(sector)} are none that were written there"
            )


def _padded(version: Sparse, offset: int, length: int) -> bytes:
    return version.read(offset, length).ljust(length, b"\0")


async def _listed(volume: Volume, address: FdAddress) -> list[bytes]:
    directory = await volume.namespace.open_directory(address)
    names: list[bytes] = []
    start = 0
    while batch := await directory.read(start):
        names += [entry.name for _, entry in batch]
        start = batch[-1][0]
    await directory.release()
    return sorted(name for name in names if not name.endswith(b".sf") and name not in (b".", b".."))


async def _write_something(volume: Volume) -> None:
    data = contents(20_000 if volume.namespace.statistics().blocks_free else 300, 99)
    _, file = await volume.namespace.create(ROOT_ADDRESS, b"after the crash", creation())
    await file.write(0, data)
    await file.fsync()
    assert await file.read(0, len(data)) == data
    await file.release()


async def _resolve(volume: Volume, path: bytes) -> Attributes:
    found = await volume.namespace.getattr(ROOT_ADDRESS)
    for name in path.split(b"/"):
        found = await volume.namespace.lookup(found.address, name)
    return found


async def _parent(volume: Volume, path: bytes) -> tuple[FdAddress, bytes]:
    above, _, name = path.rpartition(b"/")
    return ((await _resolve(volume, above)).address if above else ROOT_ADDRESS), name


def _model_resolve(model: Model, path: bytes) -> int:
    number = ROOT
    for name in path.split(b"/"):
        number = model.lookup(number, name)
    return number


def _model_parent(model: Model, path: bytes) -> tuple[int, bytes]:
    above, _, name = path.rpartition(b"/")
    return (_model_resolve(model, above) if above else ROOT), name
