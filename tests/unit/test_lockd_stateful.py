"""Random histories against lockd, judged from outside: by what its hosts were told and did.

The model knows which processes live, which may have I/O in flight (from the permits they were given
and have returned), and what is in the blocks. After each step `Lab` checks lockd's own invariants;
the model checks what those are for: nobody is said to be dead who lives (I3, I6), nobody else may
be writing when a reservation is granted (I4), compare-and-write is one step (I5), numbers only grow
(I2).
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockd.protocol import messages as m
from lockd.protocol.terms import AnswerKind, AskKind, ErrorCode, FenceResult
from lockd.state import ProcessId
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab, letter

NAMES = ("esx0", "esx1", "esx2", "esx3")
name_of = st.sampled_from(NAMES)
letters = st.sampled_from("0abc")


@dataclass
class Start:
    """One start of a host: a process, with the permit as it sees it."""

    pid: int
    nonce: int
    alive: bool = True
    left: bool = False
    connected: bool = True
    registered: bool = False
    generation: int = 0
    may_write: bool = False
    recall: int = 0
    old_recalls: list[int] = field(default_factory=list)
    fenced: bool = False


class LockdHistories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab()
        self.starts: dict[str, list[Start]] = {name: [] for name in NAMES}
        self.blocks = dict.fromkeys(range(3), "0")
        self.reserver = ""
        self.asked: dict[str, list[int]] = {name: [] for name in NAMES}
        self.last_nonce = 0
        self.seen = (0, 0, 0)

    # --- helpers ---

    def start(self, name: str) -> Start | None:
        return self.starts[name][-1] if self.starts[name] else None

    def able(self, name: str) -> bool:
        """Registered, connected, alive: what it says is heard."""
        start = self.start(name)
        return start is not None and start.alive and start.connected and start.registered

    def send(self, name: str, message: m.Request) -> m.Message | None:
        reply = self.lab.ask(name, message)
        self.listen()
        return reply

    def listen(self) -> None:
        """Let every host take in what it was told."""
        for name in NAMES:
            start = self.start(name)
            if start is None:
                continue
            for request_id, message in self.lab.heard[name]:
                self.hear(name, start, request_id, message)
            self.lab.heard[name].clear()

    def hear(self, name: str, start: Start, request_id: int, message: m.Message) -> None:
        match message:
            case m.Registered():
                start.registered = True
                start.may_write = message.permit and start.alive
                if start.generation:
                    assert message.adopted
                    assert message.generation == start.generation
                for earlier in self.starts[name][:-1]:
                    gone = not earlier.alive or earlier.left or not earlier.generation
                    assert gone, "two starts of a host at once"
                others = [s.generation for ss in self.starts.values() for s in ss if s is not start]
                assert message.generation not in others, "a generation was given out twice"
                start.generation = message.generation
            case m.PermitRecalled():
                start.old_recalls.append(start.recall)
                start.recall = message.recall
            case m.PermitGranted():
                start.may_write = start.alive and not start.left
            case m.FencedNotice():
                start.fenced = True
            case m.Asked():
                self.asked[name].append(message.ask_id)
            case m.AskAnswer() if message.kind is AnswerKind.GONE:
                assert "pid" in message.proof or "left" in message.proof
            case _:
                pass

    # --- hosts come and go ---

    @initialize()
    def two_hosts(self) -> None:
        self.new_start("esx0")
        self.new_start("esx1")

    @rule(name=name_of)
    def new_start(self, name: str) -> None:
        if (old := self.start(name)) is not None and old.connected:
            self.cut(name)
        self.last_nonce += 1
        self.lab.connect(name)
        self.lab.heard[name].clear()
        start = Start(self.lab.processes[name].pid, self.last_nonce)
        self.starts[name].append(start)
        self.lab.register(name, nonce=start.nonce)
        self.listen()

    @rule(name=name_of)
    def cut(self, name: str) -> None:
        start = self.start(name)
        if start is not None and start.connected:
            start.connected = start.registered = False
            self.lab.hang_up(name)
            if self.reserver == name:
                self.reserver = ""
            self.listen()

    @rule(name=name_of)
    def come_back(self, name: str) -> None:
        start = self.start(name)
        if start is None or not start.alive or start.left or start.connected:
            return
        start.connected = True
        self.lab.connect(name, pid=start.pid)
        self.lab.heard[name].clear()
        reply = self.lab.register(name, nonce=start.nonce)
        if isinstance(reply, m.Refused):
            assert reply.code in (ErrorCode.FENCED, ErrorCode.STILL_ALIVE)
        self.listen()

    @rule(name=name_of, index=st.integers(0, 3), really=st.sampled_from([True, False, False]))
    def die(self, name: str, index: int, really: bool) -> None:
        if not self.starts[name] or not really:
            return
        start = self.starts[name][index % len(self.starts[name])]
        if not start.alive:
            return
        start.alive = start.may_write = False
        if self.reserver == name and start is self.start(name):
            self.reserver = ""
        self.lab.processes["dying"] = ProcessId(start.pid, start.pid * 10, "test")
        self.lab.exit("dying")
        self.listen()

    @rule(name=name_of)
    def leave(self, name: str) -> None:
        start = self.start(name)
        if start is not None and self.able(name):
            if isinstance(self.lab.ask(name, m.Unregister()), m.Good):
                start.left, start.registered, start.may_write = True, False, False
                if self.reserver == name:
                    self.reserver = ""
            self.listen()

    @rule()
    def restart_lockd(self) -> None:
        self.lab.restart()
        self.reserver = ""
        for starts in self.starts.values():
            for start in starts:
                start.connected = start.registered = False
        for process in {h.record.process for h in self.lab.state.hosts.values() if h.open}:
            owner = next(s for ss in self.starts.values() for s in ss if s.pid == process.pid)
            if not owner.alive:
                self.lab.processes["dying"] = process
                self.lab.exit("dying")

    # --- verbs ---

    @rule(
        name=name_of,
        lba=st.integers(0, 2),
        old=st.sampled_from(["0", "a", "right", "right"]),
        new=letters,
        durable=st.booleans(),
    )
    def compare_and_write(self, name: str, lba: int, old: str, new: str, durable: bool) -> None:
        start = self.start(name)
        if start is None or not start.connected:
            return
        old = self.blocks[lba] if old == "right" else old
        message = m.CompareAndWrite(
            lba=lba, expected=letter(old), new=letter(new), durable=durable, label=name
        )
        reply = self.lab.ask(name, message)
        match reply:
            case m.Good():
                assert start.alive, "a dead host's write was carried out after its exit was seen"
                assert self.blocks[lba] == old
                assert self.reserver in ("", name), "I4"
                assert not start.fenced, "I3"
                self.blocks[lba] = new
            case m.Miscompare():
                assert self.blocks[lba] != old
                assert reply.current == letter(self.blocks[lba])
            case m.Conflict() | m.Refused():
                pass
            case _:
                raise AssertionError(reply)
        self.listen()

    @rule(name=name_of)
    def reserve(self, name: str) -> None:
        if self.able(name):
            self.lab.ask(name, m.Reserve())
            self.listen()

    @rule(name=name_of)
    def release(self, name: str) -> None:
        if self.able(name):
            reply = self.lab.ask(name, m.Release())
            if self.reserver == name and isinstance(reply, m.Good):
                self.reserver = ""
            self.listen()

    @rule()
    def reset(self) -> None:
        self.lab.connect("tool")
        self.lab.ask("tool", m.Reset(lun="ds1"))
        reservation = self.lab.state.luns["ds1"].reservation
        if reservation is None or reservation.ending:
            self.reserver = ""
        self.listen()

    @rule()
    def all_return(self) -> None:
        """Every host that can does as it was told."""
        for name in NAMES:
            start = self.start(name)
            if start is not None and start.recall and self.able(name):
                start.may_write = False
                self.lab.tell(name, m.Returned(recall=start.recall))
                self.listen()

    @rule(name=name_of)
    def reserve_and_get_it(self, name: str) -> None:
        """The usual course, which random steps seldom take to its end."""
        self.reserve(name)
        self.all_return()

    @rule(name=name_of, late=st.booleans())
    def return_permit(self, name: str, late: bool) -> None:
        start = self.start(name)
        if start is None or not self.able(name):
            return
        if late and start.old_recalls:
            self.lab.tell(name, m.Returned(recall=start.old_recalls[-1]))
        elif start.recall:
            start.may_write = False
            self.lab.tell(name, m.Returned(recall=start.recall))
        self.listen()

    @rule(name=name_of, holder=name_of, what=st.sampled_from(AskKind))
    def ask(self, name: str, holder: str, what: AskKind) -> None:
        if self.able(name):
            uuid = identity(holder).host_uuid
            reply = self.lab.ask(name, m.Ask(lba=1, what=what, holder=uuid, label=""))
            if isinstance(reply, m.AskAnswer) and reply.kind is AnswerKind.GONE:
                self.judge_dead(holder)
            self.listen()

    @precondition(lambda self: any(self.asked.values()))
    @rule(name=name_of, kind=st.sampled_from([AnswerKind.DONE, AnswerKind.IN_USE]))
    def answer(self, name: str, kind: AnswerKind) -> None:
        if self.able(name) and self.asked[name]:
            message = m.Answer(ask_id=self.asked[name].pop(), kind=kind, payload=b"")
            self.lab.tell(name, message)
            self.listen()

    @rule(name=name_of, holder=name_of, exact=st.booleans())
    def fence(self, name: str, holder: str, exact: bool) -> None:
        target = self.start(holder)
        if not self.able(name) or target is None or name == holder:
            return
        message = m.Fence(
            lun="ds1",
            host_uuid=identity(holder).host_uuid,
            generation=0,
            nonce=target.nonce if exact else 0,
        )
        reply = self.lab.ask(name, message)
        if isinstance(reply, m.FenceAnswer) and reply.result is FenceResult.FENCED:
            if exact:
                assert not target.alive or target.left
            else:
                self.judge_dead(holder)
        if self.lab.state.fences and self.lab.state.fences[-1].search:
            self.lab.found("a stranger")
        self.listen()

    def judge_dead(self, holder: str) -> None:
        """Lockd says that the latest registered start of a host is dead: it must be."""
        record = self.lab.state.hosts["ds1", identity(holder).host_uuid].record
        start = next(s for s in self.starts[holder] if s.nonce == record.nonce)
        assert not start.alive or start.left

    @rule(seconds=st.sampled_from([0.1, 2.5, 5.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.lab.wait(seconds)
        self.listen()

    # --- what always holds ---

    @invariant()
    def a_reservation_stands_alone(self) -> None:
        """I4, by the hosts' own account: nobody else alive may have I/O in flight."""
        lun = self.lab.state.luns["ds1"]
        if lun.reservation is None:
            return
        holder = lun.reservation.holder
        if not lun.reservation.ending:
            self.reserver = next(n for n in NAMES if identity(n).host_uuid == holder)
        for name in NAMES:
            if identity(name).host_uuid != holder:
                assert not any(s.alive and s.may_write for s in self.starts[name]), name

    @invariant()
    def numbers_only_grow(self) -> None:
        """I2."""
        state = self.lab.state
        now = (state.incarnation, state.luns["ds1"].record.generation, state.audit_sequence)
        assert all(new >= old for new, old in zip(now, self.seen, strict=True))
        self.seen = now

    @invariant()
    def the_blocks_are_what_the_replies_said(self) -> None:
        """I5."""
        for lba, text in self.blocks.items():
            assert self.lab.blocks["ds1"].block(lba) == letter(text)


TestLockdHistories = LockdHistories.TestCase
TestLockdHistories.settings = settings(stateful_step_count=40)
