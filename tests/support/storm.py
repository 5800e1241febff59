"""Random operations on a volume and on the model beside it, and what they must agree in.

A `Step` is a value: what to do, to which of the things that exist (by number, modulo how many there
are). `Storm` carries steps out on both sides and compares every outcome, error classes included.

After a crash the volume must show one of the states that the model went through since the last
sync: names, attributes and lengths exactly; of files that were written since then, each byte must
be as in one of those states (data is written in place, not journaled: an overwrite that nobody
synced may be there or not, also one of a truncation that is lost).
"""

import dataclasses
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from tests.support.model import ROOT, Model, outcome
from tests.support.volumes import creation
from vmfs.errors import VmfsError
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges, RenameFlag
from vmfs.files.file import OpenFile
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType
from vmfs.units import MIB
from vmfs.volume import Volume

PAGE = 4096

Known = tuple[int, tuple[tuple[int, bytes], ...]]
"""Length of a file, and those of its pages that are not all zero, by index."""

SIZES = (0, 1, 511, 1000, 1024, 1025, 4096, 8191, 8192, 8193, 100_000, MIB - 1, MIB, MIB + 1,
         3 * MIB + 7, 40 * MIB)  # fmt: skip
"""Lengths and offsets around every edge of the format."""

NAMES = (b"a", b"b", b"c", b"d", b"long" * 31)


class Verb(Enum):
    """What a step does."""

    CREATE = auto()
    MKDIR = auto()
    SYMLINK = auto()
    LINK = auto()
    UNLINK = auto()
    RMDIR = auto()
    RENAME = auto()
    NOREPLACE = auto()
    EXCHANGE = auto()
    WRITE = auto()
    TRUNCATE = auto()
    READ = auto()
    CHMOD = auto()
    OPEN = auto()
    CLOSE = auto()
    SYNC = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation; `one` and `two` choose among what exists, `size` and `at` among `SIZES`."""

    verb: Verb
    one: int = 0
    two: int = 0
    name: bytes = b"a"
    other: bytes = b"b"
    at: int = 0
    size: int = 0


@dataclass
class Handle:
    """An open file on both sides."""

    number: int
    file: OpenFile


@dataclass
class Storm:
    """Volume and model, step by step."""

    volume: Volume
    model: Model
    addresses: dict[int, FdAddress] = field(default_factory=lambda: {ROOT: ROOT_ADDRESS})
    handles: list[Handle] = field(default_factory=list)
    history: list[Model] = field(default_factory=list)  # states since the last sync

    async def run_in_turns(self, steps: Sequence[Step], volumes: Sequence[Volume]) -> None:
        """Carry out steps now on one host, now on another; no file stays open between them."""
        whole: list[tuple[Volume, Step]] = []
        for step in steps:
            volume = volumes[(step.one + step.two) % len(volumes)]
            opened = dataclasses.replace(step, verb=Verb.OPEN)
            closed = Step(verb=Verb.CLOSE)
            match step.verb:
                case Verb.WRITE | Verb.READ:
                    parts = [opened, step, closed]
                case Verb.CREATE:
                    parts = [step, closed]
                case Verb.OPEN | Verb.CLOSE:
                    parts = []
                case _:
                    parts = [step]
            whole += [(volume, part) for part in parts]
        await self.run([step for _, step in whole], [volume for volume, _ in whole])

    async def run(self, steps: Sequence[Step], volumes: Sequence[Volume] = ()) -> None:
        """Carry out all steps, each on its volume when there are several."""
        root = await self.volume.namespace.getattr(ROOT_ADDRESS)
        self.model.nodes[ROOT].mode = root.mode  # as mkfs made it
        self.history = [self.model.clone()]
        for number, step in enumerate(steps):
            self.volume = volumes[number] if volumes else self.volume
            await self.step(step)
            self.history.append(self.model.clone())

    async def step(self, step: Step) -> None:
        """One step on both sides, with the same outcome."""
        wanted: BaseException | None = None
        found: BaseException | None = None
        before = self.model.clone()
        try:
            number = self.on_model(step)
        except VmfsError as error:
            wanted, number = error, None
            self.model = before
        try:
            await self.on_volume(step, number)
        except VmfsError as error:
            found = error
        assert outcome(found) == outcome(wanted), f"{step}: {found!r}, and not {wanted!r}"

    def directories(self) -> list[int]:
        return [n for n, node in self.model.nodes.items() if node.kind == stat.S_IFDIR]

    def named(self) -> list[int]:
        return [n for n, node in self.model.nodes.items() if node.links and n != ROOT]

    def regular(self) -> list[int]:
        return [n for n, node in self.model.nodes.items() if node.kind == stat.S_IFREG]

    def on_model(self, step: Step) -> int | None:  # noqa: C901 - one case for each verb
        """Do it to the model; returns the number of what was made."""
        model, parents = self.model, self.directories()
        parent, target = parents[step.one % len(parents)], parents[step.two % len(parents)]
        match step.verb:
            case Verb.CREATE:
                return model.make(parent, step.name, stat.S_IFREG, 0o644)
            case Verb.MKDIR:
                return model.make(parent, step.name, stat.S_IFDIR, 0o755)
            case Verb.SYMLINK:
                return model.symlink(parent, step.name, self.target(step))
            case Verb.LINK:
                if self.named():
                    model.link(self.named()[step.two % len(self.named())], parent, step.name)
            case Verb.UNLINK:
                model.unlink(parent, step.name)
            case Verb.RMDIR:
                model.rmdir(parent, step.name)
            case Verb.RENAME | Verb.NOREPLACE | Verb.EXCHANGE:
                model.rename(
                    parent,
                    step.name,
                    target,
                    step.other,
                    noreplace=step.verb is Verb.NOREPLACE,
                    exchange=step.verb is Verb.EXCHANGE,
                )
            case Verb.WRITE:
                if self.handles:
                    handle = self.handles[step.one % len(self.handles)]
                    model.nodes[handle.number].data.write(step.at, self.data(step))
            case Verb.TRUNCATE:
                if self.regular():
                    number = self.regular()[step.one % len(self.regular())]
                    model.nodes[number].data.truncate(step.size)
            case Verb.CHMOD:
                if self.named():
                    number = self.named()[step.one % len(self.named())]
                    model.nodes[number].mode = step.size & 0o777
            case _:
                pass
        return None

    async def on_volume(self, step: Step, number: int | None) -> None:
        """Do it to the volume; the model was changed already (if it allowed it)."""
        names = self.volume.namespace
        parents = self.before_directories(number)
        parent = await self.find(parents[step.one % len(parents)])
        target = await self.find(parents[step.two % len(parents)])
        match step.verb:
            case Verb.CREATE:
                made, file = await names.create(parent, step.name, creation())
                assert number is not None
                self.addresses[number] = made.address
                self.model.nodes[number].open_count += 1
                self.handles.append(Handle(number, file))
            case Verb.MKDIR:
                made = await names.mkdir(parent, step.name, creation(0o755))
                assert number is not None
                self.addresses[number] = made.address
            case Verb.SYMLINK:
                made = await names.symlink(parent, step.name, self.target(step), creation(0o777))
                assert number is not None
                self.addresses[number] = made.address
            case Verb.UNLINK:
                await names.unlink(parent, step.name)
            case Verb.RMDIR:
                await names.rmdir(parent, step.name)
            case Verb.RENAME:
                await names.rename(parent, step.name, target, step.other)
            case Verb.NOREPLACE:
                flags = RenameFlag.NOREPLACE
                await names.rename(parent, step.name, target, step.other, flags)
            case Verb.EXCHANGE:
                flags = RenameFlag.EXCHANGE
                await names.rename(parent, step.name, target, step.other, flags)
            case Verb.SYNC:
                await self.volume.sync()
                self.history.clear()
            case _:
                await self.on_file(step, parent)

    async def on_file(self, step: Step, parent: FdAddress) -> None:
        """The verbs that mean a file and no name."""
        names = self.volume.namespace
        match step.verb:
            case Verb.LINK if self.named():
                chosen = await self.find(self.named()[step.two % len(self.named())])
                await names.link(chosen, parent, step.name)
            case Verb.WRITE if self.handles:
                handle = self.handles[step.one % len(self.handles)]
                await handle.file.write(step.at, self.data(step))
            case Verb.READ if self.handles:
                handle = self.handles[step.one % len(self.handles)]
                data = await handle.file.read(step.at, step.size)
                assert data == self.model.nodes[handle.number].data.read(step.at, step.size)
            case Verb.TRUNCATE if self.regular():
                chosen = await self.find(self.regular()[step.one % len(self.regular())])
                await names.setattr(chosen, AttributeChanges(size=step.size))
            case Verb.CHMOD if self.named():
                chosen = await self.find(self.named()[step.one % len(self.named())])
                await names.setattr(chosen, AttributeChanges(mode=step.size & 0o777))
            case Verb.OPEN if self.regular():
                number = self.regular()[step.one % len(self.regular())]
                if self.model.nodes[number].links:
                    file = await names.open(await self.find(number), writing=True)
                    self.model.nodes[number].open_count += 1
                    self.handles.append(Handle(number, file))
            case Verb.CLOSE if self.handles:
                handle = self.handles.pop(step.one % len(self.handles))
                await handle.file.release()
                self.model.release(handle.number)
            case _:
                pass

    async def find(self, number: int) -> FdAddress:
        """Look a node up by its names, as the kernel does on each host before it uses it."""
        address = ROOT_ADDRESS
        for name in self.history[-1].way_to(number) or ():
            address = (await self.volume.namespace.lookup(address, name)).address
        return self.addresses[number] if number != ROOT and address == ROOT_ADDRESS else address

    def before_directories(self, made: int | None) -> list[int]:
        """The directories as they were before the step, which may have made one."""
        return [number for number in self.history[-1].nodes if self._was_directory(number)]

    def _was_directory(self, number: int) -> bool:
        return self.history[-1].nodes[number].kind == stat.S_IFDIR

    def target(self, step: Step) -> bytes:
        return b"t" * (step.size % 4000 + 1)

    def data(self, step: Step) -> bytes:
        """Bytes that differ from step to step."""
        length = min(step.size, 3 * MIB)
        unit = bytes((step.one * 7 + step.two * 3 + n) % 255 + 1 for n in range(251))
        return (unit * (length // len(unit) + 1))[:length]

    async def close_all(self) -> None:
        """Close every open file."""
        while self.handles:
            await self.step(Step(verb=Verb.CLOSE))

    async def compare(self) -> None:
        """The whole tree of the volume is that of the model."""
        found = await tree(self.volume)
        assert found == self.model.tree()


async def tree(volume: Volume) -> dict[bytes, object]:
    """Everything that can be reached, as `Model.tree` says it."""
    names = volume.namespace
    found: dict[bytes, object] = {}
    seen: dict[FdAddress, bytes] = {}
    pending: list[tuple[bytes, FdAddress]] = [(b"/", ROOT_ADDRESS)]
    root_links_of_mkfs = 0
    while pending:
        path, address = pending.pop()
        attributes = await names.getattr(address)
        first = seen.setdefault(address, path) == path
        what: object
        if attributes.type is FileType.DIRECTORY:
            directory = await names.open_directory(address)
            listed = [e for _, e in await directory.read(0) if e.type is not FileType.SYSTEM]
            what = tuple(sorted(entry.name for entry in listed))
            pending += sorted((path + e.name + b"/", e.address) for e in listed)
            subdirectories = sum(e.type is FileType.DIRECTORY for e in listed)
            if address == ROOT_ADDRESS:
                root_links_of_mkfs = attributes.link_count - 2 - subdirectories
                assert root_links_of_mkfs in (0, 1)
        elif attributes.type is FileType.SYMLINK:
            what = await names.readlink(address)
        else:
            what = await known(volume, address)
        links = attributes.link_count
        if address == ROOT_ADDRESS:
            links -= root_links_of_mkfs
        found[path] = (
            stat.S_IFMT(attributes.st_mode),
            attributes.mode,
            attributes.uid,
            attributes.gid,
            links,
            first,
            what,
        )
    return found


async def known(volume: Volume, address: FdAddress) -> Known:
    """Size and every page that is not all zero, as `Sparse.known` says it."""
    file = await volume.namespace.open(address, writing=False)
    try:
        size = file.attributes.size
        pages: list[tuple[int, bytes]] = []
        for start in range(0, size, MIB):
            data = await file.read(start, MIB)
            if not any(data):
                continue
            for at in range(0, len(data), PAGE):
                page = data[at : at + PAGE].ljust(PAGE, b"\0")
                if any(page):
                    pages.append(((start + at) // PAGE, page))
        return size, tuple(pages)
    finally:
        await file.release()


def is_one_of(found: dict[bytes, object], states: Sequence[Model]) -> bool:
    """Whether a tree found after a crash is one of these states, files byte by byte."""
    return any(_is(found, state, states) for state in states)


def _is(found: dict[bytes, object], state: Model, states: Sequence[Model]) -> bool:
    wanted = state.tree()
    if found.keys() != wanted.keys():
        return False
    for path, have in found.items():
        want = wanted[path]
        assert isinstance(have, tuple)
        assert isinstance(want, tuple)
        if have == want:
            continue
        if have[:6] != want[:6] or have[0] != stat.S_IFREG or have[6][0] != want[6][0]:
            return False
        number = state.at_path(path)
        others = [s.nodes[number].data.known() for s in states if number in s.nodes]
        if not _pages_known(have[6], others):
            return False
    return True


def _pages_known(have: Known, states: Sequence[Known]) -> bool:
    """Whether each byte is as in one of these states."""
    size, pages = have
    held = dict(pages)
    known_pages = [dict(state[1]) for state in states]
    nothing = bytes(PAGE)
    for index in range((size + PAGE - 1) // PAGE):
        end = min(size - index * PAGE, PAGE)
        page = np.frombuffer(held.get(index, nothing), np.uint8)[:end]
        others = {pages.get(index, nothing) for pages in known_pages}
        same = [page == np.frombuffer(other, np.uint8)[:end] for other in others]
        if not np.logical_or.reduce(same).all():
            return False
    return True
