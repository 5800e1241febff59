"""The protocol in tables, made from the messages themselves, so that the document cannot drift.

`docs/protocol.md` holds what `tables` returns, between its two marks; a test compares the two.
"""

import dataclasses
from enum import IntEnum
from typing import Any, Final, get_args, get_origin, get_type_hints

from lockd.protocol import limits, messages, terms
from lockd.protocol.codec import CODES

BEGIN: Final = "<!-- made by lockd.protocol.describe: begin -->"
END: Final = "<!-- made by lockd.protocol.describe: end -->"

_KINDS: Final = (("Requests, to lockd", 1), ("Replies", 32), ("Notices, from lockd", 64))


def tables() -> str:
    """Every message, nested record, enumeration and limit, as Markdown."""
    parts = []
    codes = sorted(CODES)
    for (title, first), after in zip(_KINDS, (32, 64, 1 << 16), strict=True):
        rows = [_message_row(code) for code in codes if first <= code < after]
        parts.append(_table(title, ("code", "message", "fields, in order", "meaning"), rows))
    rows = [(f"`{kind.__name__}`", _fields(kind), _meaning(kind)) for kind in _nested()]
    parts.append(_table("Records inside messages", ("record", "fields, in order", "meaning"), rows))
    rows = [(f"`{kind.__name__}`", _members(kind), _meaning(kind)) for kind in _enumerations()]
    parts.append(_table("Enumerations", ("type", "values", "meaning"), rows))
    rows = [(f"`{name}`", f"{value:,}") for name, value in _limits()]
    parts.append(_table("Limits", ("name", "value"), rows))
    return "\n".join(parts)


def _message_row(code: int) -> tuple[str, ...]:
    kind = CODES[code]
    noted = " (no reply)" if kind in messages.NOTICES_TO_LOCKD else ""
    return str(code), f"`{kind.__name__}`{noted}", _fields(kind), _meaning(kind)


def _fields(kind: type) -> str:
    hints = get_type_hints(kind)
    return (
        ", ".join(
            f"{field.name} *{_type_name(hints[field.name])}*"
            + ("" if field.default is dataclasses.MISSING else " (optional)")
            for field in dataclasses.fields(kind)
        )
        or "-"
    )


def _type_name(hint: Any) -> str:  # noqa: ANN401 - a type form
    if get_origin(hint) is tuple:
        return f"array of {_type_name(get_args(hint)[0])}"
    return str(hint.__name__)


def _meaning(kind: type) -> str:
    first = (kind.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


def _members(kind: type[IntEnum]) -> str:
    return ", ".join(f"{member.value} {member.name}" for member in kind)


def _nested() -> list[type]:
    found: list[type] = []
    for kind in CODES.values():
        for hint in get_type_hints(kind).values():
            _collect(hint, found)
    return found


def _collect(hint: Any, found: list[type]) -> None:  # noqa: ANN401 - a type form
    inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
    if dataclasses.is_dataclass(inner) and isinstance(inner, type) and inner not in found:
        found.append(inner)
        for deeper in get_type_hints(inner).values():
            _collect(deeper, found)


def _enumerations() -> list[type[IntEnum]]:
    every = [value for value in vars(terms).values() if isinstance(value, type)]
    return [kind for kind in every if issubclass(kind, IntEnum) and kind is not IntEnum]


def _limits() -> list[tuple[str, int]]:
    return [(name, value) for name, value in vars(limits).items() if isinstance(value, int)]


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"### {title}", "", _row(head), _row(("---",) * len(head))]
    return "\n".join([*lines, *map(_row, rows), ""])


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
