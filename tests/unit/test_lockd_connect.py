"""Opening a connection to a socket: what makes it wait, and that nothing blocks meanwhile."""

import contextlib
import socket
from pathlib import Path

import trio
from trio.testing import MockClock

from lockd.client import LockdError, observe


async def test_a_lockd_whose_queue_is_full_is_waited_for_without_blocking(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        first.connect(str(path))  # the whole queue
        with trio.move_on_after(1) as waited:
            async with observe(path):
                pass

        assert waited.cancelled_caught
        stack.enter_context(listener.accept()[0])
        listener.settimeout(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_observe, path)
            while True:
                with contextlib.suppress(BlockingIOError):
                    stack.enter_context(listener.accept()[0]).close()
                    break
                await trio.sleep(0.001)


async def _observe(path: Path) -> None:
    with contextlib.suppress(LockdError):  # the connection is made; nobody greets
        async with observe(path):
            pass
