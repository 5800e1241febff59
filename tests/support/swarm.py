"""Many tasks on several hosts, all in the same few directories at once; and what must hold then.

There is no telling which order the operations took. But whatever it was:

* only errors that somebody's other operation explains are raised;
* a reader sees a file of one writer as a whole: contents say who wrote them, how long they are, and
  repeat one pattern to the end, so another file's bytes, or a block's former owner's, are noticed;
* names that nobody removes are always there;
* in the end all hosts show the same tree, and a check of the LUN finds nothing.

The schedule is one seed: trio's order of tasks is left as it is, every task draws from a generator
of its own.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import trio

from tests.support.volumes import creation
from vmfs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    LockBusy,
    NotADirectory,
    NotEmpty,
    NotFound,
    StaleHandle,
    VmfsError,
)
from vmfs.files.attributes import ROOT_ADDRESS, AttributeChanges, Attributes, RenameFlag
from vmfs.files.file import OpenFile
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType
from vmfs.units import MIB
from vmfs.volume import Volume

LENGTHS = (20, 300, 1024, 1025, 5000, 8192, 9000, 70_000, MIB + 5)
"""Around every edge: resident, sub-block, one file block, two."""

NAMES = (b"a", b"b", b"c", b"d", b"e")

EXPLAINED = (Exists, InvalidArgument, IsADirectory, LockBusy, NotADirectory, NotEmpty, NotFound)
"""What may come of an operation because of another one of the swarm."""

_STAMP = struct.Struct("<4sIII")  # magic, writer, sequence, length
_MAGIC = b"SWRM"


def stamped(writer: int, sequence: int, length: int) -> bytes:
    """Contents that tell whose they are, and look like nobody else's all through."""
    unit = _STAMP.pack(_MAGIC, writer, sequence, length)
    return (unit * (length // len(unit) + 1))[:length]


def check_stamp(data: bytes) -> None:
    """Hold what was read to what somebody has written. A file may be empty still."""
    if not data:
        return
    assert len(data) >= _STAMP.size, f"{len(data)} bytes: {data!r}"
    magic, writer, sequence, length = _STAMP.unpack_from(data)
    assert magic == _MAGIC, f"foreign bytes: {data[:32]!r}"
    assert length == len(data), f"{len(data)} bytes, and {length} were written"
    wanted = stamped(writer, sequence, length)
    if data != wanted:
        at = next(n for n in range(length) if data[n] != wanted[n])
        raise AssertionError(f"foreign bytes at {at} of {length}: {data[at : at + 32]!r}")


@dataclass
class Swarm:
    """Some hosts' volumes; the directories they work in."""

    volumes: list[Volume]
    seed: int
    cancelling: bool = False
    directories: list[FdAddress] = field(default_factory=lambda: [ROOT_ADDRESS])
    explained: tuple[type[VmfsError], ...] = EXPLAINED
    outcomes: Counter[str] = field(default_factory=Counter)
    dead: set[int] = field(default_factory=set)  # indexes of hosts that were killed
    _deaths: dict[int, tuple[int, Callable[[], None]]] = field(default_factory=dict)

    async def prepare(self, *, directories: int = 2) -> None:
        """Make the directories, which nobody removes, with a name in each that nobody removes."""
        names = self.volumes[0].namespace
        for number in range(directories):
            made = await names.mkdir(ROOT_ADDRESS, b"dir%d" % number, creation(0o755))
            self.directories.append(made.address)
        for directory in self.directories:
            await names.mknod(directory, b"stays", creation())
        for volume in self.volumes:  # no host knows an address but from a directory that it read
            for number in range(directories):
                await volume.namespace.lookup(ROOT_ADDRESS, b"dir%d" % number)

    def kill_after(self, host: int, *, steps: int, kill: Callable[[], None]) -> None:
        """Let a host die when its tasks have taken so many steps together."""
        self._deaths[host] = (steps, kill)

    async def run(self, *, tasks: int, steps: int) -> None:
        """Let so many tasks on each host take so many steps each."""
        async with trio.open_nursery() as nursery:
            for host, volume in enumerate(self.volumes):
                for task in range(tasks):
                    writer = host * 16 + task
                    nursery.start_soon(self._work, volume, host, writer, steps)

    async def _work(self, volume: Volume, host: int, writer: int, steps: int) -> None:
        rng = Random(self.seed * 1000 + writer)
        worker = _Worker(volume, writer, rng, self.directories)
        for _ in range(steps):
            if host in self.dead:
                return
            self._live_or_die(host)
            verb = rng.choice(_VERBS)
            scope = trio.CancelScope()
            if self.cancelling and not rng.randrange(4):
                scope.deadline = trio.current_time() + rng.choice((0, 0, 0.001, 0.004))
            try:
                with scope:
                    await getattr(worker, verb)()
                outcome = "cancelled" if scope.cancelled_caught else "done"
            except VmfsError as error:
                if host in self.dead:
                    return
                if not isinstance(error, self.explained):
                    raise
                outcome = type(error).__name__
            except AssertionError:
                if host in self.dead:
                    return  # what the dead see means nothing
                raise
            self.outcomes[f"{verb} {outcome}"] += 1
            if not rng.randrange(8):
                await trio.sleep(rng.choice((0.001, 0.01, 0.2)))

    def _live_or_die(self, host: int) -> None:
        if host in self._deaths:
            left, kill = self._deaths[host]
            self._deaths[host] = (left - 1, kill)
            if left == 0:
                self.dead.add(host)
                kill()


_VERBS = (
    "publish", "publish", "publish", "read", "read", "read", "create", "unlink", "unlink",
    "mkdir", "rmdir", "rename", "rename", "exchange", "noreplace", "link", "list", "stat", "stays",
    "chmod", "empty", "sync", "delete_open", "scratch", "move_directory",
)  # fmt: skip


class _Worker:
    """One task's operations."""

    def __init__(
        self, volume: Volume, writer: int, rng: Random, directories: list[FdAddress]
    ) -> None:
        self._volume = volume
        self._names = volume.namespace
        self._writer = writer
        self._rng = rng
        self._directories = directories
        self._sequence = 0

    def _directory(self) -> FdAddress:
        return self._rng.choice(self._directories)

    def _name(self) -> bytes:
        return self._rng.choice(NAMES)

    def _private(self) -> bytes:
        return b"own-%d-%d" % (self._writer, self._sequence)

    def _contents(self) -> bytes:
        self._sequence += 1
        return stamped(self._writer, self._sequence, self._rng.choice(LENGTHS))

    async def _fill(self, file: OpenFile, data: bytes) -> None:
        """Write it in pieces, in any order."""
        cuts = sorted(self._rng.sample(range(len(data)), k=min(2, len(data))))
        pieces = list(zip([0, *cuts], [*cuts, len(data)], strict=True))
        self._rng.shuffle(pieces)
        for start, end in pieces:
            await file.write(start, data[start:end])

    async def publish(self) -> None:
        """A new version under a name of its own, renamed over the common one."""
        directory, data = self._directory(), self._contents()
        name = self._private()
        _, file = await self._names.create(self._directories[0], name, creation())
        try:
            await self._fill(file, data)
            if self._rng.randrange(2):
                await file.fsync()
        finally:
            await _closed(file)
        try:
            await self._names.rename(self._directories[0], name, directory, self._name())
        except VmfsError:
            await self._names.unlink(self._directories[0], name)
            raise

    async def read(self) -> None:
        found = await self._find()
        if found.type is not FileType.FILE:
            return
        try:
            file = await self._names.open(found.address, writing=False)
        except StaleHandle as error:
            raise NotFound("deleted meanwhile") from error
        try:
            check_stamp(await file.read(0, 2 * MIB))
        finally:
            await _closed(file)

    async def _find(self) -> Attributes:
        try:
            return await self._names.lookup(self._directory(), self._name())
        except StaleHandle as error:
            raise AssertionError("a lookup said that it is stale") from error

    async def create(self) -> None:
        made, file = await self._names.create(self._directory(), self._name(), creation())
        assert made.link_count == 1
        await _closed(file)

    async def unlink(self) -> None:
        await self._names.unlink(self._directory(), self._name())

    async def mkdir(self) -> None:
        await self._names.mkdir(self._directory(), self._name(), creation(0o755))

    async def rmdir(self) -> None:
        await self._names.rmdir(self._directory(), self._name())

    async def rename(self, flags: RenameFlag = RenameFlag.NONE) -> None:
        one, two = self._directory(), self._directory()
        await self._names.rename(one, self._name(), two, self._name(), flags)

    async def exchange(self) -> None:
        await self.rename(RenameFlag.EXCHANGE)

    async def noreplace(self) -> None:
        await self.rename(RenameFlag.NOREPLACE)

    async def link(self) -> None:
        found = await self._find()
        try:
            await self._names.link(found.address, self._directory(), self._name())
        except StaleHandle as error:
            raise NotFound("deleted meanwhile") from error
        except VmfsError as error:
            if found.type is FileType.DIRECTORY:
                raise NotFound("a directory has one name") from error
            raise

    async def list(self) -> None:
        directory = await self._names.open_directory(self._directory())
        listed = [entry.name for _, entry in await directory.read(0)]
        assert len(set(listed)) == len(listed), f"a name twice: {listed}"
        assert b"stays" in listed

    async def stat(self) -> None:
        found = await self._find()
        assert found.link_count >= 1, f"a lookup found what is deleted: {found}"

    async def stays(self) -> None:
        found = await self._names.lookup(self._directory(), b"stays")
        assert (await self._names.getattr(found.address)).generation == found.generation

    async def chmod(self) -> None:
        found = await self._find()
        try:
            await self._names.setattr(found.address, AttributeChanges(mode=0o640))
        except StaleHandle as error:
            raise NotFound("deleted meanwhile") from error

    async def empty(self) -> None:
        """Truncate whatever file has the name, when nobody has it open."""
        found = await self._find()
        if found.type is not FileType.FILE:
            return
        try:
            file = await self._names.open(found.address, writing=True, truncate=True)
        except StaleHandle as error:
            raise NotFound("deleted meanwhile") from error
        data = self._contents()
        try:
            with trio.CancelScope(shield=True):
                await file.write(0, data)
        finally:
            await _closed(file)

    async def sync(self) -> None:
        await self._volume.sync()

    async def delete_open(self) -> None:
        """A file that is unlinked while it is open, and read afterwards."""
        name, data = self._private(), self._contents()
        _, file = await self._names.create(self._directories[0], name, creation())
        try:
            await self._names.unlink(self._directories[0], name)
            await file.write(0, data)
            assert await file.read(0, len(data)) == data
        finally:
            await _closed(file)

    async def scratch(self) -> None:
        """A file with holes, cut and grown."""
        name = self._private() + b"s"
        made, file = await self._names.create(self._directories[-1], name, creation())
        try:
            await file.write(3 * MIB, b"end")
            cut = self._rng.choice((0, 100, 5000, 2 * MIB, 3 * MIB + 1))
            await self._names.setattr(made.address, AttributeChanges(size=cut))
            await self._names.setattr(made.address, AttributeChanges(size=4 * MIB))
            data = await file.read(0, 4 * MIB)
            wanted = b"e" if cut > 3 * MIB else b""
            assert data.replace(b"\0", b"") == wanted, "old bytes in a hole"
        finally:
            await _closed(file)
            with trio.CancelScope(shield=True):
                await self._names.unlink(self._directories[-1], name)

    async def move_directory(self) -> None:
        """A directory of its own, moved into another one and back, then removed."""
        name = self._private() + b"d"
        one, two = self._directory(), self._directory()
        with trio.CancelScope(shield=True):
            await self._names.mkdir(one, name, creation(0o755))
            await self._names.rename(one, name, two, name + b"m")
            await self._names.rmdir(two, name + b"m")


async def _closed(file: OpenFile) -> None:
    """RELEASE is never cancelled: the kernel waits for no answer."""
    with trio.CancelScope(shield=True):
        await file.release()


async def shown_tree(volume: Volume) -> dict[bytes, object]:
    """Everything that can be reached: names, attributes, contents. Quiescence only."""
    names = volume.namespace
    found: dict[bytes, object] = {b"/": await names.getattr(ROOT_ADDRESS)}
    pending: list[tuple[bytes, FdAddress]] = [(b"/", ROOT_ADDRESS)]
    while pending:
        path, address = pending.pop()
        directory = await names.open_directory(address)
        for _, entry in await directory.read(0):
            attributes = await names.lookup(address, entry.name)
            assert attributes.address == entry.address
            own = path + entry.name
            found[own] = attributes
            if attributes.type is FileType.DIRECTORY:
                pending.append((own + b"/", entry.address))
            elif attributes.type is FileType.FILE:
                file = await names.open(entry.address, writing=False)
                data = await file.read(0, attributes.size)
                await file.release()
                check_stamp(data)
                found[own + b" contents"] = data
    return found
