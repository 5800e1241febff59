"""A nexus that outlives its connections: lockd restarted or killed, or the socket cut.

    connected ── connection lost ──► Disconnected ── back-off, same nonce ──► Reconnected ── ...
                                        └─ refused as fenced, or as another: final (FencedNotice,
                                           Lost)

What a caller notices of it:

* a verb waits for a connection, for `patience` seconds at most, then raises LockdDisconnected;
* what may be asked twice (RESERVE, RELEASE, ask, fence, status) is asked again by itself: a
  reservation, wanted or held, ends with the connection, and the others ask and change nothing;
* a compare-and-write is sent again only if it was never sent. One under way raises
  CompareAndWriteUnknown: the caller reads the block;
* an answer to an ask goes to the lockd that asked, or nowhere: another incarnation counts its asks
  anew, and one that still waits asks again.

Events come in order: everything of a connection after its `Reconnected`, and nothing of one that
was lost after its `Disconnected`. `Reconnected.permit` is the permit as lockd has it now.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Final, TypeVar

import trio

from lockd.client.errors import (
    CompareAndWriteUnknown,
    Fenced,
    LockdDisconnected,
    LockdError,
    LockdRefused,
)
from lockd.client.session import Event, LockClient, Lost
from lockd.protocol.messages import (
    AskAnswer,
    Asked,
    Conflict,
    FenceAnswer,
    FencedNotice,
    Good,
    Miscompare,
    StatusReport,
)
from lockd.protocol.terms import AnswerKind, AskKind, ErrorCode

log = logging.getLogger("lockd.client")

PAUSE_SECONDS: Final = 0.01
"""Before the second try to connect; the first is made at once."""

PAUSE_SECONDS_MAX: Final = 1.0
"""Pauses double up to here, each shortened at random by up to a half, so that the hosts of a lockd
that was restarted do not all come at the same moment."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """lockd cannot be reached now; it is tried again. No reservation is ours any more."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnected:
    """The nexus has a connection again."""

    permit: bool  # whether lockd has it that we hold the permit
    adopted: bool  # False: that lockd did not know us any more, and registered us anew
    generation: int


LastingEvent = Event | Disconnected | Reconnected
Dial = Callable[[Callable[[Event], None]], AbstractAsyncContextManager[LockClient]]
"""Opens one connection and registers, always with the same nonce; `lockd.client.connect`."""

_Reply = TypeVar("_Reply")


class _HangUp(Exception):
    """Leaves a connection without a goodbye."""


class LastingClient:
    """The verbs of `LockClient`, over as many connections as it takes. Made by `connect_lasting`.

    All verbs raise, besides what `LockClient` says:
        LockdDisconnected: no connection for `patience` seconds.
        Fenced: this nexus was fenced, as a later registration learned.
    """

    def __init__(
        self, dial: Dial, on_event: Callable[[LastingEvent], None], *, rng: Random
    ) -> None:
        """Use `connect_lasting`."""
        self._dial = dial
        self._on_event = on_event
        self._rng = rng
        self.patience = 0.0
        self.permit = False
        self.generation = 0
        self._client: LockClient | None = None
        self._early: list[Event] = []  # of a connection that has not registered yet
        self._change = trio.Event()  # connected, lost, or over
        self._final: LockdRefused | None = None
        self._reason = "not connected yet"
        self._asked: dict[int, int] = {}  # our number of an ask: that of the present connection
        self._last_ask = 0
        self._closing = False
        self._hangs_up = False

    async def compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good | Miscompare | Conflict:
        """See `LockClient.compare_and_write`."""

        async def verb(client: LockClient) -> Good | Miscompare | Conflict:
            return await client.compare_and_write(lba, expected, new, durable=durable, label=label)

        return await self._through(verb)

    async def reserve(self) -> Good | Conflict:
        """See `LockClient.reserve`."""
        return await self._through(lambda client: client.reserve())

    async def release(self) -> None:
        """See `LockClient.release`."""
        await self._through(lambda client: client.release())

    async def ask(self, lba: int, what: AskKind, holder: bytes, *, label: str) -> AskAnswer:
        """See `LockClient.ask`."""
        return await self._through(lambda client: client.ask(lba, what, holder, label=label))

    async def fence(self, host_uuid: bytes, generation: int = 0, *, nonce: int = 0) -> FenceAnswer:
        """See `LockClient.fence`."""
        return await self._through(lambda client: client.fence(host_uuid, generation, nonce=nonce))

    async def status(self) -> StatusReport:
        """See `Observer.status`."""
        return await self._through(lambda client: client.status())

    async def answer(self, ask_id: int, kind: AnswerKind, payload: bytes = b"") -> None:
        """See `LockClient.answer`; without effect when the connection it came over is gone."""
        theirs, client = self._asked.pop(ask_id, None), self._client
        if theirs is None or client is None:
            await trio.lowlevel.checkpoint()
            return
        await client.answer(theirs, kind, payload)

    def returned(self) -> None:
        """See `LockClient.returned`; who is not connected is asked again after it is."""
        if self._client is not None:
            self._client.returned()

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now."""
        return self._client is not None

    # --- the plumbing ---

    async def _through(self, verb: Callable[[LockClient], Awaitable[_Reply]]) -> _Reply:
        while True:
            client = await self._connection()
            try:
                return await verb(client)
            except CompareAndWriteUnknown:
                raise
            except LockdDisconnected as error:
                if self._client is client:  # hung up on this side, of which no event tells
                    self._lose(str(error))

    async def _connection(self) -> LockClient:
        """The connection, waited for.

        Raises:
            LockdDisconnected, LockdRefused: there is none in time, or never again.
        """
        gives_up_at = trio.current_time() + self.patience
        while self._client is None:
            if self._final is not None:
                raise type(self._final)(self._final.code, str(self._final))
            with trio.move_on_at(gives_up_at) as scope:
                await self._change.wait()
            if scope.cancelled_caught:
                raise LockdDisconnected(
                    f"no connection to lockd for {self.patience:g} s: {self._reason}"
                )
        return self._client

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, again and again; started when registered for the first time.

        Raises:
            LockdError: the first time did not succeed.
        """
        first, pause = True, PAUSE_SECONDS
        while not self._closing and self._final is None:
            try:
                async with self._dial(self._hear) as client:
                    self._connected(client, first=first)
                    if first:
                        task_status.started()
                    first, pause = False, PAUSE_SECONDS
                    while self._uses(client):
                        await self._change.wait()
                    if self._hangs_up:
                        raise _HangUp
            except _HangUp:
                return
            except LockdError as error:
                if first:
                    raise
                self._note(error)
                await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
                pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _uses(self, client: LockClient) -> bool:
        return self._client is client and not self._closing

    def close(self, *, goodbye: bool) -> None:
        """Have `keep` end; with a goodbye if it can be said."""
        self._closing, self._hangs_up = True, not goodbye
        self._wake()

    def _connected(self, client: LockClient, *, first: bool) -> None:
        if client.lost:
            raise LockdDisconnected("the connection was lost as soon as it stood")
        self.permit, self.generation = client.permit, client.generation
        self._client = client
        early, self._early = self._early, []
        if not first:
            log.warning(
                "lockd reached again host=%r generation=%d adopted=%s permit=%s",
                client.host.name,
                client.generation,
                client.adopted,
                client.permit,
            )
            self._on_event(
                Reconnected(
                    permit=client.permit, adopted=client.adopted, generation=client.generation
                )
            )
        for event in early:
            self._pass_on(event)
        self._wake()

    def _hear(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._lose(event.reason)
        elif self._client is None:
            self._early.append(event)
        else:
            self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        if isinstance(event, Asked):
            self._last_ask += 1
            self._asked[self._last_ask] = event.ask_id
            event = replace(event, ask_id=self._last_ask)
        self._on_event(event)

    def _lose(self, reason: str) -> None:
        self._early.clear()
        self._reason = reason
        if self._client is None:
            return
        self._client = None
        self._asked.clear()
        log.warning("lockd out of reach reason=%r", reason)
        self._on_event(Disconnected(reason))
        self._wake()

    def _note(self, error: LockdError) -> None:
        """A try to connect failed; some refusals are final."""
        self._early.clear()
        self._reason = str(error)
        log.info("lockd not reached reason=%r", str(error))
        if isinstance(error, Fenced):
            self._end(error, FencedNotice(reason=str(error)))
        elif isinstance(error, LockdRefused) and error.code is ErrorCode.STILL_ALIVE:
            self._end(error, Lost(str(error)))

    def _end(self, error: LockdRefused, event: Event) -> None:
        self._final = error
        self._on_event(event)
        self._wake()

    def _wake(self) -> None:
        self._change.set()
        self._change = trio.Event()


@asynccontextmanager
async def connect_lasting(
    dial: Dial,
    on_event: Callable[[LastingEvent], None],
    *,
    patience: float,
    rng: Random,
) -> AsyncIterator[LastingClient]:
    """Open a nexus that connects anew by itself. The first connection must succeed.

    Leaving the block normally says goodbye if there is a connection, with an error only hangs up.

    Args:
        dial: opens one connection, always as the same host with the same nonce.
        on_event: as for `connect`, with `Disconnected` and `Reconnected` besides; `Lost` comes only
            when there will never be a connection again.
        patience: seconds that a verb waits for a connection.
        rng: for the pauses between tries.

    Raises:
        LockdUnreachable, LockdRefused, Fenced: as `connect`, the first time.
    """
    client = LastingClient(dial, on_event, rng=rng)
    client.patience = patience
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(client.keep)
            yield client
            client.close(goodbye=True)
            if not client.connected:
                nursery.cancel_scope.cancel()
        except BaseException as error:  # raised again below, outside of the nursery
            failure = error
            client.close(goodbye=False)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
