"""Two hosts take files and names from each other, and neither may ever see what was.

One thread changes something on one host and looks at once on the other: contents, size, mapped
contents, names that are there and names that are not. Others, on both hosts, read the same files
and list the same directory all the time, so that the caches are full and replies are under way
whenever a lock changes hands. What they read must be whole, and not older than what was there
before they opened it.
"""

import errno
import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, TypeVar

LENGTHS: Final = (40, 900, 1024, 1025, 4096, 5000, 8192, 20_000, 70_001)
"""Around every edge of the format, and of a page."""

T = TypeVar("T")

FILES: Final = 6
READERS: Final = 2  # threads on each host

EXPLAINED: Final = (errno.EBUSY, errno.ENOENT, errno.ESTALE)
"""Open on the other host; replaced or deleted between two steps of one system call."""


class Stale(AssertionError):
    """A host has seen what was, and is no more."""


@dataclass
class File:
    """One file that passes back and forth, and which versions of it there are."""

    name: str
    published: int = 0  # complete: everybody must see it, or a later one
    written: int = 0  # perhaps under way
    hosts: defaultdict[Path, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock)
    )
    """One reader or writer on each host at a time: a host may see its own half-written files."""

    def content(self, version: int) -> bytes:
        """Every byte says which version it is of, as far as there is room.

        Some versions after each other have the same length, and are of the same second: the kernel
        drops pages by itself when it hears of another size or time.
        """
        stamp = f"{self.name} {version:06} ".encode()
        length = LENGTHS[version // 3 % len(LENGTHS)]
        return (stamp * (length // len(stamp) + 1))[:length]

    def check(self, data: bytes, *, at_least: int, how: str) -> None:
        """Raises: Stale (older than that, or not one version from beginning to end)."""
        words = data[:40].split()
        version = int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
        if not at_least <= version <= self.written or data != self.content(version):
            raise Stale(
                f"{how} {self.name}: version {version} of {len(data)} bytes, "
                f"{at_least} was complete; begins {data[:40]!r}, ends {data[-40:]!r}"
            )


class Reader(threading.Thread):
    """Looks at everything on one host, in no order, until told to stop."""

    def __init__(self, top: Path, files: list[File], stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self.failure: BaseException | None = None
        self.looks = 0
        self._top = top
        self._files = files
        self._stop_event = stop
        self._rng = Random(seed)

    def run(self) -> None:
        verbs: tuple[Callable[[File], object], ...] = (
            self._read,
            self._map,
            self._list,
            self._stat,
        )
        while not self._stop_event.wait(0.0005):
            file = self._rng.choice(self._files)
            try:
                with file.hosts[self._top]:
                    self._rng.choice(verbs)(file)
                self.looks += 1
            except OSError as error:
                if error.errno not in EXPLAINED:
                    self.failure = error
                    return
            except BaseException as error:
                self.failure = error
                return

    def _read(self, file: File) -> None:
        complete = file.published
        with (self._top / file.name).open("rb", buffering=0) as opened:
            data = opened.read()
            again = os.pread(opened.fileno(), len(data) + 1, 0)
        file.check(data, at_least=complete, how="read")
        if again != data:
            raise Stale(f"{file.name}: two reads of one open file differ")

    def _map(self, file: File) -> None:
        complete = file.published
        with (self._top / file.name).open("rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            mapped = mmap.mmap(opened.fileno(), size, prot=mmap.PROT_READ)
        with mapped:  # the file is closed, and open all the same
            file.check(mapped[:], at_least=complete, how="mapped")

    def _list(self, _file: File) -> None:
        with os.scandir(self._top) as entries:
            for entry in entries:
                entry.stat()

    def _stat(self, file: File) -> None:
        (self._top / file.name).stat()
        (self._top / f"no-{file.name}").exists()


class HandOvers:
    """The thread that changes things, and looks."""

    def __init__(self, tops: tuple[Path, Path], *, seed: int = 1) -> None:
        self._rng = Random(seed)
        self._tops = tops
        self.files = [File(f"file-{number}") for number in range(FILES)]
        self.names: set[str] = {file.name for file in self.files}
        self.count = 0
        for file in self.files:
            (tops[0] / file.name).write_bytes(file.content(0))

    def run(self, count: int) -> None:
        """Until so many locks have changed hands."""
        self.count = 0
        while self.count < count:
            here, there = self._rng.sample(self._tops, 2)
            if self._rng.randrange(4):
                file = self._rng.choice(self.files)
                self._publish(file, here)
                self._look(file, there)
            else:
                self._change_names(here, there)
            self.count += 1

    def run_names(self, count: int) -> None:
        """Until so many names were made, renamed or deleted, always looked at on the other host."""
        for _ in range(count):
            self._change_names(*self._rng.sample(self._tops, 2))

    @contextmanager
    def readers(self) -> Iterator[None]:
        """Readers on both hosts as long as the block lasts; they must have seen nothing stale."""
        stop = threading.Event()
        readers = [
            Reader(top, self.files, stop, seed)
            for seed, top in enumerate(self._tops * READERS, start=1)
        ]
        for reader in readers:
            reader.start()
        try:
            yield
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        for reader in readers:
            if reader.failure is not None:
                raise reader.failure
            assert reader.looks, "a reader that never looked proves nothing"

    def _publish(self, file: File, top: Path) -> None:
        file.written += 1
        data, path = file.content(file.written), top / file.name
        how = self._rng.choice((self._overwrite, self._replace, self._truncate, self._map))
        with file.hosts[top]:
            until_not_busy(lambda: how(path, data))
        file.published = file.written

    def _overwrite(self, path: Path, data: bytes) -> None:
        with path.open("r+b", buffering=0) as opened:
            opened.write(data)
            opened.truncate()

    def _truncate(self, path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as opened:
            opened.write(data)

    def _map(self, path: Path, data: bytes) -> None:
        with path.open("r+b", buffering=0) as opened:
            opened.truncate(len(data))
            with mmap.mmap(opened.fileno(), len(data)) as mapped:
                mapped[:] = data

    def _replace(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"new-{path.name}")
        new.write_bytes(data)
        new.rename(path)

    def _look(self, file: File, top: Path) -> None:
        path, wanted = top / file.name, file.content(file.published)
        size = until_not_busy(path.stat).st_size
        if size != len(wanted):
            raise Stale(f"stat {file.name}: {size} bytes, {len(wanted)} were complete")
        for how in self._rng.choice((("read", "read again"), ("read",), ())):
            file.check(until_not_busy(path.read_bytes), at_least=file.published, how=how)

    def _change_names(self, here: Path, there: Path) -> None:
        verb = self._rng.choice(("make", "rename", "unlink"))
        passing = sorted(name for name in self.names if name.startswith("name-"))
        name = f"name-{self._rng.randrange(8)}"
        if verb == "make" or not passing:
            self._must_show(there, f"name-{self._rng.randrange(8)}")
            until_not_busy((here / name).touch)
            self.names.add(name)
        elif verb == "rename":
            old = self._rng.choice(passing)
            until_not_busy(lambda: (here / old).rename(here / name))
            self.names = self.names - {old} | {name}
        else:
            name = self._rng.choice(passing)
            until_not_busy((here / name).unlink)
            self.names.discard(name)
        for number in range(8):
            self._must_show(there, f"name-{number}")
        listed = {name for name in os.listdir(there) if not name.startswith("new-")}  # noqa: PTH208
        if listed != self.names:
            raise Stale(f"listed: {sorted(listed ^ self.names)} differ")

    def _must_show(self, top: Path, name: str) -> None:
        if (top / name).exists() is not (name in self.names):
            raise Stale(f"{name} is {'missing' if name in self.names else 'still there'}")


def until_not_busy(do: Callable[[], T]) -> T:
    """Again while the other host has it open, or has it replaced in the middle."""
    while True:
        try:
            return do()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ESTALE):
                raise
