"""The two kinds of connection: `Observer`, and `LockClient`, which is one with a nexus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import outcome
import trio

from lockd.client.errors import (
    CompareAndWriteUnknown,
    Fenced,
    LockdDisconnected,
    LockdError,
    LockdProtocolError,
    LockdRefused,
)
from lockd.link import Link
from lockd.protocol.codec import FrameReader, ProtocolError, decode, encode
from lockd.protocol.limits import PROTOCOL_VERSION, REPLY_SIZE_MAX
from lockd.protocol.messages import (
    Answer,
    Ask,
    AskAnswer,
    Asked,
    AuditEntry,
    CompareAndWrite,
    Conflict,
    EventNotice,
    Fence,
    FenceAnswer,
    FencedNotice,
    Good,
    Hello,
    History,
    HistoryReport,
    Message,
    Miscompare,
    PermitGranted,
    PermitRecalled,
    Refused,
    Register,
    Registered,
    Release,
    Request,
    Reserve,
    Reset,
    Returned,
    Status,
    StatusReport,
    UnitAttention,
    Unregister,
    Watch,
    Welcome,
    Withdraw,
)
from lockd.protocol.terms import AnswerKind, AskKind, ErrorCode

SOFTWARE: Final = "lockd.client"


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection to lockd is gone. Comes once, and is the last event."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """Who registers."""

    host_uuid: bytes  # 16 bytes, kept across mounts of the same machine and mount point
    name: str
    nonce: int  # drawn fresh at every start; the same again means: I am that same process
    recall_ms: int = 0  # its own pace, as `Register` has it; 0: what lockd is set to
    lease_ms: int = 0


Event = Asked | PermitRecalled | PermitGranted | UnitAttention | FencedNotice | EventNotice | Lost
OnEvent = Callable[[Event], None]
_Reply = TypeVar("_Reply")


class _Waiter:
    """Who waits for one reply."""

    __slots__ = ("message", "task")

    def __init__(self, task: trio.lowlevel.Task, message: Request) -> None:
        self.task = task
        self.message = message


class Observer:
    """A connection without a nexus. Made by `observe`."""

    incarnation: int
    luns: tuple[str, ...]

    def __init__(self, link: Link, on_event: OnEvent) -> None:
        self._link = link
        self._on_event = on_event
        self._waiters: dict[int, _Waiter] = {}
        self._last_id = 0
        self._last_recall = 0
        self._lost: str | None = None
        self.incarnation = 0
        self.luns = ()

    async def status(self) -> StatusReport:
        """Everything that lockd knows: LUNs, hosts, reservations, who waits for whom."""
        return await self._request(Status(), StatusReport)

    async def history(self, *, count: int, before: int = 0) -> tuple[AuditEntry, ...]:
        """The newest `count` audit entries, oldest first; with `before`, those older than that."""
        report = await self._request(History(count=count, before=before), HistoryReport)
        return report.entries

    async def watch(self) -> None:
        """From now on every audit entry arrives at `on_event` as an `EventNotice`."""
        await self._request(Watch(), Good)

    async def reset(self, lun: str) -> None:
        """Reset a LUN: its reservation ends, once its holder's I/O is known to have ended.

        Raises:
            LockdRefused: NOT_DRAINED, the holder did not answer: fence it first.
        """
        await self._request(Reset(lun=lun), Good)

    async def fence_on(
        self, lun: str, host_uuid: bytes, *, generation: int = 0, nonce: int = 0
    ) -> FenceAnswer:
        """Make sure that a host can never write to `lun` again; see `LockClient.fence`."""
        request = Fence(lun=lun, host_uuid=host_uuid, generation=generation, nonce=nonce)
        return await self._request(request, FenceAnswer)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost is not None

    # --- the plumbing ---

    async def _request(self, message: Request, kind: type[_Reply]) -> _Reply:
        reply = await self._exchange(message)
        if isinstance(reply, kind):
            return reply
        raise self._unexpected(reply)

    async def _exchange(self, message: Request) -> Message:
        """Send, and wait for the reply.

        Raises:
            LockdDisconnected: the connection is gone (or CompareAndWriteUnknown).
            LockdRefused: lockd answered with a refusal (or Fenced).
        """
        if self._lost is not None:
            await trio.lowlevel.checkpoint()
            raise LockdDisconnected(f"no connection to lockd: {self._lost}")
        await trio.lowlevel.checkpoint_if_cancelled()  # once sent, it is done
        self._last_id = request_id = self._last_id + 1
        self._waiters[request_id] = _Waiter(trio.lowlevel.current_task(), message)
        self._link.post(encode(request_id, message))

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiters[request_id]
            self._withdraw(request_id, message)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Message = await trio.lowlevel.wait_task_rescheduled(abort)
        if type(reply) is Refused:
            raise self._refusal(message, reply)
        return reply

    def _withdraw(self, request_id: int, message: Request) -> None:
        """The caller was cancelled: take back what would otherwise be granted to nobody."""
        if isinstance(message, Ask):
            self._link.post(encode(0, Withdraw(request_id=request_id)))
        elif isinstance(message, Reserve):
            # The reply to this id finds no waiter and is dropped, as every reply that comes late.
            self._last_id += 1
            self._link.post(encode(self._last_id, Release()))

    def _refusal(self, message: Request, reply: Refused) -> LockdError:
        if reply.code is ErrorCode.FENCED:
            return Fenced(reply.code, reply.message)
        if reply.code is ErrorCode.IO_ERROR and isinstance(message, CompareAndWrite):
            return CompareAndWriteUnknown(reply.message)
        if reply.code in (ErrorCode.PROTOCOL, ErrorCode.VERSION):
            return LockdProtocolError(reply.message)
        return LockdRefused(reply.code, reply.message)

    def _unexpected(self, reply: Message) -> LockdError:
        return LockdProtocolError(f"lockd answered with {type(reply).__name__}, out of place")

    async def run(self) -> None:
        """Deliver replies and events until the connection ends."""
        frames = FrameReader(REPLY_SIZE_MAX)
        reason = "the connection was closed"
        try:
            while data := await self._link.receive():
                for body in frames.feed(data):
                    reason = self._deliver(*decode(body)) or reason
            if self._link.overrun:
                reason = "lockd does not read what it is sent"
        except ProtocolError as error:
            reason = f"lockd does not speak the protocol: {error}"
        except trio.Cancelled:
            self._end("this side hung up")
            raise
        self._end(reason)
        self._on_event(Lost(reason))

    def _deliver(self, request_id: int, message: Message) -> str | None:
        """Hand one message on. Returns why the connection is about to end, if it says so."""
        if request_id:
            waiter = self._waiters.pop(request_id, None)
            if waiter is not None:
                trio.lowlevel.reschedule(waiter.task, outcome.Value(message))
            return None
        match message:
            case PermitRecalled():
                self._last_recall = message.recall
                self._on_event(message)
            case Asked() | PermitGranted() | UnitAttention() | FencedNotice() | EventNotice():
                self._on_event(message)
            case Refused():
                return message.message
            case _:
                raise ProtocolError(f"{type(message).__name__} is no notice")
        return None

    def _end(self, reason: str) -> None:
        self._lost = reason
        self._link.close()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            error: LockdError
            if isinstance(waiter.message, CompareAndWrite):
                error = CompareAndWriteUnknown(
                    f"a compare-and-write of block {waiter.message.lba} was under way: {reason}"
                )
            else:
                error = LockdDisconnected(f"connection to lockd lost: {reason}")
            trio.lowlevel.reschedule(waiter.task, outcome.Error(error))

    async def greet(self) -> None:
        """Say Hello and hear Welcome. `connect` and `observe` have done it."""
        welcome = await self._request(Hello(version=PROTOCOL_VERSION, software=SOFTWARE), Welcome)
        self.incarnation, self.luns = welcome.incarnation, welcome.luns


class LockClient(Observer):
    """A nexus: one registered host on one LUN. Made by `connect`."""

    lun: str
    host: HostIdentity
    generation: int  # of this nexus; grows with every start of any host on this LUN
    lun_size: int  # bytes
    permit: bool  # whether the permit was held at registration; later changes come as events
    adopted: bool  # this registration went on with the nexus of an earlier connection

    def __init__(self, link: Link, on_event: OnEvent, *, host: HostIdentity, lun: str) -> None:
        super().__init__(link, on_event)
        self.lun = lun
        self.host = host
        self.generation = self.lun_size = 0
        self.permit = self.adopted = False

    async def compare_and_write(
        self, lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
    ) -> Good | Miscompare | Conflict:
        """Write block `lba` if it is `expected`, in one step against every other verb.

        Args:
            lba: the block, counted in 512 bytes from the start of the LUN.
            expected: 512 bytes.
            new: 512 bytes.
            durable: answer only when the block survives a power cut.
            label: for people and the audit trail; empty keeps it out of that.

        Raises:
            CompareAndWriteUnknown: it may have happened. Re-read; never repeat it blindly.
            Fenced: this nexus may not write any more.
            LockdRefused: the block is not on the LUN.
        """
        reply = await self._exchange(
            CompareAndWrite(lba=lba, expected=expected, new=new, durable=durable, label=label)
        )
        if isinstance(reply, Good | Miscompare | Conflict):
            return reply
        raise self._unexpected(reply)

    async def reserve(self) -> Good | Conflict:
        """Reserve the whole LUN: Good once every other nexus has returned its permit.

        Conflict at once if another nexus has it, or later if one did not return its permit in
        time. Cancelling it releases it.
        """
        reply = await self._exchange(Reserve())
        if isinstance(reply, Good | Conflict):
            return reply
        raise self._unexpected(reply)

    async def release(self) -> None:
        """End the reservation; without effect (and without error) if it is not ours."""
        await self._request(Release(), Good)

    async def ask(self, lba: int, what: AskKind, holder: bytes, *, label: str) -> AskAnswer:
        """Ask the host `holder` about the record at `lba`; waits as long as that host is silent.

        GONE is the proof that the holder can never write again. Give the wait a limit of your own
        (cancelling takes the question back), then `fence`.
        """
        return await self._request(Ask(lba=lba, what=what, holder=holder, label=label), AskAnswer)

    async def answer(self, ask_id: int, kind: AnswerKind, payload: bytes = b"") -> None:
        """Answer an `Asked`. Ignored by lockd when nobody waits for it any more."""
        message = Answer(ask_id=ask_id, kind=kind, payload=payload)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._link.post(encode(0, message))
        await trio.lowlevel.cancel_shielded_checkpoint()

    def returned(self) -> None:
        """Return the permit: no I/O of ours is in flight, none will start until it is granted."""
        self._link.post(encode(0, Returned(recall=self._last_recall)))

    async def fence(self, host_uuid: bytes, generation: int = 0, *, nonce: int = 0) -> FenceAnswer:
        """Make sure that a host can never write to this LUN again, durably, and say so.

        Which start of it is meant: `generation` (lockd's), or `nonce` (the one it registered with,
        as its heartbeat slot has it), or with neither the current one. A start that was followed by
        another has ended by construction, so naming an old one never harms the new.
        """
        return await self.fence_on(self.lun, host_uuid, generation=generation, nonce=nonce)

    async def unregister(self) -> None:
        """Close the nexus: nothing of ours is in flight. `connect` does it when left normally."""
        await self._request(Unregister(), Good)

    async def register(self) -> None:
        """Open the nexus. `connect` has done it."""
        registered = await self._request(
            Register(
                lun=self.lun,
                host_uuid=self.host.host_uuid,
                name=self.host.name,
                nonce=self.host.nonce,
                recall_ms=self.host.recall_ms,
                lease_ms=self.host.lease_ms,
            ),
            Registered,
        )
        self.generation, self.lun_size = registered.generation, registered.lun_size
        self.permit, self.adopted = registered.permit, registered.adopted
