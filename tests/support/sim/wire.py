"""The connection between a host and lockd: delays, and an end at any moment."""

from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import NoReturn

import trio

Awake = Callable[[], Awaitable[None]]


class SimLink:
    """One end of a connection; `pair` makes both. Fulfils `lockd.link.Link`."""

    overrun = False

    def __init__(self, rng: Random, awake: Awake | None) -> None:
        self._rng = rng
        self._awake = awake  # waits while the process of this end is stopped
        self._incoming: deque[tuple[float, bytes]] = deque()  # b"": the other end is closed
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self.peer = self

    def post(self, data: bytes) -> None:
        """Send; lost silently when the link is closed."""
        if not self._closed:
            self.peer.put(data)

    def put(self, data: bytes) -> None:
        """Something is on its way to this end; it keeps its order."""
        due = trio.current_time()
        if self._rng.random() < 0.3:
            due += self._rng.choice((0.0001, 0.0005, 0.002, 0.02))
        if self._incoming:
            due = max(due, self._incoming[-1][0])
        self._incoming.append((due, data))
        self._lot.unpark_all()

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer is gone or the link was closed."""
        while not self._closed:
            if not self._incoming:
                await self._lot.park()
                continue
            due = self._incoming[0][0]
            if due > trio.current_time():
                await trio.sleep_until(due)
                continue
            if self._awake is not None:
                await self._awake()
            if self._incoming:
                return self._take()
        await trio.lowlevel.checkpoint()
        return b""

    def _take(self) -> bytes:
        pieces: list[bytes] = []
        now = trio.current_time()
        while self._incoming and self._incoming[0][0] <= now:
            data = self._incoming.popleft()[1]
            if not data:
                if not pieces:
                    self._closed = True
                else:
                    self._incoming.appendleft((now, b""))
                break
            pieces.append(data)
        return b"".join(pieces)

    async def run_backlog(self) -> NoReturn:
        """There is none."""
        await trio.sleep_forever()
        raise AssertionError

    async def drain(self) -> None:
        """Everything posted is on its way."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """End the connection; what was posted still arrives."""
        if not self._closed:
            self._closed = True
            self.peer.put(b"")
            self._lot.unpark_all()

    async def aclose(self) -> None:
        """The same."""
        self.close()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """The connection breaks: what is on its way arrives, or does not, in each direction."""
        for end in (self, self.peer):
            if self._rng.random() < 0.5:
                end._incoming.clear()
            end.put(b"")


def pair(rng: Random, awake: Awake) -> tuple[SimLink, SimLink]:
    """The host's end, lockd's end."""
    ours, theirs = SimLink(rng, awake), SimLink(rng, None)
    ours.peer, theirs.peer = theirs, ours
    return ours, theirs
