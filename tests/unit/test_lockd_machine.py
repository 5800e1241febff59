"""lockd's decisions, verb by verb: registration, compare-and-write, asks."""

import pytest

from lockd.protocol import messages as m
from lockd.protocol.limits import (
    SESSIONS_MAX,
    WAITING_PER_SESSION_MAX,
    WATCHERS_MAX,
)
from lockd.protocol.terms import (
    AnswerKind,
    AskKind,
    AuditKind,
    ErrorCode,
    HostEnd,
    PermitState,
)
from lockd.store import StoreError
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab, letter


def uuid(name: str) -> bytes:
    return identity(name).host_uuid


def caw(
    old: str, new: str, *, lba: int = 3, durable: bool = False, label: str = ""
) -> m.CompareAndWrite:
    return m.CompareAndWrite(
        lba=lba, expected=letter(old), new=letter(new), durable=durable, label=label
    )


def ask(holder: str, *, lba: int = 3, what: AskKind = AskKind.GIVE_UP) -> m.Ask:
    return m.Ask(lba=lba, what=what, holder=uuid(holder), label="vm1.vmdk")


def refused(reply: m.Message | None) -> ErrorCode:
    assert isinstance(reply, m.Refused), reply
    return reply.code


def two_hosts() -> Lab:
    lab = Lab()
    lab.host("esx1")
    lab.host("esx2")
    return lab


# --- handshake ------------------------------------------------------------------------------------


def test_hello_in_our_version_is_welcome() -> None:
    lab = Lab(luns=("ds1", "ds2"))

    lab.connect("esx1", greet=False)
    reply = lab.ask("esx1", m.Hello(version=1, software="test"))

    assert reply == m.Welcome(version=1, software="lockd", incarnation=1, luns=("ds1", "ds2"))


def test_hello_in_another_version_is_refused_and_ends_the_session() -> None:
    lab = Lab()

    session = lab.connect("esx1", greet=False)
    reply = lab.ask("esx1", m.Hello(version=2, software="newer"))

    assert refused(reply) is ErrorCode.VERSION
    assert lab.finished == [session]


def test_anything_before_hello_ends_the_session() -> None:
    lab = Lab()

    session = lab.connect("esx1", greet=False)
    reply = lab.ask("esx1", m.Status())

    assert refused(reply) is ErrorCode.PROTOCOL
    assert lab.finished == [session]


def test_a_request_without_an_id_ends_the_session() -> None:
    lab = Lab()
    session = lab.connect("esx1")

    lab.tell("esx1", m.Status())

    assert refused(lab.notices("esx1")[-1]) is ErrorCode.PROTOCOL
    assert lab.finished == [session]


def test_a_notice_with_an_id_ends_the_session() -> None:
    lab = Lab()
    session = lab.connect("esx1")

    lab.ask("esx1", m.Returned(recall=1))

    assert lab.finished == [session]


def test_one_session_too_many_is_turned_away() -> None:
    lab = Lab()
    for number in range(SESSIONS_MAX):
        lab.connect(f"tool{number}", pid=7, greet=False)

    session = lab.connect("esx1", greet=False)

    assert refused(lab.notices("esx1")[0]) is ErrorCode.TOO_MANY
    assert lab.finished == [session]
    assert session not in lab.state.sessions


@pytest.mark.parametrize(
    "message",
    [
        caw("0", "a"),
        m.Reserve(),
        m.Release(),
        m.Unregister(),
        ask("esx2"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_verbs_of_a_nexus_need_one(message: m.Request) -> None:
    lab = Lab()
    lab.connect("tool")

    assert refused(lab.ask("tool", message)) is ErrorCode.NOT_REGISTERED


# --- registration ---------------------------------------------------------------------------------


def test_register_gives_the_size_a_permit_and_a_generation_that_grows() -> None:
    lab = Lab()
    lab.connect("esx1")
    lab.connect("esx2")

    assert lab.register("esx1") == m.Registered(
        generation=1, lun_size=4096, permit=True, adopted=False
    )
    assert lab.register("esx2") == m.Registered(
        generation=2, lun_size=4096, permit=True, adopted=False
    )


def test_register_on_an_unknown_lun_is_refused() -> None:
    lab = Lab()
    lab.connect("esx1")

    assert refused(lab.register("esx1", lun="ds9")) is ErrorCode.NO_SUCH_LUN


def test_register_twice_on_one_connection_is_refused() -> None:
    lab = Lab()
    lab.host("esx1")

    assert refused(lab.register("esx1")) is ErrorCode.BAD_REQUEST


def test_generations_count_per_lun() -> None:
    lab = Lab(luns=("ds1", "ds2"))
    lab.host("esx1")
    lab.connect("esx2")

    registered = lab.register("esx2", lun="ds2")

    assert isinstance(registered, m.Registered)
    assert registered.generation == 1


def test_a_host_that_lost_its_connection_is_adopted_with_its_generation() -> None:
    lab = two_hosts()
    lab.hang_up("esx1")
    lab.connect("esx1", pid=101)

    reply = lab.register("esx1")

    assert reply == m.Registered(generation=1, lun_size=4096, permit=True, adopted=True)


def test_adoption_supersedes_a_connection_that_lockd_still_thinks_open() -> None:
    lab = Lab()
    lab.host("esx1")
    old = lab.sessions["esx1"]
    lab.connect("esx1", pid=101)

    reply = lab.register("esx1")

    assert isinstance(reply, m.Registered)
    assert reply.adopted
    assert lab.finished == [old]


def test_another_process_with_the_same_nonce_is_not_adopted_while_the_first_lives() -> None:
    lab = Lab()
    lab.host("esx1")
    lab.connect("esx1", pid=555)

    assert lab.register("esx1") is None
    lab.wait(lab.timing.register)

    assert refused(lab.reply("esx1")) is ErrorCode.STILL_ALIVE


def test_a_new_start_waits_for_the_exit_of_the_old_one() -> None:
    lab = Lab()
    lab.host("esx1", nonce=1)
    old = lab.processes["esx1"]
    lab.hang_up("esx1")
    lab.connect("esx1")

    assert lab.register("esx1", nonce=2) is None
    lab.processes["old"] = old
    lab.exit("old")

    assert lab.reply("esx1") == m.Registered(
        generation=2, lun_size=4096, permit=True, adopted=False
    )


def test_a_new_start_after_a_goodbye_is_let_in_at_once() -> None:
    lab = Lab()
    lab.host("esx1", nonce=1)
    assert lab.ask("esx1", m.Unregister()) == m.Good()
    lab.hang_up("esx1")

    assert lab.host("esx1", nonce=2) == 2
    assert lab.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.OPEN


def test_several_new_starts_that_wait_are_let_in_one_at_a_time() -> None:
    lab = Lab()
    lab.host("esx1", nonce=1)
    old = lab.processes["esx1"]
    lab.hang_up("esx1")
    for name, nonce in (("esx1", 2), ("twin", 3)):
        lab.connect(name)
        host = identity("esx1")
        lab.ask(name, m.Register(lun="ds1", host_uuid=host.host_uuid, name="esx1", nonce=nonce))

    lab.processes["old"] = old
    lab.exit("old")
    lab.wait(lab.timing.register)

    assert isinstance(lab.reply("esx1", 4), m.Registered)
    assert refused(lab.reply("twin")) is ErrorCode.STILL_ALIVE


def test_what_a_dead_process_had_sent_is_not_carried_out_after_its_exit_was_seen() -> None:
    lab = two_hosts()

    lab.exit("esx1")  # its socket may still hold requests
    reply = lab.ask("esx1", caw("0", "a"))

    assert refused(reply) is ErrorCode.NOT_REGISTERED
    assert lab.blocks["ds1"].block(3) == letter("0")


def test_register_that_is_read_after_the_exit_was_seen_is_refused() -> None:
    lab = Lab()
    lab.connect("a")

    lab.exit("a")

    assert refused(lab.register("a")) is ErrorCode.BAD_REQUEST
    assert not lab.state.hosts
    assert lab.host("a", nonce=2) == 1


def test_the_oldest_ended_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 5
    monkeypatch.setattr("lockd.machine.nexus.HOSTS_ENDED_MAX", kept)
    lab = Lab()
    for number in range(kept + 2):
        lab.host(f"esx{number}", pid=1)
        lab.ask(f"esx{number}", m.Unregister())
        lab.hang_up(f"esx{number}")

    generation = lab.host("last")

    assert len(lab.state.hosts) == kept + 1
    assert ("ds1", uuid("esx0")) not in lab.state.hosts
    assert len(lab.store.start().hosts) == kept + 1
    assert generation == kept + 3


# --- compare-and-write ----------------------------------------------------------------------------


def test_compare_and_write_writes_what_was_as_expected() -> None:
    lab = two_hosts()

    assert lab.ask("esx1", caw("0", "a")) == m.Good()
    assert lab.blocks["ds1"].block(3) == letter("a")


def test_compare_and_write_miscompares_with_offset_and_block_and_changes_nothing() -> None:
    lab = two_hosts()
    lab.ask("esx1", caw("0", "a"))
    almost = letter("a")[:300] + b"x" + letter("a")[301:]

    reply = lab.ask(
        "esx2",
        m.CompareAndWrite(lba=3, expected=almost, new=letter("b"), durable=True, label=""),
    )

    assert reply == m.Miscompare(offset=300, current=letter("a"))
    assert lab.blocks["ds1"].block(3) == letter("a")
    assert lab.blocks["ds1"].sync_count == 0


@pytest.mark.parametrize("lba", [8, 2**63, 2**64 - 1])
def test_compare_and_write_past_the_end_is_refused(lba: int) -> None:
    lab = two_hosts()

    assert refused(lab.ask("esx1", caw("0", "a", lba=lba))) is ErrorCode.OUT_OF_RANGE


def test_compare_and_write_of_the_last_block_is_good() -> None:
    assert two_hosts().ask("esx1", caw("0", "a", lba=7)) == m.Good()


def test_only_durable_writes_are_flushed() -> None:
    lab = two_hosts()

    lab.ask("esx1", caw("0", "a", lba=1))
    assert lab.blocks["ds1"].sync_count == 0

    lab.ask("esx1", caw("0", "a", lba=2, durable=True))
    assert lab.blocks["ds1"].sync_count == 1


def test_an_error_of_the_lun_is_told() -> None:
    lab = two_hosts()
    lab.blocks["ds1"].error = "input/output error"

    reply = lab.ask("esx1", caw("0", "a"))

    assert reply == m.Refused(code=ErrorCode.IO_ERROR, message="input/output error")


def test_a_write_that_cannot_be_flushed_is_no_success_and_leaves_no_audit_entry() -> None:
    lab = two_hosts()
    lab.blocks["ds1"].sync_error = "flush failed"

    reply = lab.ask("esx1", caw("0", "a", durable=True, label="vm1"))

    assert refused(reply) is ErrorCode.IO_ERROR
    assert not [line for line in lab.log if "LOCK_CHANGED" in line]


def test_a_label_puts_a_change_into_the_audit_trail_and_no_label_keeps_it_out() -> None:
    lab = two_hosts()

    lab.ask("esx1", caw("0", "a", label="vm1.vmdk exclusive"))
    lab.ask("esx1", caw("a", "b"))
    lab.ask("esx1", caw("0", "c", label="failed"))

    changes = [e for e in lab.store.audit(count=99, before=0) if e.kind is AuditKind.LOCK_CHANGED]
    assert [(e.text, e.lba, e.generation) for e in changes] == [("vm1.vmdk exclusive", 3, 1)]


# --- asks -----------------------------------------------------------------------------------------


def test_ask_reaches_the_holder_and_its_answer_the_asker() -> None:
    lab = two_hosts()

    assert lab.ask("esx2", ask("esx1")) is None
    asked = lab.notices("esx1")
    lab.tell("esx1", m.Answer(ask_id=1, kind=AnswerKind.DONE, payload=b"attributes"))

    assert asked == [
        m.Asked(ask_id=1, lba=3, what=AskKind.GIVE_UP, who="esx2 (pid 102)", label="vm1.vmdk")
    ]
    assert lab.reply("esx2") == m.AskAnswer(
        kind=AnswerKind.DONE, payload=b"attributes", who="esx1 (pid 101)", proof=""
    )


def test_ask_of_a_host_that_exited_is_gone_with_the_proof() -> None:
    lab = two_hosts()
    lab.exit("esx1")

    assert lab.ask("esx2", ask("esx1")) == m.AskAnswer(
        kind=AnswerKind.GONE,
        payload=b"",
        who="esx1 (pid 101)",
        proof="the exit of pid 101 was seen",
    )


def test_an_ask_under_way_is_answered_by_the_holders_exit() -> None:
    lab = two_hosts()
    lab.ask("esx2", ask("esx1"))

    lab.hang_up("esx1")
    assert lab.reply("esx2") is None  # its process may be alive
    lab.exit("esx1")

    answer = lab.reply("esx2")
    assert isinstance(answer, m.AskAnswer)
    assert answer.kind is AnswerKind.GONE


def test_ask_of_a_host_that_never_registered_is_unreachable() -> None:
    lab = two_hosts()

    answer = lab.ask("esx2", ask("nobody"))

    assert isinstance(answer, m.AskAnswer)
    assert answer.kind is AnswerKind.UNREACHABLE


def test_an_ask_waits_for_a_holder_that_is_away_and_reaches_it_at_its_return() -> None:
    lab = two_hosts()
    lab.hang_up("esx1")
    lab.ask("esx2", ask("esx1"))
    lab.notices("esx1")

    lab.connect("esx1", pid=101)
    lab.register("esx1")

    asked = [n for n in lab.notices("esx1") if isinstance(n, m.Asked)]
    assert [n.ask_id for n in asked] == [1]


def test_an_unanswered_ask_is_asked_again_at_the_holders_return() -> None:
    lab = two_hosts()
    lab.ask("esx2", ask("esx1"))
    lab.hang_up("esx1")
    lab.notices("esx1")

    lab.connect("esx1", pid=101)
    lab.register("esx1")
    lab.tell("esx1", m.Answer(ask_id=1, kind=AnswerKind.IN_USE, payload=b""))

    answer = lab.reply("esx2", 5)
    assert isinstance(answer, m.AskAnswer)
    assert answer.kind is AnswerKind.IN_USE


def test_only_the_holder_can_answer() -> None:
    lab = two_hosts()
    lab.host("esx3")
    lab.ask("esx2", ask("esx1"))

    lab.tell("esx3", m.Answer(ask_id=1, kind=AnswerKind.DONE, payload=b""))

    assert lab.reply("esx2") is None


def test_a_withdrawn_ask_is_forgotten_and_a_late_answer_ignored() -> None:
    lab = two_hosts()
    lab.ask("esx2", ask("esx1"))

    lab.tell("esx2", m.Withdraw(request_id=5))
    lab.tell("esx1", m.Answer(ask_id=1, kind=AnswerKind.DONE, payload=b""))

    assert lab.state.asks == {}
    assert lab.reply("esx2", 5) is None


def test_an_ask_ends_with_the_asker() -> None:
    lab = two_hosts()
    lab.ask("esx2", ask("esx1"))

    lab.hang_up("esx2")

    assert lab.state.asks == {}


def test_a_host_does_not_ask_itself() -> None:
    assert refused(two_hosts().ask("esx1", ask("esx1"))) is ErrorCode.BAD_REQUEST


def test_an_ask_past_the_end_is_refused() -> None:
    assert refused(two_hosts().ask("esx1", ask("esx2", lba=8))) is ErrorCode.OUT_OF_RANGE


def test_waiting_requests_are_bounded_and_others_go_on() -> None:
    lab = two_hosts()
    for _ in range(WAITING_PER_SESSION_MAX):
        assert lab.ask("esx2", ask("esx1")) is None

    assert refused(lab.ask("esx2", ask("esx1"))) is ErrorCode.TOO_MANY
    assert lab.ask("esx2", caw("0", "a")) == m.Good()


# --- seeing ---------------------------------------------------------------------------------------


def test_status_tells_who_holds_what_and_who_waits_for_whom() -> None:
    lab = two_hosts()
    lab.ask("esx2", ask("esx1"))
    lab.wait(1.5)
    lab.connect("tool")

    report = lab.ask("tool", m.Status())

    assert isinstance(report, m.StatusReport)
    assert [lun.name for lun in report.luns] == ["ds1"]
    hosts = {host.name: host for host in report.hosts}
    assert hosts["esx1"].connected
    assert hosts["esx1"].permit is PermitState.HELD
    assert hosts["esx2"].silent == 1.5
    (wait,) = report.waits
    assert (wait.waiter, wait.holder, wait.age) == ("esx2 (pid 102)", "esx1 (pid 101)", 1.5)
    assert wait.what == "give up of vm1.vmdk at block 3"


def test_status_shows_every_kind_of_wait() -> None:
    lab = two_hosts()
    lab.connect("tool")
    lab.ask("esx2", m.Reserve())
    lab.ask("esx2", m.Fence(lun="ds1", host_uuid=uuid("esx1"), generation=0, nonce=0))
    lab.connect("again")
    lab.ask("again", m.Register(lun="ds1", host_uuid=uuid("esx2"), name="esx2", nonce=9))

    report = lab.ask("tool", m.Status())

    assert isinstance(report, m.StatusReport)
    assert {wait.what for wait in report.waits} == {
        "fence: waits for its exit",
        "register: waits for the end of the earlier start",
    }
    (reservation,) = report.luns[0].reservation
    assert not reservation.granted
    assert reservation.waits_for == ("esx1 (pid 101)",)
    assert reservation.seconds_left == lab.timing.recall


def test_history_gives_the_newest_entries() -> None:
    lab = two_hosts()

    report = lab.ask("esx1", m.History(count=1, before=0))

    assert isinstance(report, m.HistoryReport)
    assert [entry.kind for entry in report.entries] == [AuditKind.REGISTERED]
    assert report.entries[0].host == "esx2 (pid 102)"


def test_watchers_see_every_audit_entry_from_then_on() -> None:
    lab = Lab()
    lab.connect("tool")
    assert lab.ask("tool", m.Watch()) == m.Good()

    lab.host("esx1")
    lab.hang_up("esx1")

    events = [n.entry.kind for n in lab.notices("tool") if isinstance(n, m.EventNotice)]
    assert events == [AuditKind.REGISTERED, AuditKind.NEXUS_LOST]


def test_watchers_are_bounded() -> None:
    lab = Lab()
    for number in range(WATCHERS_MAX):
        lab.connect(f"tool{number}")
        assert lab.ask(f"tool{number}", m.Watch()) == m.Good()
    lab.connect("late")

    assert refused(lab.ask("late", m.Watch())) is ErrorCode.TOO_MANY
    assert lab.ask("tool0", m.Watch()) == m.Good()


# --- the ordering duty ----------------------------------------------------------------------------


def test_records_are_durable_before_anybody_is_answered_or_killed() -> None:
    lab = two_hosts()

    with lab.steps() as steps:
        lab.ask("esx2", m.Fence(lun="ds1", host_uuid=uuid("esx1"), generation=0, nonce=0))

    kinds = [step.split()[0] for step in steps]
    assert kinds == ["commit", "audit", "kill", "esx1"]
    assert steps[0] == "commit host esx1 (pid 101): generation 1 OPEN blocked"


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ("esx3", m.Register(lun="ds1", host_uuid=uuid("esx3"), name="esx3", nonce=1)),
        ("esx2", m.Reserve()),
        ("esx2", m.Unregister()),
        ("tool", m.Fence(lun="ds1", host_uuid=uuid("esx2"), generation=0, nonce=0)),
    ],
    ids=["register", "reserve", "unregister", "fence"],
)
def test_a_crash_before_the_commit_leaves_nobody_told(who: str, message: m.Request) -> None:
    lab = two_hosts()
    lab.connect("esx3")
    lab.connect("tool")
    lab.exit("esx1")
    lab.store.fails = True

    with lab.steps() as steps, pytest.raises(StoreError):
        lab.ask(who, message)

    assert steps == []  # no reply, no notice, no kill


def test_a_crash_after_the_commit_finds_what_was_promised() -> None:
    lab = two_hosts()
    lab.ask("esx2", m.Fence(lun="ds1", host_uuid=uuid("esx1"), generation=0, nonce=0))

    lab.restart()
    lab.connect("esx1", pid=101)

    assert refused(lab.register("esx1")) is ErrorCode.FENCED


def test_incarnation_generations_and_audit_go_on_over_a_restart() -> None:
    lab = two_hosts()
    before = lab.state.audit_sequence

    lab.restart()

    assert lab.state.incarnation == 2
    assert lab.host("esx3") == 3
    assert lab.state.audit_sequence > before
