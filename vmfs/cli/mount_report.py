"""What goes on inside one mount, told by itself to whoever asks on this machine.

lockd knows who waits for whom between hosts, and /proc who has a file open. Which operations of one
host use a lock, and which wait for it inside that host, only its process knows. It listens on a
socket beside its record (`vmfs.fuse.registry`), and answers each connection with one JSON object
and the end. It is asked with little patience: a host that is stopped does not answer.
"""

import json
import logging
import os
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import trio

from vmfs.fuse.mountinfo import MountEntry
from vmfs.fuse.registry import record_path
from vmfs.locks.base import Clock
from vmfs.volume import Volume

log = logging.getLogger("vmfs.mount")

ANSWER_SECONDS: Final = 1.0
"""How long a mount is given to answer: it works in slices of milliseconds."""

REPORT_SIZE_MAX: Final = 4 << 20
"""Bytes that are read of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWait:
    """One operation of the host that waits for a lock."""

    lv_offset: int  # of the lock's record
    label: str  # what it is about: a name, mostly
    waits_for: str  # in words
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUse:
    """One lock that the host cannot give up just now."""

    lv_offset: int
    operations: tuple[str, ...]  # labels of those under way
    opens: int  # how many times the file is open


@dataclass(frozen=True, slots=True, kw_only=True)
class MountReport:
    """All of it, at one moment."""

    waits: tuple[LocalWait, ...]
    uses: tuple[LocalUse, ...]

    @classmethod
    def of(cls, volume: Volume, clock: Clock) -> Self:
        """What the locks of an open volume say."""
        now = clock()
        return cls(
            waits=tuple(
                LocalWait(
                    lv_offset=wait.lock.lv_offset,
                    label=wait.label,
                    waits_for=wait.waits_for,
                    seconds=now - wait.since,
                )
                for wait in volume.locks.waiting()
            ),
            uses=tuple(
                LocalUse(
                    lv_offset=held.lock.lv_offset, operations=held.users, opens=len(held.open_by)
                )
                for held in volume.locks.snapshot()
                if held.users or held.open_by
            ),
        )

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read an answer.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        fields: dict[str, list[dict[str, Any]]] = json.loads(text)
        return cls(
            waits=tuple(LocalWait(**wait) for wait in fields["waits"]),
            uses=tuple(
                LocalUse(**{**use, "operations": tuple(use["operations"])})
                for use in fields["uses"]
            ),
        )


def report_path(device: int) -> Path:
    """Where the mount with this `st_dev` listens."""
    return record_path(device).with_suffix(".sock")


async def serve_report(
    path: Path,
    volume: Volume,
    clock: Clock,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. A mount that cannot listen does without."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                await stream.send_all(json.dumps(asdict(MountReport.of(volume, clock))).encode())
            except trio.BrokenResourceError:
                pass  # whoever asked has gone
            except Exception:
                log.exception("no report: no reason to end the mount")
        await stream.aclose()

    try:
        listener = _listen(path)
    except OSError as error:
        log.warning("vmfs locks why cannot ask this mount: path=%s error=%s", path, error)
        task_status.started()
        return
    task_status.started()
    await trio.serve_listeners(answer, [trio.SocketListener(listener)])


def _listen(path: Path) -> trio.socket.SocketType:
    """A socket at `path`, for the own user; one that a dead mount left there is replaced."""
    path.unlink(missing_ok=True)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        stack.pop_all()
    return trio.socket.from_stdlib_socket(listener)


async def ask_mount(entry: MountEntry) -> MountReport | None:
    """What a mount of this machine says of itself; None when it says nothing."""
    path = report_path(os.makedev(entry.major, entry.minor))
    answer = b""
    try:
        with trio.fail_after(ANSWER_SECONDS):
            async with await trio.open_unix_socket(path) as stream:
                async for part in stream:
                    answer += part
                    if len(answer) > REPORT_SIZE_MAX:
                        return None
        return MountReport.parse(answer)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError):
        return None
    except (ValueError, TypeError, KeyError):
        return None  # cut short, or of another version
