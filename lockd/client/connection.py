"""Opening a connection, by socket path or over a stream, and hanging up."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from lockd.client.errors import LockdError, LockdUnreachable
from lockd.client.session import Event, HostIdentity, LockClient, Observer, OnEvent
from lockd.link import Link, SocketLink, StreamLink

GOODBYE_SECONDS: Final = 2.0
"""How long leaving waits for lockd's word. lockd answers at once or is not there; a host that could
not say goodbye is told apart by its exit."""

QUEUE_FULL_SECONDS: Final = 0.01
"""Between tries to connect to a lockd that has too many connections to accept."""


def _ignore(_: Event) -> None:
    """An observer that only asks needs no events."""


@asynccontextmanager
async def connect(
    socket_path: str | Path, host: HostIdentity, lun: str, on_event: OnEvent
) -> AsyncIterator[LockClient]:
    """Open a nexus. Leaving the block normally says goodbye, with an error only hangs up.

    (Who hangs up without a goodbye counts as possibly writing until its process has exited.)

    Raises:
        LockdUnreachable: nobody listens there.
        LockdRefused: STILL_ALIVE, another process is registered as this host; NO_SUCH_LUN; ...
        Fenced: this host and nonce were fenced.
    """
    link = SocketLink(await _open_socket(socket_path))
    async with _running(LockClient(link, on_event, host=host, lun=lun), link) as client:
        yield client


@asynccontextmanager
async def connect_stream(
    stream: trio.abc.Stream, host: HostIdentity, lun: str, on_event: OnEvent
) -> AsyncIterator[LockClient]:
    """As `connect`, over a stream that is connected already (memory streams, in tests)."""
    async with connect_link(StreamLink(stream), host, lun, on_event) as client:
        yield client


@asynccontextmanager
async def connect_link(
    link: Link, host: HostIdentity, lun: str, on_event: OnEvent
) -> AsyncIterator[LockClient]:
    """As `connect`, over any link; it is closed at the end."""
    async with _running(LockClient(link, on_event, host=host, lun=lun), link) as client:
        yield client


@asynccontextmanager
async def observe(socket_path: str | Path, on_event: OnEvent = _ignore) -> AsyncIterator[Observer]:
    """Open a connection without a nexus.

    Raises:
        LockdUnreachable: nobody listens there.
    """
    link = SocketLink(await _open_socket(socket_path))
    async with _running(Observer(link, on_event), link) as observer:
        yield observer


@asynccontextmanager
async def observe_stream(
    stream: trio.abc.Stream, on_event: OnEvent = _ignore
) -> AsyncIterator[Observer]:
    """As `observe`, over a stream that is connected already."""
    link = StreamLink(stream)
    async with _running(Observer(link, on_event), link) as observer:
        yield observer


_Client = TypeVar("_Client", bound=Observer)


@asynccontextmanager
async def _running(client: _Client, link: Link) -> AsyncIterator[_Client]:
    """Greet, read, and hang up. The block's own error leaves as it is, not in a group."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            nursery.start_soon(link.run_backlog)
            try:
                await client.greet()
                if isinstance(client, LockClient):
                    await client.register()
                yield client
                if isinstance(client, LockClient) and not client.lost:
                    await _say_goodbye(client)
            except BaseException as error:  # raised again below, outside of the nursery
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        await link.aclose()
    if failure is not None:
        raise failure


async def _say_goodbye(client: LockClient) -> None:
    with trio.move_on_after(GOODBYE_SECONDS):
        try:
            await client.unregister()
        except LockdError:
            return  # gone, or fenced: there is nobody to take leave of


async def _open_socket(path: str | Path) -> socket.socket:
    """A connected socket that does not block.

    A local connect succeeds or fails at once, but for EAGAIN (unix(7)): lockd has as many
    connections to accept as its queue holds. No event tells when there is room, so it is tried
    again; `trio.socket` takes EAGAIN for a connect that is under way, and the socket for connected.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(str(path))
            except BlockingIOError:
                await trio.sleep(QUEUE_FULL_SECONDS)
            else:
                await trio.lowlevel.checkpoint()
                return sock
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)  # a path that is too long has no errno
        raise LockdUnreachable(
            f"no lockd at {path}: {reason}; is `lockd --socket {path}` running?"
        ) from error
    except BaseException:
        sock.close()
        raise
