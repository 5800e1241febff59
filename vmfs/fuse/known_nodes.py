"""The nodes that the kernel knows: how often each was looked up, and its last known name.

Pure. FUSE counts lookups: every reply that carries a node adds one, `forget` takes some off. At
zero the kernel knows the node no more, and its memory may go. The name is for messages only
(another host may have renamed the file since).

Inode numbers: the root is FUSE's inode 1, every other node has its FD address. No FD address is 1:
the low three bits of an address are its type, and 4 for a file descriptor.
"""

from dataclasses import dataclass
from typing import Final

from vmfs.ids import FdAddress

ROOT_INODE: Final = 1
_DEPTH_MAX: Final = 64  # of a path in a message: parents may form a cycle after foreign renames


def inode_of(address: FdAddress, *, root: FdAddress) -> int:
    """The inode number that the kernel sees."""
    assert address != ROOT_INODE, "an FD address is never 1"
    return ROOT_INODE if address == root else address


def address_of(inode: int, *, root: FdAddress) -> FdAddress:
    """The node that the kernel means."""
    return root if inode == ROOT_INODE else FdAddress(inode)


@dataclass(slots=True)
class _Known:
    count: int
    parent: FdAddress
    name: bytes
    generation: int


class KnownNodes:
    """Lookup counts of one mount. The root is always known and never counted."""

    def __init__(self, root: FdAddress) -> None:
        self._root = root
        self._nodes: dict[FdAddress, _Known] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def has(self, address: FdAddress) -> bool:
        """Whether the kernel knows the node."""
        return address == self._root or address in self._nodes

    def is_another(self, address: FdAddress, generation: int) -> bool:
        """Whether the kernel knows the address as that of a node of another generation."""
        known = self._nodes.get(address)
        return known is not None and known.generation != generation

    def addresses(self) -> tuple[FdAddress, ...]:
        """Every node but the root."""
        return tuple(self._nodes)

    def add(self, address: FdAddress, *, parent: FdAddress, name: bytes, generation: int) -> None:
        """A reply that carries the node is about to be sent."""
        if address == self._root:
            return
        known = self._nodes.get(address)
        if known is None:
            self._nodes[address] = _Known(1, parent, name, generation)
            return
        known.count += 1
        known.generation = generation
        if name not in (b".", b".."):
            known.parent, known.name = parent, name

    def lend(self, address: FdAddress, *, parent: FdAddress, name: bytes, generation: int) -> None:
        """A reply is about to be sent that names the node, but the kernel only gives it back.

        If it knows a node of that address, that is the one it goes on knowing.
        """
        known = self._nodes.get(address)
        if known is None:
            self.add(address, parent=parent, name=name, generation=generation)
        else:
            known.count += 1

    def forget(self, address: FdAddress, count: int) -> bool:
        """Take `count` lookups back. Returns True when the kernel knows the node no more."""
        known = self._nodes.get(address)
        if known is None:
            return False
        known.count -= count
        if known.count > 0:
            return False
        del self._nodes[address]
        return True

    def clear(self) -> list[FdAddress]:
        """Forget everything (the mount is gone) and return what was still known."""
        left = list(self._nodes)
        self._nodes.clear()
        return left

    def path(self, address: FdAddress) -> str:
        """The path below the mount point by which it was last seen, for messages."""
        parts: list[str] = []
        while address != self._root and len(parts) < _DEPTH_MAX:
            known = self._nodes.get(address)
            if known is None:
                parts.append(f"<{address:#010x}>")
                break
            parts.append(known.name.decode("utf-8", "replace"))
            address = known.parent
        return "/" + "/".join(reversed(parts))

    def check_invariants(self) -> None:
        """Every known node was looked up at least once; the root is not among them."""
        assert self._root not in self._nodes, "the root is not counted"
        assert all(known.count > 0 for known in self._nodes.values()), "a count of zero is kept"
