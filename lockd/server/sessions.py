"""The connections: bytes to events, and what the engine does to the world.

A peer that sends what is no message gets one Refused(PROTOCOL) and is cut off; nobody else notices.
"""

import logging
from pathlib import Path
from typing import Final

import trio

from lockd.link import Link
from lockd.machine import Garbled, LunSearch, LunSearched, Received, SessionClosed, SessionOpened
from lockd.protocol.codec import FrameReader, ProtocolError, decode
from lockd.protocol.limits import REQUEST_SIZE_MAX
from lockd.protocol.messages import Request
from lockd.server.engine import Engine
from lockd.server.processes import Processes, find_openers
from lockd.state import ProcessId

log = logging.getLogger("lockd.sessions")

LAST_WORDS_SECONDS: Final = 1.0
"""How long a session that is being closed may take to read why."""


class _Connection:
    __slots__ = ("link", "reading")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.reading = trio.CancelScope()


class Sessions:
    """The open connections. Fulfils `Effects`, once `processes` and `paths` are set."""

    def __init__(self, nursery: trio.Nursery, paths: dict[str, Path]) -> None:
        """`paths`: the LUNs by name, for the search of their openers."""
        self._nursery = nursery
        self._paths = paths
        self._connections: dict[int, _Connection] = {}
        self._last_id = 0
        self._engine: Engine | None = None
        self._processes: Processes | None = None

    def attach(self, engine: Engine, processes: Processes | None) -> None:
        """Say where events go, and who can kill (None: nobody can)."""
        self._engine = engine
        self._processes = processes

    async def serve(self, link: Link, process: ProcessId) -> None:
        """One connection, from its first byte to its end. Closes the link."""
        engine = self._engine
        assert engine is not None
        self._last_id = session = self._last_id + 1
        connection = self._connections[session] = _Connection(link)
        engine.submit(SessionOpened(session, process))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run_backlog)
                with connection.reading:
                    await _read(link, session, engine)
                with trio.move_on_after(LAST_WORDS_SECONDS):
                    await link.drain()
                nursery.cancel_scope.cancel()
        finally:
            if link.overrun:
                log.warning("session cut off: session=%d does not read what it is sent", session)
            del self._connections[session]
            engine.submit(SessionClosed(session))
            await link.aclose()

    def post(self, session: int, data: bytes) -> None:
        """Send frames to a session; nobody hears them if it has ended."""
        connection = self._connections.get(session)
        if connection is not None:
            connection.link.post(data)

    def finish(self, session: int) -> None:
        """Close a session, once what was posted is on its way."""
        connection = self._connections.get(session)
        if connection is not None:
            connection.reading.cancel()

    def kill(self, process: ProcessId) -> str:
        """Send SIGKILL; a text says why it could not be sent."""
        if self._processes is None:
            return "lockd knows no processes here"
        return self._processes.kill(process)

    def search(self, search: LunSearch) -> None:
        """Begin to look for who has a LUN open."""
        self._nursery.start_soon(self._search, search)

    async def _search(self, search: LunSearch) -> None:
        path = self._paths[search.lun]
        try:
            strangers, complete = await trio.to_thread.run_sync(
                find_openers, path, search.known, abandon_on_cancel=True
            )
        except OSError as error:
            log.warning("search for openers failed: lun=%s error=%s", search.lun, error)
            strangers, complete = (), False
        assert self._engine is not None
        self._engine.submit(LunSearched(search.lun, strangers, complete))


async def _read(link: Link, session: int, engine: Engine) -> None:
    """Submit what arrives until the peer is gone, or sends what is no message."""
    frames = FrameReader(REQUEST_SIZE_MAX)
    try:
        while data := await link.receive():
            for body in frames.feed(data):
                request_id, message = decode(body)
                if not isinstance(message, Request):
                    raise ProtocolError(f"{type(message).__name__} is not for lockd")
                engine.submit(Received(session, request_id, message))
    except ProtocolError as error:
        log.warning("session ended, not our protocol: session=%d error=%s", session, error)
        engine.submit(Garbled(session, str(error)))
        await trio.sleep_forever()  # until `finish`, after the replies to what came before
