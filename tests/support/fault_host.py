"""What a host does in the tests of faults: a volume open in a process that may die at any moment.

`fault_lab` forks the process; everything here runs in it. The volume, its locks, its heartbeat and
its way to lockd are the real ones; two things are the test's own:

* the LUN does real work between the permit check and the write (`WorkingDevice`), so that a process
  is often stopped just there;
* with `unfenced`, its lockd claims every fence done and does none: what a takeover without a fence
  would be like, to see that the tests notice.

What a host did stands in its history, one JSON line per call and per return, written with O_APPEND:
a line is there or not, whenever the process dies. Stamps are CLOCK_MONOTONIC, one for all.
"""

import hashlib
import json
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import trio

from lockd.client import (
    Event,
    FenceAnswer,
    FenceResult,
    Good,
    HostIdentity,
    LockClient,
    LockdError,
    LockdUnreachable,
    Miscompare,
)
from lockd.client.connection import connect_link
from lockd.link import SocketLink
from vmfs.device.base import Buffer, Device
from vmfs.device.image import ImageDevice
from vmfs.errors import LockBusy, VmfsError
from vmfs.ids import FdAddress, LvOffset
from vmfs.locks.order import LockId, LockKind
from vmfs.locks.permit import GuardedDevice
from vmfs.ondisk.disk_lock import LockMode
from vmfs.units import MIB
from vmfs.volume import Volume
from vmfs.volume.lockd_session import LockdSession
from vmfs.volume.options import VolumeOptions
from vmfs.volume.timing import TEST

LUN: Final = "ds1"
RAW: Final = "raw"
"""A second LUN of plain blocks, for compare-and-write alone."""

ENDED: Final = 3
"""Exit status of a host that lost lockd, its lease or its slot: it stops where it stands."""

STAMP: Final = struct.Struct("<8sIIQQ")
"""Magic, number of the host, 0, token, sequence: all that a payload is made of."""

MAGIC: Final = b"STAMPED\0"


def stamped(host: int, token: int, sequence: int) -> bytes:
    """1 MiB that says who wrote it, under which grant, and as its which write."""
    return STAMP.pack(MAGIC, host, 0, token, sequence) * (MIB // STAMP.size)


class WorkingDevice:
    """A LUN that computes over what it writes, before it writes it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.digest = b""

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def name(self) -> str:
        return self._device.name

    async def read(self, offset: int, length: int) -> bytes:
        return await self._device.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        self.digest = hashlib.sha256(data).digest()
        await self._device.write(offset, data)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: `read` is where it can be made to fail, to wait or to be seen."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never: `write` is where it can be made to fail, to wait or to be seen."""
        return False

    async def flush(self) -> None:
        await self._device.flush()

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self._device.write_zeroes(offset, length)

    async def unmap(self, offset: int, length: int) -> None:
        await self._device.unmap(offset, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        await self._device.copy(source, target, length)

    async def aclose(self) -> None:
        await self._device.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One file of the volume: its lock, and where its first MiB stands."""

    address: int  # of its file descriptor
    record: int  # LV offset of its lock record
    data: int  # LV offset of its data

    @property
    def lock(self) -> LockId:
        return LockId(LockKind.FILE_DESC, FdAddress(self.address), LvOffset(self.record))


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """One start of one host, and where its world is."""

    lun: Path
    raw: Path
    socket: Path
    name: str
    nonce: int
    seed: int
    history: Path
    unfenced: bool = False

    @property
    def client(self) -> str:
        """Its name in histories; no other start has it."""
        return f"{self.name}#{self.nonce}"

    @property
    def identity(self) -> HostIdentity:
        return HostIdentity(host_uuid=host_uuid(self.name), name=self.name, nonce=self.nonce)

    @property
    def rng(self) -> random.Random:
        return random.Random(f"{self.seed} {self.client}")


def host_uuid(name: str) -> bytes:
    """Sixteen bytes that follow from the name."""
    return hashlib.sha256(name.encode()).digest()[:16]


class Wire:
    """The two pipes to the test."""

    def __init__(self, commands: int, reports: int) -> None:
        self._commands = trio.lowlevel.FdStream(commands)
        self._reports = reports
        self._rest = b""

    def say(self, **report: object) -> None:
        os.write(self._reports, json.dumps(report).encode() + b"\n")

    async def command(self) -> dict[str, Any]:
        """The next command; {"do": "quit"} when the test is gone."""
        while b"\n" not in self._rest:
            data = await self._commands.receive_some()
            if not data:
                return {"do": "quit"}
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return cast("dict[str, Any]", json.loads(line))


class Recorder:
    """The history of one host."""

    def __init__(self, who: Who) -> None:
        self._fd = os.open(who.history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._count = 0

    def call(self, verb: str, key: str, argument: object = None) -> int:
        self._count += 1
        self._write(n=self._count, verb=verb, key=key, argument=argument, called=time.monotonic())
        return self._count

    def answer(self, number: int, result: object) -> None:
        self._write(n=number, result=result, returned=time.monotonic())

    def _write(self, **line: object) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class _Unfenced:
    """lockd's client, but for fences: claimed, and not done."""

    def __init__(self, client: LockClient) -> None:
        self._client = client

    async def fence(self, host_uuid: bytes, generation: int = 0, *, nonce: int = 0) -> FenceAnswer:
        await trio.lowlevel.checkpoint()
        return FenceAnswer(result=FenceResult.FENCED, proof="none: switched off by the test")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass
class Host:
    """A host with the volume open."""

    who: Who
    wire: Wire
    volume: Volume
    client: LockClient
    record: Recorder
    sequence: int = 0
    pins: list[object] = field(default_factory=list)

    @property
    def device(self) -> GuardedDevice:
        """The logical volume behind the permit: the only way to write."""
        mounted = self.volume._mounted  # the test stands in for the floors above
        assert mounted is not None
        return mounted.nexus.device


@asynccontextmanager
async def _session(
    who: Who, lun: str, on_event: Callable[[Event], None]
) -> AsyncIterator[LockClient]:
    """A connection that SIGUSR1 cuts."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with sock:
        try:
            sock.connect(str(who.socket))
        except OSError as error:
            raise LockdUnreachable(f"no lockd: {error}") from error
        signal.signal(signal.SIGUSR1, lambda *_: _shut_down(sock))
        link = SocketLink(sock.dup())
        async with connect_link(link, who.identity, lun, on_event) as client:
            yield client


def _shut_down(sock: socket.socket) -> None:
    """As the network would; once is enough, and never again is no error."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def opened(who: Who, wire: Wire) -> AsyncIterator[Host]:
    """Open the volume as this host."""
    clients: list[LockClient] = []

    @asynccontextmanager
    async def connect(on_event: Callable[[Event], None]) -> AsyncIterator[LockClient]:
        async with _session(who, LUN, on_event) as client:
            used = cast("LockClient", _Unfenced(client)) if who.unfenced else client
            clients.append(used)
            yield used

    def connected(on_event: Callable[[Event], None]) -> AbstractAsyncContextManager[LockClient]:
        return connect(on_event)

    session = LockdSession(host=who.identity, connect=connected)
    options = VolumeOptions(timing=TEST, seed=who.seed)
    device = WorkingDevice(ImageDevice.open(who.lun, writable=True))
    with ending(wire):
        async with Volume.open(device, options, lockd=session) as volume:
            with ending(wire):  # at once, and without closing the volume: as by SIGKILL
                yield Host(who, wire, volume, clients[0], Recorder(who))


@contextmanager
def ending(wire: Wire) -> Iterator[None]:
    """A host that may not go on says why, and ends where it stands; an error of the test's, too."""
    try:
        yield
    except (VmfsError, LockdError) as error:
        wire.say(ended=f"{type(error).__name__}: {error}")
        os._exit(ENDED)


# --- what hosts do --------------------------------------------------------------------------------


async def set_up(who: Who, wire: Wire, names: list[str]) -> None:
    """Make files of 1 MiB that say their names, and tell their addresses."""
    from tests.support.volumes import put  # only here: it brings all of pytest's helpers

    async with opened(who, wire) as host:
        for name in names:
            made = await put(host.volume, name.encode(), name.encode().ljust(512, b"~") * 2048)
            record = host.volume._ground.desc_offset(made.address)
            wire.say(name=name, address=made.address, record=record)


async def write_stamps(who: Who, wire: Wire, place: Place, number: int) -> None:
    """Take the lock when told, write once and say so, then write for ever when told to."""
    async with opened(who, wire) as host:
        wire.say(ready=True)
        command = await wire.command()
        if command["do"] != "take":
            return
        victim = command.get("fence")
        if victim is not None:
            answer = await host.client.fence(host_uuid(victim["name"]), nonce=victim["nonce"])
            assert answer.result is FenceResult.FENCED, answer
        pin = await host.volume.locks.acquire(place.lock, LockMode.EXCLUSIVE, label=who.name)
        await _write_stamp(host, place, number, pin.token)
        wire.say(token=pin.token)
        if (await wire.command())["do"] != "go":
            return
        while True:
            await _write_stamp(host, place, number, pin.token)
            await trio.lowlevel.checkpoint()


async def _write_stamp(host: Host, place: Place, number: int, token: int) -> None:
    host.sequence += 1
    await host.device.write(place.data, stamped(number, token, host.sequence))


async def count(who: Who, wire: Wire, place: Place) -> None:
    """Add one to the number in a block, under its lock, until told to stop."""
    rng, block = who.rng, struct.Struct("<Q")
    async with opened(who, wire) as host, trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(_stop_when_told, wire, stop)
        wire.say(ready=True)
        with ending(wire):
            while not stop.is_set():
                try:
                    pin = await host.volume.locks.acquire(place.lock, LockMode.EXCLUSIVE, label="")
                except LockBusy:
                    continue
                with pin:
                    for _ in range(rng.randint(1, 12)):
                        (number,) = block.unpack_from(await host.device.read(place.data, 512))
                        call = host.record.call("increment", "counter", number + 1)
                        text = f" {who.client} {call}".encode()
                        new = (block.pack(number + 1) + text).ljust(512, b"\0")
                        await host.device.write(place.data, new)
                        host.record.answer(call, number + 1)
                        await trio.lowlevel.checkpoint()


async def lock_and_release(who: Who, wire: Wire, places: list[Place]) -> None:
    """Acquire and release some locks in both modes, until told to stop."""
    rng = who.rng
    async with opened(who, wire) as host, trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(_stop_when_told, wire, stop)
        wire.say(ready=True)
        with ending(wire):
            while not stop.is_set():
                place = rng.choice(places)
                mode = rng.choice((LockMode.EXCLUSIVE, LockMode.EXCLUSIVE, LockMode.SHARED))
                key = f"lock {place.address:#x}"
                call = host.record.call("acquire", key, mode.name.lower())
                try:
                    pin = await host.volume.locks.acquire(place.lock, mode, label=key)
                except LockBusy:
                    host.record.answer(call, "busy")
                    continue
                host.record.answer(call, pin.token)
                await host.device.read(place.data, 512)
                for _ in range(rng.randrange(3)):
                    await trio.lowlevel.checkpoint()
                call = host.record.call("release", key)
                pin.release()
                host.record.answer(call, "done")
                await trio.lowlevel.checkpoint()


async def compare_and_write(who: Who, wire: Wire, blocks: int) -> None:
    """Compare and write a few blocks, now and then with a wrong compare, until told to stop."""
    rng, record = who.rng, Recorder(who)
    known = dict.fromkeys(range(blocks), 0)
    with ending(wire):
        async with _session(who, RAW, lambda _: None) as client, trio.open_nursery() as nursery:
            stop = trio.Event()
            nursery.start_soon(_stop_when_told, wire, stop)
            wire.say(ready=True)
            number = 0
            with ending(wire):
                while not stop.is_set():
                    number += 1
                    lba = rng.randrange(blocks)
                    new = int.from_bytes(host_uuid(f"{who.client} {number}")[:6], "little")
                    expected = known[lba] if rng.random() < 0.9 else new + 1
                    call = record.call("cas", f"block {lba}", (expected, new))
                    outcome = await client.compare_and_write(
                        lba, _block(expected), _block(new), durable=False, label=""
                    )
                    if isinstance(outcome, Good):
                        record.answer(call, "good")
                        known[lba] = new
                    elif isinstance(outcome, Miscompare):
                        found = int.from_bytes(outcome.current[:8], "little")
                        assert outcome.current == _block(found), f"a torn block: {outcome}"
                        record.answer(call, found)
                        known[lba] = found
                    else:
                        raise AssertionError(f"nobody reserves {RAW}: {outcome}")


def _block(number: int) -> bytes:
    return number.to_bytes(8, "little") * 64


async def _stop_when_told(wire: Wire, stop: trio.Event) -> None:
    await wire.command()
    stop.set()


def main(
    behaviour: Callable[..., Any], who: Who, commands: int, reports: int, *what: object
) -> None:
    """Run in a process that was just forked; does not return."""
    status = 1
    try:
        trio.run(lambda: behaviour(who, Wire(commands, reports), *what))
        status = 0
    except BaseException as error:  # the process ends here, whatever it was
        sys.stderr.write(f"{who.client}: {type(error).__name__}: {error}\n")
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
