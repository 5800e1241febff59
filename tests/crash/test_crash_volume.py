"""Whole volumes under power cuts: small workloads, every crash, the oracle of `crash_volume`.

The workloads follow ACE (OSDI'18): few operations on a small tree, a persistence point among them;
nearly all crash bugs of real filesystems show with three operations or fewer.
"""

import pytest
import trio.testing

from tests.support.crash_volume import Step, full_lun, prepared_lun, recorded_lab, run, run_in_turn
from tests.support.powercut import RecordingDevice, explore

OPERATIONS: tuple[Step, ...] = (
    ("creat", b"A/new"),
    ("mkdir", b"A/dir"),
    ("symlink", b"B/sym", b"../A/foo"),
    ("link", b"A/foo", b"B/foo"),
    ("unlink", b"A/foo"),
    ("unlink", b"A/big"),
    ("rename", b"A/foo", b"B/foo"),
    ("rename", b"A/foo", b"B/bar"),
    ("rename", b"A", b"B/A"),
    ("exchange", b"A/foo", b"B/bar"),
    ("write", b"A/foo", 4_000, 3_000, 11),
    ("write", b"A/foo", 9_000, 70_000, 12),
    ("write", b"B/bar", 300, 900, 13),
    ("write", b"B/bar", 600_000, 700, 14),
    ("write", b"A/big", 1_048_000, 600_000, 15),
    ("truncate", b"A/foo", 100),
    ("truncate", b"A/big", 70_000),
    ("truncate", b"B/bar", 2_000_000),
    ("chmod", b"A/foo", 0o600),
)


def name_of(steps: Step | tuple[Step, ...]) -> str:
    if steps and isinstance(steps[0], str):
        return "-".join(part.decode() if isinstance(part, bytes) else str(part) for part in steps)
    return "+".join(name_of(step) for step in steps)


async def nothing(_device: RecordingDevice) -> None:
    """Recovery is the mount of the check itself."""


async def mount_and_unmount(device: RecordingDevice) -> None:
    """Recovery as a step of its own, so that it can be cut as well."""
    async with recorded_lab(device) as lab, lab.host("recoverer"):
        pass


@pytest.mark.slow
async def test_an_acknowledged_tree_survives(autojump_clock: trio.testing.MockClock) -> None:
    device, model = await prepared_lun()
    history = await run(
        device, model, [("creat", b"A/new"), ("write", b"A/new", 0, 700, 5), ("sync",)]
    )

    await explore(
        device, recover=nothing, check=history.check, depth=1, subset_count=1, image_count_max=6
    )

    assert history.checked == 6


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
async def test_one_operation_and_a_sync(
    autojump_clock: trio.testing.MockClock, operation: Step
) -> None:
    device, model = await prepared_lun()
    history = await run(device, model, [operation, ("sync",)])

    await explore(
        device, recover=nothing, check=history.check, depth=1, subset_count=2, image_count_max=16
    )


SEQUENCES: tuple[tuple[Step, ...], ...] = (
    # what is synced stays, though the name moves on
    (("write", b"A/foo", 0, 5_000, 21), ("fsync", b"A/foo"), ("rename", b"A/foo", b"B/foo")),
    # the classic replace by rename
    (
        ("creat", b"A/tmp"),
        ("write", b"A/tmp", 0, 9_500, 22),
        ("fsync", b"A/tmp"),
        ("rename", b"A/tmp", b"A/foo"),
        ("sync",),
    ),
    # blocks of a deleted file become those of a new one
    (
        ("unlink", b"A/big"),
        ("sync",),
        ("creat", b"B/new"),
        ("write", b"B/new", 0, 1_500_000, 23),
        ("sync",),
    ),
    # a directory's block becomes a file's
    (
        ("mkdir", b"B/d"),
        ("creat", b"B/d/x"),
        ("sync",),
        ("unlink", b"B/d/x"),
        ("rmdir", b"B/d"),
        ("sync",),
        ("creat", b"B/new"),
        ("write", b"B/new", 0, 70_000, 24),
        ("fsync", b"B/new"),
        ("write", b"B/new", 0, 70_000, 25),
        ("fsync", b"B/new"),
    ),
    # growth from resident to sub-block to file block, each synced
    (
        ("write", b"B/bar", 300, 400, 26),
        ("fsync", b"B/bar"),
        ("write", b"B/bar", 700, 6_000, 27),
        ("fsync", b"B/bar"),
        ("write", b"B/bar", 6_700, 9_000, 28),
        ("fsync", b"B/bar"),
    ),
    # growth into blocks that were promised, and held another file's data
    (
        ("write", b"A/big", 1_300_000, 1_800_000, 35),
        ("unlink", b"A/big"),
        ("sync",),
        ("creat", b"B/new"),
        ("hold", b"B/new"),
        ("write", b"B/new", 0, 1_048_576, 36),
        ("write", b"B/new", 1_048_576, 1_048_576, 37),
        ("write", b"B/new", 2_097_152, 1_048_576, 38),
        ("fsync", b"B/new"),
    ),
    # truncated and grown again: the old end never comes back
    (
        ("truncate", b"A/big", 100_000),
        ("truncate", b"A/big", 1_200_000),
        ("sync",),
        ("truncate", b"A/big", 0),
        ("write", b"A/big", 0, 3_000, 29),
        ("fsync", b"A/big"),
    ),
    # a linked file is unlinked and its other name replaced
    (
        ("link", b"A/foo", b"B/foo"),
        ("sync",),
        ("unlink", b"A/foo"),
        ("rename", b"B/bar", b"B/foo"),
        ("sync",),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("steps", SEQUENCES, ids=name_of)
async def test_a_sequence_of_operations(
    autojump_clock: trio.testing.MockClock, steps: tuple[Step, ...]
) -> None:
    device, model = await prepared_lun()
    history = await run(device, model, steps)

    await explore(
        device, recover=nothing, check=history.check, depth=1, subset_count=2, image_count_max=24
    )


REUSING: tuple[tuple[Step, ...], ...] = (
    # file blocks
    (
        ("unlink", b"A/big"),
        ("creat", b"B/new"),
        ("write", b"B/new", 0, 4_100_000, 31),
        ("sync",),
    ),
    # file blocks that a truncation has given back
    (
        ("truncate", b"A/big", 1_000),
        ("write", b"A/foo", 9_000, 4_000_000, 32),
        ("fsync", b"A/foo"),
        ("write", b"A/foo", 0, 100_000, 33),
        ("fsync", b"A/foo"),
    ),
    # sub-blocks: from a directory to a file, synced, written over, synced again
    (
        ("unlink", b"B/1"),
        ("creat", b"A/d1"),
        ("mkdir", b"B/d"),
        ("mkdir", b"B/e"),
        ("mkdir", b"B/f"),
        ("creat", b"B/d/x"),
        ("sync",),
        ("unlink", b"B/d/x"),
        ("rmdir", b"B/d"),
        ("write", b"A/d1", 0, 5_000, 34),
        ("fsync", b"A/d1"),
        ("write", b"A/d1", 0, 5_000, 35),
        ("fsync", b"A/d1"),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("steps", REUSING, ids=["blocks", "truncated", "sub-blocks"])
async def test_what_was_freed_is_used_again(
    autojump_clock: trio.testing.MockClock, steps: tuple[Step, ...]
) -> None:
    device, model = await full_lun()
    history = await run(device, model, steps)

    await explore(
        device, recover=nothing, check=history.check, depth=1, subset_count=2, image_count_max=24
    )


@pytest.mark.slow
async def test_the_power_fails_for_two_hosts(autojump_clock: trio.testing.MockClock) -> None:
    device, model = await prepared_lun()
    steps: list[Step] = [
        ("creat", b"A/one"),
        ("rename", b"A/one", b"A/two"),
        ("mkdir", b"A/three"),
        ("rename", b"A/two", b"A/four"),
        ("unlink", b"A/foo"),
        ("link", b"A/four", b"A/foo"),
        ("rmdir", b"A/three"),
    ]
    history = await run_in_turn(device, model, steps, hosts=["a", "b"])

    await explore(
        device, recover=nothing, check=history.check, depth=1, subset_count=2, image_count_max=60
    )


@pytest.mark.slow
async def test_recovery_may_be_cut_as_well(autojump_clock: trio.testing.MockClock) -> None:
    device, model = await prepared_lun()
    history = await run(
        device, model, [("unlink", b"A/big"), ("rename", b"A/foo", b"B/bar"), ("sync",)]
    )

    explored = await explore(
        device,
        recover=mount_and_unmount,
        check=history.check,
        depth=2,
        subset_count=1,
        image_count_max=6,
    )

    assert explored.recovery_image_count >= 20
