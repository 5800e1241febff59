"""What locking needs of lockd, and how lockd's errors become ours.

`lockd.client.LockClient` fulfils `LockService`; so may a façade that reconnects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from lockd.client import Fenced, LockdDisconnected, LockdError, LockdUnreachable
from lockd.protocol.limits import LABEL_SIZE_MAX
from lockd.protocol.messages import (
    AskAnswer,
    Conflict,
    FenceAnswer,
    Good,
    Miscompare,
    StatusReport,
)
from lockd.protocol.terms import AnswerKind, AskKind, HostEnd
from vmfs.errors import LeaseLost, LockServiceError
from vmfs.ids import LvOffset, VmfsUuid
from vmfs.units import SECTOR_SIZE


class LockService(Protocol):
    """A nexus with lockd. The verbs are those of `lockd.client.LockClient`, which see."""

    async def compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good | Miscompare | Conflict:
        """Write one block if it is as expected, atomically."""
        ...

    async def reserve(self) -> Good | Conflict:
        """Reserve the whole LUN; Good once no other host has I/O in flight."""
        ...

    async def release(self) -> None:
        """End the reservation."""
        ...

    async def ask(self, lba: int, what: AskKind, holder: bytes, *, label: str) -> AskAnswer:
        """Ask the holder of a record; waits as long as it is silent."""
        ...

    async def answer(self, ask_id: int, kind: AnswerKind, payload: bytes = b"") -> None:
        """Answer what was asked of this host."""
        ...

    async def fence(self, host_uuid: bytes, generation: int = 0, *, nonce: int = 0) -> FenceAnswer:
        """Make sure that one start of a host never writes again. Kills it if it is alive."""
        ...

    async def status(self) -> StatusReport:
        """Everything that lockd knows."""
        ...

    def returned(self) -> None:
        """Return the recalled permit."""
        ...


@contextmanager
def lockd_errors(doing: str) -> Iterator[None]:
    """Turn lockd's errors into ours, in the one place where that is done.

    Raises:
        LeaseLost: this nexus was fenced.
        LockServiceError: everything else that lockd's client raises.
    """
    try:
        yield
    except Fenced as error:
        raise LeaseLost(f"{doing}: this host was fenced: {error}") from error
    except (LockdDisconnected, LockdUnreachable) as error:
        raise LockServiceError(f"{doing}: {error}") from error
    except LockdError as error:
        raise LockServiceError(f"{doing}: lockd refused: {error}") from error


class BlockMap:
    """LV offsets of records to blocks of the LUN, as lockd counts them, and back."""

    __slots__ = ("_lv_base",)

    def __init__(self, lv_base: int) -> None:
        """`lv_base`: where the logical volume begins on the LUN, bytes."""
        assert lv_base % SECTOR_SIZE == 0, f"a logical volume at {lv_base:#x}"
        self._lv_base = lv_base

    def lba(self, lv_offset: LvOffset) -> int:
        """The block of the record at `lv_offset`."""
        at = self._lv_base + lv_offset
        assert at % SECTOR_SIZE == 0, f"a record at LV offset {lv_offset:#x}"
        return at // SECTOR_SIZE

    def lv_offset(self, lba: int) -> LvOffset:
        """The record in block `lba`; negative when the block lies before the logical volume."""
        return LvOffset(lba * SECTOR_SIZE - self._lv_base)


_ELLIPSIS: Final = "..."


def clip_label(label: str) -> str:
    """The end of a label, so that it fits a message; what no UTF-8 can say becomes '?'."""
    data = label.encode(errors="replace")
    if len(data) <= LABEL_SIZE_MAX:
        return data.decode()
    tail = data[-(LABEL_SIZE_MAX - len(_ELLIPSIS)) :]
    return _ELLIPSIS + tail.decode(errors="ignore")


def has_ended(report: StatusReport, *, owner: VmfsUuid, nonce: int) -> bool:
    """Whether lockd has seen this very start of a host end (asking does it no harm).

    False also for a host that lockd does not know: only a fence can tell about that one.
    """
    starts = [host for host in report.hosts if host.host_uuid == owner.raw]
    this = [host for host in starts if host.nonce == nonce]
    if this:
        return all(host.end is not HostEnd.OPEN for host in this)
    # lockd lets a host start anew only after its last start has ended.
    return bool(starts)
