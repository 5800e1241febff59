"""Recovering a dead host, as far as it takes more than locks: its journal, and its orphans.

    proof of death, slot "being replayed by me"      `vmfs.locks.recovery`
    replay of its journal                            `vmfs.txn.recovery`
    its orphans become ours                          here
    slot free, generation + 1                        `vmfs.locks.recovery`

Its orphans are moved in one transaction of our own, and that is checkpointed before the slot is
free: from then on the next owner of the slot writes that table.
"""

import logging

import trio

from vmfs.device.base import Device
from vmfs.errors import NoSpace
from vmfs.ids import SlotIndex
from vmfs.locks.recovery import SlotRecovery
from vmfs.ondisk.heartbeat import Heartbeat
from vmfs.ondisk.journal_rec import ORPHAN_TABLE_SIZE
from vmfs.txn.orphans import OrphanTable
from vmfs.txn.recovery import replay_journal
from vmfs.txn.transaction import Transactions
from vmfs.volume.structure import Journals

_log = logging.getLogger("vmfs.volume")


class DeadHosts:
    """Recovers them, one at a time."""

    def __init__(self, *, device: Device, journals: Journals, slots: SlotRecovery) -> None:
        """`device` is the logical volume behind the permit; `slots` takes the slots over."""
        self._device = device
        self._journals = journals
        self._slots = slots
        self._turn = trio.Lock()
        self._transactions: Transactions | None = None
        self._orphans: OrphanTable | None = None
        self.recovered: list[SlotIndex] = []

    def adopt_into(self, transactions: Transactions, orphans: OrphanTable) -> None:
        """From now on there is a table of our own for the orphans of the dead.

        Before that they stay where they are, for whoever takes that slot next.
        """
        self._transactions = transactions
        self._orphans = orphans

    async def recover(self, index: SlotIndex, seen: Heartbeat) -> None:
        """Recover the host that held a slot; returns when its locks are free for the taking.

        Raises:
            LockBusy: it is not proved dead, or another host is at it.
            CorruptRecord: its journal is damaged; the slot stays as it is.
            LeaseLost: this host was fenced itself.
        """
        async with self._turn:
            taken = await self._slots.take_over(seen)
            if taken is None:
                return
            if index < self._journals.count:
                region = self._journals.region(index)
                await replay_journal(self._device, region, self._journals.size, index)
                await self._adopt(index)
            await self._slots.finish(taken)
            self.recovered.append(index)

    async def _adopt(self, index: SlotIndex) -> None:
        transactions, own = self._transactions, self._orphans
        if transactions is None or own is None:
            return
        table = OrphanTable(transactions, self._journals.region(index), self._journals.size, index)
        await table.load()
        entries = table.entries()
        if not entries:
            return
        await transactions.room(2 * ORPHAN_TABLE_SIZE)
        try:
            for entry in entries:
                own.add(entry)
                table.remove(entry)
        except NoSpace:
            _log.warning("orphans left slot=%d count=%d: own table is full", index, len(table))
        await transactions.checkpoint()
        _log.info("orphans adopted slot=%d count=%d", index, len(entries) - len(table))
