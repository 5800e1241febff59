"""The heartbeat slots, and what they say about the holders in lock records.

A lock's holder is (slot, generation, owner). It is there as long as the slot is in use by that
owner in that generation; when it is not, the lock is stale, and the next host simply takes it
(`docs/locking.md`). A holder of a generation that its slot has not reached yet cannot exist.
Whether a host that has its slot in use is alive cannot be seen from one look at the LUN.
"""

from collections import Counter
from dataclasses import dataclass, field

from vmfs.check.findings import Findings
from vmfs.check.reader import Reader
from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress, LvOffset
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockType
from vmfs.ondisk.heartbeat import HEARTBEAT_REGION, SLOT_COUNT, SLOT_SIZE, Heartbeat


@dataclass(slots=True)
class Slots:
    """All 2048 slots as they were read, and how many locks each was seen to hold."""

    findings: Findings
    by_offset: dict[LvOffset, Heartbeat] = field(default_factory=dict)
    held: Counter[LvOffset] = field(default_factory=Counter)
    stale: Counter[Holder] = field(default_factory=Counter)  # of those who have ended

    @property
    def in_use(self) -> list[Heartbeat]:
        """The slots that some host has, dead or alive."""
        return [slot for slot in self.by_offset.values() if slot.is_in_use]

    def check_lock(
        self, data: bytes, *, address: int, expected: LockType, fd: FdAddress | None = None
    ) -> None:
        """Check one lock record, and count it for its holders.

        Args:
            data: its sector.
            address: LV offset that it was read from.
            expected: the type that it must have there.
            fd: the file that it protects, if it protects one.
        """
        code = "cluster-lock-corrupt" if fd is None else "fd-lock-corrupt"
        try:
            lock = DiskLock.unpack(data, address=address)
        except CorruptRecord as error:
            self.findings.add(code, str(error), address=address, fd=fd)
            return
        if lock.type != expected:
            text = f"the lock record is of type {lock.type.name}, not {expected.name}"
            self.findings.add(code, text, address=address, fd=fd)
        for holder in lock.all_holders:
            self._check_holder(holder, lock, address=address, fd=fd)

    def _check_holder(
        self, holder: Holder, lock: DiskLock, *, address: int, fd: FdAddress | None
    ) -> None:
        slot = self.by_offset.get(holder.heartbeat_offset)
        if slot is None:
            return  # that slot is corrupt, and has its own finding
        what = f"{lock.mode.name.lower()} lock of {holder.owner}, slot {slot.index}"
        if holder.generation > slot.generation:
            text = f"{what}: generation {holder.generation}, but the slot is at {slot.generation}"
            self.findings.add("lock-holder-bad", text, address=address, fd=fd)
        elif is_holding(holder, slot):
            self.held[slot.lv_offset] += 1
        else:
            self.stale[holder] += 1

    def report_holders(self) -> None:
        """Say once for each host how many locks it holds, and for each that has ended how many."""
        for offset, count in sorted(self.held.items()):
            text = f"{describe(self.by_offset[offset])} holds {count} locks"
            self.findings.add("lock-held", text, address=offset)
        for holder, count in sorted(self.stale.items(), key=lambda item: item[0].heartbeat_offset):
            slot = self.by_offset[holder.heartbeat_offset]
            text = (
                f"host {holder.owner} (slot {slot.index}, generation {holder.generation}) has "
                f"ended and left {count} locks: who wants one takes it"
            )
            self.findings.add("stale-lock", text, address=slot.lv_offset)


def is_holding(holder: Holder, slot: Heartbeat) -> bool:
    """Whether the mount that a lock names still has its slot."""
    same = (holder.generation, holder.owner) == (slot.generation, slot.owner)
    return slot.is_in_use and same


def describe(slot: Heartbeat) -> str:
    """A slot's host in words a person can act on."""
    host = slot.host
    if host is not None:
        return f"host {host.name} (pid {host.pid}, slot {slot.index})"
    where = f" at {slot.address_text}" if slot.address_text else ""
    return f"host {slot.owner}{where} (slot {slot.index})"


async def read_slots(reader: Reader, findings: Findings) -> Slots:
    """Read and check every slot."""
    slots = Slots(findings=findings)
    try:
        region = await reader.read(HEARTBEAT_REGION, SLOT_COUNT * SLOT_SIZE)
    except CorruptRecord as error:
        findings.add("heartbeat-corrupt", str(error), address=HEARTBEAT_REGION)
        return slots
    for index in range(SLOT_COUNT):
        offset = LvOffset(HEARTBEAT_REGION + index * SLOT_SIZE)
        data = region[index * SLOT_SIZE : (index + 1) * SLOT_SIZE]
        try:
            slot = Heartbeat.unpack(data, address=offset)
        except CorruptRecord as error:
            findings.add("heartbeat-corrupt", f"slot {index}: {error}", address=offset)
            continue
        slots.by_offset[offset] = slot
        if slot.is_in_use:
            text = (
                f"{describe(slot)} has the volume open, generation {slot.generation}: "
                "findings may be of the moment"
            )
            findings.add("host-active", text, address=offset)
    return slots
