"""Volumes of several hosts on one LUN in memory, with the real lockd between them.

    async with cluster_of_volumes() as lab:
        async with lab.host("a") as a, lab.host("b") as b:
            await a.namespace.mkdir(ROOT_ADDRESS, b"d", lab.creation())

`crash` ends a host as SIGKILL does: its tasks end where they are, nothing is written any more, and
lockd sees the process exit.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from lockd.client import Event, HostIdentity, LockClient, connect_stream
from tests.support.build import TIME, build_volume, tiny_request
from tests.support.lockd import MemoryLockd
from tests.support.lockservice import LUN, device_lockd
from vmfs.device.memory import MemoryDevice
from vmfs.files.attributes import Creation
from vmfs.mkfs import Request
from vmfs.volume import LockdSession, Timing, Volume, VolumeOptions

LAZY = Timing(heartbeat=3.0, lease=16.0, commit=5.0, refresh=1000.0, close=60.0)


@dataclass
class VolumeLab:
    """A LUN, and lockd on it."""

    device: MemoryDevice
    lockd: MemoryLockd
    nonces: int = 0
    exits: dict[str, Callable[[], None]] = field(default_factory=dict)

    @asynccontextmanager
    async def host(self, name: str, *, read_only: bool = False) -> AsyncIterator[Volume]:
        """Open the volume as host `name`, until the end of the block."""
        self.nonces += 1
        process = self.lockd.process()
        identity = HostIdentity(
            host_uuid=name.encode().ljust(16, b"."), name=name, nonce=self.nonces
        )

        def connect(on_event: Callable[[Event], None]) -> "Connection":
            return connect_stream(self.lockd.stream(process), identity, LUN, on_event)

        self.exits[name] = partial(self.lockd.sessions.exit, process)
        options = VolumeOptions(
            read_only=read_only,
            timing=LAZY,
            clock=trio.current_time,
            wall_clock=lambda: TIME + trio.current_time(),
            seed=self.nonces,
        )
        session = LockdSession(host=identity, connect=connect)
        async with Volume.open(self.device, options, lockd=session) as volume:
            yield volume


Connection = AbstractAsyncContextManager[LockClient]


def creation(mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> Creation:
    """Whose a new object is."""
    return Creation(mode=mode, uid=uid, gid=gid)


@asynccontextmanager
async def volume_lab(request: Request | None = None) -> AsyncIterator[VolumeLab]:
    """A fresh small volume, and lockd on it; no host yet."""
    device, _ = await build_volume(request or tiny_request())
    async with device_lockd(device) as lockd:
        yield VolumeLab(device, lockd)
