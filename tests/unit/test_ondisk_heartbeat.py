"""Heartbeat slots: their life, and what is refused."""

import dataclasses

import pytest

from tests.support.records import HOST_A, HOST_B, heartbeat_in_use, host_info
from vmfs.errors import CorruptRecord
from vmfs.ids import VmfsUuid
from vmfs.ondisk import heartbeat
from vmfs.ondisk.heartbeat import Heartbeat, HeartbeatState, slot_index, slot_offset

AT = slot_offset(5)


def read(slot: Heartbeat) -> Heartbeat:
    return Heartbeat.unpack(slot.pack(), address=AT)


def test_slot_offsets_and_indices_are_each_others_inverse() -> None:
    assert slot_offset(0) == 0x300000
    assert slot_offset(528) == 0x342000  # where a genuine ESXi host stands
    assert slot_index(slot_offset(2047)) == 2047


@pytest.mark.parametrize("offset", [0, 0x2FFE00, 0x300001, 0x400000])
def test_no_slot_begins_there(offset: int) -> None:
    assert not heartbeat.is_slot_offset(offset)
    with pytest.raises(AssertionError):
        slot_index(offset)


def test_slot_index_out_of_range_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        slot_offset(2048)


def test_slot_from_mount_to_unmount() -> None:
    free = Heartbeat(lv_offset=AT, generation=6)

    taken = free.acquired(
        owner=HOST_A, stamp_us=10, journal_fb=0x41, journal_offset=0x100000, host=host_info()
    )
    beaten = taken.beaten(20)
    released = beaten.released()

    assert taken.is_in_use
    assert taken.generation == 7
    assert taken.host == host_info()
    assert taken.index == 5
    assert read(beaten).stamp_us == 20
    assert read(released).state == HeartbeatState.FREE
    assert (released.generation, released.stamp_us) == (7, 20)
    assert (released.owner, released.journal_fb, released.journal_offset) == (VmfsUuid.NIL, 0, 0)
    assert released.host is None


def test_slot_of_a_dead_host_gets_a_new_generation_and_no_trace_of_the_replayer() -> None:
    dead = heartbeat_in_use()

    replaying = dead.replaying(by=HOST_B, by_offset=slot_offset(6), by_generation=3)
    recovered = replaying.recovered()

    assert read(replaying).replayer == HOST_B
    assert replaying.generation == dead.generation
    assert recovered.generation == dead.generation + 1
    assert recovered.replayer == VmfsUuid.NIL
    assert not read(recovered).is_in_use


def test_slot_transitions_need_the_right_state() -> None:
    free, used = Heartbeat(lv_offset=AT), heartbeat_in_use()

    with pytest.raises(AssertionError):
        free.beaten(1)
    with pytest.raises(AssertionError):
        free.released()
    with pytest.raises(AssertionError):
        free.replaying(by=HOST_B, by_offset=AT, by_generation=1)
    with pytest.raises(AssertionError):
        used.acquired(owner=HOST_B, stamp_us=0, journal_fb=0, journal_offset=0, host=host_info())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"owner": VmfsUuid.NIL}, "owner"),
        ({"driver_major": 24}, "driver version"),
        ({"lv_offset": slot_offset(6)}, "own address"),
    ],
)
def test_slot_in_use_by_nobody_or_elsewhere_is_corrupt(
    change: dict[str, object], field: str
) -> None:
    damaged = dataclasses.replace(heartbeat_in_use(), **change)  # type: ignore[arg-type]

    with pytest.raises(CorruptRecord) as caught:
        read(damaged)

    assert caught.value.field == field
    assert caught.value.address == AT


def test_free_slot_with_an_owner_is_corrupt() -> None:
    with pytest.raises(CorruptRecord, match="owner"):
        read(Heartbeat(lv_offset=AT, owner=HOST_A))


@pytest.mark.parametrize("state", [0, 0xABCDEF00, 0xABCDEF03])
def test_slot_with_another_magic_is_corrupt(state: int) -> None:
    data = state.to_bytes(4, "little") + heartbeat_in_use().pack()[4:]

    with pytest.raises(CorruptRecord, match="magic"):
        Heartbeat.unpack(data, address=AT)


def test_text_that_is_no_utf8_is_corrupt() -> None:
    data = bytearray(heartbeat_in_use().pack())
    data[0x36] = 0xFF

    with pytest.raises(CorruptRecord, match="address text"):
        Heartbeat.unpack(bytes(data), address=AT)


def test_slot_of_another_implementation_has_no_host_info() -> None:
    assert dataclasses.replace(heartbeat_in_use(), tail=bytes(348)).host is None
