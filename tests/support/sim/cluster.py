"""A cluster of made-up processes: their starts, their ends, and the faults that strike them.

What a host does between its start and its end is the workload's (`world.py`, `volumes.py`): that
is a `Cluster` with `run_start` and `check_end`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from lockd.client import Event, HostIdentity, LockClient
from lockd.client.connection import connect_link
from lockd.machine import ProcessExited
from lockd.state import ProcessId
from tests.support.sim.daemon import LUN, Daemon
from tests.support.sim.history import BlockHistory
from tests.support.sim.host import SimHost
from tests.support.sim.lun import Lun
from tests.support.sim.plan import Fault, FaultKind, Plan
from tests.support.sim.story import Violation
from tests.support.sim.watch import Watch
from vmfs.errors import VmfsError
from vmfs.volume import LockdSession

END_SECONDS: Final = 120.0
"""Within so many virtual seconds after the last fault every lock must be obtainable again (I10):
a frozen host's lease, its fence (5 s), the next start's registration, and retries of each."""

IDLE_SECONDS: Final = 0.5
"""How often somebody who has nothing to do looks whether it was lost, or whether all have done."""


@dataclass(eq=False, kw_only=True)
class Cluster:
    """One seed, running."""

    plan: Plan
    nursery: trio.Nursery
    rng: Random
    lun: Lun
    daemon: Daemon
    watch: Watch
    history: BlockHistory | None  # None: records change by plain writes, under a reservation
    trace: list[str] = field(default_factory=list)
    current: dict[int, SimHost] = field(default_factory=dict)
    nonces: int = 0
    healed: trio.Event = field(default_factory=trio.Event)
    """No fault from here on; hosts mount once more, look at all and leave."""
    power: bool = True
    done: dict[int, int] = field(default_factory=dict)  # operations, by host
    looked: set[int] = field(default_factory=set)  # hosts that have seen everything at the end

    def say(self, text: str) -> None:
        self.trace.append(f"{trio.current_time():8.4f} {text}")

    async def run_start(self, number: int, host: SimHost) -> None:
        """One start of a host, from its mount to its end; puts it into `looked` in the end.

        Raises:
            VmfsError: it could not go on.
        """
        raise NotImplementedError

    async def check_end(self) -> None:
        """Everybody has ended: what must be true of the LUN.

        Raises:
            Violation: it is not.
        """
        raise NotImplementedError

    def session(self, host: SimHost) -> LockdSession:
        """How a start reaches lockd; what it sees of single blocks is recorded."""

        @asynccontextmanager
        async def connect(on_event: Callable[[Event], None]) -> AsyncIterator[LockClient]:
            link = self.daemon.dial(host)
            async with connect_link(link, host.identity, LUN, on_event) as client:
                if self.history is not None:
                    self.history.record(client, host.key)
                yield client

        return LockdSession(host=host.identity, connect=connect)

    # --- processes ---

    def start_process(self, number: int) -> SimHost:
        self.nonces += 1
        name = "abcdefgh"[number]
        host = SimHost(
            name=name,
            identity=HostIdentity(
                host_uuid=name.encode().ljust(16, b"."), name=name, nonce=self.nonces
            ),
            process=ProcessId(100 + self.nonces, 0, "sim"),
            lun=self.lun,
            rng=self.rng,
        )
        self.daemon.hosts.append(host)
        self.current[number] = host
        return host

    def kill(self, host: SimHost, *, stuck_seconds: float = 0.0) -> None:
        """SIGKILL; its exit is seen a moment later."""
        if host.dead:
            return
        stuck = stuck_seconds > 0 and any(io.data is not None for io in host.in_flight)
        self.say(f"{host.key} is killed{' (stuck)' if stuck else ''}")
        host.die(stuck=stuck)
        self.nursery.start_soon(self._exit, host, stuck_seconds if stuck else 0.0)

    async def _exit(self, host: SimHost, stuck_seconds: float) -> None:
        await trio.sleep(stuck_seconds + self.rng.choice((0.0, 0.0002, 0.01)))
        host.settle()
        self._exited(host)

    def _exited(self, host: SimHost) -> None:
        if host.exited:
            return
        host.exited = True
        for link in host.links:
            link.close()
        self.daemon.submit(ProcessExited(host.process, f"the exit of {host.key} was seen"))
        host.ended.set()

    def killed_by_lockd(self, process: ProcessId) -> None:
        host = next(host for host in self.daemon.hosts if host.process == process)
        if not host.dead:
            self.kill(host, stuck_seconds=self.rng.choice((0.0, 0.0, 1.0)))

    async def run_host(self, number: int) -> None:
        while number not in self.looked:
            if not self.power or self.daemon.state is None:
                await trio.sleep(0.05)
                continue
            host = self.start_process(number)
            self.say(f"{host.key} starts")
            try:
                await self.run_start(number, host)
            except VmfsError as error:
                self.say(f"{host.key} ends: {type(error).__name__}: {error}")
            if not host.dead:
                self.kill(host)
            await host.ended.wait()
            await trio.sleep(self.rng.choice((0.0, 0.01, 0.3)))

    # --- faults ---

    async def run_faults(self) -> None:
        for fault in self.plan.faults:
            await trio.sleep_until(fault.at)
            self.say(f"fault: {fault}")
            await self._strike(fault)

    async def _strike(self, fault: Fault) -> None:  # noqa: C901 - one branch for each kind
        host = self.current.get(fault.host)
        kind = fault.kind
        if kind in (FaultKind.LOCKD_RESTART, FaultKind.LOCKD_FORGETS, FaultKind.POWER_CUT):
            await self._strike_lockd(fault)
        elif host is None or host.dead:
            return
        elif kind is FaultKind.KILL:
            self.kill(host)
        elif kind is FaultKind.KILL_STUCK:
            host.slow = fault.seconds / 2
            self._at_next_io(host, lambda h: self.nursery.start_soon(self._kill_in_flight, h))
        elif kind is FaultKind.KILL_IN_IO:
            self._at_next_io(host, self.kill)
        elif kind in (FaultKind.FREEZE_SHORT, FaultKind.FREEZE_LONG):
            self._freeze(host, fault.seconds)
        elif kind in (FaultKind.FREEZE_IN_IO, FaultKind.FREEZE_LONG_IN_IO):
            self._at_next_io(host, lambda h: self._freeze(h, fault.seconds))
        elif kind is FaultKind.SLOW:
            host.slow = fault.seconds
        elif kind is FaultKind.CUT and host.links:
            host.links[-1].cut()
        elif kind is FaultKind.ADMIN_FENCE:
            self.nursery.start_soon(self._fence, host)

    def _at_next_io(self, host: SimHost, strike: Callable[[SimHost], None]) -> None:
        left = self.rng.randrange(6)

        def on_io(who: SimHost) -> None:
            nonlocal left
            if left == 0:
                who.on_io = lambda _: None
                self.say(f"struck in I/O: {who.key}")
                strike(who)
            left -= 1

        host.on_io = on_io

    async def _kill_in_flight(self, host: SimHost) -> None:
        await trio.sleep(host.slow / 2)
        self.kill(host, stuck_seconds=host.slow * 2)

    def _freeze(self, host: SimHost, seconds: float) -> None:
        self.say(f"{host.key} is stopped for {seconds:.2f} s")
        host.freeze()
        self.nursery.start_soon(self._thaw, host, seconds)

    async def _thaw(self, host: SimHost, seconds: float) -> None:
        await trio.sleep(seconds)
        self.say(f"{host.key} goes on")
        host.thaw()

    async def _fence(self, host: SimHost) -> None:
        from lockd.client.connection import _running
        from lockd.client.session import Observer

        admin = SimHost(
            name="admin",
            identity=host.identity,
            process=ProcessId(1, 0, "sim"),
            lun=self.lun,
            rng=self.rng,
        )
        if self.daemon.state is None:
            return
        link = self.daemon.dial(admin)
        try:
            async with _running(Observer(link, lambda event: None), link) as observer:
                uuid, nonce = host.identity.host_uuid, host.identity.nonce
                answer = await observer.fence_on(LUN, uuid, nonce=nonce)
                self.say(f"fence of {host.key}: {answer.result.name}")
        except Exception as error:
            self.say(f"fence of {host.key} failed: {error}")

    async def _strike_lockd(self, fault: Fault) -> None:
        self.daemon.stop()
        if fault.kind is FaultKind.POWER_CUT:
            self.power = False
            for host in self.daemon.hosts:
                host.drop_in_flight()
                host.die()
                if not host.exited:
                    self._exited(host)
            if self.history is not None:
                self.history.check()
            self.watch.power_cut(self.lun.power_cut(self.rng))
        await trio.sleep(fault.seconds)
        if fault.kind is FaultKind.LOCKD_FORGETS:
            self.daemon.forget_everything()
            self.watch.database_lost()
        self.power = True
        await self.daemon.start()

    # --- all of it ---

    async def run(self) -> None:
        await self.daemon.start()
        async with trio.open_nursery() as hosts:
            for number in range(self.plan.hosts):
                hosts.start_soon(self.run_host, number)
            await self.run_faults()
            while not self.healed.is_set():
                await trio.sleep(IDLE_SECONDS)
                busy = any(
                    self.done.get(number, 0) < self.plan.operations
                    for number in range(self.plan.hosts)
                )
                if not busy or trio.current_time() > 60:
                    self.healed.set()
            self.say("healing")
            for host in self.daemon.hosts:
                host.slow = 0.0
                host.on_io = lambda _: None
            hosts.cancel_scope.deadline = trio.current_time() + END_SECONDS
        if len(self.looked) < self.plan.hosts:
            raise Violation("I10: not every host could lock everything in time")
        await self.check_end()
