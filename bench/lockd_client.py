"""Clients of lockd with nothing between them and its socket: they measure lockd, not themselves.

    python -m bench.lockd_client SOCKET LUN LOAD CLIENTS FIRST SECONDS

One process plays all the clients, each with one request under way: a reply is answered with that
client's next request. The frames are encoded beforehand. LOAD is `release` (a request without any
work: there is no reservation to release), `write` (a compare-and-write of a block of the client's
own, answered from the page cache) or `durable` (the same, answered when it is on the disk).
Client n works on block FIRST + n, which is zeroes before. Prints the requests per second of all
clients together.
"""

import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from lockd.protocol.codec import HEADER_SIZE, decode, encode
from lockd.protocol.limits import PROTOCOL_VERSION
from lockd.protocol.messages import (
    CompareAndWrite,
    Good,
    Hello,
    Message,
    Register,
    Registered,
    Release,
    Welcome,
)

LOADS: Final = ("release", "write", "durable")
LABEL: Final = "vm1.vmdk"  # as a lock of a file has one: lockd writes it to its audit trail
RECEIVE_SIZE: Final = 1 << 16
BLOCK_SIZE: Final = 512


@dataclass(slots=True, kw_only=True)
class Client:
    """One connection with one request under way; `frames` are its requests, in turn."""

    connection: socket.socket
    frames: tuple[bytes, ...]
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)

    def send(self) -> None:
        """The next request."""
        self.connection.sendall(self.frames[self.sent % len(self.frames)])
        self.sent += 1

    def receive(self) -> Message | None:
        """The reply, or None while it is not whole.

        Raises:
            ConnectionError: lockd hung up.
        """
        data = self.connection.recv(RECEIVE_SIZE)
        if not data:
            raise ConnectionError("lockd hung up")
        self.received += data
        length = HEADER_SIZE + int.from_bytes(self.received[:HEADER_SIZE], "big")
        if len(self.received) < length:
            return None
        _, message = decode(bytes(self.received[HEADER_SIZE:length]))
        del self.received[:length]
        return message


def frames_of(load: str, number: int) -> tuple[bytes, ...]:
    """The requests that client `number` sends in turn; each undoes what the one before did."""
    if load == "release":
        return (encode(1, Release()),)
    blocks = (bytes(BLOCK_SIZE), b"\x01" * BLOCK_SIZE)
    return tuple(
        encode(
            1,
            CompareAndWrite(
                lba=number, expected=old, new=new, durable=load == "durable", label=LABEL
            ),
        )
        for old, new in (blocks, blocks[::-1])
    )


def connected(path: str, lun: str, load: str, number: int) -> Client:
    """A registered host.

    Raises:
        RuntimeError: lockd refused it.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    client = Client(connection=connection, frames=())
    name = f"bench{number}"
    uuid = name.encode().ljust(16, b"\0")
    for request, kind in (
        (Hello(version=PROTOCOL_VERSION, software="bench"), Welcome),
        (Register(lun=lun, host_uuid=uuid, name=name, nonce=1 + number), Registered),
    ):
        connection.sendall(encode(1, request))
        while (reply := client.receive()) is None:
            continue
        if not isinstance(reply, kind):
            raise RuntimeError(f"lockd said {reply}")
    client.frames = frames_of(load, number)
    return client


def requests_per_second(clients: list[Client], seconds: float) -> float:
    """All of them together.

    Raises:
        RuntimeError: a reply was not Good.
    """
    selector, replies = selectors.DefaultSelector(), 0
    for client in clients:
        selector.register(client.connection, selectors.EVENT_READ, client)
        client.send()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for key, _ in selector.select(timeout=seconds):
            reply = key.data.receive()
            if reply is None:
                continue
            if not isinstance(reply, Good):
                raise RuntimeError(f"lockd said {reply}")
            replies += 1
            key.data.send()
    return replies / elapsed


def main() -> None:
    """Connect, load, print."""
    path, lun, load, count, first, seconds = sys.argv[1:]
    if load not in LOADS:
        raise SystemExit(f"lockd_client: no load {load!r}")
    numbers = range(int(first), int(first) + int(count))
    clients = [connected(path, lun, load, number) for number in numbers]
    print(requests_per_second(clients, float(seconds)))


if __name__ == "__main__":
    main()
