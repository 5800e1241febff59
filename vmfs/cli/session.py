"""Who this host is, and what lockd calls the LUN that it wants."""

import hashlib
import os
import platform
import secrets
from pathlib import Path
from typing import Final

import trio

from lockd.client import HostIdentity, LockdError, LockdUnreachable, StatusReport, observe
from vmfs.errors import InvalidArgument, LockServiceError
from vmfs.ondisk.heartbeat import HOST_NAME_MAX

LOCKD_SECONDS: Final = 3.0
"""How long a mount waits for a lockd that does not listen yet: it takes a second to start."""

LOCKD_LOOK_SECONDS: Final = 0.1


def this_host(name: str | None) -> HostIdentity:
    """The identity of a mount that starts now.

    The UUID is the same whenever the same machine mounts under the same name, so that lockd knows
    a host that comes back; the nonce is fresh, so that it knows that it is a new start.

    Raises:
        InvalidArgument: the name is too long for the heartbeat slot, or cannot be printed.
    """
    chosen = name or platform.node() or "localhost"
    if len(chosen.encode()) > HOST_NAME_MAX:
        raise InvalidArgument(f"host name {chosen!r} is longer than {HOST_NAME_MAX} bytes")
    if not chosen.isprintable():
        raise InvalidArgument(f"host name {chosen!r} has characters that cannot be printed")
    seed = b"vmfs host\0" + _machine_id() + b"\0" + chosen.encode()
    return HostIdentity(
        host_uuid=hashlib.sha256(seed).digest()[:16],
        name=chosen,
        nonce=secrets.randbits(63) + 1,  # 0 would mean any start of this host
    )


async def wait_for_lockd(socket_path: str) -> None:
    """Give a lockd that is just being started a moment. One that never comes is no error here."""
    with trio.move_on_after(LOCKD_SECONDS):
        while True:
            try:
                async with observe(socket_path):
                    return
            except LockdUnreachable:
                await trio.sleep(LOCKD_LOOK_SECONDS)


async def name_of_lun(socket_path: str, lun: Path) -> str:
    """What the lockd at `socket_path` calls the LUN, found by its path.

    Raises:
        LockServiceError: nobody listens there.
        InvalidArgument: that lockd does not serve this LUN.
    """
    try:
        async with observe(socket_path) as observer:
            report = await observer.status()
    except LockdError as error:
        raise LockServiceError(str(error)) from error
    name = _served_as(report, lun)
    if name is None:
        names = ", ".join(f"{served.name}={served.path}" for served in report.luns)
        raise InvalidArgument(
            f"lockd at {socket_path} does not serve {lun}; it serves {names or 'nothing'} "
            "(-o lun=NAME says which one is meant)"
        )
    return name


def _served_as(report: StatusReport, lun: Path) -> str | None:
    for served in report.luns:
        try:
            if lun.samefile(served.path):
                return served.name
        except OSError:
            continue  # lockd sees it under a path that is none for us
    return None


def _machine_id() -> bytes:
    """What tells this machine from others: systemd's id, else the kernel's name for it."""
    try:
        return Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        return os.uname().nodename.encode()
