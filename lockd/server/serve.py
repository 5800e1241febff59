"""Putting lockd together: state directory, store, LUNs, socket, and the tasks in one nursery."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from lockd.link import SocketLink
from lockd.machine import ProcessExited
from lockd.protocol.messages import AuditEntry
from lockd.protocol.terms import AuditKind
from lockd.server import exclusive
from lockd.server.engine import Engine
from lockd.server.listener import accept, listening
from lockd.server.lun import LunFile
from lockd.server.processes import Processes, UnknownPeer
from lockd.server.rebuild import numbers_above, refuse_strangers, watch_strangers
from lockd.server.sessions import Sessions, log
from lockd.state import NO_PROCESS, Moment, Snapshot, State, Timing
from lockd.store import LmdbStore, Store, set_aside_if_damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What lockd is told at its start."""

    luns: tuple[tuple[str, Path], ...]  # name, image file or block device
    socket: Path
    state: Path  # directory, made if missing
    timing: Timing = field(default_factory=Timing)
    rebuild: bool = False  # the database was lost: start although hosts may be at work


def read_clocks() -> Moment:
    """CLOCK_BOOTTIME for decisions (it goes on while the machine sleeps), wall time to show."""
    return Moment(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


async def serve(
    config: Config, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Serve until cancelled; started once connections are accepted.

    Raises:
        AlreadyServed: another lockd has the state directory or a LUN.
        DatabaseLost: hosts are at work that this state directory does not know (`rebuild`).
        LunError, SocketUnusable, StoreError: what the name says.
    """
    with ExitStack() as stack:
        stack.enter_context(_exclusive_directory(config.state))
        luns = {name: _open_lun(stack, name, path) for name, path in config.luns}
        if config.rebuild:
            set_aside_if_damaged(config.state)
        store = stack.enter_context(contextlib.closing(LmdbStore(config.state)))
        listener = stack.enter_context(listening(config.socket))
        now = read_clocks()
        snapshot = store.start(above=numbers_above(now, rebuild=config.rebuild))
        state = load_state(store, snapshot, luns, config.timing, now)
        paths = {name: lun.path for name, lun in luns.items()}
        rebuilding = refuse_strangers(state, store, paths, rebuild=config.rebuild)
        async with trio.open_nursery() as nursery:
            sessions = Sessions(nursery, paths)
            engine = Engine(state, store, luns, sessions, read_clocks)
            processes = Processes(nursery, lambda p, how: engine.submit(ProcessExited(p, how)))
            stack.callback(processes.close)
            sessions.attach(engine, processes)
            _find_hosts_again(state, processes, engine)
            nursery.start_soon(engine.run)
            for name in rebuilding:
                nursery.start_soon(watch_strangers, engine, name, paths[name])
            task_status.started()
            while True:
                peer = await accept(listener)
                try:
                    process = processes.identify(peer)
                except UnknownPeer as error:
                    log.warning("connection refused: peer not identified: %s", error)
                    peer.close()
                    continue
                nursery.start_soon(sessions.serve, SocketLink(peer), process)


def load_state(
    store: Store, snapshot: Snapshot, luns: dict[str, LunFile], timing: Timing, now: Moment
) -> State:
    """The state after a start of lockd; the start itself goes to the audit trail."""
    served = tuple((name, str(lun.path), lun.size) for name, lun in luns.items())
    state = State.load(snapshot, luns=served, timing=timing, now=now)
    state.audit_sequence += 1
    names = ", ".join(luns)
    entry = AuditEntry(
        sequence=state.audit_sequence,
        wall=now.wall,
        kind=AuditKind.STARTED,
        lun="",
        host="",
        generation=0,
        lba=0,
        text=f"lockd started, incarnation {state.incarnation}, serving {names}",
    )
    store.append([entry])
    return state


def _find_hosts_again(state: State, processes: Processes, engine: Engine) -> None:
    """Watch the processes that an earlier lockd knew, or take note of their death."""
    known = {host.record.process for host in state.hosts.values() if host.open}
    for process in known - {NO_PROCESS}:
        proof = processes.find_again(process)
        if proof:
            engine.submit(ProcessExited(process, proof))


def _open_lun(stack: ExitStack, name: str, path: Path) -> LunFile:
    lun = LunFile.open(name, path.absolute())
    stack.callback(lun.close)
    return lun


@contextmanager
def _exclusive_directory(path: Path) -> Iterator[None]:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        exclusive.hold(fd, f"the state directory {path}")
        yield
    finally:
        os.close(fd)
