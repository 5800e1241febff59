"""lockd as a process, with hosts that are processes: pidfds, signals, sockets, locks on files."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lockd.client import (
    AnswerKind,
    AskKind,
    Conflict,
    Event,
    EventNotice,
    FenceResult,
    Good,
    HostIdentity,
    LockClient,
    LockdDisconnected,
    LockdUnreachable,
    Lost,
    PermitRecalled,
    connect,
    observe,
)
from lockd.protocol.codec import FrameReader, decode, encode
from lockd.protocol.limits import REPLY_SIZE_MAX, REQUEST_SIZE_MAX
from lockd.protocol.messages import Hello, Refused, Status
from lockd.protocol.terms import AuditKind, ErrorCode, HostEnd
from tests.support.lockd import LockdProcess, host_process, identity, lockd_process

pytestmark = pytest.mark.slow


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return path


@pytest.fixture
def lockd(lun: Path) -> Iterator[LockdProcess]:
    with lockd_process({"ds1": lun}) as lockd:
        yield lockd


def uuid(name: str) -> bytes:
    return identity(name).host_uuid


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def command(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def ignore(_: Event) -> None:
    pass


def me() -> HostIdentity:
    return identity("tester")


# --- compare-and-write ----------------------------------------------------------------------------


def test_two_processes_count_and_lose_nothing(lockd: LockdProcess, lun: Path) -> None:
    times = 300
    with (
        host_process(lockd.socket, "esx1", "count", "7", str(times)) as one,
        host_process(lockd.socket, "esx2", "count", "7", str(times)) as two,
    ):
        for process in (one, two):
            assert line(process).startswith("ready")
            assert line(process) == f"counted {times}"

    block = lun.read_bytes()[7 * 512 : 8 * 512]
    assert int.from_bytes(block[:8], "little") == 2 * times


async def test_what_lockd_writes_is_read_through_the_file_at_once(
    lockd: LockdProcess, lun: Path
) -> None:
    async with connect(lockd.socket, me(), "ds1", ignore) as client:
        assert client.lun_size == 1 << 20
        outcome = await client.compare_and_write(0, bytes(512), b"x" * 512, durable=True, label="t")

        assert isinstance(outcome, Good)
        with lun.open("rb") as file:
            assert file.read(512) == b"x" * 512


# --- asks and death -------------------------------------------------------------------------------


async def test_an_ask_is_answered_by_the_other_process(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            answer = await client.ask(9, AskKind.ATTRIBUTES, uuid("esx1"), label="vm1")

        assert (answer.kind, answer.payload) == (AnswerKind.DONE, b"here you are")
        assert line(holder) == "asked ATTRIBUTES 9"


async def test_sigkill_of_the_holder_answers_the_ask_in_milliseconds(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "deaf") as holder:
        assert line(holder) == "ready 1"
        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            started = 0.0

            async def kill() -> None:
                nonlocal started
                while not (await client.status()).waits:
                    pass
                started = time.monotonic()
                holder.kill()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                answer = await client.ask(9, AskKind.GIVE_UP, uuid("esx1"), label="vm1")
                took = time.monotonic() - started

            assert answer.kind is AnswerKind.GONE
            assert answer.proof == f"the exit of pid {holder.pid} was seen"
            assert took < 0.25
            fenced = await client.fence(uuid("esx1"), 1)
            assert fenced.result is FenceResult.FENCED


async def test_fence_of_a_stopped_process_takes_milliseconds(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        os.kill(holder.pid, signal.SIGSTOP)
        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            started = time.monotonic()
            fenced = await client.fence(uuid("esx1"))
            took = time.monotonic() - started

        assert fenced.result is FenceResult.FENCED
        assert holder.wait(5) == -signal.SIGKILL
        assert took < 0.25


async def test_a_killed_host_may_start_again_at_once(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as first:
        assert line(first) == "ready 1"
        first.send_signal(signal.SIGKILL)  # not waited for: the new start is that quick
        host = HostIdentity(host_uuid=uuid("esx1"), name="esx1", nonce=2)
        async with connect(lockd.socket, host, "ds1", ignore) as client:
            assert client.generation == 2


async def test_lockd_does_not_kill_itself(lun: Path, lockd: LockdProcess) -> None:
    async with connect(lockd.socket, me(), "ds1", ignore) as client:
        ghost = await client.fence(b"g" * 16, nonce=5)

    assert ghost.result in (FenceResult.FENCED, FenceResult.UNKNOWN)
    assert lockd.process.poll() is None


async def test_a_process_that_has_the_lun_open_unregistered_is_seen(
    lockd: LockdProcess, lun: Path
) -> None:
    with lun.open("r+b"):
        async with observe(lockd.socket) as observer:
            answer = await observer.fence_on("ds1", b"g" * 16)
            assert answer.result is FenceResult.UNKNOWN
            assert f"pid {os.getpid()}" in answer.proof

    async with observe(lockd.socket) as observer:
        answer = await observer.fence_on("ds1", b"g" * 16)
        assert answer.result is FenceResult.FENCED


# --- reservations ---------------------------------------------------------------------------------


async def test_reserve_waits_for_the_other_process_and_keeps_it_out(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as other:
        assert line(other) == "ready 1"
        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            assert isinstance(await client.reserve(), Good)
            assert line(other) == "recalled"
            command(other, "reserve")
            assert line(other) == "reserve Conflict"

            await client.release()

            assert line(other) == "granted"


async def test_the_death_of_the_holder_frees_the_lun(lockd: LockdProcess) -> None:
    events: list[Event] = []
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        clients: list[LockClient] = []

        def on_event(event: Event) -> None:
            events.append(event)
            if isinstance(event, PermitRecalled):
                clients[0].returned()

        async with connect(lockd.socket, me(), "ds1", on_event) as client:
            clients.append(client)
            command(holder, "reserve")
            while await client.compare_and_write(
                1, b"?" * 512, b"!" * 512, durable=False, label=""
            ) != Conflict(holder=f"esx1 (pid {holder.pid})"):
                pass
            assert line(holder) == "reserve Good"
            holder.kill()

            while isinstance(outcome := await client.reserve(), Conflict):
                pass

            assert isinstance(outcome, Good)


# --- lockd's own end ------------------------------------------------------------------------------


async def test_hosts_learn_that_lockd_is_gone_and_are_adopted_after_its_restart(
    lockd: LockdProcess,
) -> None:
    events: list[Event] = []
    async with connect(lockd.socket, me(), "ds1", events.append) as client:
        generation = client.generation
        await trio.to_thread.run_sync(lockd.kill)
        with pytest.raises(LockdDisconnected):
            await client.status()
        while not events:
            await trio.lowlevel.checkpoint()
        assert isinstance(events[-1], Lost)

    await trio.to_thread.run_sync(lockd.start)

    async with connect(lockd.socket, me(), "ds1", ignore) as client:
        assert (client.generation, client.adopted, client.incarnation) == (generation, True, 2)


async def test_a_host_that_died_while_lockd_was_down_is_known_dead(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        lockd.kill()
        holder.kill()
        holder.wait()
        lockd.start()

        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            answer = await client.ask(1, AskKind.GIVE_UP, uuid("esx1"), label="")

        assert answer.kind is AnswerKind.GONE
        assert answer.proof.startswith(f"pid {holder.pid} does not exist any more")


async def test_a_host_that_lives_on_while_lockd_was_down_can_be_fenced(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        os.kill(holder.pid, signal.SIGSTOP)
        lockd.restart()

        async with connect(lockd.socket, me(), "ds1", ignore) as client:
            fenced = await client.fence(uuid("esx1"), 1)

        assert fenced.result is FenceResult.FENCED
        assert holder.wait(5) == -signal.SIGKILL


def test_sigterm_ends_lockd_cleanly(lockd: LockdProcess) -> None:
    assert lockd.end() == 0

    assert not lockd.socket.exists()
    assert "ended by SIGTERM" in lockd.log()


# --- two lockds -----------------------------------------------------------------------------------


def try_lockd(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from lockd.cli.lockd import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    return done.returncode, done.stderr


def test_a_second_lockd_on_one_lun_is_refused(
    lockd: LockdProcess, lun: Path, tmp_path: Path
) -> None:
    link = tmp_path / "the-same.img"
    link.hardlink_to(lun)

    status, text = try_lockd(
        f"--lun=other={link}", f"--socket={tmp_path}/s", f"--state={tmp_path}/other"
    )

    assert status == 1
    assert f"another lockd serves LUN other ({link})" in text


def test_a_second_lockd_on_one_state_directory_is_refused(
    lockd: LockdProcess, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(4096))

    status, text = try_lockd(
        f"--lun=ds1={other}", f"--socket={tmp_path}/s", f"--state={lockd.state}"
    )

    assert status == 1
    assert f"another lockd serves the state directory {lockd.state}" in text


def test_the_socket_of_a_live_lockd_is_refused(lockd: LockdProcess, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(4096))

    status, text = try_lockd(
        f"--lun=ds1={other}", f"--socket={lockd.socket}", f"--state={tmp_path}/other"
    )

    assert status == 1
    assert "another lockd listens on" in text


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "cannot open"),
        (lambda path: path.write_bytes(b"short"), "less than one block"),
        (lambda path: path.mkdir(), "cannot open"),
    ],
    ids=["missing", "too-small", "directory"],
)
def test_a_lun_that_cannot_be_served_is_refused(
    tmp_path: Path, prepare: object, words: str
) -> None:
    assert callable(prepare)
    prepare(tmp_path / "lun")

    status, text = try_lockd(
        f"--lun=ds1={tmp_path}/lun", f"--socket={tmp_path}/s", f"--state={tmp_path}/state"
    )

    assert status == 1
    assert words in text


# --- the socket -----------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_alone(lockd: LockdProcess) -> None:
    assert stat.S_IMODE(lockd.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(lockd.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(lockd.state.stat().st_mode) == 0o700


async def test_without_lockd_the_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(LockdUnreachable, match=str(tmp_path)):
        async with observe(tmp_path / "socket"):
            pass


def exchange(path: Path, *data: bytes) -> list[tuple[int, object]]:
    """Send bytes, and read frames until lockd hangs up or has answered the Status."""
    frames = FrameReader(REPLY_SIZE_MAX)
    heard: list[tuple[int, object]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        for part in data:
            sock.sendall(part)
        while received := sock.recv(65536):
            heard += [decode(body) for body in frames.feed(received)]
            if any(number == 99 for number, _ in heard):
                break
    return heard


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (REQUEST_SIZE_MAX + 1).to_bytes(4, "big"),
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x03abc",
        encode(1, Hello(version=1, software="t"))[:-1] + b"\xc1",
    ],
    ids=["http", "oversized", "never-used-byte", "text", "damaged"],
)
async def test_garbage_ends_its_session_with_a_clear_error_and_no_other(
    lockd: LockdProcess, garbage: bytes
) -> None:
    async with connect(lockd.socket, me(), "ds1", ignore) as client:
        heard = await trio.to_thread.run_sync(exchange, lockd.socket, garbage)

        assert [type(message) for _, message in heard] == [Refused]
        refused = heard[0][1]
        assert isinstance(refused, Refused)
        assert refused.code is ErrorCode.PROTOCOL
        assert len((await client.status()).hosts) == 1


async def test_a_peer_that_never_reads_is_cut_off(lockd: LockdProcess) -> None:
    hello = encode(1, Hello(version=1, software="t"))
    flood = b"".join(encode(number, Status()) for number in range(2, 3000))

    def never_read() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(lockd.socket))
            sock.sendall(hello)
            try:
                while True:
                    sock.sendall(flood)
            except (BrokenPipeError, ConnectionResetError):
                return True

    async with connect(lockd.socket, me(), "ds1", ignore) as client:
        assert await trio.to_thread.run_sync(never_read)
        assert (await client.status()).hosts[0].end is HostEnd.OPEN


async def test_a_watcher_sees_a_fence_from_beginning_to_proof(lockd: LockdProcess) -> None:
    events: list[Event] = []
    with host_process(lockd.socket, "esx1", "hold") as holder:
        assert line(holder) == "ready 1"
        async with observe(lockd.socket, events.append) as observer:
            await observer.watch()
            await observer.fence_on("ds1", uuid("esx1"))

    kinds = [event.entry.kind for event in events if isinstance(event, EventNotice)]
    assert kinds[0] is AuditKind.FENCE_BEGUN
    assert AuditKind.FENCED in kinds
