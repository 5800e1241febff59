"""`vmfs journal discard`: a damaged journal is given up, and only such a one."""

from pathlib import Path

import pytest

from tests.support.commands import vmfs
from tests.support.volumes import VolumeLab, names, put, volume_lab
from vmfs.check import check_device
from vmfs.check.discard import plan_discard
from vmfs.cli.journal import empty_journal
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.errors import CorruptRecord, InvalidArgument
from vmfs.ids import SlotIndex
from vmfs.ondisk.journal_rec import CommitSector, JournalLayout
from vmfs.volume import Volume


def layout_of(volume: Volume) -> JournalLayout:
    assert volume._mounted is not None
    return volume._mounted.transactions._journal.layout


async def die(lab: VolumeLab, files: int) -> tuple[JournalLayout, SlotIndex]:
    """A host commits a few times, and dies with its last transaction still to be replayed."""
    async with lab.host("a") as a:
        for number in range(files):
            await put(a, b"f%d" % number, b"x" * 9000)
            await a.sync()
        assert a.slot is not None
        found = layout_of(a), a.slot
        lab.kill(a)
    return found


async def damage(lv: Device, at: int) -> None:
    await lv.write(at + 100, b"noise")


@pytest.mark.parametrize("half", [0, 1])
async def test_volume_with_a_damaged_commit_sector_is_mounted_again(half: int) -> None:
    async with volume_lab() as lab:
        layout, slot = await die(lab, 3)
        lv = await find_lv(lab.device)
        await damage(lv, layout.commit_offset(half))
        with pytest.raises(CorruptRecord):
            async with lab.host("b"):
                pass

        plan = await plan_discard(lv, slot)
        await empty_journal(lv, plan)

        assert "host a" in plan.owner
        assert f"half {half} is damaged" in plan.halves[half]
        async with lab.host("c") as c:
            assert set(await names(c)) >= {b"f0", b"f1"}
            await put(c, b"after", b"y" * 9000)
        report = await check_device(lab.device)
        assert "journal-corrupt" not in report.counts


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("files", [1, 2, 3])
async def test_crash_between_the_two_writes_leaves_it_refused(half: int, files: int) -> None:
    async with volume_lab() as lab:
        layout, slot = await die(lab, files)
        lv = await find_lv(lab.device)
        await damage(lv, layout.commit_offset(half))
        plan = await plan_discard(lv, slot)

        await lv.write(plan.order[0], bytes(CommitSector.SIZE))

        again = await plan_discard(lv, slot)
        assert again.damage
        await empty_journal(lv, again)
        with pytest.raises(InvalidArgument, match="is sound"):
            await plan_discard(lv, slot)


async def test_damaged_body_is_given_up_too() -> None:
    async with volume_lab() as lab:
        layout, slot = await die(lab, 3)
        lv = await find_lv(lab.device)
        for half in (0, 1):
            await damage(lv, layout.body_offset(half) + 512)

        plan = await plan_discard(lv, slot)
        await empty_journal(lv, plan)

        assert "digest" in plan.damage
        async with lab.host("b") as b:
            assert b.slot is not None


async def test_sound_journal_is_refused_and_replayed_by_the_next_mount() -> None:
    async with volume_lab() as lab:
        _, slot = await die(lab, 2)
        with pytest.raises(InvalidArgument, match="is sound"):
            await plan_discard(await find_lv(lab.device), slot)
        with pytest.raises(InvalidArgument, match="there are"):
            await plan_discard(await find_lv(lab.device), SlotIndex(2000))
        async with lab.host("b") as b:
            assert await names(b) == [b"f0", b"f1"]
        await lab.assert_clean()


def test_command_says_what_is_lost_and_dry_run_changes_nothing(tmp_path: Path) -> None:
    lun = tmp_path / "lun.img"
    assert vmfs("mkfs", lun, "--size", "1G", "--label", "ds1", "--files", "400").exit_code == 0
    found = vmfs("inspect", lun, "journal", "3").stdout.splitlines()[0]
    at = int(found.split()[-1], 16) + 17 * (1 << 20)  # the logical volume begins there
    with lun.open("rb+") as file:
        file.seek(at)
        file.write(b"noise")

    before = vmfs("check", lun)
    dry = vmfs("journal", "discard", lun, 3, "--dry-run")
    still = vmfs("check", lun)
    done = vmfs("journal", "discard", lun, 3)
    again = vmfs("journal", "discard", lun, 3)

    assert before.exit_code == still.exit_code == 4
    assert dry.exit_code == done.exit_code == 0, dry.output + done.output
    assert "half 0 is damaged" in dry.stdout
    assert "lost: what it committed last" in dry.stdout
    assert dry.stdout.splitlines()[-1] == "nothing was changed"
    assert vmfs("check", lun).exit_code == 0
    assert again.exit_code == 1
    assert (
        again.stderr
        == "vmfs journal discard: the journal of slot 3 is sound: there is nothing to discard\n"
    )
