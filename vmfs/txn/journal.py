"""One host's journal: it holds one committed transaction, and room for the next.

    half 0      transaction n        COMMITTED      what a crash would replay
    half 1      transaction n + 1    being written  what a crash would forget

Invariants, at every moment:

* everything up to transaction n - 1 is in place and durable before the commit sector of n is
  written, so the one committed transaction with the highest sequence is all that recovery needs;
* the commit sector of n + 1 stands where that of n - 1 stood; replacing it by one atomic write is
  the commit.

The caller writes each transaction in place after `append` returns, and before the next `append`;
it calls neither twice at once. `docs/journal.md` walks through every crash.
"""

from collections.abc import Sequence

from vmfs.device.base import Device
from vmfs.errors import CorruptRecord
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import (
    ORPHAN_TABLE_SIZE,
    CommitSector,
    CommitState,
    JournalLayout,
    half_of,
    pack_body,
)
from vmfs.txn.replay import needs_replay, newest_commit


class Journal:
    """The journal of one heartbeat slot, in the logical volume `device`."""

    def __init__(
        self, device: Device, region_offset: int, region_size: int, slot: SlotIndex
    ) -> None:
        """Name the region, in bytes of `device`; `open` before anything else."""
        self._device = device
        self._layout = JournalLayout(region_offset, region_size)
        self._transaction_max = self._layout.payload_size_max
        self._slot = slot
        self._generation: int | None = None
        self._newest: CommitSector | None = None

    @property
    def layout(self) -> JournalLayout:
        """Where its parts stand."""
        return self._layout

    @property
    def slot(self) -> SlotIndex:
        """Whose journal it is."""
        return self._slot

    @property
    def max_transaction_bytes(self) -> int:
        """Bytes of sectors that one transaction can always take."""
        return self._transaction_max

    @property
    def sequence(self) -> int:
        """The last transaction that was committed; 0 before the first of all."""
        return self._newest.sequence if self._newest else 0

    @property
    def holds_committed(self) -> bool:
        """Whether a crash now would replay the last transaction."""
        return needs_replay(self._newest)

    async def open(self, generation: int) -> None:
        """Go on where the last owner of the slot has stopped. Writes nothing.

        Args:
            generation: of this owner; no lower than any that the journal has seen.

        Raises:
            CorruptRecord: damaged, from the future, or not yet replayed: a slot is free for a new
                owner only after its journal was recovered (`vmfs.txn.recovery`).
        """
        newest = await read_newest(self._device, self._layout, self._slot)
        if newest is not None and newest.state is not CommitState.DONE:
            raise CorruptRecord(
                CommitSector.NAME, newest.lv_offset, "state", "COMMITTED (not replayed)", "DONE"
            )
        if newest is not None and newest.generation > generation:
            raise CorruptRecord(
                CommitSector.NAME,
                newest.lv_offset,
                "generation",
                newest.generation,
                f"up to {generation}",
            )
        self._newest = newest
        self._generation = generation

    async def append(self, runs: Sequence[tuple[int, bytes]]) -> int:
        """Commit a transaction.

        Args:
            runs: LV offset and whole sectors each, ascending, not overlapping.

        Returns:
            Its sequence number.

        Raises:
            DeviceError: whether the transaction is committed is not known. Nothing more may be
                appended: the journal on disk is right as it is, and recovery will read it.

        Durability: on return the transaction, all file data written before the call, and all
        earlier transactions *in place* are durable. It is not itself in place yet.
        """
        assert self._generation is not None, "journal is not open"
        sequence = self.sequence + 1
        half = half_of(sequence)
        body = pack_body(runs)
        assert len(body) <= self._layout.body_size, f"transaction of {len(body)} bytes"
        commit = CommitSector(
            state=CommitState.COMMITTED,
            slot=self._slot,
            generation=self._generation,
            sequence=sequence,
            lv_offset=self._layout.commit_offset(half),
            run_count=len(runs),
            payload_size=sum(len(data) for _, data in runs),
        ).sealed(body)
        await self._device.write(self._layout.body_offset(half), body)
        await self._device.flush()
        await self._device.write(commit.lv_offset, commit.pack())  # the commit point
        await self._device.flush()
        self._newest = commit
        return sequence

    async def mark_done(self) -> None:
        """Leave nothing in the journal that could be replayed; all is in place already.

        Raises:
            DeviceError: whether it is so is not known.

        Durability: on return everything committed is durable in place, and stays as it is whatever
        another host does to it and whoever crashes.
        """
        if self._newest is None or self._newest.state is CommitState.DONE:
            return
        await self._device.flush()
        self._newest = await write_done(self._device, self._newest)

    async def format(self) -> None:
        """Make the region an empty journal with an empty orphan table, whatever it holds now.

        Durability: after the next flush.
        """
        for half in (0, 1):
            await self._device.write(self._layout.commit_offset(half), bytes(CommitSector.SIZE))
        await self._device.write_zeroes(self._layout.orphan_offset, ORPHAN_TABLE_SIZE)
        self._newest = None


async def read_newest(
    device: Device, layout: JournalLayout, slot: SlotIndex
) -> CommitSector | None:
    """Read both commit sectors and return the one that counts.

    Raises:
        CorruptRecord: see `vmfs.txn.replay.newest_commit`.
    """
    sectors = [await device.read(layout.commit_offset(half), CommitSector.SIZE) for half in (0, 1)]
    return newest_commit(sectors, layout=layout, slot=slot)


async def write_done(device: Device, newest: CommitSector) -> CommitSector:
    """Turn COMMITTED into DONE, durably. What it committed must be durable in place."""
    done = CommitSector(
        state=CommitState.DONE,
        slot=newest.slot,
        generation=newest.generation,
        sequence=newest.sequence,
        lv_offset=newest.lv_offset,
    )
    await device.write(done.lv_offset, done.pack())
    await device.flush()
    return done
