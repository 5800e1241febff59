"""Was there an order? A checker for recorded histories (Wing and Gong's search, with memory).

A history is what clients saw: for each operation when it was called, when it returned, and what it
returned. It is linearizable when every operation can be given one moment between its call and its
return, such that the operations done one after the other at these moments return just that.

    operation   call ├───────────o──┤ return                the moment is somewhere in between
    unknown     call ├──────────────── ... for ever         it happened at some time, or never

Linearizability is local: a history is so exactly when the part about each object is. So the parts
are checked alone (`check`), and each search stays small. What has been tried (which operations are
done, in what state) is remembered, which makes it fast on what real programs record.

The clock of the stamps must be one for all clients: CLOCK_MONOTONIC of one machine.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

UNKNOWN: Final = "unknown"
"""The result of an operation of which no outcome was learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of one client."""

    client: str
    key: str  # the block or lock that it was about
    verb: str
    argument: Hashable = None
    result: Hashable = UNKNOWN
    called: float  # seconds
    returned: float = math.inf

    def __post_init__(self) -> None:
        assert self.called <= self.returned, f"{self}: returned before it was called"

    def __str__(self) -> str:
        end = "..." if self.returned == math.inf else f"{self.returned:.6f}"
        return (
            f"[{self.called:.6f} {end}] {self.client} {self.verb}({self.argument}) "
            f"on {self.key}: {self.result}"
        )


State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """What the operations on one object do when they are done one after the other."""

    @property
    def initial(self) -> State:
        """The object before anything was done."""
        ...

    def step(self, state: State, operation: Operation) -> State | None:
        """The state after `operation`; None when it could not have had its result there.

        An operation whose result is `UNKNOWN` may always be left out. So a model also returns None
        where it would change nothing: that keeps the search small.
        """
        ...


@dataclass(frozen=True, slots=True)
class RegisterModel:
    """One block under compare-and-write.

    `cas`, argument (expected, new): result "good", or what was found instead. `read`: what it read.
    """

    initial: Hashable = 0

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """See `Model.step`."""
        if operation.verb == "read":
            return state if operation.result == state else None
        assert operation.verb == "cas", operation
        assert isinstance(operation.argument, tuple)
        expected, new = operation.argument
        if operation.result in ("good", UNKNOWN):
            return new if state == expected else None
        return state if state != expected and operation.result == state else None


@dataclass(frozen=True, slots=True)
class LockState:
    """Who uses a lock, in which mode, and what each may still know of it."""

    token: int = 0
    exclusive: str = ""
    shared: frozenset[str] = frozenset()
    known: frozenset[tuple[str, int]] = frozenset()  # clients and their tokens that are valid
    ended: frozenset[str] = frozenset()  # clients that were fenced: they do nothing any more


@dataclass(frozen=True, slots=True)
class LockModel:
    """One lock of many hosts. A client is one start of one host, never used again after its end.

    `acquire`, argument "exclusive" or "shared": result is the token. It is higher than every one
    before, unless the client has the lock cached: it may get its former token again as long as no
    other client was exclusive in between, and exclusively only while it is the only one with any.
    `release`: the client does not use it any more. `fence`, argument the client: it has ended, and
    its lock is free; none of its operations comes after.
    """

    initial: LockState = LockState()

    def step(self, state: LockState, operation: Operation) -> LockState | None:
        """See `Model.step`."""
        if operation.verb == "fence":
            assert isinstance(operation.argument, str)
            after = self._without(state, operation.argument)
            return after and replace(after, ended=after.ended | {operation.argument})
        if operation.client in state.ended:
            return None
        if operation.verb == "release":
            return self._without(state, operation.client)
        assert operation.verb == "acquire", operation
        return self._acquire(state, operation)

    def _acquire(self, state: LockState, operation: Operation) -> LockState | None:
        client, exclusive = operation.client, operation.argument == "exclusive"
        if state.exclusive or (exclusive and state.shared):
            return None
        token = state.token + 1 if operation.result == UNKNOWN else operation.result
        assert isinstance(token, int)
        mine = frozenset(((client, token),))
        cached = state.known == mine if exclusive else mine <= state.known
        if not cached and token <= state.token:
            return None
        token = max(token, state.token)
        if exclusive:
            return replace(state, token=token, exclusive=client, known=mine)
        others = frozenset(entry for entry in state.known if entry[0] != client)
        return replace(state, token=token, shared=state.shared | {client}, known=others | mine)

    def _without(self, state: LockState, client: str) -> LockState | None:
        if client == state.exclusive:
            return replace(state, exclusive="")
        if client in state.shared:
            return replace(state, shared=state.shared - {client})
        return None


class NotLinearizable(AssertionError):
    """There is no such order; says how far one got, and what could not come next."""


def check(history: Iterable[Operation], model: Model[State]) -> None:
    """Check each object's part of a history.

    Raises:
        NotLinearizable: for the first object whose part has no order.
    """
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        parts[operation.key].append(operation)
    for key in sorted(parts):
        part = sorted(parts[key], key=lambda operation: operation.called)
        stuck = _search(part, model)
        if stuck is not None:
            raise NotLinearizable(_explain(key, part, stuck))


@dataclass(frozen=True, slots=True)
class _Stuck:
    """The furthest that any order got."""

    done: int  # bit n: operation n is done
    state: Hashable


def _search(part: Sequence[Operation], model: Model[State]) -> _Stuck | None:
    """None: there is an order. Bit n of a set stands for operation n, by time of call."""
    must = sum(1 << n for n, operation in enumerate(part) if operation.result != UNKNOWN)
    tried: set[tuple[int, State]] = set()
    to_try: list[tuple[int, State]] = [(0, model.initial)]
    furthest, count = _Stuck(0, model.initial), 0
    while to_try:
        done, state = to_try.pop()
        if done & must == must:
            return None
        if (done, state) in tried:
            continue
        tried.add((done, state))
        if (done & must).bit_count() > count:
            furthest, count = _Stuck(done, state), (done & must).bit_count()
        next_ones = []
        for n in _may_be_next(part, done):
            after = model.step(state, part[n])
            if after is not None:
                next_ones.append((part[n].result == UNKNOWN, -n, (done | 1 << n, after)))
        # Popped from the end: what has a result first, and by time of call.
        next_ones.sort(key=lambda choice: (choice[0], -choice[1]), reverse=True)
        to_try.extend(choice[2] for choice in next_ones)
    return furthest


def _may_be_next(part: Sequence[Operation], done: int) -> list[int]:
    """Operations not done that no other one that is not done had to come before."""
    ends = math.inf
    found = []
    for n in range(_first_open(done), len(part)):
        operation = part[n]
        if operation.called > ends:
            break
        if not done >> n & 1:
            found.append(n)
            ends = min(ends, operation.returned)
    return [n for n in found if part[n].called <= ends]


def _first_open(done: int) -> int:
    """The lowest bit that is not set."""
    return (~done & (done + 1)).bit_length() - 1


def _explain(key: str, part: Sequence[Operation], stuck: _Stuck) -> str:
    done = [operation for n, operation in enumerate(part) if stuck.done >> n & 1]
    next_ones = [part[n] for n in _may_be_next(part, stuck.done)]
    lines = [f"{key}: no order explains {len(part)} operations; the best one ends with"]
    lines += [f"  {operation}" for operation in done[-5:]]
    lines += [f"then the state is {stuck.state}, and none of these fits:"]
    lines += [f"  {operation}" for operation in next_ones[:12]]
    return "\n".join(lines)
