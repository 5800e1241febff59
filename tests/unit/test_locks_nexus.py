"""Events of lockd on their way to permit, writer and manager; and the null manager."""

from random import Random

import pytest

from lockd.client import (
    Asked,
    AskKind,
    Attention,
    FencedNotice,
    Lost,
    PermitGranted,
    PermitRecalled,
    UnitAttention,
)
from vmfs.device.memory import MemoryDevice
from vmfs.errors import CorruptRecord, LeaseLost, ReadOnly
from vmfs.ids import LvOffset, VmfsUuid
from vmfs.locks.base import HolderIs, Locks
from vmfs.locks.nexus import LockdEvents
from vmfs.locks.order import LockId, LockKind
from vmfs.locks.permit import Permit, PermitState
from vmfs.locks.unlocked import Unlocked
from vmfs.locks.writers import ReservationWriter
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockMode, LockType
from vmfs.ondisk.heartbeat import slot_offset

ASKED = Asked(ask_id=1, lba=8, what=AskKind.GIVE_UP, who="b", label="")


def nothing() -> None:
    """The permit is returned to nobody."""


def test_what_comes_too_early_comes_later_in_order() -> None:
    returned: list[int] = []
    permit = Permit(returned=lambda: returned.append(1))
    asked: list[Asked] = []
    events = LockdEvents()

    events(PermitRecalled(recall=1, by="b"))
    events(ASKED)
    events(PermitGranted())
    assert not returned
    events.attach(permit=permit, writer=object())
    assert returned == [1]
    assert permit.state is PermitState.GRANTED
    assert not asked
    events.attach_asked(asked.append)
    assert asked == [ASKED]
    events(ASKED)
    assert asked == [ASKED, ASKED]


@pytest.mark.parametrize(
    ("event", "word"),
    [(FencedNotice(reason="by c"), "fenced: by c"), (Lost("socket cut"), "lost: socket cut")],
)
async def test_end_of_the_nexus_stops_the_permit(event: FencedNotice | Lost, word: str) -> None:
    permit = Permit(returned=nothing)
    told: list[str] = []
    events = LockdEvents(on_lost=told.append)
    events.attach(permit=permit, writer=object())

    events(event)

    assert word in told[0]
    with pytest.raises(LeaseLost, match=word):
        await permit.enter()


async def test_unit_attention_reaches_the_reservation_writer() -> None:
    permit = Permit(returned=nothing)
    lost: list[bool] = []

    class Writer(ReservationWriter):
        def reservation_lost(self) -> None:
            lost.append(True)

    service: object = None
    writer = Writer(
        device=MemoryDevice(512),
        permit=permit,
        service=service,  # type: ignore[arg-type]
        rng=Random(1),
    )
    events = LockdEvents()
    events.attach(permit=permit, writer=writer)

    events(UnitAttention(reason=Attention.RESET, text="reset by an administrator"))

    assert lost == [True]
    assert permit.state is PermitState.GRANTED


# --- the null manager -----------------------------------------------------------------------------

LOCK = LockId(LockKind.FILE_DESC, 4, LvOffset(4096))
HOLDER = Holder(heartbeat_offset=slot_offset(1), generation=1, owner=VmfsUuid(b"a" * 16))


async def test_unlocked_grants_reading_and_nothing_else() -> None:
    locks: Locks = Unlocked(MemoryDevice(1 << 20))

    with await locks.acquire(LOCK, LockMode.SHARED) as pin:
        assert (pin.lock, pin.mode, pin.token) == (LOCK, LockMode.SHARED, 0)
    assert locks.try_cached(LOCK, LockMode.SHARED) is not None
    assert await locks.try_acquire(LOCK, LockMode.SHARED) is not None
    async with locks.pinned({LOCK: LockMode.SHARED}) as pins:
        assert list(pins) == [LOCK]
    with pytest.raises(ReadOnly):
        await locks.acquire(LOCK, LockMode.EXCLUSIVE)

    locks.hold_open(LOCK, LockMode.SHARED)
    locks.drop_open(LOCK, LockMode.SHARED)
    assert locks.mode_held(LOCK) is LockMode.FREE
    assert locks.tenure(LOCK) == 0
    assert await locks.forget(LOCK)
    assert await locks.ask_attributes(LOCK, HOLDER) is None
    await locks.release_all()
    assert locks.snapshot() == []
    assert locks.waiting() == []


async def test_unlocked_peek_reads_the_record() -> None:
    device = MemoryDevice(1 << 20)
    locks = Unlocked(device)
    record = DiskLock(type=LockType.FILE_DESC, lv_offset=LOCK.lv_offset)
    await device.write(4096, record.pack())
    assert (await locks.peek(LOCK)).holder_is is HolderIs.FREE
    await device.write(4096, record.taken_exclusive(HOLDER, 1).pack())
    assert (await locks.peek(LOCK)).holder_is is HolderIs.LIVE_OTHER
    await device.write(4096, bytes(512))
    with pytest.raises(CorruptRecord):
        await locks.peek(LOCK)
