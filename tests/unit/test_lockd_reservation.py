"""Whole-LUN reservations, permits and resets (SPC-2 RESERVE and RELEASE, with real exclusion)."""

import pytest

from lockd.protocol import messages as m
from lockd.protocol.terms import Attention, AuditKind, ErrorCode, PermitState
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab, letter

GOOD = m.Good()


def uuid(name: str) -> bytes:
    return identity(name).host_uuid


def caw(old: str = "0", new: str = "a") -> m.CompareAndWrite:
    return m.CompareAndWrite(lba=3, expected=letter(old), new=letter(new), durable=False, label="")


def hosts(*names: str) -> Lab:
    lab = Lab(luns=("ds1", "ds2"))
    for name in names:
        lab.host(name)
    return lab


def recall_of(lab: Lab, name: str) -> int:
    """The number of the last recall that a host was sent."""
    recalls = [n for n in lab.notices(name) if isinstance(n, m.PermitRecalled)]
    return recalls[-1].recall


def give_back(lab: Lab, name: str) -> None:
    lab.tell(name, m.Returned(recall=recall_of(lab, name)))


def reserved() -> Lab:
    """esx1 holds the reservation, esx2 and esx3 have returned their permits."""
    lab = hosts("esx1", "esx2", "esx3")
    lab.ask("esx1", m.Reserve())
    give_back(lab, "esx2")
    give_back(lab, "esx3")
    assert lab.reply("esx1") == GOOD
    return lab


def permit(lab: Lab, name: str) -> PermitState:
    return lab.state.hosts["ds1", uuid(name)].permit


# --- RESERVE --------------------------------------------------------------------------------------


def test_reserve_alone_is_good_at_once() -> None:
    lab = hosts("esx1")

    with lab.steps() as steps:
        assert lab.ask("esx1", m.Reserve()) == GOOD

    assert steps[0] == "commit reservation of ds1: generation 1"


def test_reserve_waits_until_the_last_permit_is_back() -> None:
    lab = hosts("esx1", "esx2", "esx3")

    assert lab.ask("esx1", m.Reserve()) is None
    give_back(lab, "esx2")
    assert lab.reply("esx1") is None
    give_back(lab, "esx3")

    assert lab.reply("esx1") == GOOD
    assert permit(lab, "esx1") is PermitState.HELD


def test_reserve_again_by_the_holder_is_good() -> None:
    assert reserved().ask("esx1", m.Reserve()) == GOOD


def test_reserve_by_another_conflicts_at_once() -> None:
    lab = reserved()

    assert lab.ask("esx2", m.Reserve()) == m.Conflict(holder="esx1 (pid 101)")


def test_reserve_while_another_is_about_to_get_it_conflicts_at_once() -> None:
    lab = hosts("esx1", "esx2", "esx3")
    lab.ask("esx1", m.Reserve())

    assert lab.ask("esx2", m.Reserve()) == m.Conflict(holder="esx1 (pid 101)")


def test_reserve_twice_while_the_first_waits_is_refused() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())

    reply = lab.ask("esx1", m.Reserve())

    assert isinstance(reply, m.Refused)
    assert reply.code is ErrorCode.BAD_REQUEST


def test_reserve_of_one_lun_leaves_another_alone() -> None:
    lab = hosts("esx1", "esx2")
    lab.connect("esx3")
    lab.register("esx3", lun="ds2")

    assert lab.ask("esx3", m.Reserve()) == GOOD
    assert permit(lab, "esx1") is PermitState.HELD


# --- a permit that does not come back -------------------------------------------------------------


def test_a_host_that_does_not_return_its_permit_is_never_granted_over() -> None:
    lab = hosts("esx1", "esx2", "esx3")
    lab.ask("esx1", m.Reserve())
    give_back(lab, "esx2")
    lab.notices("esx2")

    lab.wait(lab.timing.recall)

    assert lab.reply("esx1") == m.Conflict(holder="esx3 (pid 103)")
    assert lab.state.luns["ds1"].reservation is None
    assert lab.notices("esx2") == [m.PermitGranted()]
    assert permit(lab, "esx3") is PermitState.HELD
    assert any("RECALL_FAILED" in line and "esx3" in line for line in lab.log)


def test_a_host_that_is_away_counts_as_writing() -> None:
    lab = hosts("esx1", "esx2")
    lab.hang_up("esx2")

    assert lab.ask("esx1", m.Reserve()) is None
    lab.wait(lab.timing.recall)

    assert lab.reply("esx1") == m.Conflict(holder="esx2 (pid 102)")


def test_the_exit_of_a_host_returns_its_permit() -> None:
    lab = hosts("esx1", "esx2")
    lab.hang_up("esx2")
    lab.ask("esx1", m.Reserve())

    lab.exit("esx2")

    assert lab.reply("esx1") == GOOD


def test_the_goodbye_of_a_host_returns_its_permit() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())

    lab.ask("esx2", m.Unregister())

    assert lab.heard["esx1"][-1][1] == GOOD


def test_an_answer_to_an_earlier_recall_is_none_to_this_one() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    first = recall_of(lab, "esx2")
    lab.wait(lab.timing.recall)  # the first RESERVE fails; esx2 may do I/O again
    lab.ask("esx1", m.Reserve())

    lab.tell("esx2", m.Returned(recall=first))

    assert lab.reply("esx1") is None
    give_back(lab, "esx2")
    assert lab.reply("esx1") == GOOD


@pytest.mark.parametrize("recall", [0, 1, 99])
def test_a_permit_returned_unasked_changes_nothing(recall: int) -> None:
    lab = hosts("esx1", "esx2")

    lab.tell("esx2", m.Returned(recall=recall))

    assert permit(lab, "esx2") is PermitState.HELD


def test_the_holder_cannot_return_the_permit_it_reserved_with() -> None:
    lab = reserved()

    lab.tell("esx1", m.Returned(recall=2))

    assert lab.state.luns["ds1"].reservation is not None
    assert permit(lab, "esx1") is PermitState.HELD


# --- during a reservation -------------------------------------------------------------------------


def test_compare_and_write_of_another_conflicts_and_changes_nothing() -> None:
    lab = reserved()

    assert lab.ask("esx2", caw()) == m.Conflict(holder="esx1 (pid 101)")
    assert lab.blocks["ds1"].block(3) == letter("0")


def test_compare_and_write_of_the_holder_is_good() -> None:
    assert reserved().ask("esx1", caw()) == GOOD


def test_compare_and_write_while_permits_come_back_is_still_good() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())

    assert lab.ask("esx2", caw()) == GOOD


def test_a_host_that_registers_meanwhile_gets_no_permit_before_the_end() -> None:
    lab = reserved()
    lab.connect("esx4")

    registered = lab.register("esx4")

    assert isinstance(registered, m.Registered)
    assert not registered.permit
    lab.ask("esx1", m.Release())
    assert m.PermitGranted() in lab.notices("esx4")


def test_a_host_that_registers_while_permits_come_back_is_not_waited_for() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    request = lab.heard["esx1"]
    lab.host("esx3")

    give_back(lab, "esx2")

    assert request[-1][1] == GOOD
    assert permit(lab, "esx3") is PermitState.RETURNED


# --- RELEASE --------------------------------------------------------------------------------------


def test_release_grants_every_permit_again() -> None:
    lab = reserved()

    with lab.steps() as steps:
        assert lab.ask("esx1", m.Release()) == GOOD

    assert steps[0] == "commit reservation of ds1: none"
    assert lab.notices("esx2") == lab.notices("esx3") == [m.PermitGranted()]
    assert lab.ask("esx2", caw()) == GOOD


def test_release_by_another_is_good_without_effect() -> None:
    lab = reserved()

    assert lab.ask("esx2", m.Release()) == GOOD
    assert lab.ask("esx2", caw()) == m.Conflict(holder="esx1 (pid 101)")


def test_release_without_a_reservation_is_good() -> None:
    assert hosts("esx1").ask("esx1", m.Release()) == GOOD


def test_release_takes_a_reserve_that_still_waits_back() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    reserve = lab.heard["esx1"]

    assert lab.ask("esx1", m.Release()) == GOOD

    assert isinstance(reserve[-2][1], m.Conflict)
    assert m.PermitGranted() in lab.notices("esx2")
    assert lab.state.luns["ds1"].reserving is None


# --- nexus loss -----------------------------------------------------------------------------------


def test_the_holders_exit_ends_the_reservation_at_once() -> None:
    lab = reserved()

    lab.hang_up("esx1")
    lab.exit("esx1")

    assert m.PermitGranted() in lab.notices("esx2")
    assert lab.ask("esx2", caw()) == GOOD


def test_a_holder_that_lost_its_connection_keeps_others_out_while_it_may_write() -> None:
    lab = reserved()

    lab.hang_up("esx1")

    assert lab.ask("esx2", caw()) == m.Conflict(holder="esx1 (pid 101)")
    assert lab.ask("esx2", m.Reserve()) == m.Conflict(holder="esx1 (pid 101)")
    assert permit(lab, "esx2") is PermitState.RETURNED


def test_a_holder_that_comes_back_is_told_that_its_reservation_is_lost() -> None:
    lab = reserved()
    lab.hang_up("esx1")
    lab.connect("esx1", pid=101)
    lab.notices("esx1")

    registered = lab.register("esx1")

    assert isinstance(registered, m.Registered)
    attention, recall = lab.notices("esx1")
    assert isinstance(attention, m.UnitAttention)
    assert attention.reason is Attention.NEXUS_LOSS
    assert isinstance(recall, m.PermitRecalled)
    assert isinstance(lab.ask("esx1", m.Reserve()), m.Conflict)  # it has not drained yet
    lab.tell("esx1", m.Returned(recall=recall.recall))
    assert lab.notices("esx1") == lab.notices("esx2") == [m.PermitGranted()]
    assert lab.ask("esx1", m.Reserve()) is None  # anew, with recalls


def test_a_reserve_ends_with_its_host() -> None:
    lab = hosts("esx1", "esx2")
    lab.ask("esx1", m.Reserve())
    lab.hang_up("esx1")

    assert m.PermitGranted() in lab.notices("esx2")


def test_a_recall_is_sent_again_to_a_host_that_was_away() -> None:
    lab = hosts("esx1", "esx2")
    lab.hang_up("esx2")
    lab.ask("esx1", m.Reserve())
    lab.connect("esx2", pid=102)
    lab.register("esx2")

    give_back(lab, "esx2")

    assert lab.reply("esx1", 5) == GOOD


def test_a_host_that_comes_back_after_the_end_has_its_permit() -> None:
    lab = reserved()
    lab.hang_up("esx2")
    lab.ask("esx1", m.Release())
    lab.connect("esx2", pid=102)

    registered = lab.register("esx2")

    assert isinstance(registered, m.Registered)
    assert registered.permit


# --- reset ----------------------------------------------------------------------------------------


def test_reset_without_a_reservation_tells_every_nexus_but_the_sender() -> None:
    lab = hosts("esx1", "esx2")

    assert lab.ask("esx1", m.Reset(lun="ds1")) == GOOD

    attention = m.UnitAttention(reason=Attention.RESET, text="reset by esx1 (pid 101)")
    assert lab.notices("esx2") == [attention]
    assert lab.notices("esx1") == []


def test_reset_drains_the_holder_before_anybody_else_may_go_on() -> None:
    lab = reserved()
    lab.connect("tool")

    assert lab.ask("tool", m.Reset(lun="ds1")) is None
    attention, recall = lab.notices("esx1")
    assert isinstance(attention, m.UnitAttention)
    assert isinstance(recall, m.PermitRecalled)
    assert lab.ask("esx2", caw()) == m.Conflict(holder="esx1 (pid 101)")
    request = lab.heard["tool"]
    lab.notices("esx2")

    lab.tell("esx1", m.Returned(recall=recall.recall))

    assert request[-1][1] == GOOD
    told = lab.notices("esx2")
    assert [type(n) for n in told] == [m.UnitAttention, m.PermitGranted]
    assert lab.notices("esx1") == [m.PermitGranted()]


def test_reset_of_a_holder_that_hangs_fails_and_keeps_others_out() -> None:
    lab = reserved()
    lab.connect("tool")
    lab.ask("tool", m.Reset(lun="ds1"))

    lab.wait(lab.timing.recall)

    reply = lab.reply("tool")
    assert isinstance(reply, m.Refused)
    assert reply.code is ErrorCode.NOT_DRAINED
    assert "fence it" in reply.message
    assert isinstance(lab.ask("esx2", caw()), m.Conflict)


def test_reset_takes_back_a_reserve_that_waits() -> None:
    lab = hosts("esx1", "esx2")
    lab.connect("tool")
    lab.ask("esx1", m.Reserve())

    assert lab.ask("tool", m.Reset(lun="ds1")) == GOOD

    assert m.Conflict(holder="a reset of the LUN") in [m for _, m in lab.heard["esx1"]]


def test_resets_of_an_unknown_lun_are_refused() -> None:
    lab = hosts("esx1")

    reply = lab.ask("esx1", m.Reset(lun="ds9"))

    assert isinstance(reply, m.Refused)
    assert reply.code is ErrorCode.NO_SUCH_LUN


# --- restart of lockd -----------------------------------------------------------------------------


def test_after_a_restart_a_reservation_is_lost_but_not_over() -> None:
    lab = reserved()

    lab.restart()
    lab.connect("esx2", pid=102)
    registered = lab.register("esx2")

    assert isinstance(registered, m.Registered)
    assert registered.adopted
    assert not registered.permit
    assert isinstance(lab.ask("esx2", caw()), m.Conflict)


def test_after_a_restart_the_old_holder_is_told_and_drains() -> None:
    lab = reserved()
    lab.restart()
    lab.connect("esx2", pid=102)
    lab.register("esx2")
    lab.notices("esx1")
    lab.connect("esx1", pid=101)
    lab.register("esx1")

    attention, recall = lab.notices("esx1")
    assert isinstance(attention, m.UnitAttention)
    assert attention.reason is Attention.POWER_ON
    assert isinstance(recall, m.PermitRecalled)
    lab.tell("esx1", m.Returned(recall=recall.recall))

    assert m.PermitGranted() in lab.notices("esx2")


def test_after_a_restart_without_a_reservation_all_may_be_writing() -> None:
    lab = hosts("esx1", "esx2")
    lab.restart()
    lab.connect("esx1", pid=101)
    lab.register("esx1")

    assert lab.ask("esx1", m.Reserve()) is None  # esx2 is not back, and not dead

    lab.exit("esx2")
    assert lab.reply("esx1") == GOOD


def test_every_change_of_a_reservation_is_in_the_audit_trail() -> None:
    lab = reserved()
    lab.ask("esx1", m.Release())

    kinds = [entry.kind for entry in lab.store.audit(count=99, before=0)]
    assert kinds[-2:] == [AuditKind.RESERVED, AuditKind.RELEASED]
