"""A real FUSE mount of a tree in memory, in a process of its own.

    python -m tests.support.edge_mount DIR FAULTS

While the file FAULTS exists, each line "verb" in it makes that method of the tree raise what is no
`VmfsError`, and "verb NoSpace" one that is; "getattr hang" makes it wait for ever, as for a host
that does not answer. Prints `ready` when the mount answers.
"""

import logging
import signal
import sys
from pathlib import Path

import trio

import vmfs.errors
from tests.support.model_namespace import ModelNamespace
from vmfs.files.attributes import Attributes
from vmfs.fuse.options import MountOptions
from vmfs.fuse.serve import MountPlan, check_mount_point, serve
from vmfs.ids import FdAddress


class InjectedError(Exception):
    """What no handler expects."""


class Tree(ModelNamespace):
    """One that can hang."""

    async def getattr(self, address: FdAddress) -> Attributes:
        try:
            return await super().getattr(address)
        except HangInjected:
            print("hanging", flush=True)
            await trio.sleep_forever()
            raise AssertionError("for ever has ended") from None


class HangInjected(Exception):
    """Wait for ever instead."""


def main() -> None:
    mount_point, faults = check_mount_point(Path(sys.argv[1])), Path(sys.argv[2])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)

    def trip(verb: str) -> None:
        try:
            lines = faults.read_text().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            name, _, kind = line.partition(" ")
            if name == verb and kind == "hang":
                raise HangInjected
            if name == verb:
                raise getattr(vmfs.errors, kind)("injected") if kind else InjectedError(verb)

    async def run() -> None:
        stop = trio.Event()
        plan = MountPlan(
            mount_point=mount_point, source="model", options=MountOptions(), drain_seconds=0.3
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, stop)
            tree = Tree(trip=trip)
            await serve(tree, plan, on_ready=lambda _: print("ready", flush=True), stop=stop)
            nursery.cancel_scope.cancel()

    trio.run(run)


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    main()
