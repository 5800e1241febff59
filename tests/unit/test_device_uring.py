"""The ring itself, on the kernel that runs the test: results, errors, and whose it is."""

import errno
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.uring import needs_uring
from vmfs.device.buffers import AlignedBuffer
from vmfs.device.linux_uring import DEPTH_MAX, UringContext, UringOpcode
from vmfs.fuse.descriptors import descriptors_of
from vmfs.units import KIB, MIB

pytestmark = needs_uring

DEPTH = 4
LIMIT_SECONDS = 10


@pytest.fixture
def ring() -> Iterator[UringContext]:
    made = UringContext(DEPTH)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(MIB))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def results(ring: UringContext, count: int) -> dict[int, int]:
    """Wait for `count` completions."""
    found: dict[int, int] = {}
    while len(found) < count:
        readable, _, _ = select.select([ring.event_fd], [], [], LIMIT_SECONDS)
        assert readable
        for slot, result in ring.completed():
            assert slot not in found
            found[slot] = result
    return found


def test_nothing_has_completed_before_something_was_begun(ring: UringContext) -> None:
    assert ring.completed() == []


def test_the_rings_go_round_and_round(ring: UringContext, file: int) -> None:
    buffers = [AlignedBuffer(4 * KIB) for _ in range(DEPTH)]
    for turn in range(25):
        offsets = [(turn * DEPTH + slot) * 512 for slot in range(DEPTH)]
        for slot, offset in enumerate(offsets):
            ring.submit(
                slot, UringOpcode.READ, file,
                address=buffers[slot].address, length=4 * KIB, offset=offset,
            )  # fmt: skip

        assert results(ring, DEPTH) == dict.fromkeys(range(DEPTH), 4 * KIB)
        for buffer, offset in zip(buffers, offsets, strict=True):
            assert buffer.view == os.pread(file, 4 * KIB, offset)


def test_a_cold_read_completes_without_another_call(ring: UringContext, file: int) -> None:
    buffer = AlignedBuffer(4 * KIB)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    ring.submit(3, UringOpcode.READ, file, address=buffer.address, length=4 * KIB, offset=512 * KIB)

    assert results(ring, 1) == {3: 4 * KIB}
    assert buffer.view == os.pread(file, 4 * KIB, 512 * KIB)


def test_all_that_ended_before_anybody_asked_is_told(file: int) -> None:
    ring, buffer = UringContext(DEPTH_MAX), AlignedBuffer(4 * KIB)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    offsets = range(0, MIB, MIB // DEPTH_MAX)
    for slot, offset in enumerate(offsets):
        ring.submit(
            slot, UringOpcode.READ, file, address=buffer.address, length=4 * KIB, offset=offset
        )
    for offset in offsets:
        os.pread(file, 4 * KIB, offset)  # so it is there, and the ring was told

    assert results(ring, DEPTH_MAX) == dict.fromkeys(range(DEPTH_MAX), 4 * KIB)
    assert not select.select([ring.event_fd], [], [], 0)[0]  # nobody is woken for nothing
    ring.close()


def test_fewer_bytes_at_the_end_and_none_behind_it(ring: UringContext, file: int) -> None:
    buffer = AlignedBuffer(4 * KIB)
    for slot, offset in enumerate([MIB - 100, MIB]):
        ring.submit(
            slot, UringOpcode.READ, file, address=buffer.address, length=4 * KIB, offset=offset
        )

    assert results(ring, 2) == {0: 100, 1: 0}


def test_an_error_is_the_result_of_its_request_only(ring: UringContext, file: int) -> None:
    buffer = AlignedBuffer(4 * KIB)
    for slot, (fd, address) in enumerate([(-1, buffer.address), (file, 8), (file, buffer.address)]):
        ring.submit(slot, UringOpcode.READ, fd, address=address, length=4 * KIB, offset=0)

    assert results(ring, 3) == {0: -errno.EBADF, 1: -errno.EFAULT, 2: 4 * KIB}


def test_a_request_that_was_refused_is_not_begun_later(ring: UringContext, file: int) -> None:
    buffers = [AlignedBuffer(4 * KIB) for _ in range(2)]
    refusals: list[int | None] = []

    def submit(slot: int) -> None:
        try:
            ring.submit(
                slot, UringOpcode.READ, file,
                address=buffers[slot].address, length=4 * KIB, offset=0,
            )  # fmt: skip
        except OSError as error:
            refusals.append(error.errno)

    stranger = threading.Thread(target=submit, args=(0,))
    stranger.start()
    stranger.join()
    submit(1)

    assert refusals == [errno.EEXIST]  # of a thread that has not made it
    assert results(ring, 1) == {1: 4 * KIB}
    assert ring.completed() == []
    assert bytes(buffers[0].view) == bytes(4 * KIB)


def test_no_child_inherits_it(ring: UringContext) -> None:
    assert not os.get_inheritable(ring.event_fd)
    assert not os.get_inheritable(ring._fd)


def test_closing_gives_every_descriptor_back() -> None:
    before = descriptors_of("anon_inode:[io_uring]") | descriptors_of("anon_inode:[eventfd]")

    for _ in range(3):
        UringContext(DEPTH).close()

    after = descriptors_of("anon_inode:[io_uring]") | descriptors_of("anon_inode:[eventfd]")
    assert after == before
