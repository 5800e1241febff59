"""The client, against the real engine in this process: pipelining, cancelling, losing lockd."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from lockd.client import (
    AnswerKind,
    Asked,
    AskKind,
    CompareAndWriteUnknown,
    Conflict,
    ErrorCode,
    Event,
    EventNotice,
    Fenced,
    FencedNotice,
    FenceResult,
    Good,
    LockdDisconnected,
    LockdProtocolError,
    LockdRefused,
    Lost,
    Miscompare,
    PermitGranted,
    PermitRecalled,
    connect_stream,
    observe_stream,
)
from lockd.protocol.codec import FrameReader, decode, encode
from lockd.protocol.messages import Answer, Hello, Message, Refused, Returned, Welcome
from lockd.protocol.terms import HostEnd
from lockd.state import Timing
from tests.support.lockd import MemoryLockd, identity, memory_lockd

A, B, ZERO = b"a" * 512, b"b" * 512, bytes(512)


@pytest.fixture
async def lockd() -> AsyncIterator[MemoryLockd]:
    async with memory_lockd(luns={"ds1": 1 << 20, "ds2": 1 << 16}) as lockd:
        yield lockd


def uuid(name: str) -> bytes:
    return identity(name).host_uuid


# --- the ordinary course --------------------------------------------------------------------------


async def test_connect_says_what_the_nexus_is(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1", lun="ds2") as client:
        assert (client.generation, client.lun_size) == (1, 1 << 16)
        assert (client.permit, client.adopted, client.incarnation) == (True, False, 1)
        assert client.luns == ("ds1", "ds2")


async def test_compare_and_write_tells_its_three_outcomes(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as one, lockd.connect("esx2") as two:
        good = await one.compare_and_write(5, ZERO, A, durable=True, label="t")
        miss = await two.compare_and_write(5, ZERO, B, durable=True, label="t")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.reserve)
            await wait_all_tasks_blocked()
            two.returned()
        conflict = await two.compare_and_write(5, A, B, durable=True, label="t")

    assert good == Good()
    assert miss == Miscompare(offset=0, current=A)
    assert conflict == Conflict(holder="esx1 (pid 101)")
    assert lockd.blocks["ds1"].block(5) == A


async def test_requests_are_pipelined_and_replies_find_their_askers(lockd: MemoryLockd) -> None:
    results: dict[int, object] = {}

    async def write(lba: int) -> None:
        expected = ZERO if lba % 2 else A
        results[lba] = await client.compare_and_write(lba, expected, B, durable=False, label="")

    async with lockd.connect("esx1") as client, trio.open_nursery() as nursery:
        for lba in range(500):
            nursery.start_soon(write, lba)

    assert all(results[lba] == Good() for lba in range(1, 500, 2))
    assert all(isinstance(results[lba], Miscompare) for lba in range(0, 500, 2))


async def test_durable_writes_that_arrive_together_share_one_flush(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as client, trio.open_nursery() as nursery:
        for lba in range(20):
            nursery.start_soon(
                lambda lba=lba: client.compare_and_write(lba, ZERO, A, durable=True, label="")
            )

    assert lockd.blocks["ds1"].sync_count < 20


async def test_an_ask_goes_round(lockd: MemoryLockd) -> None:
    events: list[Event] = []

    async def answer() -> None:
        await wait_all_tasks_blocked()
        (asked,) = events
        assert isinstance(asked, Asked)
        assert (asked.lba, asked.what, asked.label) == (9, AskKind.WRITE_BACK, "vm1")
        await holder.answer(asked.ask_id, AnswerKind.DONE, b"attributes")

    async with (
        lockd.connect("esx1", events=events) as holder,
        lockd.connect("esx2") as asker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer)
        reply = await asker.ask(9, AskKind.WRITE_BACK, uuid("esx1"), label="vm1")

    assert (reply.kind, reply.payload, reply.who) == (
        AnswerKind.DONE,
        b"attributes",
        "esx1 (pid 101)",
    )


async def test_recall_return_and_grant_arrive_in_order(lockd: MemoryLockd) -> None:
    events: list[Event] = []
    async with lockd.connect("esx1") as one, lockd.connect("esx2", events=events) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.reserve)
            await wait_all_tasks_blocked()
            assert [type(event) for event in events] == [PermitRecalled]
            two.returned()
        await one.release()
        await wait_all_tasks_blocked()

    assert [type(event) for event in events] == [PermitRecalled, PermitGranted]


async def test_leaving_normally_is_a_goodbye(lockd: MemoryLockd) -> None:
    events: list[Event] = []
    async with lockd.connect("esx1", events=events):
        pass

    assert lockd.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.LEFT
    assert events == []  # Lost is not for one's own hanging up


async def test_leaving_with_an_error_is_none_and_the_error_comes_out_as_it_was(
    lockd: MemoryLockd,
) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with lockd.connect("esx1"):
            raise KeyError("mine")

    await wait_all_tasks_blocked()
    assert lockd.state.hosts["ds1", uuid("esx1")].record.end is HostEnd.OPEN


async def test_history_watch_and_reset_by_an_observer(lockd: MemoryLockd) -> None:
    events: list[Event] = []
    async with lockd.observe(events) as observer:
        await observer.watch()
        async with lockd.connect("esx1"):
            await observer.reset("ds1")
        await wait_all_tasks_blocked()
        entries = await observer.history(count=2)

    texts = [event.entry.text for event in events if isinstance(event, EventNotice)]
    assert texts == [
        "esx1 (pid 101) registered",
        "an administrator resets the LUN",
        "esx1 (pid 101) left",
    ]
    assert [entry.text for entry in entries] == texts[1:]


# --- refusals -------------------------------------------------------------------------------------


async def test_a_refusal_carries_its_code(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as client:
        with pytest.raises(LockdRefused, match="block 2048 of 2048") as caught:
            await client.compare_and_write(2048, ZERO, A, durable=False, label="")
    assert caught.value.code is ErrorCode.OUT_OF_RANGE


async def test_an_unknown_lun_is_refused_at_connect(lockd: MemoryLockd) -> None:
    with pytest.raises(LockdRefused, match="no LUN 'ds9' here; served: ds1, ds2"):
        async with lockd.connect("esx1", lun="ds9"):
            pass


async def test_a_host_that_was_fenced_hears_it_and_is_refused(lockd: MemoryLockd) -> None:
    events: list[Event] = []
    async with lockd.connect("esx1", events=events) as one, lockd.connect("esx2") as two:
        lockd.sessions.unkillable.add(lockd.state.hosts["ds1", uuid("esx1")].record.process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.fence, uuid("esx1"))
            await wait_all_tasks_blocked()
            with pytest.raises(Fenced):
                await one.compare_and_write(1, ZERO, A, durable=False, label="")
            nursery.cancel_scope.cancel()

    assert events == [FencedNotice(reason="fenced by esx2 (pid 102)")]
    assert lockd.blocks["ds1"].block(1) == ZERO


async def test_an_error_of_the_lun_leaves_a_write_unknown(lockd: MemoryLockd) -> None:
    lockd.blocks["ds1"].sync_error = "input/output error"
    async with lockd.connect("esx1") as client:
        with pytest.raises(CompareAndWriteUnknown, match="input/output error"):
            await client.compare_and_write(1, ZERO, A, durable=True, label="")


async def test_fence_of_a_dead_host_carries_the_proof(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx2") as two:
        async with lockd.connect("esx1") as one:
            lockd.sessions.exit(lockd.state.hosts["ds1", uuid("esx1")].record.process)
            with pytest.raises(LockdDisconnected):
                await one.status()
        fenced = await two.fence(uuid("esx1"), 2)

    assert fenced.result is FenceResult.FENCED
    assert fenced.proof == "the exit of pid 102 was seen"


# --- waiting, cancelling, time --------------------------------------------------------------------


async def test_cancelling_an_ask_withdraws_it(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1"), lockd.connect("esx2") as asker:
        with trio.move_on_after(0) as scope:
            scope.deadline = trio.current_time() + 0.01
            await asker.ask(1, AskKind.GIVE_UP, uuid("esx1"), label="")
        await wait_all_tasks_blocked()

        assert lockd.state.asks == {}
        assert await asker.status()  # the connection goes on


async def test_cancelling_a_reserve_releases_it(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as one, lockd.connect("esx2") as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.reserve)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        two.returned()
        await wait_all_tasks_blocked()

        lun = lockd.state.luns["ds1"]
        assert lun.reserving is None
        assert lun.reservation is None


async def test_what_is_cancelled_before_it_is_sent_is_not_sent(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.compare_and_write(1, ZERO, A, durable=False, label="")
        await client.status()

    assert scope.cancelled_caught
    assert lockd.blocks["ds1"].block(1) == ZERO


async def test_a_reserve_over_a_silent_host_ends_in_a_conflict(
    autojump_clock: MockClock,
) -> None:
    async with (
        memory_lockd(timing=Timing(recall=7.0)) as lockd,
        lockd.connect("esx1") as one,
        lockd.connect("esx2"),
    ):
        started = trio.current_time()
        outcome = await one.reserve()

        assert outcome == Conflict(holder="esx2 (pid 102)")
        assert trio.current_time() - started == pytest.approx(7.0)


async def test_a_fence_of_what_does_not_die_says_alive(autojump_clock: MockClock) -> None:
    async with memory_lockd() as lockd, lockd.connect("esx1"), lockd.connect("esx2") as two:
        lockd.sessions.unkillable.add(lockd.state.hosts["ds1", uuid("esx1")].record.process)

        answer = await two.fence(uuid("esx1"))

    assert answer.result is FenceResult.ALIVE


# --- losing lockd ---------------------------------------------------------------------------------


async def test_a_lost_connection_wakes_everybody_with_an_error_of_their_own(
    lockd: MemoryLockd,
) -> None:
    events: list[Event] = []
    errors: list[type] = []
    ours, theirs = memory_stream_pair()

    async def wait_for(what: str) -> None:
        try:
            if what == "ask":
                await client.ask(1, AskKind.GIVE_UP, b"x" * 16, label="")
            else:
                await client.compare_and_write(1, ZERO, A, durable=False, label="")
        except LockdDisconnected as error:
            errors.append(type(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_lockd, theirs)
        async with connect_stream(ours, identity("esx1"), "ds1", events.append) as client:
            async with trio.open_nursery() as waiters:
                waiters.start_soon(wait_for, "ask")
                waiters.start_soon(wait_for, "write")
                await wait_all_tasks_blocked()
                await theirs.aclose()
            assert set(errors) == {LockdDisconnected, CompareAndWriteUnknown}
            assert client.lost
            with pytest.raises(LockdDisconnected, match="the connection was closed"):
                await client.status()
        nursery.cancel_scope.cancel()

    assert events == [Lost("the connection was closed")]


async def be_lockd(stream: trio.abc.Stream) -> None:
    """Welcome and register whoever comes, and answer nothing else."""
    frames = FrameReader(1 << 20)
    try:
        while data := await stream.receive_some(65536):
            for body in frames.feed(bytes(data)):
                number, message = decode(body)
                name = type(message).__name__
                if name == "Hello":
                    welcome = Welcome(version=1, software="t", incarnation=1, luns=("ds1",))
                    await stream.send_all(encode(number, welcome))
                elif name == "Register":
                    # code 33: Registered(generation, lun_size, permit, adopted)
                    from_lockd = bytes([0, 0, 0, 7, 0x96, 33, number, 1, 1, 0xC3, 0xC2])
                    await stream.send_all(from_lockd)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        return


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the protocol"),
        (b"\0\0\0\x01\xc0", "does not speak the protocol"),
        (encode(0, Good()), "Good is no notice"),
        (encode(0, Refused(code=ErrorCode.TOO_MANY, message="full house")), "full house"),
    ],
    ids=["http", "nil", "reply-as-notice", "turned-away"],
)
async def test_what_lockd_may_not_say_ends_the_connection(answer: bytes, words: str) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(answer)
    theirs.send_stream.close()

    with pytest.raises(LockdDisconnected, match=words):
        async with observe_stream(ours):
            pass


@pytest.mark.parametrize("answer", [Good(), Refused(code=ErrorCode.VERSION, message="v2")])
async def test_a_handshake_that_fails_is_a_protocol_error(answer: Message) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(encode(1, answer))

    with pytest.raises(LockdProtocolError):
        async with observe_stream(ours):
            pass


# --- sessions, seen from the wire -----------------------------------------------------------------


async def test_garbage_gets_one_error_and_ends_its_session_alone(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as client:
        stream = lockd.stream()
        await stream.send_all(encode(1, Hello(version=1, software="t")) + b"garbage!")
        heard = b""
        while data := await stream.receive_some(65536):
            heard += bytes(data)
        *_, last = [decode(body) for body in FrameReader(1 << 20).feed(heard)]

        assert isinstance(last[1], Refused)
        assert last[1].code is ErrorCode.PROTOCOL
        assert (await client.status()).sessions == 1


@pytest.mark.parametrize(
    "message",
    [Good(), Welcome(version=1, software="", incarnation=1, luns=())],
    ids=lambda message: type(message).__name__,
)
async def test_a_reply_sent_to_lockd_ends_the_session(lockd: MemoryLockd, message: Message) -> None:
    stream = lockd.stream()

    await stream.send_all(encode(1, Hello(version=1, software="t")) + encode(2, message))

    heard = b""
    while data := await stream.receive_some(65536):
        heard += bytes(data)
    assert b"is not for lockd" in heard


async def test_notices_of_strangers_are_no_mistake(lockd: MemoryLockd) -> None:
    async with lockd.connect("esx1") as client:
        await client.answer(12345, AnswerKind.DONE)
        client.returned()

        assert await client.status()


async def test_a_connection_that_comes_back_is_adopted(lockd: MemoryLockd) -> None:
    process = lockd.process()
    with pytest.raises(KeyError):
        async with lockd.connect("esx1", process=process):
            raise KeyError
    await wait_all_tasks_blocked()

    async with lockd.connect("esx1", process=process) as client:
        assert (client.generation, client.adopted) == (1, True)


async def test_lockd_started_again_knows_its_hosts() -> None:
    async with memory_lockd() as first:
        process = first.process()
        with pytest.raises(KeyError):
            async with first.connect("esx1", process=process):
                raise KeyError

    async with (
        memory_lockd(store=first.store, blocks=first.blocks) as second,
        second.connect("esx1", process=process) as client,
    ):
        assert (client.generation, client.adopted, client.incarnation) == (1, True, 2)


def test_messages_of_the_client_are_small() -> None:
    """What a host sends again and again costs little."""
    assert len(encode(0, Returned(recall=1))) < 16
    assert len(encode(0, Answer(ask_id=1, kind=AnswerKind.DONE, payload=b""))) < 16
