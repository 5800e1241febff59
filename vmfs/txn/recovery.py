"""Replay of a dead host's journal, by whoever finds it. The host must have been fenced before.

A replay may be cut at any point and started again by anyone: the commit sector says COMMITTED until
all of the transaction is durable in place, and writing it again writes the same bytes.
"""

import logging
from dataclasses import dataclass

from vmfs.device.base import Device
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import JournalLayout, half_of
from vmfs.txn.journal import read_newest, write_done
from vmfs.txn.replay import needs_replay, runs_to_replay
from vmfs.units import SECTOR_SIZE

_log = logging.getLogger("vmfs.txn")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay found and did."""

    slot: SlotIndex
    sequence: int  # of the last committed transaction; 0: there never was one
    generation: int  # of the owner who committed it
    replayed: bool  # whether it had to be written in place
    sector_count: int = 0  # sectors written in place


async def replay_journal(
    device: Device, region_offset: int, region_size: int, slot: SlotIndex
) -> ReplayReport:
    """Bring everything that a dead host has committed into place.

    Args:
        device: the logical volume.
        region_offset: LV offset of its journal region.
        region_size: bytes of the region.
        slot: the heartbeat slot whose journal it is.

    Raises:
        CorruptRecord: the journal is damaged; nothing was written.
        DeviceError: the LUN answered with an error; start again from the beginning.

    Durability: on return everything is durable in place, and the journal holds nothing to replay.

    Locks: the slot is marked as being replayed by this host. The dead host's locks still stand in
    its name, so nobody else can have changed what is written here.
    """
    layout = JournalLayout(region_offset, region_size)
    newest = await read_newest(device, layout, slot)
    if newest is None or not needs_replay(newest):
        return ReplayReport(
            slot=slot,
            sequence=newest.sequence if newest else 0,
            generation=newest.generation if newest else 0,
            replayed=False,
        )
    body = await device.read(layout.body_offset(half_of(newest.sequence)), newest.body_size)
    runs = runs_to_replay(newest, body, layout=layout, lv_size=device.size)
    for offset, data in runs:
        await device.write(offset, data)
    await device.flush()
    await write_done(device, newest)
    report = ReplayReport(
        slot=slot,
        sequence=newest.sequence,
        generation=newest.generation,
        replayed=True,
        sector_count=sum(len(data) for _, data in runs) // SECTOR_SIZE,
    )
    _log.info(
        "replayed slot=%d generation=%d sequence=%d sectors=%d",
        slot,
        report.generation,
        report.sequence,
        report.sector_count,
    )
    return report
