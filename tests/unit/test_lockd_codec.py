"""The wire: every message comes back as it was, and nothing else gets in."""

import dataclasses
import os
from enum import IntEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.protocol import limits
from lockd.protocol import messages as m
from lockd.protocol.codec import (
    CODES,
    FrameReader,
    ProtocolError,
    decode,
    encode,
    pack_record,
    unpack_record,
)
from lockd.protocol.describe import BEGIN, END, tables
from lockd.protocol.terms import AnswerKind, AskKind
from lockd.state import HostRecord
from tests.support.lockd_lab import Lab

SIZE_MAX = limits.REQUEST_SIZE_MAX


def values(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """What a field may hold."""
    fixed: dict[str, st.SearchStrategy[Any]] = {
        "host_uuid": st.binary(min_size=16, max_size=16),
        "holder": st.binary(min_size=16, max_size=16) if hint is bytes else st.text(max_size=9),
        "expected": st.binary(min_size=512, max_size=512),
        "new": st.binary(min_size=512, max_size=512),
        "count": st.integers(1, limits.HISTORY_COUNT_MAX),
        "recall_ms": st.just(0) | st.integers(limits.PACE_MS_MIN, limits.PACE_MS_MAX),
        "lease_ms": st.just(0) | st.integers(limits.PACE_MS_MIN, limits.PACE_MS_MAX),
    }
    if name in fixed:
        return fixed[name]
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0], ""), max_size=3).map(tuple)
    if hint is int:
        return st.integers(0, m.U64_MAX)
    simple = {
        str: st.text(max_size=16),
        bytes: st.binary(max_size=600),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
    }
    if hint in simple:
        return simple[hint]
    if issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    return records(hint)


def records(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    fields = {f.name: values(hints[f.name], f.name) for f in dataclasses.fields(kind)}
    if kind is m.Answer:
        fields["kind"] = st.sampled_from([AnswerKind.DONE, AnswerKind.IN_USE, AnswerKind.NOT_HELD])
    return st.builds(kind, **fields)


any_message = st.sampled_from(sorted(CODES.values(), key=lambda k: k.__name__)).flatmap(records)


def packed(*parts: object) -> bytes:
    body: bytes = msgpack.packb(list(parts))
    return body


@given(number=st.integers(0, m.U64_MAX), message=any_message)
def test_every_message_comes_back_as_it_was(number: int, message: m.Message) -> None:
    frame = encode(number, message)

    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode(frame[4:]) == (number, message)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        return


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(code=st.sampled_from(sorted(CODES)) | st.integers(-5, 300), fields=st.lists(json_like))
def test_any_array_is_a_message_or_a_protocol_error(code: int, fields: list[Any]) -> None:
    try:
        number, message = decode(packed(code, 1, *fields))
    except ProtocolError:
        return
    assert decode(encode(number, message)[4:]) == (number, message)


@given(message=any_message, data=st.data())
def test_a_damaged_message_is_a_message_or_a_protocol_error(
    message: m.Message, data: st.DataObject
) -> None:
    body = bytearray(encode(1, message)[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(body))
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (packed(13, 1)[:-1], "not msgpack"),
        (packed(13, 1) + b"\0", "not msgpack"),
        (b"\x91" * 2000 + b"\0", "not msgpack"),
        (msgpack.packb({"a": 1}), "an array"),
        (msgpack.packb(5), "an array"),
        (packed(), "an array"),
        (packed(13), "an array"),
        (packed("13", 1), "an array"),
        (packed(99, 1), "no message has the code 99"),
        (packed(13, -1), "request id"),
        (packed(13, 1, 1), "Status has 0 fields, not 1"),
        (packed(8, 0), "Returned has 1 fields, not 0"),
        (packed(8, 0, "1"), "int expected, found str"),
        (packed(8, 0, True), "int expected, found bool"),
        (packed(8, 0, -1), "not a number of 64 bits"),
        (packed(8, 0, None), "int expected, found NoneType"),
        (packed(7, 1, b"ds1"), "str expected, found bytes"),
        (packed(7, 1, "x" * 65), "longer than 64 bytes"),
        (packed(7, 1, "\u20ac" * 22), "longer than 64 bytes"),
        (packed(9, 1, 0, 5, b"a" * 16, ""), "5 is no AskKind"),
        (packed(9, 1, 0, 1, b"a" * 15, ""), "16 bytes, not 15"),
        (packed(4, 1, 0, bytes(511), bytes(512), False, ""), "512 bytes each"),
        (packed(4, 1, 0, bytes(512), bytes(513), False, ""), "512 bytes each"),
        (packed(4, 1, 0, bytes(512), bytes(512), 0, ""), "bool expected"),
        (packed(10, 0, 1, 4, b""), "GONE is for lockd to say"),
        (packed(10, 0, 1, 1, bytes(8193)), "longer than 8192 bytes"),
        (packed(15, 1, 0, 0), "not 1 to 500"),
        (packed(15, 1, 501, 0), "not 1 to 500"),
        (packed(32, 1, 1, "x", 1, "ds1"), "array expected"),
        (packed(40, 1, ["x"]), "AuditEntry is an array"),
    ],
)
def test_what_is_no_message_is_refused_with_words(body: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode(body)


def test_our_own_illegal_message_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="512 bytes each"):
        m.CompareAndWrite(lba=0, expected=b"", new=b"", durable=False, label="")
    with pytest.raises(ValueError, match="64 bits"):
        m.Ask(lba=-1, what=AskKind.GIVE_UP, holder=bytes(16), label="")


# --- frames ---------------------------------------------------------------------------------------


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from(["esx1", "esx2", "tool"]),
            st.integers(0, 1),
            st.sampled_from(get_args(m.Request)).flatmap(records),
        ),
        max_size=30,
    )
)
def test_any_sequence_of_messages_leaves_lockd_whole(
    said: list[tuple[str, int, m.Request]],
) -> None:
    lab = Lab()
    lab.host("esx1")
    lab.host("esx2")
    lab.connect("tool")

    for name, wants_reply, message in said:
        if wants_reply:
            lab.ask(name, message)  # checks the invariants
        else:
            lab.tell(name, message)


@given(messages=st.lists(records(m.Ask), max_size=5), cuts=st.lists(st.integers(1, 60)))
def test_frames_come_out_whole_however_the_stream_is_cut(
    messages: list[m.Ask], cuts: list[int]
) -> None:
    stream = b"".join(encode(n, message) for n, message in enumerate(messages))
    reader = FrameReader(SIZE_MAX)
    bodies: list[bytes] = []
    for cut in cuts:
        bodies += reader.feed(stream[:cut])
        stream = stream[cut:]
    bodies += reader.feed(stream)

    assert [decode(body) for body in bodies] == list(enumerate(messages))
    assert not reader.incomplete


def test_half_a_frame_is_known_to_be_incomplete() -> None:
    reader = FrameReader(SIZE_MAX)

    assert list(reader.feed(encode(1, m.Status())[:-1])) == []
    assert reader.incomplete


def test_a_length_above_the_bound_is_refused_before_the_body_arrives() -> None:
    reader = FrameReader(SIZE_MAX)

    with pytest.raises(ProtocolError, match="the limit is 16384"):
        list(reader.feed((SIZE_MAX + 1).to_bytes(4, "big")))


def test_frames_before_an_oversized_one_are_delivered() -> None:
    bodies = FrameReader(SIZE_MAX).feed(encode(1, m.Status()) + b"\xff" * 4)

    assert decode(next(bodies)) == (1, m.Status())
    with pytest.raises(ProtocolError):
        next(bodies)


def test_the_largest_legal_request_fits_its_bound() -> None:
    answer = m.Answer(
        ask_id=m.U64_MAX, kind=AnswerKind.DONE, payload=bytes(limits.PAYLOAD_SIZE_MAX)
    )
    write = m.CompareAndWrite(
        lba=m.U64_MAX,
        expected=bytes(512),
        new=bytes(512),
        durable=True,
        label="x" * limits.LABEL_SIZE_MAX,
    )

    assert max(len(encode(m.U64_MAX, message)) for message in (answer, write)) < SIZE_MAX


# --- records for the store ------------------------------------------------------------------------


@given(records(HostRecord))
def test_store_records_come_back(record: HostRecord) -> None:
    assert unpack_record(HostRecord, pack_record(record)) == record


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x91\x01", b"\x80"])
def test_what_is_no_store_record_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_record(HostRecord, data)


def test_codes_are_stable() -> None:
    """Changing one breaks every host of the other version: raise PROTOCOL_VERSION with it."""
    assert limits.PROTOCOL_VERSION == 1
    assert {code: kind.__name__ for code, kind in CODES.items()} == {
        1: "Hello",
        2: "Register",
        3: "Unregister",
        4: "CompareAndWrite",
        5: "Reserve",
        6: "Release",
        7: "Reset",
        8: "Returned",
        9: "Ask",
        10: "Answer",
        11: "Withdraw",
        12: "Fence",
        13: "Status",
        14: "Watch",
        15: "History",
        32: "Welcome",
        33: "Registered",
        34: "Good",
        35: "Miscompare",
        36: "Conflict",
        37: "AskAnswer",
        38: "FenceAnswer",
        39: "StatusReport",
        40: "HistoryReport",
        41: "Refused",
        64: "Asked",
        65: "PermitRecalled",
        66: "PermitGranted",
        67: "UnitAttention",
        68: "FencedNotice",
        69: "EventNotice",
    }


def test_the_document_has_the_tables_of_the_code() -> None:
    """After a change: `VMFS_GOLDEN_REWRITE=1 scripts/test tests/unit/test_lockd_codec.py`."""
    path = Path(__file__).parents[2] / "docs" / "protocol.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    tables_there, after = rest.split(END)

    if os.environ.get("VMFS_GOLDEN_REWRITE"):
        text = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
        path.write_text(text, encoding="utf-8")
        return
    assert tables_there.strip() == tables().strip()


@pytest.mark.parametrize("pace", [-1, 1, 99, 300_001, 2**63, 0.8, float("nan"), True, None, "800"])
@pytest.mark.parametrize("field", ["recall_ms", "lease_ms"])
def test_a_host_without_a_sane_pace_is_refused(field: str, pace: object) -> None:
    paces = [pace, 800] if field == "recall_ms" else [400, pace]
    with pytest.raises(ProtocolError):
        decode(packed(2, 1, "ds1", bytes(16), "esx1", 1, *paces))


def test_a_host_without_a_pace_of_its_own_may_say_nothing_of_it() -> None:
    _, register = decode(packed(2, 1, "ds1", bytes(16), "esx1", 1))
    assert register == m.Register(
        lun="ds1", host_uuid=bytes(16), name="esx1", nonce=1, recall_ms=0, lease_ms=0
    )


def test_fields_that_an_earlier_release_did_not_know_may_be_missing() -> None:
    report = m.StatusReport(incarnation=1, uptime=2.0, sessions=3, luns=(), hosts=(), waits=())
    body = [39, 7, 1, 2.0, 3, [], [], []]

    assert decode(msgpack.packb(body)) == (7, report)
    assert decode(msgpack.packb([*body, "full"]))[1] == dataclasses.replace(
        report, state_full="full"
    )
    for wrong in (body[:-1], [*body, "full", 1], [*body, 1]):
        with pytest.raises(ProtocolError):
            decode(msgpack.packb(wrong))
