"""The guard between tasks of one host: exclusion, order of service, cancellation."""

import pytest
import trio
import trio.testing

from vmfs.files.guard import Guard


async def test_readers_share_and_writer_is_alone() -> None:
    guard = Guard()

    async with guard.shared(), guard.shared():
        assert not guard.try_enter_exclusive()
    async with guard.exclusive():
        assert not guard.try_enter_shared()
        assert not guard.try_enter_exclusive()

    assert guard.idle


async def test_uncontended_entry_needs_no_checkpoint() -> None:
    guard = Guard()

    with trio.CancelScope() as scope:
        scope.cancel()
        await guard.enter_exclusive()
        guard.exit_exclusive()

    assert not scope.cancelled_caught


async def test_waiters_are_served_in_order_and_adjacent_readers_together() -> None:
    guard = Guard()
    seen: list[str] = []

    async def use(name: str, *, exclusive: bool) -> None:
        async with guard.exclusive() if exclusive else guard.shared():
            seen.append(f"+{name}")
            await trio.testing.wait_all_tasks_blocked()
            seen.append(f"-{name}")

    await guard.enter_exclusive()
    async with trio.open_nursery() as nursery:
        for name, exclusive in (("r1", False), ("r2", False), ("w", True), ("r3", False)):
            nursery.start_soon(lambda n=name, e=exclusive: use(n, exclusive=e))
            await trio.testing.wait_all_tasks_blocked()
        guard.exit_exclusive()

    assert set(seen[:2]) == {"+r1", "+r2"}
    assert seen[4:] == ["+w", "-w", "+r3", "-r3"]
    assert guard.idle


async def test_new_reader_does_not_overtake_waiting_writer() -> None:
    guard = Guard()
    await guard.enter_shared()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.enter_exclusive)
        await trio.testing.wait_all_tasks_blocked()
        assert not guard.try_enter_shared()
        guard.exit_shared()

    assert not guard.try_enter_shared()
    guard.exit_exclusive()


async def test_cancelled_waiter_lets_those_behind_it_in() -> None:
    guard = Guard()
    await guard.enter_shared()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def writer() -> None:
            with scope:
                await guard.enter_exclusive()

        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(guard.enter_shared)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()

    guard.exit_shared()
    guard.exit_shared()
    assert guard.idle


async def test_waiter_granted_while_it_is_being_cancelled_gives_it_back() -> None:
    guard = Guard()
    await guard.enter_exclusive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.enter_exclusive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        guard.exit_exclusive()

    assert guard.try_enter_exclusive()


def test_exit_without_entry_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Guard().exit_shared()
    with pytest.raises(AssertionError):
        Guard().exit_exclusive()
