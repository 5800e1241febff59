"""`vmfs journal discard`: give a damaged journal up, so that the volume can be mounted again."""

from pathlib import Path

import click

from vmfs.check.discard import DiscardPlan, plan_discard
from vmfs.cli.common import VmfsGroup, run
from vmfs.cli.served import require_idle
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import CommitSector


@click.group(cls=VmfsGroup)
def journal() -> None:
    """What is to be done by hand about the journal of a host."""


@journal.command()
@click.argument("lun", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("slot", type=click.IntRange(min=0))
@click.option("--dry-run", is_flag=True, help="Only say what is wrong, and what would be lost.")
def discard(*, lun: Path, slot: int, dry_run: bool) -> None:
    """Make the damaged journal of SLOT an empty one. What is in it is lost.

    Only for a journal that `vmfs check` calls corrupt, with which no host mounts the volume: one
    that is sound is replayed by the next mount, and is refused here. No lockd may serve the LUN,
    and no process have it open for writing.

    What the host of that slot committed last, up to 5 s of its changes to names, sizes and blocks,
    may then be in place, or not, or in part; `vmfs check` says which. File contents are not in the
    journal.
    """
    require_idle(lun)
    plan = run(_discard, lun, SlotIndex(slot), dry_run=dry_run)
    for line in plan_lines(plan):
        click.echo(line)
    if dry_run:
        click.echo("nothing was changed")
    else:
        click.echo(f"discarded; next: vmfs check {lun}")


def plan_lines(plan: DiscardPlan) -> list[str]:
    """For people."""
    return [
        f"journal of {plan.owner}: {plan.damage}",
        *(f"  {words}" for words in plan.halves),
        "lost: what it committed last, up to 5 s of changes to names, sizes and blocks; "
        "they may be in place, or not, or in part",
    ]


async def empty_journal(device: Device, plan: DiscardPlan) -> None:
    """Do it; durable on return, and a crash before that leaves a journal that is still refused."""
    for at in plan.order:
        await device.write(at, bytes(CommitSector.SIZE))
        await device.flush()


async def _discard(lun: Path, slot: SlotIndex, *, dry_run: bool) -> DiscardPlan:
    device = open_lun_device(lun, writable=not dry_run)
    try:
        volume = await find_lv(device)
        plan = await plan_discard(volume, slot)
        if not dry_run:
            await empty_journal(volume, plan)
        return plan
    finally:
        await device.aclose()
