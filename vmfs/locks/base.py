"""What the upper floors see of locking: the `Locks` protocol, and the values it speaks in.

A *pin* says that an operation is under way under a lock: nobody takes the lock away until the pin
is released. A lock without pins stays *cached* on this host, for free, until another host asks for
it. A *hold* says that a file is open: the lock is then in use, and asks are answered with that.

The duties of a caller:

* take all locks of an operation in `order.in_order` (`pinned` does), the strongest mode at once:
  never strengthen a lock that the same operation has pinned (AssertionError);
* pin, work, release; never wait for people, or for another host by other means, under a pin;
* call `hold_open` while a pin of that lock is still held.

`LockManager` (manager.py) is the real one; `Unlocked` (unlocked.py) serves volumes that are opened
read-only without lockd.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from vmfs.ids import SlotIndex
from vmfs.locks.order import LockId
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockMode
from vmfs.ondisk.heartbeat import Heartbeat


class HolderIs(Enum):
    """Whose a lock record is, as far as a single look can tell."""

    FREE = "free"
    MINE = "mine"
    LIVE_OTHER = "held by another host"  # or by one that died and is not recovered yet
    STALE = "stale"  # every holder's slot has moved on: free in all but name


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """A lock record as it stood on the LUN at one moment."""

    record: DiskLock
    holder_is: HolderIs
    image: bytes  # its sector


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLock:
    """One lock that this host has, for people (`vmfs locks`)."""

    lock: LockId
    mode: LockMode
    token: int
    since: float  # clock of the manager, seconds: when the mode was reached
    users: tuple[str, ...]  # labels of the operations that have it pinned
    open_by: tuple[str, ...]  # labels of the open files that hold it
    closing: bool  # being given up
    label: str  # what it was last used for: a path, mostly


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingOperation:
    """One operation that waits for a lock, for whom, and since when."""

    lock: LockId
    mode: LockMode
    label: str
    since: float  # clock of the manager, seconds
    waits_for: str  # in words: "esx-b (pid 4711), asked to give it up"


RevokeHook = Callable[[LockId, LockMode], Awaitable[None]]
"""Commit, write in place, drop caches: after it the lock's mode may fall to the second argument."""

DropHook = Callable[[LockId], Awaitable[None]]
"""Drop what is cached under the lock, which becomes free; nothing of it is staged any more."""

AttributesHook = Callable[[LockId], bytes | None]
"""What another host may know of the object without waiting; None: what the LUN says is current."""

RecoverHook = Callable[[SlotIndex, Heartbeat], Awaitable[None]]
"""Recover the host that held this slot; it was proved dead. LockBusy: not possible now."""

WriteBackHook = Callable[[LockId], Awaitable[None]]
"""Commit and write in place what the lock covers; the lock is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the upper floors do when a lock is asked for."""

    revoke: RevokeHook
    drop: DropHook
    attributes: AttributesHook
    recover: RecoverHook
    write_back: WriteBackHook


class Pin(Protocol):
    """One operation's use of one lock. Also a plain `with` context that releases."""

    @property
    def lock(self) -> LockId:
        """What is pinned."""
        ...

    @property
    def mode(self) -> LockMode:
        """The mode that the operation asked for (the host may have more)."""
        ...

    @property
    def token(self) -> int:
        """The lock record's token when it was acquired: unchanged means that caches are valid."""
        ...

    def release(self) -> None:
        """End the use. A second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Locks(Protocol):
    """The locks of one open volume on this host."""

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin:
        """Have `lock` in at least `mode`, and pin it for one operation.

        When this host has it cached strongly enough nothing is read, written or awaited.

        Args:
            lock: what to lock; higher in the order than everything this operation has pinned.
            mode: SHARED or EXCLUSIVE.
            label: for people, best the path.

        Raises:
            LockBusy: another host has it in use, or did not give it up.
            CorruptRecord: the lock record, or its holder's slot, is not one.
            LeaseLost: this host was fenced, or its slot is gone.
            LockServiceError: lockd is not there.
        """
        ...

    def try_cached(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """Pin it if this host has it cached strongly enough and is not giving it up."""
        ...

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """As `acquire`, but None wherever another host would have to be waited for."""
        ...

    async def try_claim(self, lock: LockId, *, label: str = "") -> Pin | None:
        """Have and pin, exclusively, an object that nobody else can reach; writes nothing.

        All that refers to the object on the LUN is, and comes to be, under locks that this host has
        exclusively. None when its record is not free: `try_acquire` then.

        Raises:
            CorruptRecord: the lock record is none.
        """
        ...

    def pinned(
        self, wanted: Mapping[LockId, LockMode], *, label: str = ""
    ) -> AbstractAsyncContextManager[Mapping[LockId, Pin]]:
        """Pin several locks in the total order for the length of the block."""
        ...

    def hold_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """Count one more open file that needs `lock` in `mode`: it is in use until `drop_open`."""
        ...

    def drop_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """Take back one `hold_open` with the same arguments."""
        ...

    def mode_held(self, lock: LockId) -> LockMode:
        """In which mode this host has it (FREE: not at all)."""
        ...

    def tenure(self, lock: LockId) -> int:
        """Since when this host has stood in the record: the token with which it came in.

        Unchanged and not 0 means that no other host can have changed the object in between: what
        was known of it then still holds. Getting stronger or weaker without leaving the record
        changes nothing. 0: it does not stand there, or is giving the lock up just now.
        """
        ...

    async def forget(self, lock: LockId) -> bool:
        """Give it up now if no operation or open file needs it. True when it is not held now."""
        ...

    async def release_all(self) -> None:
        """Give up everything, at unmount. No acquisition succeeds any more."""
        ...

    async def peek(self, lock: LockId, *, seen: Peek | None = None) -> Peek:
        """Read the lock record, and judge its holders by their slots. Takes nothing.

        Args:
            lock: which.
            seen: an earlier look; it is the answer again while the record is still the same.

        Raises:
            CorruptRecord: the record, or a holder's slot, is not one.
        """
        ...

    async def ask_attributes(self, lock: LockId, holder: Holder) -> bytes | None:
        """Ask the exclusive holder what it knows of the object; None: the LUN is current now.

        Raises:
            LockBusy: the holder cannot be reached, or died and is not recovered yet.
        """
        ...

    def set_hooks(
        self,
        *,
        revoke: RevokeHook,
        drop: DropHook,
        attributes: AttributesHook,
        recover: RecoverHook,
        write_back: WriteBackHook,
    ) -> None:
        """Say what the upper floors do when a lock is asked for. Once, before the first acquire."""
        ...

    def snapshot(self) -> list[HeldLock]:
        """Every lock that this host has, in order."""
        ...

    def waiting(self) -> list[WaitingOperation]:
        """Every operation of this host that waits for a lock of another, oldest first."""
        ...


Clock = Callable[[], float]
"""Seconds since boot (CLOCK_BOOTTIME); never wall time."""
