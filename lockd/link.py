"""One connection as bytes in both directions, without a task hop per message.

`post` never waits: what the socket does not take at once goes to a backlog that `run_backlog`, a
task of the owner's nursery, sends when it can. So a decision and the sending of its replies need no
await between them, and a peer that does not read delays nobody else. The backlog is bounded: a peer
that lets it grow past `BACKLOG_SIZE_MAX` is cut off (`overrun`).

Two links behave alike: `SocketLink` for real sockets, `StreamLink` for any trio stream (memory
streams in tests). Errors of the transport end the stream: `receive` returns b"".
"""

import contextlib
import socket
from typing import Final, NoReturn, Protocol

import trio

from lockd.protocol.limits import BACKLOG_SIZE_MAX

_RECEIVE_SIZE: Final = 64 << 10  # about 50 compare-and-writes: what a batch is made of


class Link(Protocol):
    """What a session needs of its connection."""

    @property
    def overrun(self) -> bool:
        """The peer was cut off because it did not read."""
        ...

    def post(self, data: bytes) -> None:
        """Send, now or as soon as the peer takes it. Lost silently when the link is closed."""
        ...

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer is gone or the link was closed."""
        ...

    async def run_backlog(self) -> NoReturn:
        """Send what `post` could not. Runs until cancelled."""
        ...

    async def drain(self) -> None:
        """Wait until everything posted was handed to the transport, or the link is closed."""
        ...

    def close(self) -> None:
        """End the connection; both sides' `receive` return b""."""
        ...

    async def aclose(self) -> None:
        """The same, for an owner that cancels `run_backlog`: what is left is closed here."""
        ...


class _Backlog:
    """The bytes that wait, their bound, and who waits for more or for none."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.overrun = False
        self.lot = trio.lowlevel.ParkingLot()

    def add(self, data: bytes | memoryview) -> bool:
        """False when the bound is passed."""
        if len(self.data) + len(data) > BACKLOG_SIZE_MAX:
            self.overrun = True
            return False
        self.data += data
        self.lot.unpark_all()
        return True


class SocketLink:
    """A link over a connected stream socket, which it owns from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._backlog = _Backlog()
        self._closed = False

    @property
    def overrun(self) -> bool:
        """The peer was cut off because it did not read."""
        return self._backlog.overrun

    def post(self, data: bytes) -> None:
        """Send, now or as soon as the peer takes it. Lost silently when the link is closed."""
        if self._closed:
            return
        sent = 0
        if not self._backlog.data:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if sent < len(data) and not self._backlog.add(memoryview(data)[sent:]):
            self.close()

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer is gone or the link was closed."""
        while not self._closed:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                return self._sock.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                break
        await trio.lowlevel.checkpoint()
        return b""

    async def run_backlog(self) -> NoReturn:
        """Send what `post` could not. Runs until cancelled."""
        data = self._backlog.data
        while True:
            while data and not self._closed:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                    del data[: self._sock.send(data)]
                except BlockingIOError:
                    continue
                except (OSError, trio.ClosedResourceError):
                    self.close()
            self._backlog.lot.unpark_all()
            await self._backlog.lot.park()

    async def drain(self) -> None:
        """Wait until everything posted was handed to the transport, or the link is closed."""
        await trio.lowlevel.checkpoint()
        while self._backlog.data and not self._closed:
            await self._backlog.lot.park()

    def close(self) -> None:
        """End the connection; both sides' `receive` return b""."""
        if self._closed:
            return
        self._closed = True
        self._backlog.data.clear()
        self._backlog.lot.unpark_all()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    async def aclose(self) -> None:
        """The same, for an owner that cancels `run_backlog`: what is left is closed here."""
        self.close()
        await trio.lowlevel.checkpoint()


class StreamLink:
    """A link over any trio stream, which it owns from now on."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._backlog = _Backlog()
        self._closed = False
        self._scopes: set[trio.CancelScope] = set()

    @property
    def overrun(self) -> bool:
        """The peer was cut off because it did not read."""
        return self._backlog.overrun

    def post(self, data: bytes) -> None:
        """Send, now or as soon as the peer takes it. Lost silently when the link is closed."""
        if not self._closed and not self._backlog.add(data):
            self.close()

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer is gone or the link was closed."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return b""
        with (
            trio.CancelScope() as scope,
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            self._scopes.add(scope)
            try:
                return bytes(await self._stream.receive_some(_RECEIVE_SIZE))
            finally:
                self._scopes.discard(scope)
        return b""

    async def run_backlog(self) -> NoReturn:
        """Send what `post` could not. Runs until cancelled."""
        while True:
            while self._backlog.data and not self._closed:
                data = bytes(self._backlog.data)
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.close()
                else:
                    del self._backlog.data[: len(data)]
            if self._closed:
                await trio.aclose_forcefully(self._stream)
            self._backlog.lot.unpark_all()
            await self._backlog.lot.park()

    async def drain(self) -> None:
        """Wait until everything posted was handed to the transport, or the link is closed."""
        await trio.lowlevel.checkpoint()
        while self._backlog.data and not self._closed:
            await self._backlog.lot.park()

    def close(self) -> None:
        """End the connection; both sides' `receive` return b""."""
        self._closed = True
        self._backlog.data.clear()
        self._backlog.lot.unpark_all()  # run_backlog closes the stream itself
        for scope in self._scopes:
            scope.cancel()

    async def aclose(self) -> None:
        """The same, for an owner that cancels `run_backlog`: what is left is closed here."""
        self.close()
        await trio.aclose_forcefully(self._stream)
