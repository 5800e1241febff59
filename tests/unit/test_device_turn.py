"""`vmfs.device.turn`: free, it costs no turn round the loop; taken, it goes in order of arrival."""

import pytest
import trio
import trio.testing

from vmfs.device.turn import Turn


async def test_a_free_turn_is_taken_without_yielding() -> None:
    turn = Turn()
    others = 0

    async def other() -> None:
        nonlocal others
        others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(3):  # a second yield comes after the other task, whatever trio's order
            async with turn:
                assert turn.locked()
        assert not others

    assert others
    assert not turn.locked()


async def test_who_comes_first_is_served_first_and_nobody_pushes_in() -> None:
    turn = Turn()
    served: list[int] = []

    async def client(number: int) -> None:
        async with turn:
            served.append(number)

    async with trio.open_nursery() as nursery:
        async with turn:
            for number in range(5):
                nursery.start_soon(client, number)
                await trio.testing.wait_all_tasks_blocked()
        # Given back, but not free: it is already the next one's.
        await client(5)

    assert served == [0, 1, 2, 3, 4, 5]


async def test_who_is_cancelled_does_not_take_it() -> None:
    turn = Turn()

    with trio.CancelScope() as scope:
        scope.cancel()
        async with turn:
            pytest.fail("taken by somebody who was cancelled")

    assert scope.cancelled_caught
    assert not turn.locked()


async def test_an_error_gives_it_back() -> None:
    turn = Turn()

    with pytest.raises(ValueError, match="inside"):
        async with turn:
            raise ValueError("inside")

    assert not turn.locked()
