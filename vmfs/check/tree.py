"""The names: every directory from the root on, and whether links and names agree.

Each directory is read once, whatever leads to it, so a loop ends. What no name reaches is named at
the end: a file that should be gone (`orphan-pending`, if an orphan table says so), or a lost one.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vmfs.check import content
from vmfs.check.clusters import Progress
from vmfs.check.content import printable
from vmfs.check.findings import Findings
from vmfs.check.owners import FileFacts
from vmfs.check.reader import Node, Reader
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.file_desc import META_OFFSET, ROOT_FD

_PATH_DEPTH_MAX: Final = 4096
"""Names in a path that is shown; PATH_MAX leaves room for half as many."""

_DOTS: Final = (b".", b"..")


@dataclass(slots=True, kw_only=True)
class TreeWalk:
    """The walk over all directories."""

    reader: Reader
    findings: Findings
    files: Mapping[FdAddress, FileFacts]
    damaged: frozenset[FdAddress]
    orphans: Mapping[FdAddress, int]
    reached: set[FdAddress] = field(default_factory=set)

    async def run(self, progress: Progress) -> None:
        """Walk from the root, then hold link counts against names."""
        root = self.files.get(ROOT_FD)
        if root is None or not root.is_directory:
            self.findings.add("directory-corrupt", "there is no root directory", fd=ROOT_FD)
        else:
            root.parent = ROOT_FD
            self.reached.add(ROOT_FD)
            todo = deque([ROOT_FD])
            while todo:
                progress("directories", len(self.reached), len(self.files))
                todo.extend(await self._walk_directory(self.files[todo.popleft()]))
        self._compare_links()

    async def _walk_directory(self, directory: FileFacts) -> list[FdAddress]:
        """Check one directory's entries; returns the directories that are new."""
        try:
            node = await self.reader.node(directory.address)
        except CorruptRecord as error:  # it was sound a moment ago: somebody is writing
            self.findings.add("directory-corrupt", str(error), fd=directory.address)
            return []
        data = await self._load(node)
        seen: set[bytes] = set()
        found: list[FdAddress] = []
        for at in range(0, len(data) - DirEntry.SIZE + 1, DirEntry.SIZE):
            raw = data[at : at + DirEntry.SIZE]
            index = at // DirEntry.SIZE
            if not any(raw):
                self._add("directory-hole", f"entry {index} is empty", node)
                continue
            try:
                entry = DirEntry.unpack(raw, address=at)
            except CorruptRecord as error:
                self._add("dirent-corrupt", f"entry {index}: {error.field}: {error}", node)
                continue
            if entry.name in seen:
                self._add("dirent-duplicate", f"the name {_show(entry.name)} stands twice", node)
            seen.add(entry.name)
            if index < len(_DOTS) or entry.name in _DOTS:
                self._check_dot(entry, index, directory, node)
                continue
            child = self._check_entry(entry, node)
            if child is not None and self._link(child, entry.name, directory):
                found.append(child.address)
        if len(data) < len(_DOTS) * DirEntry.SIZE:
            self._add("dirent-dot", "`.` and `..` are missing", node)
        self.findings.statistics["names"] += max(len(seen - set(_DOTS)), 0)
        return found

    async def _load(self, node: Node) -> bytes:
        """A directory's content; what cannot be read is a finding, and reads as no entries."""
        length = node.desc.length
        if length % DirEntry.SIZE or length > content.DIRECTORY_SIZE_MAX:
            text = f"length {length:#x}, expected a multiple of {DirEntry.SIZE}"
            self._add("directory-corrupt", text, node)
        try:
            # Whatever is past the last block would read as millions of empty entries.
            readable = min(length, node.desc.allocated_blocks * node.desc.block_size)
            if content.levels(node.desc.zla) == ():
                readable = min(length, content.reach(node))
            size = min(readable, content.DIRECTORY_SIZE_MAX)
            if size < length:
                self._add("directory-corrupt", f"only {size:#x} of {length:#x} bytes exist", node)
            return await content.read(self.reader, node, 0, size)
        except CorruptRecord as error:
            self._add("directory-corrupt", str(error), node)
            return b""

    def _check_dot(self, entry: DirEntry, index: int, directory: FileFacts, node: Node) -> None:
        wanted = _DOTS[index] if index < len(_DOTS) else None
        if entry.name != wanted:
            text = f"entry {index} is {_show(entry.name)}"
            text += f", expected {_show(wanted)}" if wanted else ": it may only be among the first"
            self._add("dirent-dot", text, node)
            if entry.name not in _DOTS:
                return
        assert directory.parent is not None, "a directory is queued with its parent"
        target = directory.address if entry.name == b"." else directory.parent
        facts = self.files.get(target)
        if entry.address != target:
            text = f"{_show(entry.name)} is {entry.address:#x}, expected {target:#x}"
            self._add("dirent-dot", text, node)
        elif facts is not None and (entry.generation, entry.type) != (facts.generation, facts.type):
            text = f"{_show(entry.name)} has generation {entry.generation}, type {entry.type.name}"
            text += f", expected {facts.generation}, {facts.type.name}"
            self._add("dirent-dot", text, node)

    def _check_entry(self, entry: DirEntry, node: Node) -> FileFacts | None:
        """Hold a name against the descriptor that it leads to."""
        if entry.address in self.damaged:
            return None  # it has its own finding
        facts = self.files.get(entry.address)
        name = _show(entry.name)
        if facts is None or facts.link_count == 0:
            text = f"{name} leads to file descriptor {entry.address:#x}, which is not in use"
            self._add("dirent-dangling", text, node)
            return None
        if entry.generation != facts.generation:
            text = f"{name} is generation {entry.generation}, the file is {facts.generation}"
            self._add("dirent-generation", text, node)
        if entry.type != facts.type:
            text = f"{name} is a {entry.type.name}, the file a {facts.type.name}"
            self._add("dirent-type", text, node)
        return facts

    def _link(self, child: FileFacts, name: bytes, directory: FileFacts) -> bool:
        """Count one name of `child`; returns whether it is a directory to be walked."""
        child.name_count += 1
        if child.is_directory:
            directory.directory_count += 1
        if child.address in self.reached:
            if child.is_directory:
                text = f"{_show(name)} in {directory.address:#x} is its second name"
                self.findings.add("directory-two-parents", text, fd=child.address)
            return False
        self.reached.add(child.address)
        child.parent, child.name = directory.address, name
        return child.is_directory

    def _compare_links(self) -> None:
        for facts in self.files.values():
            if facts.link_count == 0:
                continue  # `owners` has said what there is to say
            if facts.address not in self.reached:
                self._report_unreachable(facts)
                continue
            kind = "directories" if facts.is_directory else "files"
            self.findings.statistics[kind] += 1
            expected = facts.name_count
            if facts.is_directory:
                expected = 2 + facts.directory_count
            if facts.link_count != expected:
                text = f"link count is {facts.link_count}, expected {expected}"
                self.findings.add("link-count", text, fd=facts.address)

    def _report_unreachable(self, facts: FileFacts) -> None:
        if self.orphans.get(facts.address) == facts.generation:
            text = "no name leads to it any more, and it is to be freed"
            self.findings.add("orphan-pending", text, fd=facts.address)
            return
        text = f"a {facts.type.name} with {facts.link_count} links, but no name leads to it"
        self.findings.add("fd-unreachable", text, fd=facts.address)

    def path_of(self, address: FdAddress) -> str | None:
        """One path of a file; None when no name led to it."""
        if address not in self.reached:
            return None
        parts: list[str] = []
        for _ in range(_PATH_DEPTH_MAX):
            if address == ROOT_FD:
                return "/" + "/".join(reversed(parts))
            facts = self.files[address]
            if facts.parent is None:
                return None
            parts.append(printable(facts.name))
            address = facts.parent
        return None

    def _add(self, code: str, text: str, node: Node) -> None:
        self.findings.add(code, text, address=node.lv_offset + META_OFFSET, fd=node.address)


def _show(name: bytes) -> str:
    return f"`{printable(name)}`"
