"""Notifications, byte by byte, as include/uapi/linux/fuse.h has them."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmfs.fuse import notify
from vmfs.fuse.descriptors import SESSION, descriptors_of
from vmfs.fuse.notify import Session, Silence


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def header(length: int, code: int) -> bytes:
    return length.to_bytes(4, "little") + code.to_bytes(4, "little") + bytes(8)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=number < 0)


def test_notifications_have_the_layout_of_the_kernel(ends: tuple[int, int]) -> None:
    read, write = ends
    session = Session(write)
    assert session.names_expire
    assert os.read(read, 100) == header(16, 8)

    assert session.attributes(0x1234)
    assert os.read(read, 100) == header(40, 2) + u64(0x1234) + u64(-1) + u64(0)
    session.grown(0x1234, 77)
    assert os.read(read, 100) == header(40, 4) + u64(0x1234) + u64(77) + u64(0)
    session.names()
    assert os.read(read, 100) == header(16, 8)
    session.everything(0x1234)
    assert os.read(read, 100) == header(40, 2) + u64(0x1234) + u64(0) + u64(0)
    session.close()


@pytest.mark.parametrize(
    ("number", "found"),
    [(errno.ENOENT, False), (errno.ENOTCONN, True), (errno.EINVAL, True)],
)
def test_only_a_missing_inode_counts_as_not_found(
    number: int, found: bool, ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(ends[1])

    def refuse(_fd: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(notify.os, "write", refuse)
    assert session.attributes(5) is found
    session.names()  # raises nothing
    session.close()


def test_old_kernel_knows_no_epochs(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _data: bytes) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(notify.os, "write", refuse)
    session = Session(ends[1])
    assert not session.names_expire
    assert session.attributes_expire
    session.close()


def test_session_that_is_closed_reaches_nobody(ends: tuple[int, int]) -> None:
    session = Session(ends[1])
    os.read(ends[0], 100)
    session.close()
    again = os.dup(ends[1])  # perhaps the very number that the session had

    session.names()
    os.write(again, b"x")

    assert os.read(ends[0], 100) == b"x"
    os.close(again)


def test_silence_promises_nothing() -> None:
    assert not Silence().attributes_expire
    assert not Silence().names_expire


def test_descriptors_of_fuse_are_told_from_others(tmp_path: Path) -> None:
    before = descriptors_of(SESSION)
    with (tmp_path / "fuse").open("wb"):
        assert descriptors_of(SESSION) == before
