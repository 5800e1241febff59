"""Volumes of several hosts on one LUN in memory, with the real lockd between them.

    async with volume_lab() as lab, lab.host("a") as a, lab.host("b") as b:
        await a.namespace.mkdir(ROOT_ADDRESS, b"d", creation())

`lab.kill(a)` ends a host as SIGKILL does: not one byte of it reaches the LUN any more, and lockd
sees the process exit. Its block ends without an error then.
"""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio

from lockd.client import (
    ErrorCode,
    Event,
    Fenced,
    HostIdentity,
    LockClient,
    connect_stream,
)
from lockd.state import ProcessId
from tests.support.build import TIME, build_volume, tiny_request
from tests.support.checked import assert_clean
from tests.support.lockd import MemoryLockd
from tests.support.lockservice import LUN, device_lockd
from vmfs.device.base import Buffer
from vmfs.device.memory import MemoryDevice
from vmfs.errors import DeviceError, VmfsError
from vmfs.files.attributes import ROOT_ADDRESS, Attributes, Creation
from vmfs.ids import FdAddress
from vmfs.mkfs import Request
from vmfs.volume import PRODUCTION, LockdSession, Volume, VolumeOptions

LAZY = dataclasses.replace(PRODUCTION, refresh=1000.0)


class MortalDevice:
    """The LUN as one host sees it: gone when the host is killed."""

    def __init__(self, device: MemoryDevice, *, io_seconds: float = 0.0) -> None:
        self._device = device
        self._io_seconds = io_seconds
        self.dead = False
        self.writes_left: int | None = None  # then it dies; None: not by itself

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def name(self) -> str:
        return self._device.name

    async def read(self, offset: int, length: int) -> bytes:
        await self._take_time()
        self._live("read")
        return await self._device.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._take_time()
        self._wear()
        self._live("write")
        await self._device.write(offset, data)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """As a page cache, unless the LUN is to take its time, or is gone."""
        return None if self.dead or self._io_seconds else self._device.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """As a page cache, unless the LUN is to take its time, is gone, or soon will be."""
        if self.dead or self._io_seconds or self.writes_left is not None:
            return False
        return self._device.write_now(offset, data)

    async def flush(self) -> None:
        self._live("flush")
        await self._device.flush()

    async def write_zeroes(self, offset: int, length: int) -> None:
        self._wear()
        self._live("write_zeroes")
        await self._device.write_zeroes(offset, length)

    async def unmap(self, offset: int, length: int) -> None:
        self._live("unmap")
        await self._device.unmap(offset, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        self._live("copy")
        await self._device.copy(source, target, length)

    async def aclose(self) -> None:
        pass

    async def _take_time(self) -> None:
        if self._io_seconds:
            await trio.sleep(self._io_seconds)

    def _wear(self) -> None:
        if self.writes_left is not None:
            self.dead = self.dead or self.writes_left == 0
            self.writes_left -= 1

    def _live(self, verb: str) -> None:
        if self.dead:
            raise DeviceError(f"{verb}: this host was killed")


@dataclass
class _Host:
    device: MortalDevice
    process: ProcessId
    refused: bool = False  # lockd lets it in no more


Connection = AbstractAsyncContextManager[LockClient]


@dataclass
class VolumeLab:
    """A LUN, and lockd on it."""

    device: MemoryDevice
    lockd: MemoryLockd
    nonces: int = 0
    io_seconds: float = 0.0  # that a read or a write of the hosts takes
    hosts: dict[int, _Host] = field(default_factory=dict)  # by id of the volume

    @asynccontextmanager
    async def host(self, name: str, *, read_only: bool = False) -> AsyncIterator[Volume]:
        """Open the volume as host `name`, until the end of the block."""
        self.nonces += 1
        host = _Host(MortalDevice(self.device, io_seconds=self.io_seconds), self.lockd.process())
        identity = HostIdentity(
            host_uuid=name.encode().ljust(16, b"."), name=name, nonce=self.nonces
        )

        def connect(on_event: Callable[[Event], None]) -> Connection:
            if host.refused or host.device.dead:
                raise Fenced(ErrorCode.FENCED, "the process is dead")
            return connect_stream(self.lockd.stream(host.process), identity, LUN, on_event)

        options = VolumeOptions(
            read_only=read_only,
            timing=LAZY,
            clock=trio.current_time,
            wall_clock=lambda: TIME + trio.current_time(),
            seed=self.nonces,
        )
        session = LockdSession(host=identity, connect=connect)
        try:
            async with Volume.open(host.device, options, lockd=session) as volume:
                self.hosts[id(volume)] = host
                yield volume
        except VmfsError:
            if not host.device.dead:
                raise

    def kill(self, volume: Volume) -> None:
        """End a host where it stands."""
        host = self.hosts[id(volume)]
        host.device.dead = True
        self.lockd.sessions.exit(host.process)

    def kill_after(self, volume: Volume, writes: int) -> None:
        """Let the host's I/O end after so many more writes; `kill` it then."""
        self.hosts[id(volume)].device.writes_left = writes

    def is_dead(self, volume: Volume) -> bool:
        """Whether nothing of the host reaches the LUN any more."""
        return self.hosts[id(volume)].device.dead

    async def assert_clean(self) -> None:
        """A check finds nothing; hosts that are still there have committed what they did."""
        await assert_clean(self.device)


def creation(mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> Creation:
    """Whose a new object is."""
    return Creation(mode=mode, uid=uid, gid=gid)


async def put(volume: Volume, name: bytes, data: bytes = b"") -> Attributes:
    """A file with contents in the root, closed again."""
    _, file = await volume.namespace.create(ROOT_ADDRESS, name, creation())
    await file.write(0, data)
    await file.release()
    return file.attributes


async def cat(volume: Volume, name: bytes) -> bytes:
    """The contents of a file in the root."""
    found = await volume.namespace.lookup(ROOT_ADDRESS, name)
    file = await volume.namespace.open(found.address, writing=False)
    try:
        return await file.read(0, found.size)
    finally:
        await file.release()


async def leave_contents_behind(volume: Volume, length: int) -> None:
    """Free blocks that have no zero byte in them, as a file leaves them that was deleted."""
    await put(volume, b"old", b"\xff" * length)
    await volume.namespace.unlink(ROOT_ADDRESS, b"old")
    await volume.sync()


async def names(volume: Volume, address: FdAddress = ROOT_ADDRESS) -> list[bytes]:
    """What a directory lists, the volume's own files left out."""
    directory = await volume.namespace.open_directory(address)
    listed = await directory.read(0)
    await directory.release()
    return [entry.name for _, entry in listed if not entry.name.endswith(b".sf")]


@asynccontextmanager
async def volume_lab(request: Request | None = None) -> AsyncIterator[VolumeLab]:
    """A fresh small volume, and lockd on it; no host yet."""
    device, _ = await build_volume(request or tiny_request())
    async with device_lockd(device) as lockd:
        yield VolumeLab(device, lockd)
