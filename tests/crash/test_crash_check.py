"""A check of what a crash left, before anything mounts it: it sees what the next mount will see.

The journal is laid over the volume in memory (`vmfs.check.journals`), by code of its own. So on
every image on which the filesystem's recovery succeeds, the check must find nothing either, and the
reader under `ls` must show the very tree that the mount then shows.
"""

import pytest
import trio.testing

from tests.support.checked import describe
from tests.support.crash_volume import History, Step, observe, prepared_lun, recorded_lab, run
from tests.support.powercut import RecordingDevice, explore
from vmfs.check import check_device, content
from vmfs.check.findings import Findings
from vmfs.check.opening import open_lun
from vmfs.ondisk.file_desc import ROOT_FD, FileType

WORKLOADS: tuple[tuple[Step, ...], ...] = (
    (("creat", b"A/new"), ("write", b"A/new", 0, 700, 5), ("sync",)),
    (("unlink", b"A/big"), ("sync",)),
    (("rename", b"A/foo", b"B/bar"), ("sync",)),
    (("truncate", b"A/big", 70_000), ("sync",)),
    (("write", b"A/foo", 9_000, 70_000, 12), ("mkdir", b"A/dir"), ("sync",)),
)


async def nothing(_device: RecordingDevice) -> None:
    """The images are taken as they are."""


async def tree_without_mount(device: RecordingDevice) -> set[bytes]:
    """Paths of all files, as `vmfs ls -R` finds them."""
    reader = (await open_lun(device, Findings())).reader
    found: set[bytes] = set()
    todo = [(b"/", await reader.node(ROOT_FD))]
    while todo:
        path, node = todo.pop()
        found.add(path)
        entries = await content.entries(reader, node) if node.is_directory else []
        todo += [
            (path + entry.name + b"/", await reader.node(entry.address))
            for entry in entries
            if entry.name not in (b".", b"..") and entry.type is not FileType.SYSTEM
        ]
    return found


class Verdict:
    """Check an image, then mount it, and hold the two against each other."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.replays = 0

    async def check(self, device: RecordingDevice, marks: tuple[object, ...]) -> None:
        del marks
        report = await check_device(device)
        assert not report.errors, "\n".join(describe(report))
        self.replays += report.counts.get("needs-replay", 0)
        before = await tree_without_mount(device)
        async with recorded_lab(device) as lab, lab.host("survivor") as volume:
            found, _ = await observe(volume)
        assert before == set(found)


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda steps: "-".join(s[0] for s in steps))
async def test_check_before_the_mount_sees_what_the_mount_sees(
    autojump_clock: trio.testing.MockClock, workload: tuple[Step, ...]
) -> None:
    device, model = await prepared_lun()
    verdict = Verdict(await run(device, model, workload))

    await explore(
        device, recover=nothing, check=verdict.check, depth=1, subset_count=2, image_count_max=20
    )

    assert verdict.replays, "no image needed a replay: the workload proves nothing"
