"""`vmfs locks`, `lockmode` and `status`, on volumes that nobody has mounted."""

import json
from pathlib import Path

import pytest
import trio

from tests.support.build import build_volume, tiny_request
from tests.support.commands import vmfs
from tests.support.handmade import HandMade, build_handmade, save
from vmfs.cli.table import table_lines
from vmfs.ids import VmfsUuid
from vmfs.ondisk.descriptor import LockProtocol
from vmfs.ondisk.disk_lock import LOCK_SIZE, DiskLock, Holder
from vmfs.ondisk.heartbeat import SLOT_SIZE, Heartbeat, HostInfo, slot_offset

ALICE, BOB = VmfsUuid(b"a" * 16), VmfsUuid(b"b" * 16)


def host_info(name: str, pid: int) -> HostInfo:
    return HostInfo(name=name, pid=pid, nonce=1, interval_ms=3000, lease_ms=16000)


async def open_slot(volume: HandMade, index: int, owner: VmfsUuid, info: HostInfo) -> Holder:
    """Have a host take a slot; it has been up for 1000 seconds."""
    offset = slot_offset(index)
    slot = Heartbeat.unpack(await volume.lv.read(offset, SLOT_SIZE), address=offset)
    taken = slot.acquired(
        owner=owner, stamp_us=1_000_000_000, journal_fb=0, journal_offset=0, host=info
    )
    await volume.lv.write(offset, taken.pack())
    return Holder(heartbeat_offset=offset, generation=taken.generation, owner=owner)


async def change_lock(volume: HandMade, path: str, *holders: Holder, shared: bool = False) -> None:
    """Write the lock of a file, as taken by each of these after 400 seconds of uptime."""
    at = volume.fd_offset(path)
    lock = DiskLock.unpack(await volume.lv.read(at, LOCK_SIZE), address=at)
    for holder in holders:
        lock = lock.taken_shared(holder, 400) if shared else lock.taken_exclusive(holder, 400)
    await volume.lv.write(at, lock.pack())


@pytest.fixture
def volume() -> HandMade:
    return trio.run(build_handmade)


def saved(volume: HandMade, directory: Path) -> Path:
    path = directory / "lun.img"
    trio.run(save, volume.lun, path)
    return path


def test_locks_of_an_idle_volume_are_none(volume: HandMade, tmp_path: Path) -> None:
    result = vmfs("locks", "ls", saved(volume, tmp_path))

    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1


def test_exclusive_lock_names_host_pid_slot_and_path(volume: HandMade, tmp_path: Path) -> None:
    async def prepare() -> None:
        holder = await open_slot(volume, 3, ALICE, host_info("esx-a", 4711))
        await change_lock(volume, "/dir/one", holder)

    trio.run(prepare)
    result = vmfs("locks", "ls", saved(volume, tmp_path))

    heading, line = result.stdout.splitlines()
    assert heading.split() == ["MODE", "HOST", "PID", "SLOT", "SINCE", "LOCK"]
    assert line.split()[:4] == ["exclusive", "esx-a", "4711", "3"]
    assert line.endswith("  /dir/one")


def test_shared_lock_has_a_line_for_each_holder(volume: HandMade, tmp_path: Path) -> None:
    async def prepare() -> None:
        first = await open_slot(volume, 0, ALICE, host_info("esx-a", 1))
        second = await open_slot(volume, 1, BOB, host_info("esx-b", 2))
        await change_lock(volume, "/dir/one", first, second, shared=True)

    trio.run(prepare)
    found = json.loads(vmfs("locks", "ls", "--json", saved(volume, tmp_path)).stdout)

    assert [lock["what"] for lock in found] == ["/dir/one"]
    holders = found[0]["holders"]
    assert [holder["host"] for holder in holders] == ["esx-a", "esx-b"]
    assert [holder["held_seconds"] for holder in holders] == [None, 600]
    assert not any(holder["is_stale"] for holder in holders)


def test_lock_of_a_host_that_has_ended_is_stale(volume: HandMade, tmp_path: Path) -> None:
    gone = Holder(heartbeat_offset=slot_offset(2), generation=1, owner=ALICE)
    trio.run(change_lock, volume, "/dir/one", gone)

    result = vmfs("locks", "ls", saved(volume, tmp_path))

    assert "exclusive (stale)" in result.stdout
    assert str(ALICE) in result.stdout


def test_corrupt_lock_record_is_shown_as_such(volume: HandMade, tmp_path: Path) -> None:
    async def damage() -> None:
        at = volume.fd_offset("/dir/one")
        await volume.lv.write(at, b"\xee" * LOCK_SIZE)

    trio.run(damage)
    result = vmfs("locks", "ls", saved(volume, tmp_path))

    assert result.exit_code == 0
    assert "/dir/one: corrupt lock record" in result.stdout


def test_locks_of_what_is_no_volume_or_not_mounted_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))

    assert vmfs("locks", "ls", tmp_path / "file").exit_code == 1
    for command in ("ls", "who"):
        result = vmfs("locks", command, tmp_path)
        assert result.exit_code == 1
        assert "not on a vmfs mount" in result.stderr
    assert vmfs("locks", "ls", tmp_path / "none").exit_code == 2


def test_lockmode_is_changed_on_an_idle_volume(tmp_path: Path) -> None:
    lun = tmp_path / "lun.img"
    device, _ = trio.run(build_volume, tiny_request(lock_protocol=LockProtocol.RESERVATION))
    trio.run(save, device, lun)

    assert vmfs("lockmode", "get", lun).stdout == "reservation\n"
    assert vmfs("lockmode", "set", "ats", lun).stdout == f"{lun}: ats (was reservation)\n"
    assert vmfs("lockmode", "set", "ats", lun).stdout == f"{lun}: ats\n"
    assert vmfs("lockmode", "get", lun).stdout == "ats\n"
    assert vmfs("check", lun).exit_code == 0


def test_lockmode_is_not_changed_while_a_host_has_the_volume(
    volume: HandMade, tmp_path: Path
) -> None:
    trio.run(open_slot, volume, 0, ALICE, host_info("esx-a", 4711))
    lun = saved(volume, tmp_path)
    before = vmfs("lockmode", "get", lun).stdout

    result = vmfs("lockmode", "set", "reservation", lun)

    assert result.exit_code == 1
    assert "host esx-a (pid 4711, slot 0) has the volume open" in result.stderr
    assert vmfs("lockmode", "get", lun).stdout == before


def test_status_of_a_lun_lists_the_hosts_that_have_it_open(
    volume: HandMade, tmp_path: Path
) -> None:
    trio.run(open_slot, volume, 5, ALICE, host_info("esx-a", 4711))

    lun = saved(volume, tmp_path)
    [host] = json.loads(vmfs("status", "--json", lun).stdout)

    assert host["host"] == "esx-a"
    assert (host["pid"], host["slot"]) == (4711, 5)
    assert "esx-a" in vmfs("status", lun).stdout


def test_status_of_a_lun_that_nobody_has_open_says_so(volume: HandMade, tmp_path: Path) -> None:
    lun = saved(volume, tmp_path)

    assert "no host has" in vmfs("status", lun).stderr
    assert json.loads(vmfs("status", "--json", lun).stdout) == []


def test_table_aligns_all_but_the_last_column() -> None:
    assert table_lines([["A", "B"], ["long", "x"], ["s", "yy"]]) == [
        "A     B",
        "long  x",
        "s     yy",
    ]
    assert table_lines([]) == []
