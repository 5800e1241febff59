"""lockd's state is full, or its disk: nothing new is begun, and what is there goes on and ends."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lockd.client import ErrorCode, FenceResult, Good, LockdRefused
from lockd.protocol.terms import HostEnd
from lockd.state import HostRecord, ReservationEnded, ReservationRecord
from lockd.store import LmdbStore, MemoryStore, StoreError
from tests.support.lockd import identity, memory_lockd
from tests.support.mounts import can_mount

FULL = "no space for lockd's state: disk full"


def record(number: int, **changes: object) -> HostRecord:
    values: dict[str, object] = {
        "lun": "ds1",
        "host_uuid": number.to_bytes(16, "big"),
        "name": f"esx{number}",
        "generation": number + 1,
        "nonce": number,
        "pid": number,
        "start_ticks": 1,
        "boot_id": "b",
        "since": 1.5,
        "end": HostEnd.OPEN,
        "blocked": False,
        "proof": "",
    }
    return HostRecord(**{**values, **changes})  # type: ignore[arg-type]


async def test_a_full_store_lets_nobody_in_and_those_inside_go_on() -> None:
    store = MemoryStore()
    async with memory_lockd(store=store) as lockd, lockd.connect("b") as b:
        process = lockd.process()
        async with lockd.connect("a", process=process) as a:
            store.full = FULL
            await b.unregister()  # the first commit after that finds it out

            with pytest.raises(LockdRefused, match="disk full") as caught:
                async with lockd.connect("c"):
                    pass
            assert caught.value.code is ErrorCode.STATE_FULL
            assert (await a.status()).state_full == FULL

            assert await a.reserve() == Good()  # a lock is given up under a reservation, too

            written = await a.compare_and_write(1, bytes(512), b"x" * 512, durable=True, label="x")
            assert written == Good()
            await a.release()
            async with lockd.connect("a", process=process) as again:
                assert again.adopted
                store.full = ""
                async with lockd.connect("c"):
                    assert (await again.status()).state_full == ""


async def test_a_full_store_still_fences() -> None:
    store = MemoryStore()
    async with memory_lockd(store=store) as lockd, lockd.connect("a"):
        store.full = FULL
        async with lockd.observe() as admin:
            answer = await admin.fence_on("ds1", identity("a").host_uuid)
        assert answer.result is FenceResult.FENCED


def fill(store: LmdbStore) -> tuple[int, str]:
    """Take hosts in until there is no room; how many, and why it ended."""
    for number in range(0, 100_000, 20):
        if reason := store.room():
            return number, reason
        store.commit([record(number + more) for more in range(20)])
    raise AssertionError("it never gets full")


def end_all(store: LmdbStore, count: int) -> None:
    """Take note of the end of each of them, as a fence does: each is one commit."""
    for number in range(count):
        store.commit([record(number, end=HostEnd.FENCED, blocked=True, proof="it has exited" * 4)])


def reserve_and_release(store: LmdbStore, rounds: int) -> None:
    """What a host does that changes locks in reservation mode. The pages are used again."""
    held = ReservationRecord(lun="ds1", host_uuid=bytes(16), generation=1)
    for _ in range(rounds):
        store.commit([held])
        store.commit([ReservationEnded(lun="ds1")])


def test_lmdb_says_so_before_its_map_is_full(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, state_size_max=512 << 10)
    store.start()

    count, reason = fill(store)

    assert "has reached its limit of 524288 bytes" in reason
    reserve_and_release(store, 300)
    end_all(store, min(count, 20))
    reserve_and_release(store, 20)
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not can_mount():
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill_disk(disk: Path) -> None:
    """Others use up all there is."""
    with (disk / "others").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.mount
def test_lmdb_goes_on_when_others_have_filled_its_disk(small_disk: Path) -> None:
    store = LmdbStore(small_disk)
    store.start()
    assert store.room() == ""
    fill_disk(small_disk)

    count, reason = fill(store)

    assert "No space left on device" in reason
    reserve_and_release(store, 300)
    end_all(store, min(count, 20))
    (small_disk / "others").unlink()
    assert store.room() == ""
    store.close()


@pytest.mark.mount
def test_lmdb_on_a_disk_without_any_room_is_refused(small_disk: Path) -> None:
    fill_disk(small_disk)

    with pytest.raises(StoreError, match="no space"):
        LmdbStore(small_disk).start()
