"""The checker of histories: it accepts what can be explained, and nothing else."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.linearizability import (
    UNKNOWN,
    LockModel,
    NotLinearizable,
    Operation,
    RegisterModel,
    check,
)


def cas(client, called, returned, expected, new, result="good", key="b") -> Operation:
    return Operation(
        client=client,
        key=key,
        verb="cas",
        argument=(expected, new),
        result=result,
        called=called,
        returned=returned,
    )


def read(client, called, returned, result, key="b") -> Operation:
    return Operation(
        client=client, key=key, verb="read", result=result, called=called, returned=returned
    )


def acquire(client, called, returned, token, mode="exclusive") -> Operation:
    return Operation(
        client=client,
        key="l",
        verb="acquire",
        argument=mode,
        result=token,
        called=called,
        returned=returned,
    )


def release(client, called, returned) -> Operation:
    return Operation(
        client=client, key="l", verb="release", result="done", called=called, returned=returned
    )


def fence(client, called, whom, returned=math.inf, result=UNKNOWN) -> Operation:
    return Operation(
        client=client,
        key="l",
        verb="fence",
        argument=whom,
        result=result,
        called=called,
        returned=returned,
    )


def refused(history, model) -> str:
    with pytest.raises(NotLinearizable) as caught:
        check(history, model)
    return str(caught.value)


# --- compare-and-write ---


def test_register_that_takes_turns_is_accepted():
    check([cas("a", 0, 1, 0, 1), cas("b", 2, 3, 1, 2), read("a", 4, 5, 2)], RegisterModel())


def test_overlapping_operations_may_be_in_either_order():
    check([cas("a", 0, 9, 1, 2), cas("b", 0, 9, 0, 1), read("c", 10, 11, 2)], RegisterModel())


def test_stale_read_is_rejected():
    text = refused([cas("a", 0, 1, 0, 1), read("b", 2, 3, 0)], RegisterModel())

    assert "read(None) on b: 0" in text


def test_two_winners_of_one_compare_are_rejected():
    refused([cas("a", 0, 9, 0, 1), cas("b", 0, 9, 0, 2)], RegisterModel())


def test_miscompare_that_shows_what_never_stood_there_is_rejected():
    refused([cas("a", 0, 1, 0, 1), cas("b", 2, 3, 0, 2, result=7)], RegisterModel())


def test_miscompare_where_the_compare_fits_is_rejected():
    refused([cas("a", 0, 1, 0, 1, result=0)], RegisterModel())


def test_unknown_write_may_come_late_or_never():
    lost = cas("a", 0, math.inf, 0, 1, UNKNOWN)

    check([lost, read("b", 1, 2, 0), read("b", 3, 4, 1)], RegisterModel())
    check([lost, read("b", 1, 2, 0), read("b", 3, 4, 0)], RegisterModel())


def test_unknown_write_happens_once_at_most():
    history = [
        cas("a", 0, math.inf, 0, 1, UNKNOWN),
        read("b", 1, 2, 1),
        cas("b", 3, 4, 1, 0),
        read("b", 5, 6, 1),
    ]
    refused(history, RegisterModel())


def test_unknown_write_does_not_happen_before_its_call():
    refused([read("b", 0, 1, 1), cas("a", 2, math.inf, 0, 1, UNKNOWN)], RegisterModel())


def test_each_block_is_judged_alone():
    good = [cas("a", 0, 1, 0, 1, key="x"), read("a", 2, 3, 0, key="y")]
    check(good, RegisterModel())

    assert refused([*good, read("b", 4, 5, 0, key="x")], RegisterModel()).startswith("x:")


def test_operation_that_returned_before_its_call_is_a_mistake():
    with pytest.raises(AssertionError, match="before it was called"):
        read("a", 2, 1, 0)


# --- locks ---


def test_lock_that_is_handed_on_is_accepted():
    history = [
        acquire("a", 0, 1, 1),
        release("a", 2, 3),
        acquire("b", 2, 4, 2),
        release("b", 5, 6),
    ]
    check(history, LockModel())


def test_two_exclusive_holders_are_rejected():
    refused([acquire("a", 0, 1, 1), acquire("b", 2, 3, 2), release("a", 4, 5)], LockModel())


def test_exclusive_beside_shared_is_rejected():
    refused([acquire("a", 0, 1, 1, "shared"), acquire("b", 2, 3, 2)], LockModel())


def test_sharers_are_together():
    history = [
        acquire("a", 0, 1, 1, "shared"),
        acquire("b", 2, 3, 2, "shared"),
        release("a", 4, 5),
        release("b", 4, 5),
        acquire("c", 5, 6, 3),
    ]
    check(history, LockModel())


def test_token_that_goes_down_is_rejected():
    refused([acquire("a", 0, 1, 5), release("a", 2, 3), acquire("b", 4, 5, 4)], LockModel())


def test_token_that_another_host_gets_again_is_rejected():
    refused([acquire("a", 0, 1, 5), release("a", 2, 3), acquire("b", 4, 5, 5)], LockModel())


def test_cached_lock_keeps_its_token_as_long_as_nobody_else_gets_it():
    cached = [acquire("a", 0, 1, 5), release("a", 2, 3)]
    check([*cached, acquire("a", 4, 5, 5)], LockModel())

    other = [acquire("b", 4, 5, 6), release("b", 6, 7)]
    refused([*cached, *other, acquire("a", 8, 9, 5)], LockModel())


def test_sharer_keeps_its_token_when_others_join_but_is_not_exclusive_with_it():
    shared = [
        acquire("a", 0, 1, 5, "shared"),
        release("a", 2, 3),
        acquire("b", 4, 5, 6, "shared"),
        release("b", 6, 7),
    ]
    check([*shared, acquire("a", 8, 9, 5, "shared")], LockModel())

    refused([*shared, acquire("a", 8, 9, 5)], LockModel())


def test_lock_of_a_dead_host_goes_to_the_next_only_after_the_fence():
    held = acquire("a", 0, 1, 1)

    check([held, fence("test", 2, "a"), acquire("b", 3, 4, 2)], LockModel())
    refused([held, acquire("b", 2, 3, 2), fence("test", 4, "a")], LockModel())


def test_fenced_client_does_nothing_any_more():
    taken = [acquire("a", 0, 1, 1), fence("test", 2, "a"), acquire("b", 3, 4, 2)]

    refused([*taken, release("b", 5, 6), acquire("a", 7, 8, 3)], LockModel())
    refused([*taken, release("a", 5, 6)], LockModel())


def test_unknown_acquisition_may_have_to_be_fenced():
    lost = acquire("a", 0, math.inf, UNKNOWN)

    check([lost, fence("test", 2, "a"), acquire("b", 3, 4, 2)], LockModel())
    check([lost, acquire("b", 3, 4, 1)], LockModel())


def test_release_by_who_does_not_hold_it_is_rejected():
    refused([acquire("a", 0, 1, 1), release("b", 2, 3)], LockModel())


# --- made-up runs ---


def made_up_run(rng: random.Random, count: int) -> list[Operation]:
    """What clients of a register could have recorded: each operation's moment is known."""
    state, now = 0, 0.0
    history = []
    for number in range(1, count + 1):
        now += rng.uniform(0.5, 1.5)
        client, late, long = f"c{number % 4}", now - rng.uniform(0, 3), now + rng.uniform(0, 3)
        kind = rng.randrange(4)
        if kind == 0:
            history.append(read(client, late, long, state))
            continue
        expected = state if kind != 1 else -number
        good = expected == state
        result = ("good" if good else state) if kind != 3 else UNKNOWN
        end = math.inf if result == UNKNOWN else long
        history.append(cas(client, late, end, expected, number, result))
        state = number if good and (kind != 3 or rng.random() < 0.5) else state
    return history


@given(st.integers(0, 2**32), st.integers(1, 150))
def test_every_history_with_an_order_is_accepted(seed, count):
    check(made_up_run(random.Random(seed), count), RegisterModel())


@given(st.integers(0, 2**32), st.data())
def test_flipped_answer_of_a_compare_and_write_is_rejected(seed, data):
    history = made_up_run(random.Random(seed), 60)
    answered = [n for n, op in enumerate(history) if op.verb == "cas" and op.result == "good"]
    n = data.draw(st.sampled_from(answered or [0]))
    if not answered:
        return
    # That it failed, and saw a value that no operation ever wrote.
    history[n] = replace(history[n], result=-1)

    refused(history, RegisterModel())


@given(st.integers(0, 2**32))
def test_read_of_what_stood_there_much_earlier_is_rejected(seed):
    history = made_up_run(random.Random(seed), 60)
    history = [op for op in history if op.result != UNKNOWN]
    end = max(op.returned for op in history)
    history += [
        read("z", end + 1, end + 2, 0),
        cas("z", end + 3, end + 4, 0, 10_000),
        read("z", end + 5, end + 6, 0),
    ]

    refused(history, RegisterModel())


def test_long_history_of_a_contended_block_is_checked_fast():
    check(made_up_run(random.Random(1), 1_500), RegisterModel())
