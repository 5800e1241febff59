"""One host asks another for a lock: forwarded, answered by that host, or by its death.

An ask waits as long as the holder is silent, also while the holder's connection is cut: lockd does
not guess. It ends with the holder's answer, the proof of its death (GONE), or the asker's leaving.
"""

from lockd.machine.turn import Refusal, Turn
from lockd.protocol.messages import Answer, Ask, AskAnswer, Asked
from lockd.protocol.terms import AnswerKind, AuditKind, ErrorCode
from lockd.state import AskWait, Host, Session


def ask(turn: Turn, session: Session, request_id: int, message: Ask) -> None:
    """Forward a question to the host that holds the record."""
    asker = turn.nexus(session)
    lun = turn.lun(asker.record.lun)
    if message.holder == asker.record.host_uuid:
        raise Refusal(ErrorCode.BAD_REQUEST, "a host does not ask itself")
    if message.lba >= lun.block_count:
        raise Refusal(ErrorCode.OUT_OF_RANGE, f"block {message.lba} of {lun.block_count}")
    holder = turn.state.hosts.get((lun.record.lun, message.holder))
    if holder is None:
        text = f"host {message.holder.hex()} never registered on {lun.record.lun}"
        unknown = AskAnswer(kind=AnswerKind.UNREACHABLE, payload=b"", who="", proof=text)
        turn.reply(session.id, request_id, unknown)
        return
    if not holder.open:
        _gone(turn, session.id, request_id, holder)
        return
    turn.begin_wait(session)
    turn.state.last_ask += 1
    wait = AskWait(
        ask_id=turn.state.last_ask,
        session=session.id,
        request_id=request_id,
        lun=lun.record.lun,
        asker=asker.record.host_uuid,
        holder=message.holder,
        lba=message.lba,
        what=message.what,
        label=message.label,
        since=turn.now.boot,
    )
    turn.state.asks[wait.ask_id] = wait
    _forward(turn, wait, holder)


def answer(turn: Turn, session: Session, message: Answer) -> None:
    """Hand the holder's answer on; nobody may wait for it any more, that is no mistake."""
    holder = turn.nexus(session)
    wait = turn.state.asks.get(message.ask_id)
    if wait is None or (wait.lun, wait.holder) != holder.record.key:
        return
    _finish(turn, wait)
    asker = turn.state.name_of((wait.lun, wait.asker))
    took = (turn.now.boot - wait.since) * 1000
    turn.audit(
        AuditKind.ASKED,
        f"{asker} asked {holder.record} for {words_for(wait)}: {message.kind.name} "
        f"after {took:.1f} ms",
        lun=wait.lun,
        host=str(holder.record),
        generation=holder.record.generation,
        lba=wait.lba,
    )
    turn.reply(
        wait.session,
        wait.request_id,
        AskAnswer(kind=message.kind, payload=message.payload, who=str(holder.record), proof=""),
    )


def withdraw(turn: Turn, session: Session, request_id: int) -> None:
    """The asker does not wait any more."""
    for wait in list(turn.state.asks.values()):
        if wait.session == session.id and wait.request_id == request_id:
            _finish(turn, wait)


def asker_left(turn: Turn, session: int) -> None:
    """The asker's nexus is gone, and its questions with it."""
    for wait in list(turn.state.asks.values()):
        if wait.session == session:
            _finish(turn, wait)


def holder_returned(turn: Turn, holder: Host) -> None:
    """The holder is connected again: what it was asked meanwhile, or did not answer, comes anew."""
    for wait in turn.state.asks.values():
        if (wait.lun, wait.holder) == holder.record.key:
            _forward(turn, wait, holder)


def holder_ended(turn: Turn, holder: Host) -> None:
    """The holder can never write again: that answers whoever waits for it."""
    for wait in list(turn.state.asks.values()):
        if (wait.lun, wait.holder) == holder.record.key:
            _finish(turn, wait)
            _gone(turn, wait.session, wait.request_id, holder)


def words_for(wait: AskWait) -> str:
    """What is asked for, for people."""
    what = wait.what.name.lower().replace("_", " ")
    return f"{what} of {wait.label or 'block'} at block {wait.lba}"


def _forward(turn: Turn, wait: AskWait, holder: Host) -> None:
    who = turn.state.name_of((wait.lun, wait.asker))
    if not holder.record.blocked:
        turn.notify(
            holder,
            Asked(ask_id=wait.ask_id, lba=wait.lba, what=wait.what, who=who, label=wait.label),
        )


def _finish(turn: Turn, wait: AskWait) -> None:
    del turn.state.asks[wait.ask_id]
    turn.end_wait(wait.session)


def _gone(turn: Turn, session: int, request_id: int, holder: Host) -> None:
    record = holder.record
    proof = AskAnswer(kind=AnswerKind.GONE, payload=b"", who=str(record), proof=record.proof)
    turn.reply(session, request_id, proof)
