"""Conversations with lockd as text: commands at the left edge, what came of them indented.

    esx1 connects                      a new process
    esx1 registers [nonce N]           as the host of that name, on ds1
    esx1 registers recall MS lease MS  the same, with a pace of its own
    esx1 writes LBA OLD NEW [durable] [label TEXT]     compare-and-write; a block is one character
    esx1 reserves | releases | leaves | returns | hangs up | comes back | exits
    esx1 asks esx2 WHAT LBA [label TEXT]
    esx1 answers N KIND [payload TEXT]
    esx1 fences esx2 | resets ds1
    the search finds nobody | the search finds TEXT
    SECONDS pass
    lockd restarts

Lines that begin with # and empty lines are kept as they are.
"""

from lockd.protocol import messages as m
from lockd.protocol.terms import AnswerKind, AskKind
from tests.support.lockd import identity
from tests.support.lockd_lab import Lab, letter


def play(text: str) -> str:
    """Run the commands of a transcript; returns it with what came of them."""
    lab = Lab()
    lines = []
    for line in text.splitlines():
        if line.startswith("    "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            with lab.steps() as steps:
                _obey(lab, line.split())
            lines += [f"    {step}" for step in steps]
    return "\n".join(lines) + "\n"


def _obey(lab: Lab, words: list[str]) -> None:  # noqa: C901 - a table
    match words:
        case [seconds, "pass"]:
            lab.wait(float(seconds))
        case ["lockd", "restarts"]:
            lab.restart()
        case ["the", "search", "finds", "nobody"]:
            lab.found()
        case ["the", "search", "finds", *stranger]:
            lab.found(" ".join(stranger))
        case [who, "connects"]:
            lab.connect(who)
        case [who, "registers"]:
            lab.register(who)
        case [who, "registers", "nonce", nonce]:
            lab.register(who, nonce=int(nonce))
        case [who, "registers", "recall", recall, "lease", lease]:
            lab.register(who, recall_ms=int(recall), lease_ms=int(lease))
        case [who, "hangs", "up"]:
            lab.hang_up(who)
        case [who, "comes", "back"]:
            lab.connect(who, pid=lab.processes[who].pid)
            lab.register(who)
        case [who, "exits"]:
            lab.exit(who)
        case [who, "returns"]:
            recalls = [n for n in lab.notices(who) if isinstance(n, m.PermitRecalled)]
            lab.tell(who, m.Returned(recall=recalls[-1].recall))
        case [who, "answers", ask_id, kind, *rest]:
            payload = " ".join(rest[1:]).encode()
            lab.tell(who, m.Answer(ask_id=int(ask_id), kind=AnswerKind[kind], payload=payload))
        case [who, *verb]:
            lab.ask(who, _request(verb))
        case _:
            raise ValueError(f"no command: {' '.join(words)}")


def _request(words: list[str]) -> m.Request:
    match words:
        case ["reserves"]:
            return m.Reserve()
        case ["releases"]:
            return m.Release()
        case ["leaves"]:
            return m.Unregister()
        case ["resets", lun]:
            return m.Reset(lun=lun)
        case ["fences", host]:
            uuid = identity(host).host_uuid
            return m.Fence(lun="ds1", host_uuid=uuid, generation=0, nonce=0)
        case ["asks", host, what, lba, *rest]:
            uuid = identity(host).host_uuid
            label = " ".join(rest[1:])
            return m.Ask(lba=int(lba), what=AskKind[what], holder=uuid, label=label)
        case ["writes", lba, old, new, *rest]:
            durable = rest[:1] == ["durable"]
            label = " ".join(rest[2:] if durable else rest[1:])
            return m.CompareAndWrite(
                lba=int(lba), expected=letter(old), new=letter(new), durable=durable, label=label
            )
        case _:
            raise ValueError(f"no command: {' '.join(words)}")
