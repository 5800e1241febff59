"""The null lock manager: grants everything, reads nothing, writes nothing.

For volumes that are opened without lockd and therefore read-only: a volume that ESXi has open,
`-o ro` without lockd, and the offline tools. What is read is whole only as far as nobody writes.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

from vmfs.device.base import Device
from vmfs.errors import ReadOnly
from vmfs.locks.base import (
    AttributesHook,
    DropHook,
    HeldLock,
    HolderIs,
    Peek,
    Pin,
    RecoverHook,
    RevokeHook,
    WaitingOperation,
    WriteBackHook,
)
from vmfs.locks.order import LockId, in_order
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockMode


class NullPin:
    """A pin on nothing."""

    __slots__ = ("_lock", "_mode")

    def __init__(self, lock: LockId, mode: LockMode) -> None:
        self._lock = lock
        self._mode = mode

    @property
    def lock(self) -> LockId:
        """What was asked for."""
        return self._lock

    @property
    def mode(self) -> LockMode:
        """As was asked for."""
        return self._mode

    @property
    def token(self) -> int:
        """Always 0: nothing guards a cache."""
        return 0

    def release(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class Unlocked:
    """`Locks` for a volume that nothing is written to."""

    def __init__(self, device: Device) -> None:
        """`device` is the logical volume; it is only read, by `peek`."""
        self._device = device

    async def acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin:
        """A pin on nothing.

        Raises:
            ReadOnly: an exclusive lock was asked for, which only a change needs.
        """
        return self._pin(lock, mode)

    def try_cached(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """As `acquire`."""
        return self._pin(lock, mode)

    async def try_acquire(self, lock: LockId, mode: LockMode, *, label: str = "") -> Pin | None:
        """As `acquire`."""
        return self._pin(lock, mode)

    async def try_claim(self, lock: LockId, *, label: str = "") -> Pin | None:
        """Refuse: nothing is made here. Raises: ReadOnly."""
        return self._pin(lock, LockMode.EXCLUSIVE)

    def pinned(
        self, wanted: Mapping[LockId, LockMode], *, label: str = ""
    ) -> AbstractAsyncContextManager[Mapping[LockId, Pin]]:
        """Pins on nothing."""
        return self._pinned(wanted)

    @asynccontextmanager
    async def _pinned(
        self, wanted: Mapping[LockId, LockMode]
    ) -> AsyncIterator[Mapping[LockId, Pin]]:
        yield {lock: self._pin(lock, mode) for lock, mode in in_order(wanted)}

    def _pin(self, lock: LockId, mode: LockMode) -> Pin:
        if mode is not LockMode.SHARED:
            raise ReadOnly(f"{lock}: the volume is open read-only, without locks")
        return NullPin(lock, mode)

    def hold_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """Nobody can ask, so nothing is counted."""

    def drop_open(self, lock: LockId, mode: LockMode, *, label: str = "") -> None:
        """Nobody can ask, so nothing is counted."""

    def mode_held(self, lock: LockId) -> LockMode:
        """Free: this host stands in no lock record, and so may cache nothing past an operation."""
        return LockMode.FREE

    def tenure(self, lock: LockId) -> int:
        """0: this host stands in no record."""
        return 0

    async def forget(self, lock: LockId) -> bool:
        """Nothing is held."""
        return True

    async def release_all(self) -> None:
        """Nothing is held."""

    async def peek(self, lock: LockId, *, seen: Peek | None = None) -> Peek:
        """The lock record; a holder is taken for alive, because nobody is there to ask."""
        image = await self._device.read(lock.lv_offset, DiskLock.SIZE)
        if seen is not None and image == seen.image:
            return seen
        record = DiskLock.unpack(image, address=lock.lv_offset)
        holder_is = HolderIs.FREE if record.is_free else HolderIs.LIVE_OTHER
        return Peek(record=record, holder_is=holder_is, image=image)

    async def ask_attributes(self, lock: LockId, holder: Holder) -> bytes | None:
        """None: what the LUN says is all there is to know."""
        return None

    def set_hooks(
        self,
        *,
        revoke: RevokeHook,
        drop: DropHook,
        attributes: AttributesHook,
        recover: RecoverHook,
        write_back: WriteBackHook,
    ) -> None:
        """Nobody will ever ask."""

    def snapshot(self) -> list[HeldLock]:
        """Nothing is held."""
        return []

    def waiting(self) -> list[WaitingOperation]:
        """Nobody waits."""
        return []
