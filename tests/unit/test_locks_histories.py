"""Random histories of several hosts: exclusion holds, nothing is lost, nobody waits for ever.

A history is data: for each host a few tasks, each a list of operations (a set of locks, modes, how
long), some of which open a file; and some hosts are killed at random moments. Under every exclusive
lock a counter on the LUN is read, some time passes, and it is written back: an increment that is
lost shows that two were inside. Time is virtual, so "for ever" is an hour.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.lockservice import Cluster, LockHost, cluster
from vmfs.errors import LockBusy
from vmfs.locks.order import LockId, LockKind
from vmfs.ondisk.disk_lock import LockMode

EXCLUSIVE, SHARED = LockMode.EXCLUSIVE, LockMode.SHARED
COUNTERS_AT = 12 << 20
FOR_EVER = 3600.0
KINDS = (LockKind.FILE_DESC, LockKind.FB_CLUSTER)


@dataclass(frozen=True)
class Operation:
    """What one operation locks, for how long, and whether it leaves a file open for a while."""

    wanted: dict[tuple[LockKind, int], LockMode]
    seconds: float
    open_seconds: float | None


@dataclass(frozen=True)
class History:
    """What happens."""

    tasks: list[tuple[int, list[Operation]]]  # host, operations
    kills: dict[int, float]  # host, when
    reservation: bool


operations = st.builds(
    Operation,
    wanted=st.dictionaries(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 1)),
        st.sampled_from([SHARED, EXCLUSIVE, EXCLUSIVE]),
        min_size=1,
        max_size=3,
    ),
    seconds=st.sampled_from([0.0, 0.0, 0.001, 0.05]),
    open_seconds=st.sampled_from([None, None, None, 0.0, 0.05, 0.5]),
)
histories = st.builds(
    History,
    tasks=st.lists(
        st.tuples(st.integers(0, 2), st.lists(operations, min_size=1, max_size=5)),
        min_size=2,
        max_size=7,
    ),
    kills=st.dictionaries(st.integers(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.2]), max_size=2),
    reservation=st.booleans(),
)


@dataclass
class Observer:
    """Sees who is inside which lock, and what was counted."""

    lab: Cluster
    inside: dict[LockId, Counter[tuple[str, LockMode]]] = field(default_factory=dict)
    counted: Counter[LockId] = field(default_factory=Counter)
    begun: Counter[LockId] = field(default_factory=Counter)
    busy: int = 0
    local: dict[tuple[str, LockId], trio.Lock] = field(default_factory=dict)

    @contextmanager
    def visit(self, host: LockHost, locks: dict[LockId, LockMode]) -> Iterator[None]:
        for lock, mode in locks.items():
            self.inside.setdefault(lock, Counter())[host.name, mode] += 1
        self.check()
        try:
            yield
        finally:
            for lock, mode in locks.items():
                self.inside[lock][host.name, mode] -= 1

    def check(self) -> None:
        """I1, as seen from inside: an exclusive visitor's host is alone there."""
        for lock, visitors in self.inside.items():
            hosts = {name for (name, _), count in visitors.items() if count}
            writers = {
                name for (name, mode), count in visitors.items() if count and mode is EXCLUSIVE
            }
            assert not writers or len(hosts) == 1, f"{lock}: {hosts} are inside, {writers} write"
        self.lab.check_invariants()


async def play(history: History) -> None:
    async with cluster() as lab:
        observer = Observer(lab)
        hosts = [await lab.host(f"h{n}", reservation=history.reservation) for n in range(3)]
        ends = [trio.Event() for _ in history.tasks]
        with trio.fail_after(FOR_EVER):
            for (number, plan), end in zip(history.tasks, ends, strict=True):
                hosts[number].nursery.start_soon(run_task, observer, hosts[number], plan, end)
            for number, when in history.kills.items():
                lab.nursery.start_soon(kill, hosts[number], when)
            for end in ends:
                await end.wait()
            survivors = [h for n, h in enumerate(hosts) if n not in history.kills]
            for host in survivors:
                await look_at_everything(lab, observer, host)
                await host.unmount()
        for lock in observer.begun:
            value = await counter_of(lab, lock)
            assert observer.counted[lock] <= value <= observer.begun[lock]
            if not history.kills:
                assert (await lab.record(lock)).is_free


async def look_at_everything(lab: Cluster, observer: Observer, host: LockHost) -> None:
    """Every lock can be had, whoever died with it, and what was counted is seen."""
    for lock in sorted(observer.begun):
        with await host.locks.acquire(lock, EXCLUSIVE):
            assert await counter_of(lab, lock) >= observer.counted[lock]
            assert (await lab.record(lock)).exclusive_holder == host.slot.holder


async def kill(host: LockHost, when: float) -> None:
    await trio.sleep(when)
    host.kill()


async def run_task(
    observer: Observer, host: LockHost, plan: list[Operation], end: trio.Event
) -> None:
    try:
        for operation in plan:
            try:
                await operate(observer, host, operation)
            except LockBusy:
                observer.busy += 1
    finally:
        end.set()


async def operate(observer: Observer, host: LockHost, operation: Operation) -> None:
    wanted = {
        observer.lab.lock(index, kind): mode for (kind, index), mode in operation.wanted.items()
    }
    opened = min(wanted)
    async with host.locks.pinned(wanted, label=host.name):
        with observer.visit(host, wanted):
            for lock, mode in wanted.items():
                if mode is EXCLUSIVE:
                    await count(observer, host, lock, operation.seconds)
            await trio.sleep(operation.seconds)
            observer.check()
        if operation.open_seconds is not None:
            host.locks.hold_open(opened, wanted[opened], label="open")
    if operation.open_seconds is not None:
        with observer.visit(host, {opened: wanted[opened]}):
            await trio.sleep(operation.open_seconds)
        host.locks.drop_open(opened, wanted[opened], label="open")


def place(lock: LockId) -> int:
    return COUNTERS_AT + (lock.kind * 64 + lock.index) * 512


async def counter_of(lab: Cluster, lock: LockId) -> int:
    return int.from_bytes(await lab.lv.read(place(lock), 8), "little")


async def count(observer: Observer, host: LockHost, lock: LockId, seconds: float) -> None:
    """Read, let time pass, write. Tasks of one host share a lock, so they take turns here."""
    async with observer.local.setdefault((host.name, lock), trio.Lock()):
        observer.begun[lock] += 1
        value = int.from_bytes(await host.device.read(place(lock), 8), "little") + 1
        await trio.sleep(seconds)
        await host.device.write(place(lock), value.to_bytes(8, "little"))
        observer.counted[lock] += 1


def run_history(history: History) -> None:
    trio.run(play, history, clock=MockClock(autojump_threshold=0))


@pytest.mark.slow
@given(histories)
@settings(max_examples=40, deadline=None)
def test_random_histories(history: History) -> None:
    run_history(history)


@pytest.mark.slow
@given(histories)
@settings(max_examples=600, deadline=None)
def test_many_random_histories(history: History) -> None:
    run_history(history)
