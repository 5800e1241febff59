"""lockd's parts that touch the system, each by itself: LUN files, links, sockets, processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from lockd.link import Link, SocketLink, StreamLink
from lockd.protocol import messages as m
from lockd.protocol.limits import BACKLOG_SIZE_MAX
from lockd.protocol.terms import AuditKind
from lockd.server import AlreadyServed, LunError
from lockd.server.listener import SocketUnusable, accept, listening
from lockd.server.lun import LunFile, first_difference
from lockd.server.processes import (
    Processes,
    UnknownPeer,
    boot_id,
    find_openers,
    start_ticks,
)
from lockd.state import ProcessId
from lockd.store import StoreError
from tests.support.lockd_lab import Lab, RecordingStore

A, B, ZERO = b"a" * 512, b"b" * 512, bytes(512)


# --- the LUN --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lun"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def lun(path: Path) -> Iterator[LunFile]:
    lun = LunFile.open("ds1", path)
    yield lun
    lun.close()


def test_lun_writes_what_was_as_expected_in_its_place(lun: LunFile, path: Path) -> None:
    assert lun.compare_and_write(7, ZERO, A) == m.Good()
    assert lun.sync() is None

    assert lun.size == 4096
    assert path.read_bytes() == bytes(7 * 512) + A


def test_lun_changes_nothing_on_a_miscompare(lun: LunFile, path: Path) -> None:
    assert lun.compare_and_write(1, A, B) == m.Miscompare(offset=0, current=ZERO)
    assert path.read_bytes() == bytes(4096)


def test_lun_sees_what_others_write_to_the_file(lun: LunFile, path: Path) -> None:
    with path.open("r+b") as file:
        file.write(A)

    assert lun.compare_and_write(0, A, B) == m.Good()


def test_lun_that_shrank_is_an_error_and_not_a_miscompare(lun: LunFile, path: Path) -> None:
    os.truncate(path, 1024)

    result = lun.compare_and_write(5, ZERO, A)

    assert isinstance(result, str)
    assert "block 5 is not there any more" in result


def test_lun_errors_are_told_in_words(path: Path) -> None:
    lun = LunFile.open("ds1", path)
    lun.close()

    assert "Bad file descriptor" in str(lun.compare_and_write(0, ZERO, A))
    assert "flush: Bad file descriptor" in str(lun.sync())


def test_lun_is_served_once_and_again_after_its_close(path: Path) -> None:
    first = LunFile.open("ds1", path)
    with pytest.raises(AlreadyServed, match="another lockd serves LUN ds2"):
        LunFile.open("ds2", path)
    first.close()

    LunFile.open("ds3", path).close()


def test_lun_without_a_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 511)

    with pytest.raises(LunError, match="511 bytes, less than one block"):
        LunFile.open("ds1", tmp_path / "small")


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))
def test_first_difference_is_the_first(one: bytes, other: bytes) -> None:
    if one != other:
        at = first_difference(one, other)
        assert one[:at] == other[:at]
        assert one[at] != other[at]


# --- links ----------------------------------------------------------------------------------------


async def sockets() -> tuple[Link, Link]:
    one, other = socket.socketpair()
    return SocketLink(one), SocketLink(other)


async def streams() -> tuple[Link, Link]:
    one, other = memory_stream_pair()
    return StreamLink(one), StreamLink(other)


@pytest.fixture(params=[sockets, streams], ids=["socket", "stream"])
async def links(request: pytest.FixtureRequest) -> tuple[Link, Link]:
    made: tuple[Link, Link] = await request.param()
    return made


async def read_all(link: Link, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := await link.receive()):
        data += part
    return data


async def test_link_brings_everything_in_order_however_much_is_posted(
    links: tuple[Link, Link],
) -> None:
    one, other = links
    parts = [bytes([n]) * 100_000 for n in range(30)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_backlog)
        for part in parts:
            one.post(part)
        data = await read_all(other, 3_000_000)
        await one.drain()
        nursery.cancel_scope.cancel()

    assert data == b"".join(parts)
    await one.aclose()
    assert await other.receive() == b""
    await other.aclose()


async def test_link_whose_peer_does_not_read_is_cut_off(links: tuple[Link, Link]) -> None:
    one, other = links
    for _ in range(2 + BACKLOG_SIZE_MAX // 1_000_000):
        one.post(bytes(1_000_000))

    assert one.overrun
    one.post(b"more")  # is lost, silently
    assert await one.receive() == b""
    await one.aclose()
    await other.aclose()


async def test_link_that_is_closed_wakes_its_reader(links: tuple[Link, Link]) -> None:
    one, other = links
    heard: list[bytes] = []

    async def read() -> None:
        heard.append(await one.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        one.close()
    one.close()  # again does nothing

    assert heard == [b""]
    assert await one.receive() == b""
    await one.drain()
    await one.aclose()
    await other.aclose()


async def test_link_to_a_peer_that_is_gone_is_at_its_end(links: tuple[Link, Link]) -> None:
    one, other = links
    await other.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_backlog)
        one.post(b"anybody?")
        assert await one.receive() == b""
        nursery.cancel_scope.cancel()
    await one.aclose()


# --- the socket -----------------------------------------------------------------------------------


async def test_socket_of_a_dead_lockd_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "socket"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))

    with listening(path) as listener, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        accepted = await accept(listener)
        accepted.close()
        with pytest.raises(SocketUnusable, match="another lockd listens"), listening(path):
            pass

    assert not path.exists()


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


async def test_process_that_is_killed_is_seen_to_exit(child: subprocess.Popen[bytes]) -> None:
    seen: list[tuple[ProcessId, str]] = []
    ticks = start_ticks(child.pid)
    assert ticks is not None
    process = ProcessId(child.pid, ticks, boot_id())
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, lambda p, how: seen.append((p, how)))
        assert processes.find_again(process) == ""
        assert processes.find_again(process) == ""  # watched once
        assert processes.kill(process) == ""
        await trio.lowlevel.checkpoint()
    # the nursery ends when the watcher has

    assert seen == [(process, f"the exit of pid {child.pid} was seen")]
    assert processes.kill(process) == ""  # dead already


@pytest.mark.parametrize(
    ("ticks", "boot", "words"),
    [
        (1, "this", "the number is another's now"),
        (0, "earlier", "the machine was booted since"),
    ],
)
async def test_process_of_another_time_is_known_dead(
    child: subprocess.Popen[bytes], ticks: int, boot: str, words: str
) -> None:
    process = ProcessId(child.pid, ticks, boot_id() if boot == "this" else "earlier")
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, lambda *_: None)

        assert words in processes.find_again(process)


async def test_process_that_is_gone_is_known_dead(child: subprocess.Popen[bytes]) -> None:
    ticks = start_ticks(child.pid)
    assert ticks is not None
    child.kill()
    child.wait()
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, lambda *_: None)

        proof = processes.find_again(ProcessId(child.pid, ticks, boot_id()))

    assert proof == f"pid {child.pid} does not exist any more"
    assert start_ticks(child.pid) is None


async def test_lockd_never_kills_itself_and_closing_ends_the_watch() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    me = ProcessId(os.getpid(), ticks, boot_id())
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, lambda *_: None)
        processes.find_again(me)
        await wait_all_tasks_blocked()

        assert processes.kill(me) == "it is lockd's own process"
        processes.close()


async def test_peer_that_died_before_it_was_looked_at_is_not_taken_for_another(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    with listening(path) as listener:
        text = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect({str(path)!r})"
        await trio.run_process([sys.executable, "-c", text])
        peer = await accept(listener)
        async with trio.open_nursery() as nursery:
            processes = Processes(nursery, lambda *_: None)
            with peer, pytest.raises(UnknownPeer):
                processes.identify(peer)


def test_openers_for_writing_are_found_and_readers_are_not(path: Path) -> None:
    text = "import sys, mmap\nf = open(sys.argv[1], sys.argv[2])\n"
    mapped = text + "m = mmap.mmap(f.fileno(), 4096)\nf.close()\n"
    for program, mode, found in [(text, "r+b", True), (text, "rb", False), (mapped, "r+b", True)]:
        with subprocess.Popen(
            [sys.executable, "-c", program + "print(flush=True)\ninput()", str(path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as opener:
            assert opener.stdout is not None
            opener.stdout.readline()

            strangers, _ = find_openers(path, frozenset())
            others, _ = find_openers(path, frozenset({opener.pid}))

            assert any(f"pid {opener.pid} " in words for words in strangers) == found
            assert others == ()
            opener.communicate(b"\n")


# --- the audit trail is not worth an outage -------------------------------------------------------


class NoAudit(RecordingStore):
    """A store whose audit trail cannot be written."""

    def append(self, entries: object) -> None:
        raise StoreError("disk full")


def test_without_an_audit_trail_lockd_goes_on_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = Lab()
    lab.engine._store = NoAudit(lab.log)

    lab.host("esx1")
    lab.host("esx2")

    assert [r.message for r in caplog.records if "audit trail lost" in r.message] == [
        "audit trail lost from here on: disk full"
    ]


def test_events_are_logged_in_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "lockd")
    lab = Lab()
    lab.host("esx1")
    lab.ask("esx1", m.CompareAndWrite(lba=3, expected=ZERO, new=A, durable=False, label="vm1.vmdk"))
    lab.exit("esx1")

    lines = [(r.levelname, r.message) for r in caplog.records]
    who = "lun=ds1 host='esx1 (pid 101)' generation=1"
    assert lines == [
        ("INFO", f"registered: esx1 (pid 101) registered {who}"),
        ("DEBUG", f"lock changed: vm1.vmdk {who} block=3"),
        ("WARNING", f"exited: esx1 (pid 101) is dead: the exit of pid 101 was seen {who}"),
    ]
    assert AuditKind.LOCK_CHANGED.name in " ".join(lab.log)
