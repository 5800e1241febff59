"""lockd in the simulation: the real engine, machine, sessions and codec; processes are made up.

A restart keeps what the store kept, and nothing else. As the real shell does at start, it looks up
every process that it knew; those that have ended meanwhile are reported.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import trio

from lockd.client import LockdUnreachable
from lockd.machine import LunSearch, LunSearched, ProcessExited
from lockd.protocol.messages import AuditEntry, Good, Miscompare
from lockd.server.engine import Engine
from lockd.server.lun import first_difference
from lockd.server.sessions import Sessions
from lockd.state import HostKey, HostRecord, Moment, ProcessId, Record, State
from lockd.store import MemoryStore
from tests.support.sim.host import SimHost
from tests.support.sim.lun import Lun
from tests.support.sim.story import Violation
from tests.support.sim.wire import SimLink, pair

LUN: Final = "ds1"
WHO: Final = "lockd"


class SimStore(MemoryStore):
    """Says what is durable of a host."""

    def host(self, key: HostKey) -> HostRecord | None:
        return self._hosts.get(key)


class SimBlocks:
    """The LUN as lockd has it."""

    def __init__(self, lun: Lun) -> None:
        self._lun = lun

    def compare_and_write(self, lba: int, expected: bytes, new: bytes) -> Good | Miscompare | str:
        current = self._lun.sector(lba)
        if current != expected:
            return Miscompare(offset=first_difference(current, expected), current=current)
        self._lun.write_sector(WHO, lba, new)
        return Good()

    def sync(self) -> str | None:
        self._lun.flush(WHO, self._lun.serial)
        return None


class SimEngine(Engine):
    """The engine, with somebody who looks at it after each batch, before anybody is answered."""

    before_speaking: Callable[[], None] = staticmethod(lambda: None)
    audited: Callable[[Sequence[AuditEntry]], None] = staticmethod(lambda entries: None)

    def _keep(self, outcomes: list) -> None:  # type: ignore[type-arg]
        super()._keep(outcomes)
        self.audited([entry for outcome in outcomes for entry in outcome.audit])
        self.before_speaking()

    def process(self) -> None:
        super().process()
        self.state.check_invariants()


class SimSessions(Sessions):
    """Sessions whose peers are made-up processes."""

    def __init__(self, nursery: trio.Nursery, daemon: "Daemon") -> None:
        super().__init__(nursery, {})
        self._daemon = daemon

    def kill(self, process: ProcessId) -> str:
        self._daemon.on_kill(process)
        return ""

    def search(self, search: LunSearch) -> None:
        strangers = tuple(
            host.key
            for host in self._daemon.hosts
            if not host.exited and host.process.pid not in search.known
        )
        self._daemon.submit(LunSearched(search.lun, strangers, complete=True))


class Daemon:
    """lockd, and its restarts."""

    def __init__(self, lun: Lun, rng: Random, nursery: trio.Nursery) -> None:
        self.hosts: list[SimHost] = []  # every start of every host
        self.store = SimStore()
        self.engine: SimEngine | None = None
        self.watch_engine: Callable[[SimEngine], None] = lambda engine: None
        self.on_kill: Callable[[ProcessId], None] = lambda process: None
        self._lun = lun
        self._rng = rng
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._links: list[SimLink] = []
        self._sessions: SimSessions | None = None
        self._session_nursery: trio.Nursery | None = None

    @property
    def state(self) -> State | None:
        """What it knows now; None while it is down."""
        return self.engine.state if self.engine is not None else None

    async def start(self) -> None:
        """Start it; a later start goes on with what the store kept."""
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        now = Moment(trio.current_time(), 0.0)
        served = ((LUN, "simulated", self._lun.size),)
        from lockd.state import Timing

        state = State.load(self.store.start(), luns=served, timing=Timing(recall=4.0), now=now)
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                sessions = SimSessions(nursery, self)
                engine = SimEngine(
                    state,
                    self.store,
                    {LUN: SimBlocks(self._lun)},
                    sessions,
                    lambda: Moment(trio.current_time(), 0.0),
                )
                sessions.attach(engine, None)
                self.watch_engine(engine)
                self.engine, self._sessions, self._session_nursery = engine, sessions, nursery
                living = {host.process for host in self.hosts if not host.exited}
                for host in state.hosts.values():
                    if host.open and host.record.process not in living:
                        gone = f"pid {host.record.pid} does not exist any more"
                        engine.submit(ProcessExited(host.record.process, gone))
                nursery.start_soon(engine.run)
                task_status.started()

    def stop(self) -> None:
        """SIGKILL."""
        self._scope.cancel()
        self.engine = self._sessions = self._session_nursery = None
        links, self._links = self._links, []
        for link in links:
            link.cut()

    def forget_everything(self) -> None:
        """Its database is lost. Only while it is down."""
        self.store = SimStore()

    def submit(self, event: ProcessExited | LunSearched) -> None:
        """Something happened in the world."""
        if self.engine is not None:
            self.engine.submit(event)

    def dial(self, host: SimHost) -> SimLink:
        """A connection of a host's process.

        Raises:
            LockdUnreachable: it is down.
        """
        if self._sessions is None or self._session_nursery is None:
            raise LockdUnreachable("lockd is down")
        ours, theirs = pair(self._rng, host.awake)
        self._links.append(theirs)
        host.links.append(ours)
        self._session_nursery.start_soon(self._sessions.serve, theirs, host.process)
        return ours


def check_durable(engine: SimEngine, store: SimStore) -> None:
    """I6: what lockd is about to say of the end of a host is kept already."""
    for key, host in engine.state.hosts.items():
        if host.record.blocked or not host.open:
            kept = store.host(key)
            if kept != host.record:
                raise Violation(f"I6: {host.record} is refused, and the store does not know it")


__all__ = ["LUN", "WHO", "Daemon", "Record", "SimEngine", "SimStore", "check_durable"]
