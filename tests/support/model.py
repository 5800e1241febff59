"""A dict that behaves like the filesystem: the oracle of the property tests.

Written from what ext4 does, not from what `vmfs.files` does. Raises the same error classes.
Times are left out (the property test does not compare them); everything else that `stat`, `ls`
and `cat` show is here. `snapshot` and `clone` make states that can be compared and kept.
"""

import copy
import stat
from dataclasses import dataclass, field

from vmfs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    VmfsError,
)

NAME_MAX = 127
_PAGE = 4096
ROOT = 1


@dataclass
class Sparse:
    """Bytes with holes."""

    size: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        found = bytearray(max(end - offset, 0))
        at = offset
        while at < end:
            page, within = divmod(at, _PAGE)
            taken = min(_PAGE - within, end - at)
            if page in self.pages:
                found[at - offset : at - offset + taken] = self.pages[page][within : within + taken]
            at += taken
        return bytes(found)

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            page, within = divmod(offset + at, _PAGE)
            taken = min(_PAGE - within, len(data) - at)
            held = self.pages.setdefault(page, bytearray(_PAGE))
            held[within : within + taken] = data[at : at + taken]
            at += taken
        if data:
            self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        last, within = divmod(size, _PAGE)
        for page in [p for p in self.pages if p > last]:
            del self.pages[page]
        if last in self.pages:
            self.pages[last][within:] = bytes(_PAGE - within)
        self.size = size

    def known(self) -> tuple[int, tuple[tuple[int, bytes], ...]]:
        """Size and every page that is not all zero: equal exactly when the bytes are equal."""
        pages = sorted((p, bytes(b)) for p, b in self.pages.items() if any(b))
        return self.size, tuple(pages)


@dataclass
class Node:
    """One file, directory or symlink."""

    kind: int  # stat.S_IFREG, S_IFDIR or S_IFLNK
    mode: int
    uid: int
    gid: int
    links: int
    data: Sparse = field(default_factory=Sparse)
    names: dict[bytes, int] = field(default_factory=dict)
    target: bytes = b""
    parent: int = 0
    open_count: int = 0


class Model:
    """The tree. Nodes are named by numbers that the model hands out; the root is `ROOT`."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {
            ROOT: Node(kind=stat.S_IFDIR, mode=0o755, uid=0, gid=0, links=2, parent=ROOT)
        }
        self._next = ROOT + 1

    def clone(self) -> "Model":
        """A copy that later changes do not touch."""
        return copy.deepcopy(self)

    def lookup(self, parent: int, name: bytes) -> int:
        directory = self._directory(parent)
        _check_name(name)
        if name not in directory.names:
            raise NotFound(repr(name))
        return directory.names[name]

    def make(
        self, parent: int, name: bytes, kind: int, mode: int, *, uid: int = 0, gid: int = 0
    ) -> int:
        """create, mkdir or symlink, by kind."""
        directory = self._directory(parent)
        self._check_new(directory, name)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if kind == stat.S_IFDIR:
                mode |= stat.S_ISGID
        links = 2 if kind == stat.S_IFDIR else 1
        number = self._next
        self._next += 1
        self.nodes[number] = Node(
            kind=kind, mode=mode, uid=uid, gid=gid, links=links, parent=parent
        )
        directory.names[name] = number
        if kind == stat.S_IFDIR:
            directory.links += 1
        return number

    def symlink(self, parent: int, name: bytes, target: bytes) -> int:
        number = self.make(parent, name, stat.S_IFLNK, 0o777)
        self.nodes[number].target = target
        return number

    def link(self, number: int, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        if self.nodes[number].kind == stat.S_IFDIR:
            raise NotPermitted("a directory")
        self._check_new(directory, name)
        directory.names[name] = number
        self.nodes[number].links += 1

    def unlink(self, parent: int, name: bytes) -> None:
        number = self.lookup(parent, name)
        if self.nodes[number].kind == stat.S_IFDIR:
            raise IsADirectory(repr(name))
        del self.nodes[parent].names[name]
        self._dropped(number)

    def rmdir(self, parent: int, name: bytes) -> None:
        number = self.lookup(parent, name)
        node = self.nodes[number]
        if node.kind != stat.S_IFDIR:
            raise NotADirectory(repr(name))
        if node.names:
            raise NotEmpty(repr(name))
        del self.nodes[parent].names[name]
        self.nodes[parent].links -= 1
        del self.nodes[number]

    def rename(
        self,
        source_parent: int,
        source_name: bytes,
        target_parent: int,
        target_name: bytes,
        *,
        noreplace: bool = False,
        exchange: bool = False,
    ) -> None:
        source = self.lookup(source_parent, source_name)
        moved = self.nodes[source]
        _check_name(target_name)
        target = self._directory(target_parent).names.get(target_name)
        if noreplace and target is not None:
            raise Exists(repr(target_name))
        if exchange and target is None:
            raise NotFound(repr(target_name))
        if moved.kind == stat.S_IFDIR and self._is_below(target_parent, source):
            raise InvalidArgument("into itself")
        goes_back = exchange and target is not None and self.nodes[target].kind == stat.S_IFDIR
        if target is not None and goes_back and self._is_below(source_parent, target):
            raise InvalidArgument("into itself")
        if source == target:
            return
        if exchange:
            assert target is not None
            self._put(source_parent, source_name, target)
            self._put(target_parent, target_name, source)
            return
        if target is not None:
            self._clear_target(moved, target, target_name)
            del self.nodes[target_parent].names[target_name]
            if self.nodes[target].kind == stat.S_IFDIR:
                self.nodes[target_parent].links -= 1
                del self.nodes[target]
            else:
                self._dropped(target)
        del self.nodes[source_parent].names[source_name]
        if moved.kind == stat.S_IFDIR:
            self.nodes[source_parent].links -= 1
            self.nodes[target_parent].links += 1
            moved.parent = target_parent
        self.nodes[target_parent].names[target_name] = source

    def release(self, number: int) -> None:
        """One open file less."""
        node = self.nodes[number]
        node.open_count -= 1
        if node.open_count == 0 and node.links == 0:
            del self.nodes[number]

    def tree(self) -> dict[bytes, object]:
        """Everything that can be reached, by path, in a form that compares with `==`."""
        found: dict[bytes, object] = {}
        pending: list[tuple[bytes, int]] = [(b"/", ROOT)]
        first_path: dict[int, bytes] = {}
        while pending:
            path, number = pending.pop()
            node = self.nodes[number]
            same_as = first_path.setdefault(number, path)
            what: object
            if node.kind == stat.S_IFDIR:
                what = tuple(sorted(node.names))
                pending += [(path + n + b"/", node.names[n]) for n in sorted(node.names)]
            elif node.kind == stat.S_IFLNK:
                what = node.target
            else:
                what = node.data.known()
            is_first = same_as == path
            found[path] = (
                node.kind, node.mode, node.uid, node.gid, node.links, is_first, what,
            )  # fmt: skip
        return found

    def at_path(self, path: bytes) -> int:
        """The number of what `tree` calls by this path."""
        number = ROOT
        for name in path.split(b"/"):
            number = self.nodes[number].names[name] if name else number
        return number

    def way_to(self, number: int) -> list[bytes] | None:
        """Names from the root to a node; None when it has no name."""
        if number == ROOT:
            return []
        for parent, node in self.nodes.items():
            for name, child in node.names.items():
                if child == number:
                    above = self.way_to(parent)
                    return None if above is None else [*above, name]
        return None

    def _put(self, parent: int, name: bytes, number: int) -> None:
        old = self.nodes[self.nodes[parent].names[name]]
        new = self.nodes[number]
        self.nodes[parent].names[name] = number
        self.nodes[parent].links += (new.kind == stat.S_IFDIR) - (old.kind == stat.S_IFDIR)
        if new.kind == stat.S_IFDIR:
            new.parent = parent

    def _clear_target(self, moved: Node, target: int, name: bytes) -> None:
        node = self.nodes[target]
        if moved.kind == stat.S_IFDIR:
            if node.kind != stat.S_IFDIR:
                raise NotADirectory(repr(name))
            if node.names:
                raise NotEmpty(repr(name))
        elif node.kind == stat.S_IFDIR:
            raise IsADirectory(repr(name))

    def _dropped(self, number: int) -> None:
        node = self.nodes[number]
        node.links -= 1
        if node.links == 0 and node.open_count == 0:
            del self.nodes[number]

    def _is_below(self, number: int, ancestor: int) -> bool:
        while number not in (ancestor, ROOT):
            number = self.nodes[number].parent
        return number == ancestor

    def _directory(self, number: int) -> Node:
        node = self.nodes[number]
        if node.kind != stat.S_IFDIR:
            raise NotADirectory(str(number))
        return node

    def _check_new(self, directory: Node, name: bytes) -> None:
        _check_name(name)
        if name in directory.names:
            raise Exists(repr(name))


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise NameTooLong(repr(name))


def outcome(error: BaseException | None) -> str:
    """What happened, as a word that model and volume can be compared by."""
    if error is None:
        return "done"
    assert isinstance(error, VmfsError), error
    return type(error).__name__
