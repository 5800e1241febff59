"""Hosts that hold up everybody and say nothing: fenced by lockd after a lease of silence."""

import pytest
import trio
import trio.testing

from lockd.machine import Received
from lockd.machine.step import next_deadline
from lockd.protocol import messages as m
from lockd.protocol.terms import HostEnd, PermitState
from lockd.state import Host, Moment, Timing
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab

GOOD = m.Good()
LEASE = Timing().lease


def hosts(*names: str) -> Lab:
    lab = Lab()
    for name in names:
        lab.host(name)
    return lab


def host_of(lab: Lab, name: str) -> Host:
    return lab.state.hosts["ds1", identity(name).host_uuid]


def give_back(lab: Lab, name: str) -> None:
    recalls = [n for n in lab.notices(name) if isinstance(n, m.PermitRecalled)]
    lab.tell(name, m.Returned(recall=recalls[-1].recall))


def reserved() -> Lab:
    """esx1 holds the reservation, esx2 has returned its permit."""
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    give_back(lab, "esx2")
    assert lab.reply("esx1") == GOOD
    return lab


def test_silent_holder_of_the_reservation_is_fenced_and_the_lun_is_free() -> None:
    lab = reserved()

    lab.wait(LEASE - 0.1)
    assert lab.killed == []
    lab.wait(0.2)
    assert lab.killed == [lab.processes["esx1"]]
    assert host_of(lab, "esx1").record.blocked
    assert lab.state.luns["ds1"].reservation is not None, "not before the proof"
    assert not any(isinstance(n, m.PermitGranted) for n in lab.notices("esx2"))

    lab.exit("esx1")

    assert host_of(lab, "esx1").record.end is HostEnd.FENCED
    assert lab.state.luns["ds1"].reservation is None
    assert host_of(lab, "esx2").permit is PermitState.HELD
    assert lab.ask("esx2", m.Reserve()) == GOOD
    assert any(
        "audit FENCE_BEGUN: lockd fences esx1 (pid 101): it has ds1 reserved, and has been silent "
        "for 16 s" in line
        for line in lab.log
    )


def test_any_word_of_the_holder_counts() -> None:
    lab = reserved()
    for _ in range(5):
        lab.wait(LEASE - 1)
        lab.ask("esx1", m.Status())
    assert lab.killed == []


async def test_word_that_came_while_lockd_was_stopped_counts(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word and the deadline are seen in one pass of the scheduler, in either order."""
    for _ in range(20):
        lab = reserved()
        begun = trio.current_time() - lab.now
        monkeypatch.setattr(
            lab.engine, "_clock", lambda begun=begun: Moment(trio.current_time() - begun, 0)
        )
        word = Received(lab.sessions["esx1"], 99, m.Status())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.engine.run)
            await trio.sleep(LEASE)
            lab.engine.submit(word)
            await trio.sleep(LEASE / 2)
            nursery.cancel_scope.cancel()

        assert lab.killed == []


def test_words_of_others_do_not_count() -> None:
    lab = reserved()
    for _ in range(4):
        lab.wait(LEASE / 3)
        lab.ask("esx2", m.Status())
    assert lab.killed == [lab.processes["esx1"]]


def test_silence_before_the_reservation_does_not_count() -> None:
    lab = hosts("esx1", "esx2")
    lab.wait(10 * LEASE)
    lab.ask("esx1", m.Reserve())
    lab.wait(1)
    give_back(lab, "esx2")
    lab.wait(LEASE - 2)
    assert lab.killed == []


def test_host_that_does_not_return_its_permit_and_is_silent_is_fenced() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    lab.wait(Timing().recall + 0.1)
    assert isinstance(lab.reply("esx1"), m.Conflict)
    lab.wait(1)
    lab.ask("esx1", m.Reserve())
    lab.wait(LEASE - Timing().recall - 1)

    assert lab.killed == [lab.processes["esx2"]]
    lab.exit("esx2")
    assert lab.reply("esx1") == GOOD


def test_host_that_drains_for_long_and_says_so_is_not_fenced() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    for _ in range(10):
        lab.wait(LEASE / 2)
        lab.ask("esx2", m.Status())
    assert lab.killed == []


def test_idle_hosts_may_be_silent_for_ever() -> None:
    lab = hosts("esx1", "esx2")
    lab.wait(1000 * LEASE)
    assert lab.killed == []
    assert next_deadline(lab.state) is None


def test_host_whose_process_is_not_known_is_not_fenced() -> None:
    lab = Lab()
    lab.host("esx1", pid=0)
    lab.host("esx2")
    lab.ask("esx1", m.Reserve())
    give_back(lab, "esx2")
    lab.wait(10 * LEASE)
    assert lab.killed == []
    assert not host_of(lab, "esx1").record.blocked
    assert next_deadline(lab.state) is None


def test_fence_by_silence_is_tried_once() -> None:
    lab = reserved()
    lab.wait(3 * LEASE)
    lab.wait(3 * LEASE)
    assert lab.killed == [lab.processes["esx1"]]
    assert next_deadline(lab.state) is None


def test_holder_that_lost_its_connection_is_fenced_after_its_lease() -> None:
    lab = reserved()
    lab.hang_up("esx1")
    lab.wait(LEASE + 0.1)
    assert lab.killed == [lab.processes["esx1"]]


def test_after_a_restart_silence_is_counted_anew() -> None:
    lab = reserved()
    lab.wait(LEASE - 1)
    lab.restart()
    lab.wait(LEASE - 1)
    assert lab.killed == []
    lab.wait(1.1)
    assert len(lab.killed) == 1


def test_host_with_a_lease_of_its_own_is_judged_by_that() -> None:
    lab = hosts("esx2")
    lab.connect("esx1")
    lab.register("esx1", recall_ms=400, lease_ms=800)
    lab.ask("esx1", m.Reserve())
    give_back(lab, "esx2")
    lab.wait(0.7)
    assert lab.killed == []
    lab.wait(0.2)
    assert lab.killed == [lab.processes["esx1"]]
    assert any("has been silent for 0.8 s" in line for line in lab.log)


def test_a_restarted_lockd_knows_the_lease_of_a_host() -> None:
    lab = Lab()
    lab.connect("esx1")
    lab.register("esx1", recall_ms=100_000, lease_ms=200_000)
    lab.ask("esx1", m.Reserve())
    lab.restart()
    lab.wait(199)
    assert lab.killed == []
    lab.wait(2)
    assert lab.killed == [lab.processes["esx1"]]


def test_the_pace_of_a_host_is_what_it_said_last() -> None:
    lab = Lab()
    lab.connect("esx1")
    lab.register("esx1")
    lab.hang_up("esx1")
    lab.connect("esx1", pid=lab.processes["esx1"].pid)
    lab.register("esx1", recall_ms=400, lease_ms=800)
    lab.ask("esx1", m.Reserve())
    lab.wait(0.9)
    assert lab.killed == [lab.processes["esx1"]]


def test_reserve_waits_for_the_slowest_of_those_whose_permits_are_out() -> None:
    lab = hosts("esx1")
    for name, recall in (("esx2", 400), ("esx3", 700)):
        lab.connect(name)
        lab.register(name, recall_ms=recall, lease_ms=100_000)
    lab.ask("esx1", m.Reserve())
    lab.wait(0.6)
    assert lab.reply("esx1") is None
    lab.wait(0.2)
    assert isinstance(lab.reply("esx1"), m.Conflict)
