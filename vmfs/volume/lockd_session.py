"""How a volume reaches lockd, and the locks of one mount on top of that session."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from lockd.client import Dial, HostIdentity, LastingClient, connect, connect_lasting
from lockd.client.session import Event, LockClient
from vmfs.device.window import Window
from vmfs.ids import VmfsUuid
from vmfs.locks.base import Clock
from vmfs.locks.heartbeat import Mount
from vmfs.locks.nexus import LockdEvents
from vmfs.locks.permit import GuardedDevice, Permit
from vmfs.locks.service import BlockMap, lockd_errors
from vmfs.locks.writers import AtsWriter, RecordWriter, ReservationWriter
from vmfs.ondisk.descriptor import LockProtocol
from vmfs.ondisk.heartbeat import HostInfo
from vmfs.volume.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class LockdSession:
    """Who this mount is, and how it opens one connection for its nexus."""

    host: HostIdentity
    connect: Dial


def unix_lockd(
    socket_path: str | Path, host: HostIdentity, lun: str, timing: Timing | None = None
) -> LockdSession:
    """The session with the lockd that listens at `socket_path` and serves `lun`.

    `timing`: by which lockd waits for this host and judges it; None: as lockd is set.
    """
    if timing is not None:
        recall_ms, lease_ms = pace_of(timing)
        host = replace(host, recall_ms=recall_ms, lease_ms=lease_ms)
    return LockdSession(host=host, connect=partial(_connect, socket_path, host, lun))


def pace_of(timing: Timing) -> tuple[int, int]:
    """When a host that hangs has stopped its own I/O, and when it may be fenced. Milliseconds."""
    return round(timing.stop * 1000), round(timing.lease * 1000)


def _connect(
    socket_path: str | Path, host: HostIdentity, lun: str, on_event: Callable[[Event], None]
) -> AbstractAsyncContextManager[LockClient]:
    return connect(socket_path, host, lun, on_event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nexus:
    """One open session, with what every floor above needs of it."""

    client: LastingClient
    events: LockdEvents
    permit: Permit
    device: GuardedDevice  # the logical volume; nothing is written but through this
    blocks: BlockMap
    writer: RecordWriter
    mount: Mount


@asynccontextmanager
async def open_nexus(  # noqa: PLR0913 - put together in one place (volume.py)
    session: LockdSession,
    lv: Window,
    *,
    protocol: LockProtocol,
    timing: Timing,
    clock: Clock,
    rng: Random,
    on_lost: Callable[[str], None],
) -> AsyncIterator[Nexus]:
    """Register with lockd, and get the permit for the LUN.

    The nexus lasts: when lockd is restarted, or the connection is lost, it is made anew, and what
    needs lockd meanwhile waits for it, for `timing.lockd` at most.

    Args:
        session: who, and where.
        lv: the logical volume on the LUN.
        protocol: how lock records are changed, as the volume says.
        timing: written into the heartbeat slot, for others to read.
        clock: seconds since boot; leases are counted on it.
        rng: for pauses.
        on_lost: told when the nexus is gone for good, or fenced; all I/O has been stopped by then.

    Raises:
        LockServiceError: lockd is not there, or refused (another process is this host).
        LeaseLost: this start of the host was fenced.
    """
    events = LockdEvents(on_lost=on_lost)
    async with AsyncExitStack() as stack:
        with lockd_errors(f"registering as {session.host.name}"):
            client = await stack.enter_async_context(
                connect_lasting(session.connect, events, patience=timing.lockd, rng=rng)
            )
        permit = Permit(
            returned=client.returned,
            granted=client.permit,
            clock=clock,
            interval=timing.heartbeat,
        )
        device = GuardedDevice(lv, permit)
        blocks = BlockMap(lv.offset)
        writer: RecordWriter
        if protocol is LockProtocol.RESERVATION:
            writer = ReservationWriter(device=lv, permit=permit, service=client, rng=rng)
        else:
            writer = AtsWriter(device=device, service=client, blocks=blocks, rng=rng)
        events.attach(permit=permit, writer=writer)
        yield Nexus(
            client=client,
            events=events,
            permit=permit,
            device=device,
            blocks=blocks,
            writer=writer,
            mount=_mount(session.host, timing),
        )


def _mount(host: HostIdentity, timing: Timing) -> Mount:
    return Mount(
        host_uuid=VmfsUuid(host.host_uuid),
        info=HostInfo(
            name=host.name,
            pid=os.getpid(),
            nonce=host.nonce,
            interval_ms=int(timing.heartbeat * 1000),
            lease_ms=int(timing.lease * 1000),
        ),
    )
