"""What a mount says of its own operations, and that asking it never hurts."""

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.volumes import names, put, volume_lab
from vmfs.cli.lock_waits import inside_lines
from vmfs.cli.mount_report import MountReport, ask_mount, report_path, serve_report
from vmfs.fuse.mountinfo import MountEntry
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.disk_lock import LockMode
from vmfs.volume import Volume

ENTRY = MountEntry(
    major=0, minor=77, mount_point="/m", filesystem_type="fuse.vmfs", source="/lun", options="rw"
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMFS_RUNTIME_DIR", str(tmp_path))
    return report_path(77)


async def lock_of_new_file(volume: Volume) -> LockId:
    made = await put(volume, b"f", b"x")
    return LockId(LockKind.FILE_DESC, made.address, volume._ground.desc_offset(made.address))


async def test_operations_at_work_and_waiting_are_told(
    path: Path, autojump_clock: MockClock
) -> None:
    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        lock = await lock_of_new_file(a)
        assert await names(b) == [b"f"]  # from now on others can reach it
        pin = await a.locks.acquire(lock, LockMode.EXCLUSIVE, label="write f")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(want, b, lock)
            await trio.sleep(2)
            told_by_a = MountReport.of(a, trio.current_time)
            told_by_b = MountReport.of(b, trio.current_time)
            pin.release()

        holder = list(inside_lines("a (pid 1)", told_by_a, lock.lv_offset))
        waiter = list(inside_lines("b (pid 2)", told_by_b, lock.lv_offset))
        assert holder == ["a (pid 1) is at work on it: write f"]
        assert len(waiter) == 1
        assert waiter[0].startswith("inside b (pid 2) an operation for 'read f' waits 2.0 s: ")
        assert list(inside_lines("a (pid 1)", told_by_a, lock.lv_offset + 512)) == []


async def want(volume: Volume, lock: LockId) -> None:
    (await volume.locks.acquire(lock, LockMode.SHARED, label="read f")).release()


async def test_report_goes_over_the_socket_as_it_is(path: Path) -> None:
    async with volume_lab() as lab, lab.host("a") as a, trio.open_nursery() as nursery:
        pin = await a.locks.acquire(await lock_of_new_file(a), LockMode.EXCLUSIVE, label="f")
        await nursery.start(serve_report, path, a, lambda: 5.0)
        assert (await trio.Path(path).stat()).st_mode & 0o077 == 0

        told = [await ask_mount(ENTRY) for _ in range(3)]

        assert told == [MountReport.of(a, lambda: 5.0)] * 3
        pin.release()
        nursery.cancel_scope.cancel()


async def test_mount_that_is_not_there_or_talks_nonsense_says_nothing(path: Path) -> None:
    assert await ask_mount(ENTRY) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer_nonsense, listener)
            assert await ask_mount(ENTRY) is None


def answer_nonsense(listener: socket.socket) -> None:
    stream, _ = listener.accept()
    with stream:
        stream.sendall(b'{"waits": 3}')


async def test_mount_that_hangs_is_not_waited_for(path: Path, autojump_clock: MockClock) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()  # the kernel takes the connection; nobody ever answers
        assert await ask_mount(ENTRY) is None
