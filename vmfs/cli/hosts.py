"""`vmfs hosts`: who has a volume open, and whether its heart beats.

Nobody is asked and nothing is written: the heartbeat slots on the LUN are watched until each host
was seen to beat, or one interval and a half of its own has passed. No time that another host wrote
is believed.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import trio

from vmfs.cli.common import run
from vmfs.cli.locks import lun_of
from vmfs.cli.table import table_lines
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.ids import LvOffset
from vmfs.locks.heartbeat import read_slots
from vmfs.locks.overdue import pace_of
from vmfs.ondisk.heartbeat import Heartbeat
from vmfs.volume.timing import PRODUCTION

INTERVALS_WATCHED: Final = 1.5
LOOKS_PER_INTERVAL: Final = 20
LOOK_SECONDS_MIN: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host that has the volume open, and what was seen of its heartbeat."""

    slot: int
    host: str
    pid: int
    generation: int
    state: str  # beating; silent...; dead, recovered by HOST; gone
    beat_seconds_ago: float | None  # when it was last seen to beat; None: not while we watched
    watched_seconds: float
    interval_seconds: float
    lease_seconds: float


@click.command()
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="LUN|DIR")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one JSON array.")
def hosts(*, target: Path, as_json: bool) -> None:
    """Show every host that has the volume on LUN (or DIR) open, and whether it beats.

    Takes one heartbeat interval and a half, 4.5 s as a rule. A host that is silent is fenced by
    whoever waits for a lock of its, once its slot has stood still for its lease.
    """
    found = run(watch_hosts, lun_of(target))
    if as_json:
        click.echo(json.dumps([asdict(host) for host in found], indent=2))
        return
    for line in host_lines(found):
        click.echo(line)


async def watch_hosts(lun: Path) -> list[HostFacts]:
    """Watch the slots that are in use now.

    Raises:
        CorruptRecord: one of the slots is none.
    """
    device = open_lun_device(lun, writable=False)
    try:
        return await _watch(await find_lv(device))
    finally:
        await device.aclose()


async def _watch(lv: Device) -> list[HostFacts]:
    slots = {slot.lv_offset: slot for slot in await read_slots(lv) if slot.is_in_use}
    names = {slot.owner: _name(slot) for slot in slots.values()}
    paces = {offset: pace_of(slot, own=PRODUCTION.leases) for offset, slot in slots.items()}
    first, beats, began = dict(slots), dict[LvOffset, float](), time.monotonic()
    waiting = {offset: pace.interval * INTERVALS_WATCHED for offset, pace in paces.items()}
    while waiting:
        pause = min(paces[offset].interval for offset in waiting) / LOOKS_PER_INTERVAL
        await trio.sleep(max(pause, LOOK_SECONDS_MIN))
        now = time.monotonic()
        for slot in await read_slots(lv):
            if slot.lv_offset in first and slot != slots[slot.lv_offset]:
                slots[slot.lv_offset], beats[slot.lv_offset] = slot, now
                waiting.pop(slot.lv_offset, None)
        waiting = {offset: limit for offset, limit in waiting.items() if now - began < limit}
    ended = time.monotonic()
    return [
        HostFacts(
            slot=seen.index,
            host=_name(first[offset]),
            pid=info.pid if (info := first[offset].host) is not None else 0,
            generation=first[offset].generation,
            state=_state(first[offset], seen, names.get(seen.replayer, ""), beat=offset in beats),
            beat_seconds_ago=ended - beats[offset] if offset in beats else None,
            watched_seconds=ended - began,
            interval_seconds=paces[offset].interval,
            lease_seconds=paces[offset].lease,
        )
        for offset, seen in slots.items()
    ]


def host_lines(found: Sequence[HostFacts]) -> list[str]:
    """One line per host."""
    rows = [("SLOT", "HOST", "PID", "LEASE", "STATE")]
    for host in found:
        words = host.state
        if host.beat_seconds_ago is not None and host.state == "beating":
            words += f", last {host.beat_seconds_ago:.1f} s ago"
        elif host.state == "silent":
            words += (
                f" for {host.watched_seconds:.1f} s at least; after {host.lease_seconds:g} s "
                "whoever waits for its locks has it fenced"
            )
        lease = f"{host.lease_seconds:g} s"
        rows.append((str(host.slot), host.host, str(host.pid or "?"), lease, words))
    return table_lines(rows)


def _state(before: Heartbeat, seen: Heartbeat, replayer: str, *, beat: bool) -> str:
    if not seen.is_in_use or seen.generation != before.generation:
        return "gone"
    if seen.replayer:
        return f"dead, recovered by {replayer or seen.replayer}"
    if beat:
        return "beating"
    return "silent" if seen.host is not None else "silent, and not a host of ours (ESXi?)"


def _name(slot: Heartbeat) -> str:
    return slot.host.name if slot.host is not None else str(slot.owner)
