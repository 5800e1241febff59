"""Messages as bytes: a length, then a msgpack array. The only user of msgpack.

    ┌──────────────────────┬────────────────────────────────────────────┐
    │ length: u32, big end │ msgpack [code, request_id, field, field …] │
    └──────────────────────┴────────────────────────────────────────────┘

`code` says which message (`CODES`), `request_id` which request a reply belongs to (0: a notice, no
reply), the fields follow in the order of the dataclass. Nested records are arrays of their fields.
Fields with a default stand last and may be left out: an earlier release did not know them.
What is malformed raises `ProtocolError`, whatever it is: no other exception leaves `decode`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from lockd.protocol import messages as m
from lockd.protocol.messages import Message

Record = TypeVar("Record")
_Decoder = Callable[[Any], Any]

HEADER_SIZE: Final = 4

_PLAIN: Final = (int, str, bytes, bool, float)
"""What msgpack reads as it is. (Its types must be exact: True is no number here.)"""

CODES: Final = MappingProxyType(
    {
        1: m.Hello,
        2: m.Register,
        3: m.Unregister,
        4: m.CompareAndWrite,
        5: m.Reserve,
        6: m.Release,
        7: m.Reset,
        8: m.Returned,
        9: m.Ask,
        10: m.Answer,
        11: m.Withdraw,
        12: m.Fence,
        13: m.Status,
        14: m.Watch,
        15: m.History,
        32: m.Welcome,
        33: m.Registered,
        34: m.Good,
        35: m.Miscompare,
        36: m.Conflict,
        37: m.AskAnswer,
        38: m.FenceAnswer,
        39: m.StatusReport,
        40: m.HistoryReport,
        41: m.Refused,
        64: m.Asked,
        65: m.PermitRecalled,
        66: m.PermitGranted,
        67: m.UnitAttention,
        68: m.FencedNotice,
        69: m.EventNotice,
    }
)
"""Requests from 1, replies from 32, notices from 64. A code is never used again for another."""


class ProtocolError(Exception):
    """The other side sent what is no message. The session cannot go on."""


def encode(request_id: int, message: Message) -> bytes:
    """One whole frame, ready to be sent."""
    names = _PLANS[type(message)].names
    body = [_CODE_OF[type(message)], request_id]
    body += [getattr(message, name) for name in names]
    packed: bytes = msgpack.packb(body, default=_fields_of)
    return len(packed).to_bytes(HEADER_SIZE, "big") + packed


def decode(body: bytes) -> tuple[int, Message]:
    """The request id and the message of one frame, without its length.

    Raises:
        ProtocolError: it is none.
    """
    values = _unpack(body)
    if type(values) is not list or len(values) < 2:
        raise ProtocolError("a message is an array of a code, a request id, and its fields")
    code, request_id = values[0], values[1]
    if not (isinstance(code, int) and isinstance(request_id, int)):
        raise ProtocolError("a message is an array of a code, a request id, and its fields")
    kind = CODES.get(code)
    if kind is None:
        raise ProtocolError(f"no message has the code {code}")
    if not 0 <= request_id <= m.U64_MAX:
        raise ProtocolError("the request id is not a number of 64 bits")
    message: Message = _build(kind, values[2:])
    return request_id, message


def pack_record(record: object) -> bytes:
    """A frozen dataclass of the kinds that messages are made of, for the store."""
    packed: bytes = msgpack.packb(record, default=_fields_of)
    return packed


def unpack_record(kind: type[Record], data: bytes) -> Record:
    """What `pack_record` made.

    Raises:
        ProtocolError: it is not a record of that kind.
    """
    values = _unpack(data)
    if not isinstance(values, list):
        raise ProtocolError(f"{kind.__name__} is an array of fields")
    return _build(kind, values)


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one incomplete frame and what came with it."""

    def __init__(self, size_max: int) -> None:
        """`size_max`: the longest body that is accepted, bytes."""
        self._size_max = size_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete with `data`, in order. Exhaust it before the next call.

        Raises:
            ProtocolError: a length is above the bound. The stream is lost from there on.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER_SIZE:
                body = start + HEADER_SIZE
                size = int.from_bytes(buffer[start:body], "big")
                if size > self._size_max:
                    raise ProtocolError(
                        f"a message of {size} bytes; the limit is {self._size_max} "
                        "(is this the right socket?)"
                    )
                if len(buffer) - body < size:
                    break
                start = body + size
                yield bytes(buffer[body:start])
        finally:
            del buffer[:start]

    @property
    def incomplete(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._buffer)


# --- how a record is taken apart ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The fields of a record, how each is read, and how many of them must be there.

    `plain`: their types, when all are what msgpack reads as it is. Then one comparison tells that
    there is nothing to convert, as in a compare-and-write; what differs is read field by field.
    """

    names: tuple[str, ...]
    decoders: tuple[_Decoder, ...]
    needed: int
    plain: tuple[type, ...] | None


def _unpack(body: bytes) -> Any:  # noqa: ANN401 - whatever the peer sent
    try:
        return msgpack.unpackb(body)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {error}") from None


def _fields_of(record: object) -> list[Any]:
    plan = _PLANS.get(type(record))
    names = plan.names if plan else [field.name for field in fields(record)]  # type: ignore[arg-type]
    return [getattr(record, name) for name in names]


def _build(kind: type[Record], values: list[Any]) -> Record:
    plan = _PLANS.get(kind)
    if plan is None:
        plan = _plan(kind)
    names = plan.names
    try:
        if plan.plain == tuple(map(type, values)):
            return kind(**dict(zip(names, values, strict=True)))
        if not plan.needed <= len(values) <= len(names):
            raise ProtocolError(f"{kind.__name__} has {len(names)} fields, not {len(values)}")
        return kind(
            **{
                name: decoder(value)
                for name, decoder, value in zip(names, plan.decoders, values, strict=False)
            }
        )
    except ValueError as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None


def _exactly(kind: type) -> _Decoder:
    def decoder(value: Any) -> Any:  # noqa: ANN401 - whatever the peer sent
        if type(value) is not kind:  # not isinstance: True is no number here
            raise ValueError(f"{kind.__name__} expected, found {type(value).__name__}")
        return value

    return decoder


def _one_of(kind: type[IntEnum]) -> _Decoder:
    members = {int(member): member for member in kind}

    def decoder(value: Any) -> Any:  # noqa: ANN401 - whatever the peer sent
        member = members.get(value) if type(value) is int else None
        if member is None:
            raise ValueError(f"{value!r} is no {kind.__name__}")
        return member

    return decoder


def _many(inner: _Decoder) -> _Decoder:
    def decoder(value: Any) -> Any:  # noqa: ANN401 - whatever the peer sent
        if type(value) is not list:
            raise ValueError(f"array expected, found {type(value).__name__}")
        return tuple(inner(item) for item in value)

    return decoder


def _nested(kind: type) -> _Decoder:
    def decoder(value: Any) -> Any:  # noqa: ANN401 - whatever the peer sent
        if type(value) is not list:
            raise ValueError(f"{kind.__name__} is an array of fields")
        return _build(kind, value)

    return decoder


def _decoder_for(hint: Any) -> _Decoder:  # noqa: ANN401 - a type form
    if get_origin(hint) is tuple:
        return _many(_decoder_for(get_args(hint)[0]))
    if hint in _PLAIN:
        return _exactly(hint)
    if issubclass(hint, IntEnum):
        return _one_of(hint)
    return _nested(hint)


def _plan(kind: type) -> _Plan:
    hints = get_type_hints(kind)
    names = tuple(field.name for field in fields(kind))
    types = tuple(hints[name] for name in names)
    return _Plan(
        names=names,
        decoders=tuple(_decoder_for(hint) for hint in types),
        needed=sum(field.default is MISSING for field in fields(kind)),
        plain=types if all(hint in _PLAIN for hint in types) else None,
    )


_CODE_OF: Final = MappingProxyType({kind: code for code, kind in CODES.items()})
_PLANS: Final[Mapping[type, _Plan]] = MappingProxyType(
    {
        kind: _plan(kind)
        for kind in vars(m).values()
        if isinstance(kind, type) and is_dataclass(kind)
    }
)
"""The messages, and the records in them: an audit entry is packed at every change of a lock."""
