"""A host for tests, as a process of its own: `python -m tests.support.lockd_host SOCKET NAME WHAT`.

WHAT is `hold` (register, answer every ask with GIVE_UP done, return recalled permits), `deaf` (the
same, but answer nothing and return nothing), `count LBA N` (add one to the number in a block, N
times, by compare-and-write). It prints `ready GENERATION` once registered, and then what it did.
Commands on its standard input: `reserve`, `release`, `quit`.
"""

import sys
from functools import partial

import trio

from lockd.client import (
    AnswerKind,
    Asked,
    Event,
    FencedNotice,
    Good,
    LockClient,
    Lost,
    Miscompare,
    PermitGranted,
    PermitRecalled,
    connect,
)
from tests.support.lockd import identity

LUN = "ds1"


def say(*words: object) -> None:
    print(*words, flush=True)


async def count(client: LockClient, lba: int, times: int) -> None:
    current = bytes(512)
    for _ in range(times):
        while True:
            number = int.from_bytes(current[:8], "little") + 1
            new = number.to_bytes(8, "little") + client.generation.to_bytes(8, "little")
            new = new.ljust(512, b"\0")
            outcome = await client.compare_and_write(lba, current, new, durable=False, label="")
            if isinstance(outcome, Good):
                current = new
                break
            assert isinstance(outcome, Miscompare)
            current = outcome.current
    say("counted", times)


async def answer(client: LockClient, asks: trio.MemoryReceiveChannel[int]) -> None:
    async for ask_id in asks:
        await client.answer(ask_id, AnswerKind.DONE, b"here you are")


async def obey(client: LockClient) -> None:
    lines = trio.wrap_file(sys.stdin)
    async for line in lines:
        match line.split():
            case ["reserve"]:
                say("reserve", type(await client.reserve()).__name__)
            case ["release"]:
                await client.release()
                say("released")
            case ["quit"]:
                return
            case _:
                say("unknown command", line)


async def run(socket: str, name: str, what: str, *arguments: str) -> None:
    send, receive = trio.open_memory_channel[int](100)
    clients: list[LockClient] = []

    def on_event(event: Event) -> None:
        match event:
            case Asked() if what != "deaf":
                say("asked", event.what.name, event.lba)
                send.send_nowait(event.ask_id)
            case PermitRecalled() if what != "deaf":
                say("recalled")
                clients[0].returned()
            case PermitGranted():
                say("granted")
            case FencedNotice():
                say("fenced")
            case Lost():
                say("lost")
            case _:
                pass

    async with connect(socket, identity(name), LUN, on_event) as client:
        clients.append(client)
        say("ready", client.generation)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, client, receive)
            if what == "count":
                await count(client, *map(int, arguments))
            else:
                await obey(client)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(run, *sys.argv[1:]))
