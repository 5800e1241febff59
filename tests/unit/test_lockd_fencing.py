"""Fencing: the refusal is durable first, only a proof of death is FENCED, and it stays so."""

import pytest

from lockd.protocol import messages as m
from lockd.protocol.limits import EARLIER_STARTS_MAX
from lockd.protocol.terms import AnswerKind, AskKind, ErrorCode, FenceResult, HostEnd
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab, letter


def uuid(name: str) -> bytes:
    return identity(name).host_uuid


def fence(name: str, *, generation: int = 0, nonce: int = 0, lun: str = "ds1") -> m.Fence:
    return m.Fence(lun=lun, host_uuid=uuid(name), generation=generation, nonce=nonce)


def two_hosts() -> Lab:
    lab = Lab()
    lab.host("esx1")
    lab.host("esx2")
    return lab


def answer(reply: m.Message | None) -> m.FenceAnswer:
    assert isinstance(reply, m.FenceAnswer), reply
    return reply


def refused(reply: m.Message | None) -> ErrorCode:
    assert isinstance(reply, m.Refused), reply
    return reply.code


CAW = m.CompareAndWrite(lba=3, expected=letter("0"), new=letter("a"), durable=False, label="")


def test_fence_kills_and_answers_when_the_exit_was_seen() -> None:
    lab = two_hosts()

    assert lab.ask("esx2", fence("esx1")) is None
    assert [process.pid for process in lab.killed] == [101]
    lab.exit("esx1")

    assert lab.reply("esx2") == m.FenceAnswer(
        result=FenceResult.FENCED, proof="the exit of pid 101 was seen"
    )
    assert lab.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.FENCED


def test_a_fenced_host_is_told_and_refused_in_everything() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))

    assert lab.notices("esx1") == [m.FencedNotice(reason="fenced by esx2 (pid 102)")]
    for message in (CAW, m.Reserve(), m.Release(), m.Unregister(), fence("esx2")):
        assert refused(lab.ask("esx1", message)) is ErrorCode.FENCED
    assert lab.blocks["ds1"].block(3) == letter("0")


def test_fence_of_a_host_whose_exit_was_seen_is_fenced_at_once_and_durably() -> None:
    lab = two_hosts()
    lab.exit("esx1")

    with lab.steps() as steps:
        reply = lab.ask("esx2", fence("esx1"))

    assert answer(reply).result is FenceResult.FENCED
    assert steps[0] == "commit host esx1 (pid 101): generation 1 EXITED blocked"
    assert lab.killed == []


def test_fence_of_a_host_that_left_is_fenced_at_once() -> None:
    lab = two_hosts()
    lab.ask("esx1", m.Unregister())

    assert answer(lab.ask("esx2", fence("esx1"))).result is FenceResult.FENCED


def test_fence_twice_is_fenced_twice() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))
    lab.exit("esx1")

    assert answer(lab.ask("esx2", fence("esx1"))).result is FenceResult.FENCED


def test_two_who_fence_the_same_host_both_get_the_proof() -> None:
    lab = two_hosts()
    lab.connect("tool")
    lab.ask("esx2", fence("esx1"))
    lab.ask("tool", fence("esx1"))

    lab.exit("esx1")

    assert answer(lab.heard["esx2"][-1][1]).result is FenceResult.FENCED
    assert answer(lab.heard["tool"][-1][1]).result is FenceResult.FENCED


def test_a_process_that_does_not_exit_in_time_is_alive_and_stays_refused() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))

    lab.wait(lab.timing.fence)

    reply = answer(lab.reply("esx2"))
    assert reply.result is FenceResult.ALIVE
    assert "has not exited" in reply.proof
    assert refused(lab.ask("esx1", CAW)) is ErrorCode.FENCED


def test_a_late_exit_still_fences() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))
    lab.wait(lab.timing.fence)

    lab.exit("esx1")

    assert lab.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.FENCED
    assert answer(lab.ask("esx2", fence("esx1"))).result is FenceResult.FENCED


def test_a_process_that_cannot_be_killed_is_alive() -> None:
    lab = two_hosts()
    lab.kill_error = "operation not permitted"

    lab.ask("esx2", fence("esx1"))

    reply = answer(lab.reply("esx2"))
    assert reply.result is FenceResult.ALIVE
    assert "operation not permitted" in reply.proof


def test_a_host_without_a_known_process_is_refused_but_not_known_dead() -> None:
    lab = Lab()
    lab.host("esx1", pid=0)
    lab.host("esx2")

    reply = answer(lab.ask("esx2", fence("esx1")))

    assert reply.result is FenceResult.UNKNOWN
    assert refused(lab.ask("esx1", CAW)) is ErrorCode.FENCED


def test_a_disconnected_host_is_fenced_too() -> None:
    lab = two_hosts()
    lab.hang_up("esx1")

    lab.ask("esx2", fence("esx1"))
    lab.exit("esx1")

    assert answer(lab.reply("esx2")).result is FenceResult.FENCED


def test_a_host_does_not_fence_itself() -> None:
    assert refused(two_hosts().ask("esx1", fence("esx1"))) is ErrorCode.BAD_REQUEST


def test_fence_on_an_unknown_lun_is_refused() -> None:
    assert refused(two_hosts().ask("esx1", fence("esx2", lun="ds9"))) is ErrorCode.NO_SUCH_LUN


def test_the_death_of_a_process_ends_every_nexus_that_it_had() -> None:
    lab = Lab(luns=("ds1", "ds2"))
    lab.host("esx1")
    lab.host("esx2")
    lab.connect("other", pid=101)
    lab.register("other", lun="ds2")

    lab.exit("esx1")

    assert not lab.state.hosts["ds2", uuid("other")].open


# --- what the fence of a host sets free -----------------------------------------------------------


def test_a_fence_answers_the_asks_that_wait_for_the_host() -> None:
    lab = two_hosts()
    lab.ask("esx2", m.Ask(lba=3, what=AskKind.GIVE_UP, holder=uuid("esx1"), label=""))
    question = lab.heard["esx2"]
    lab.connect("tool")

    lab.ask("tool", fence("esx1"))
    lab.exit("esx1")

    reply = question[-1][1]
    assert isinstance(reply, m.AskAnswer)
    assert reply.kind is AnswerKind.GONE


def test_a_fence_ends_the_reservation_of_the_host() -> None:
    lab = two_hosts()
    lab.ask("esx1", m.Reserve())
    (recall,) = [n for n in lab.notices("esx2") if isinstance(n, m.PermitRecalled)]
    lab.tell("esx2", m.Returned(recall=recall.recall))

    lab.ask("esx2", fence("esx1"))
    assert isinstance(lab.ask("esx2", CAW), m.Conflict)  # not before the proof
    lab.exit("esx1")

    assert lab.ask("esx2", CAW) == m.Good()


def test_a_fence_lets_a_reserve_through_that_waited_for_the_host() -> None:
    lab = two_hosts()
    lab.ask("esx2", m.Reserve())
    lab.connect("tool")

    lab.ask("tool", fence("esx1"))
    lab.exit("esx1")

    assert lab.heard["esx2"][-1][1] == m.Good()


def test_a_fenced_start_does_not_come_back_but_the_next_may() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))
    lab.exit("esx1")
    lab.connect("esx1")

    assert refused(lab.register("esx1", nonce=1)) is ErrorCode.FENCED
    assert isinstance(lab.register("esx1", nonce=2), m.Registered)


# --- which start is meant -------------------------------------------------------------------------


def test_an_earlier_generation_has_ended_by_construction() -> None:
    lab = two_hosts()
    lab.exit("esx1")
    assert lab.host("esx1", nonce=2) == 3

    reply = answer(lab.ask("esx2", fence("esx1", generation=1)))

    assert reply.result is FenceResult.FENCED
    assert lab.killed == []
    assert lab.ask("esx1", CAW) == m.Good()  # the new start is not harmed


def test_a_generation_that_never_was_is_unknown() -> None:
    reply = answer(two_hosts().ask("esx2", fence("esx1", generation=9)))

    assert reply.result is FenceResult.UNKNOWN


def test_the_current_nonce_means_the_current_start() -> None:
    lab = two_hosts()

    lab.ask("esx2", fence("esx1", nonce=1))

    assert [process.pid for process in lab.killed] == [101]


def test_another_nonce_never_harms_the_current_start() -> None:
    lab = two_hosts()

    lab.ask("esx2", fence("esx1", nonce=77))
    lab.found()

    assert answer(lab.reply("esx2")).result is FenceResult.FENCED
    assert lab.killed == []
    assert lab.ask("esx1", CAW) == m.Good()


# --- hosts that never registered here -------------------------------------------------------------


def test_a_host_that_never_registered_is_judged_by_who_has_the_lun_open() -> None:
    lab = two_hosts()

    assert lab.ask("esx2", fence("ghost", nonce=5)) is None
    assert [sorted(search.known) for search in lab.searched] == [[101, 102]]
    with lab.steps() as steps:
        lab.found()

    reply = answer(lab.reply("esx2"))
    assert reply.result is FenceResult.FENCED
    assert "no process but those of registered hosts" in reply.proof
    assert "commit host host 67686f73: generation 3 FENCED blocked" in steps


def test_a_ghost_that_was_fenced_is_refused_when_it_comes() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("ghost", nonce=5))
    lab.found()
    lab.connect("ghost")

    assert refused(lab.register("ghost", nonce=5)) is ErrorCode.FENCED
    assert isinstance(lab.register("ghost", nonce=6), m.Registered)


@pytest.mark.parametrize(
    ("strangers", "complete", "words"),
    [(("pid 77 (dd)",), True, "pid 77"), ((), False, "may not look at every process")],
)
def test_without_a_clean_and_complete_search_nothing_is_known(
    strangers: tuple[str, ...], complete: bool, words: str
) -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("ghost"))

    lab.found(*strangers, complete=complete)

    reply = answer(lab.reply("esx2"))
    assert reply.result is FenceResult.UNKNOWN
    assert words in reply.proof


def test_a_ghost_that_registers_during_the_search_is_not_fenced() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("ghost"))
    question = lab.heard["esx2"]
    lab.host("ghost")

    lab.found()

    assert answer(question[-1][1]).result is FenceResult.UNKNOWN


def test_a_search_that_does_not_end_is_given_up() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("ghost"))

    lab.wait(lab.timing.fence)

    assert answer(lab.reply("esx2")).result is FenceResult.UNKNOWN


# --- the fencer goes away -------------------------------------------------------------------------


def test_a_fence_goes_on_when_nobody_waits_for_it_any_more() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))
    lab.hang_up("esx2")

    lab.exit("esx1")

    assert lab.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.FENCED


def test_the_blocklist_outlives_lockd() -> None:
    lab = two_hosts()
    lab.ask("esx2", fence("esx1"))
    lab.restart()
    lab.processes["esx1"] = lab.state.hosts["ds1", uuid("esx1")].record.process

    lab.connect("tool")
    lab.ask("tool", fence("esx1"))
    lab.exit("esx1")

    assert answer(lab.reply("tool")).result is FenceResult.FENCED


# --- earlier starts of a host ---------------------------------------------------------------------


def started_again(times: int) -> Lab:
    """esx1 in its start number `times` + 1 (so is its nonce); all before were killed."""
    lab = Lab()
    for nonce in range(1, times + 2):
        lab.host("esx1", nonce=nonce)
        if nonce <= times:
            lab.hang_up("esx1")
            lab.exit("esx1")
    return lab


def test_a_host_proves_its_own_earlier_starts_dead_without_a_search() -> None:
    lab = started_again(3)

    for nonce in (1, 2, 3):
        assert answer(lab.ask("esx1", fence("esx1", nonce=nonce))).result is FenceResult.FENCED

    assert lab.searched == []
    assert refused(lab.ask("esx1", fence("esx1", nonce=4))) is ErrorCode.BAD_REQUEST


def test_earlier_starts_are_known_after_a_restart_of_lockd() -> None:
    lab = started_again(1)
    lab.restart()
    lab.host("esx2")

    reply = answer(lab.ask("esx2", fence("esx1", nonce=1)))

    assert reply.result is FenceResult.FENCED


def test_only_so_many_earlier_starts_are_remembered() -> None:
    lab = started_again(EARLIER_STARTS_MAX + 1)

    assert lab.ask("esx1", fence("esx1", nonce=1)) is None  # it has to be searched for
    lab.found()

    assert answer(lab.reply("esx1")).result is FenceResult.FENCED
    assert len(lab.state.hosts["ds1", uuid("esx1")].record.earlier_nonces) == EARLIER_STARTS_MAX
