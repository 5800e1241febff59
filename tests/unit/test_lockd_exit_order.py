"""A process that ends while a further connection of it is being accepted."""

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import trio
import trio.testing

from lockd.server.processes import Processes

TWICE = """
import socket, sys, time
peers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for peer in peers:
    peer.connect(sys.argv[1])
time.sleep(60)
"""
ATTEMPTS = 10  # the order of two tasks in one step of the loop is random


async def test_an_exit_is_told_after_the_sessions_that_were_accepted_before_it(
    tmp_path: Path,
) -> None:
    for attempt in range(ATTEMPTS):
        assert await _events(tmp_path / str(attempt)) == ["opened", "exited"]


def _child(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-SEc", TWICE, str(path)])


async def _events(path: Path) -> list[str]:
    events: list[str] = []
    exited = trio.Event()

    async def opened() -> None:
        events.append("opened")

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        child = stack.enter_context(_child(path))
        stack.callback(child.kill)
        peers = [stack.enter_context(listener.accept()[0]) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            processes = Processes(nursery, lambda *_: (events.append("exited"), exited.set())[1])
            processes.identify(peers[0])
            await trio.testing.wait_all_tasks_blocked()
            processes.identify(peers[1])
            pidfd = os.pidfd_open(child.pid)
            child.kill()
            select.select([pidfd], [], [], 10)
            os.close(pidfd)
            nursery.start_soon(opened)
            await exited.wait()
    return events
