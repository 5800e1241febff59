"""The commands lockd and lockctl: what they print, and what they end with."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lockd.cli import lockctl, show
from lockd.cli import lockd as lockd_command
from lockd.protocol.messages import (
    AuditEntry,
    HostStatus,
    LunStatus,
    ReservationStatus,
    StatusReport,
    WaitStatus,
)
from lockd.protocol.terms import AuditKind, HostEnd, PermitState
from tests.support.lockd import LockdProcess, host_process, identity, lockd_process

MISSING = "/nonexistent/socket"


@pytest.fixture
def lockd(tmp_path: Path) -> Iterator[LockdProcess]:
    lun = tmp_path / "lun.img"
    lun.write_bytes(bytes(1 << 20))
    with lockd_process({"ds1": lun}) as lockd:
        yield lockd


def run(lockd: LockdProcess, *arguments: str) -> Result:
    return CliRunner().invoke(lockctl.main, ["--socket", str(lockd.socket), *arguments])


def host_status(**changes: object) -> HostStatus:
    values: dict[str, object] = {
        "lun": "ds1",
        "host_uuid": b"a" * 16,
        "name": "esx1",
        "generation": 3,
        "nonce": 7,
        "pid": 4711,
        "end": HostEnd.OPEN,
        "connected": True,
        "permit": PermitState.HELD,
        "since": 1_700_000_000.0,
        "silent": 0.25,
        "blocked": False,
        "proof": "",
    }
    return HostStatus(**{**values, **changes})  # type: ignore[arg-type]


def reservation(**changes: object) -> ReservationStatus:
    values: dict[str, object] = {
        "holder": "esx1 (pid 4711)",
        "generation": 3,
        "age": 2.0,
        "granted": True,
        "ending": "",
        "waits_for": (),
        "seconds_left": 0.0,
    }
    return ReservationStatus(**{**values, **changes})  # type: ignore[arg-type]


def report(*hosts: HostStatus, waits: tuple[WaitStatus, ...] = ()) -> StatusReport:
    lun = LunStatus(name="ds1", path="/srv/lun", size=1 << 40, generation=3, reservation=())
    return StatusReport(
        incarnation=1, uptime=5.0, sessions=2, luns=(lun,), hosts=hosts, waits=waits
    )


def printed(status: StatusReport) -> str:
    text = io.StringIO()
    console = Console(width=160, file=text)
    for table in show.status_tables(status):
        console.print(table)
    return text.getvalue()


def test_status_says_that_the_state_is_full() -> None:
    full = dataclasses.replace(report(), state_full="no space for lockd's state")
    assert "STATE FULL, no new host is let in: no space for lockd's state" in printed(full)
    assert "FULL" not in printed(report())
    assert show.plain(full)["state_full"] == "no space for lockd's state"  # type: ignore[index]


# --- what is shown --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.5, "0 ms"),
        (0.0123, "12 ms"),
        (3.44, "3.44 s"),
        (59.0, "59 s"),
        (90.0, "1.5 min"),
        (7200.0, "2 h"),
        (200_000.0, "2 d"),
    ],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert show.age(seconds) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "held by esx1 (pid 4711), for 2 s"),
        (
            {"granted": False, "waits_for": ("esx2", "esx3"), "seconds_left": 8.0},
            "wanted by esx1 (pid 4711), for 2 s; waits for esx2, esx3, gives up in 8 s",
        ),
        (
            {"ending": "lockd was restarted"},
            "ending (lockd was restarted): held by esx1 (pid 4711), for 2 s; others wait until "
            "its I/O has ended, or it is fenced",
        ),
    ],
)
def test_a_reservation_says_who_since_when_and_what_next(
    changes: dict[str, object], text: str
) -> None:
    assert show.reservation_text(reservation(**changes)) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "connected"),
        ({"connected": False}, "not connected, may be writing"),
        ({"blocked": True}, "refused; its exit has not been seen"),
        ({"end": HostEnd.FENCED, "proof": "exit seen"}, "fenced: exit seen"),
    ],
)
def test_the_state_of_a_host_in_words(changes: dict[str, object], text: str) -> None:
    assert text in printed(report(host_status(**changes)))


def test_waits_are_shown_when_there_are_any() -> None:
    wait = WaitStatus(
        lun="ds1",
        waiter="esx2 (pid 2)",
        holder="esx1 (pid 1)",
        what="give up of vm1.vmdk at block 77",
        lba=77,
        label="vm1.vmdk",
        age=1.0,
    )

    assert "who waits for whom" not in printed(report())
    text = printed(report(waits=(wait,)))
    assert "give up of vm1.vmdk at block 77" in text


def test_plain_values_are_json() -> None:
    value = show.plain(report(host_status()))

    assert json.loads(json.dumps(value))["hosts"][0]["host_uuid"] == "61" * 16
    assert json.loads(json.dumps(value))["hosts"][0]["end"] == "OPEN"


def test_an_audit_line_names_block_and_host() -> None:
    entry = AuditEntry(
        sequence=9,
        wall=0.0,
        kind=AuditKind.LOCK_CHANGED,
        lun="ds1",
        host="esx1 (pid 1)",
        generation=1,
        lba=77,
        text="vm1.vmdk exclusive",
    )

    assert show.audit_line(entry).endswith(
        "#9 ds1 block 77 lock changed: vm1.vmdk exclusive by esx1 (pid 1)"
    )


# --- finding a host -------------------------------------------------------------------------------


def test_a_host_is_found_by_name_and_by_uuid_on_every_lun() -> None:
    hosts = (host_status(), host_status(lun="ds2"), host_status(name="esx2", host_uuid=b"b" * 16))

    assert len(lockctl.find_hosts(report(*hosts), "esx1", None)) == 2
    assert len(lockctl.find_hosts(report(*hosts), "esx1", "ds2")) == 1
    assert len(lockctl.find_hosts(report(*hosts), "61" * 16, None)) == 2


def test_an_unknown_or_ambiguous_host_is_an_error() -> None:
    twins = report(host_status(), host_status(host_uuid=b"b" * 16))

    with pytest.raises(click.ClickException, match="no host 'esx9'"):
        lockctl.find_hosts(twins, "esx9", None)
    with pytest.raises(click.ClickException, match="several hosts; give the uuid"):
        lockctl.find_hosts(twins, "esx1", None)


# --- against a running lockd ----------------------------------------------------------------------


@pytest.mark.slow
def test_status_history_and_reset(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready 1\n"

        table = run(lockd, "status")
        as_json = run(lockd, "status", "--json")
        reset = run(lockd, "reset", "ds1")
        history = run(lockd, "history", "--json", "-n", "2")

        assert (table.exit_code, as_json.exit_code, reset.exit_code) == (0, 0, 0)
        assert "esx1" in table.stdout
        assert str(host.pid) in table.stdout
        (shown,) = json.loads(as_json.stdout)["hosts"]
        assert (shown["name"], shown["pid"], shown["permit"]) == ("esx1", host.pid, "HELD")
        assert reset.stdout == "ds1: reset\n"
        assert [json.loads(text)["kind"] for text in history.stdout.splitlines()] == [
            "REGISTERED",
            "RESET",
        ]


@pytest.mark.slow
def test_fence_prints_the_proof_and_ends_with_zero(lockd: LockdProcess) -> None:
    with host_process(lockd.socket, "esx1", "hold") as host:
        assert host.stdout is not None
        host.stdout.readline()

        fenced = run(lockd, "fence", "esx1")

        assert fenced.exit_code == 0
        assert fenced.stdout == f"ds1: esx1: FENCED: the exit of pid {host.pid} was seen\n"
        assert host.wait(5) == -signal.SIGKILL
    again = run(lockd, "fence", identity("esx1").host_uuid.hex(), "--json")
    assert json.loads(again.stdout)["result"] == "FENCED"


def test_watch_prints_events_until_interrupted(lockd: LockdProcess) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            "from lockd.cli.lockctl import main; main()",
            f"--socket={lockd.socket}",
            "watch",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().startswith("lockctl: watching")
        assert run(lockd, "reset", "ds1").exit_code == 0
        assert "resets the LUN" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["reset", "ds9"], 1, "no LUN 'ds9' here; served: ds1"),
        (["fence", "nobody"], 1, "no host 'nobody'"),
        (["history", "-n", "0"], 2, "0 is not in the range"),
        (["dance"], 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_said(
    lockd: LockdProcess, arguments: list[str], status: int, words: str
) -> None:
    result = run(lockd, *arguments)

    assert result.exit_code == status
    assert words in result.stderr


@pytest.mark.parametrize("command", ["status", "history", "watch"])
def test_without_lockd_the_socket_is_named(command: str) -> None:
    result = CliRunner().invoke(lockctl.main, ["--socket", MISSING, command])

    assert result.exit_code == 1
    assert f"no lockd at {MISSING}" in result.stderr


def test_the_socket_may_come_from_the_environment() -> None:
    result = CliRunner().invoke(lockctl.main, ["status"], env={"LOCKD_SOCKET": MISSING})

    assert f"no lockd at {MISSING}" in result.stderr


@pytest.mark.parametrize("command", ["status", "history", "watch", "reset", "fence"])
def test_the_help_of_a_command_needs_no_socket(command: str) -> None:
    result = CliRunner().invoke(lockctl.main, [command, "-h"], env={"LOCKD_SOCKET": None})

    assert result.exit_code == 0
    assert f"lockctl {command}" in result.stdout or f"main {command}" in result.stdout


def test_without_a_socket_a_command_says_that_it_is_missing() -> None:
    result = CliRunner().invoke(lockctl.main, ["status"], env={"LOCKD_SOCKET": None})

    assert result.exit_code == 2
    assert "Missing option '--socket'" in result.stderr


def test_a_socket_path_that_is_too_long_is_called_that() -> None:
    result = CliRunner().invoke(lockctl.main, ["--socket", "/" + 200 * "x", "status"])

    assert result.exit_code == 1
    assert "too long" in result.stderr
    assert "None" not in result.stderr


@pytest.mark.parametrize("command", [lockctl.main, lockd_command.main])
def test_both_commands_have_a_short_help_and_a_version(command: click.Command) -> None:
    assert CliRunner().invoke(command, ["-h"]).exit_code == 0

    version = CliRunner().invoke(command, ["--version"])

    assert version.exit_code == 0
    assert ", version " in version.stdout


# --- lockd's own command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--lun'"),
        (["--lun", "ds1"], "'ds1' is not NAME=PATH"),
        (["--lun", "=x"], "is not NAME=PATH"),
        (["--lun", "a\nb=x"], "printable"),
        (["--lun", "x" * 65 + "=y"], "up to 64"),
        (["--lun", "a=x", "--socket", "s"], "Missing option '--state'"),
        (["--lun", "a=x", "--lun", "a=y", "--socket", "s", "--state", "d"], "the same name"),
        (["--lun", "a=x", "--socket", "s", "--state", "d", "--recall-seconds", "0"], "range"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_two(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(lockd_command.main, arguments)

    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("command", [lockd_command.main, lockctl.main])
def test_help_tells_exit_statuses_and_shell_completion(command: click.Command) -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout

    assert "Exit status: 0" in text
    assert "Shell completion:" in text


def test_a_socket_path_that_is_too_long_is_said(tmp_path: Path) -> None:
    (tmp_path / "lun").write_bytes(bytes(4096))
    path = tmp_path / ("x" * 120)

    result = CliRunner().invoke(
        lockd_command.main,
        [f"--lun=a={tmp_path}/lun", f"--socket={path}", f"--state={tmp_path}/state"],
    )

    assert result.exit_code == 1
    assert "too long for a socket" in result.stderr


def test_a_file_where_the_socket_should_be_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lun").write_bytes(bytes(4096))
    path = tmp_path / "socket"
    path.write_text("mine")

    result = CliRunner().invoke(
        lockd_command.main,
        [f"--lun=a={tmp_path}/lun", f"--socket={path}", f"--state={tmp_path}/state"],
    )

    assert result.exit_code == 1
    assert "is no socket" in result.stderr
    assert path.read_text() == "mine"
