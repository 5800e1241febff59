"""A nexus that outlives its connections: what is sent again, what is not, and what is told."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from random import Random

import pytest
import trio
import trio.testing

from lockd.client import (
    AnswerKind,
    Asked,
    AskKind,
    CompareAndWriteUnknown,
    Conflict,
    Disconnected,
    Event,
    Fenced,
    FencedNotice,
    Good,
    LastingClient,
    LastingEvent,
    LockClient,
    LockdDisconnected,
    LockdUnreachable,
    Lost,
    PermitGranted,
    PermitRecalled,
    Reconnected,
    StatusReport,
    UnitAttention,
    connect_lasting,
    connect_stream,
)
from lockd.state import ProcessId
from tests.support.lockd import MemoryLockd, identity, memory_lockd, until

OLD, NEW = bytes(512), b"n" * 512
PATIENCE = 5.0


class Line:
    """The way from one host to a lockd that may be changed, or be away."""

    def __init__(self, lockd: MemoryLockd | None, *, name: str = "a") -> None:
        self.lockd = lockd
        self.name = name
        self.process = ProcessId(4711, 1, "boot")
        self.streams: list[trio.abc.Stream] = []
        self.events: list[LastingEvent] = []
        self.dials = 0

    def dial(self, on_event: Callable[[Event], None]) -> AbstractAsyncContextManager[LockClient]:
        self.dials += 1
        if self.lockd is None:
            raise LockdUnreachable("nobody listens")
        self.streams.append(self.lockd.stream(self.process))
        return connect_stream(self.streams[-1], identity(self.name), "ds1", on_event)

    async def cut(self) -> None:
        await self.streams[-1].aclose()

    @asynccontextmanager
    async def client(self, *, patience: float = PATIENCE) -> AsyncIterator[LastingClient]:
        opened = connect_lasting(self.dial, self._hear, patience=patience, rng=Random(1))
        async with opened as client:
            yield client

    def _hear(self, event: LastingEvent) -> None:
        self.events.append(event)

    def told(self, kind: type[object]) -> bool:
        return any(isinstance(event, kind) for event in self.events)


async def test_a_cut_connection_is_made_anew_under_the_same_generation() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client() as client:
            generation = client.generation
            await line.cut()
            await until(lambda: line.told(Reconnected))

            done = await client.compare_and_write(1, OLD, NEW, durable=True, label="x")

            assert done == Good()
            assert isinstance(line.events[0], Disconnected)
            assert line.events[1] == Reconnected(permit=True, adopted=True, generation=generation)
        assert not lockd.state.hosts["ds1", identity("a").host_uuid].open  # it said goodbye


async def test_verbs_wait_while_lockd_is_away_and_go_on_with_the_next() -> None:
    line = Line(None)
    got: list[object] = []

    async def write(client: LastingClient) -> None:
        got.append(await client.compare_and_write(1, OLD, NEW, durable=False, label=""))

    async with memory_lockd() as first:
        line.lockd = first
        async with line.client() as client, trio.open_nursery() as nursery:
            line.lockd = None
            await line.cut()
            await until(lambda: line.told(Disconnected))
            nursery.start_soon(write, client)
            await until(lambda: line.dials > 3)
            assert not got
            async with memory_lockd(store=first.store, blocks=first.blocks) as second:
                line.lockd = second
                await until(lambda: got)
                assert got == [Good()]
                assert line.events[-1] == Reconnected(permit=True, adopted=True, generation=1)
                nursery.cancel_scope.cancel()


async def test_a_compare_and_write_under_way_is_unknown_and_not_repeated() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client() as client:
            errors: list[Exception] = []

            async def write() -> None:
                try:
                    await client.compare_and_write(1, OLD, NEW, durable=False, label="")
                except CompareAndWriteUnknown as error:
                    errors.append(error)

            block = lockd.blocks["ds1"].block
            async with trio.open_nursery() as nursery:
                # The reply never comes: lockd's end is closed in the step that answers.
                engine_process = lockd.engine.process

                def process() -> None:
                    engine_process()
                    if block(1) == NEW:
                        for link in lockd.sessions.links[line.process]:
                            link.close()

                lockd.engine.process = process  # type: ignore[method-assign]
                nursery.start_soon(write)
            lockd.engine.process = engine_process  # type: ignore[method-assign]

            assert len(errors) == 1
            again = await client.compare_and_write(1, OLD, NEW, durable=False, label="")
            assert not isinstance(again, Good)


async def test_an_ask_goes_on_and_its_answer_is_heard() -> None:
    async with memory_lockd() as lockd:
        holder, line = Line(lockd, name="b"), Line(lockd)
        holder.process = ProcessId(4712, 1, "boot")
        async with holder.client() as other, line.client() as client:
            answers: list[AnswerKind] = []

            async def ask() -> None:
                answer = await client.ask(8, AskKind.GIVE_UP, identity("b").host_uuid, label="x")
                answers.append(answer.kind)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await until(lambda: holder.told(Asked))
                await line.cut()
                await until(lambda: sum(isinstance(e, Asked) for e in holder.events) == 2)
                first, second = [e.ask_id for e in holder.events if isinstance(e, Asked)]
                assert first != second
                await other.answer(first, AnswerKind.DONE)  # to a question that was taken back
                await other.answer(second, AnswerKind.IN_USE)

            assert answers == [AnswerKind.IN_USE]


async def test_an_answer_never_reaches_another_incarnation() -> None:
    line = Line(None, name="b")
    uuid = identity("b").host_uuid
    async with memory_lockd() as first:
        line.lockd = first
        async with line.client() as holder, trio.open_nursery() as nursery:
            async with first.connect("a") as asker:
                nursery.start_soon(_ask, asker, uuid)
                await until(lambda: line.told(Asked))
                early = next(e for e in line.events if isinstance(e, Asked))
                line.lockd = None
                await line.cut()
                await until(lambda: line.told(Disconnected))
            async with memory_lockd(store=first.store, blocks=first.blocks) as second:
                line.lockd = second
                await until(lambda: line.told(Reconnected))
                line.events.clear()
                async with second.connect("c") as other:
                    nursery.start_soon(_ask, other, uuid)
                    await until(lambda: line.told(Asked))
                    assert {wait.ask_id for wait in second.state.asks.values()} == {1}
                    await holder.answer(early.ask_id, AnswerKind.DONE)
                    await holder.status()
                    assert second.state.asks
                nursery.cancel_scope.cancel()


async def _ask(client: LockClient, holder: bytes) -> None:
    with suppress(LockdDisconnected):
        await client.ask(8, AskKind.GIVE_UP, holder, label="x")


async def test_without_lockd_for_too_long_a_verb_fails_and_the_client_lives_on() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client(patience=0.05) as client:
            line.lockd = None
            await line.cut()
            await until(lambda: line.told(Disconnected))

            with pytest.raises(LockdDisconnected, match=r"for 0\.05 s: nobody listens"):
                await client.status()

            line.lockd = lockd
            await until(lambda: line.told(Reconnected))
            assert (await client.status()).hosts


async def test_a_reservation_is_lost_with_the_connection_and_everybody_learns_it() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client() as client:
            assert await client.reserve() == Good()
            async with lockd.connect("b") as other:
                assert isinstance(await other.reserve(), Conflict)
                await line.cut()
                await until(lambda: line.told(PermitRecalled))
                kinds = [type(event) for event in line.events]
                assert kinds == [Disconnected, Reconnected, UnitAttention, PermitRecalled]
                client.returned()
                await until(lambda: line.told(PermitGranted))


async def test_a_permit_that_was_granted_meanwhile_is_told() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with lockd.connect("b") as other:
            assert await other.reserve() == Good()
            async with line.client() as client:
                assert not client.permit
                line.lockd = None
                await line.cut()
                await until(lambda: line.told(Disconnected))
                await other.release()
                line.lockd = lockd
                await until(lambda: line.told(Reconnected))
                assert line.events[-1] == Reconnected(permit=True, adopted=True, generation=2)


async def test_who_was_fenced_meanwhile_learns_it_once_and_for_all() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        lockd.sessions.unkillable.add(line.process)
        async with line.client() as client:
            line.lockd = None
            await line.cut()
            await until(lambda: line.told(Disconnected))
            async with lockd.observe() as admin, trio.open_nursery() as nursery:
                nursery.start_soon(admin.fence_on, "ds1", identity("a").host_uuid)
                await until(lambda: lockd.sessions.killed)
                line.lockd = lockd
                await until(lambda: line.told(FencedNotice))
                dials = line.dials
                for _ in range(2):
                    with pytest.raises(Fenced):
                        await client.status()
                assert line.dials == dials
                nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_another_process_that_took_the_name_ends_it() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client():
            line.lockd = None
            await line.cut()
            await until(lambda: line.told(Disconnected))
            line.process = ProcessId(4799, 1, "boot")
            line.lockd = lockd
            await until(lambda: line.told(Lost))


async def test_the_first_connection_must_succeed() -> None:
    with pytest.raises(LockdUnreachable, match="nobody listens"):
        async with Line(None).client():
            pass


async def test_leaving_while_lockd_is_away_does_not_wait_for_it() -> None:
    async with memory_lockd() as lockd:
        line = Line(lockd)
        with trio.fail_after(2):
            async with line.client():
                line.lockd = None
                await line.cut()
                await until(lambda: line.told(Disconnected))


async def test_an_error_in_the_block_hangs_up_without_a_goodbye() -> None:
    async with memory_lockd() as lockd:
        with pytest.raises(ValueError, match="mine"):
            async with Line(lockd).client():
                raise ValueError("mine")
        assert lockd.state.hosts["ds1", identity("a").host_uuid].open


async def test_a_link_that_was_closed_on_this_side_is_made_anew_without_spinning(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tries = 0
    async with memory_lockd() as lockd:
        line = Line(lockd)
        async with line.client() as client:
            first = client._client
            assert first is not None

            async def hung_up() -> StatusReport:
                nonlocal tries
                tries += 1
                assert tries == 1  # with a connection that is no more, over and over
                raise LockdDisconnected("hung up on this side")

            first.status = hung_up  # type: ignore[method-assign]
            with trio.fail_after(PATIENCE):
                report = await client.status()

            assert [host.name for host in report.hosts] == ["a"]
            assert line.told(Disconnected)
            assert line.told(Reconnected)
