"""What the kill fence rests on: a process whose exit was seen writes nothing any more.

A process has 16 writes of 1 MiB in flight (O_DIRECT, Linux AIO) and is killed. As soon as its pidfd
says that it is gone, the whole device is overwritten, and then looked at again and again: a write
that came late would show. (It does, when the test does not wait for the exit.)
"""

import mmap
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loop import loop_device, needs_loop
from tests.support.uring import needs_uring
from vmfs.units import MIB

pytestmark = pytest.mark.slow

COUNT = 32
TRIALS = 3
LOOKS = 8
LIMIT_SECONDS = 60

WRITER = f"""
import sys, trio
from vmfs.device.direct import DirectDevice

async def main():
    device = DirectDevice.open(sys.argv[1], writable=True)
    async def work(number):
        turn = 0
        while True:
            turn += 1
            await device.write((number + 16 * (turn % 2)) * {MIB}, bytes([1 + turn % 255]) * {MIB})
            if turn == 3 and number == 0:
                print("going", flush=True)
    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(work, number)

trio.run(main)
"""


READER = f"""
import os, sys, trio
from vmfs.device import patience
from vmfs.device.image import ImageDevice

async def main():
    patience.LOOK_SECONDS = 0.0
    device = ImageDevice.open(sys.argv[1], writable=True)
    async def work(number):
        for turn in range(1_000_000):
            os.posix_fadvise(device._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            await device.read(number % {COUNT} * {MIB} + turn % 16 * 65536, 65536)
            if turn == 3 and number == 0:
                assert device._misses is not None
                print("going", flush=True)
    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(work, number)

trio.run(main)
"""


def kill_at_work(lun: Path, program: str = WRITER) -> None:
    """Start the program on `lun`, kill it in the middle of its work, and see its exit."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(lun)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    pidfd = os.pidfd_open(process.pid)
    try:
        assert process.stdout.readline() == b"going\n"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone, _, _ = select.select([pidfd], [], [], LIMIT_SECONDS)
        os.close(pidfd)
        process.stdout.close()
    assert gone
    process.wait()


def count_late_bytes(lun: Path) -> int:
    """Overwrite everything; bytes that are not ours at one of the next looks."""
    ours, seen = mmap.mmap(-1, COUNT * MIB), mmap.mmap(-1, COUNT * MIB)
    fd = os.open(lun, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        assert os.pwritev(fd, [ours], 0) == COUNT * MIB
        for _ in range(LOOKS):
            assert os.preadv(fd, [seen], 0) == COUNT * MIB
            if seen[:] != ours[:]:
                return COUNT * MIB - seen[:].count(0)
    finally:
        os.close(fd)
    return 0


@pytest.mark.parametrize("kind", ["file", pytest.param("block device", marks=needs_loop)])
def test_nothing_is_written_after_the_exit_was_seen(kind: str, tmp_path: Path) -> None:
    image = tmp_path / "lun.img"
    image.write_bytes(bytes(COUNT * MIB))
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("no O_DIRECT here")
    if kind == "file":
        late = [_trial(image) for _ in range(TRIALS)]
    else:
        with loop_device(image) as node:
            late = [_trial(node) for _ in range(TRIALS)]

    assert late == [0] * TRIALS


@needs_uring
def test_reads_in_flight_hold_up_no_exit_and_change_nothing(tmp_path: Path) -> None:
    image = tmp_path / "lun.img"
    image.write_bytes(bytes(COUNT * MIB))
    with image.open("rb") as file:
        os.fsync(file.fileno())  # only clean pages can be dropped

    kill_at_work(image, READER)

    assert count_late_bytes(image) == 0


def _trial(lun: Path) -> int:
    kill_at_work(lun)
    return count_late_bytes(lun)
