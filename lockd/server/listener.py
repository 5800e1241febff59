"""The socket, of mode 0600, in a directory of its own; only a dead lockd's is replaced."""

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger("lockd.listener")

ACCEPT_PAUSE_SECONDS: Final = 0.1
"""After an accept failed for want of descriptors or memory: long enough not to spin."""

ACCEPT_CAPACITY_ERRNOS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""The errors of accept that pass, and that the next peer is not to blame for (as trio has them)."""

BACKLOG_COUNT: Final = 128
PATH_SIZE_MAX: Final = 107  # sun_path of unix(7), without its final zero


class SocketUnusable(Exception):
    """lockd cannot listen there; the text says why and what to do."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, which is removed at the end.

    Raises:
        SocketUnusable: another lockd listens there, it is no socket, or it cannot be made.
    """
    if len(os.fsencode(path)) > PATH_SIZE_MAX:
        raise SocketUnusable(f"{path} is too long for a socket ({PATH_SIZE_MAX} bytes at most)")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.closing(sock):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(path)
            before = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
            sock.listen(BACKLOG_COUNT)
        except OSError as error:
            raise SocketUnusable(f"cannot listen on {path}: {error.strerror}") from error
        mine = path.stat().st_ino
        try:
            yield sock
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == mine:
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketUnusable(f"{path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            log.info("socket of a dead lockd replaced: path=%s", path)
            path.unlink()
            return
    raise SocketUnusable(f"another lockd listens on {path}; stop it, or choose another path")


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection."""
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            peer, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue
        except OSError as error:
            if error.errno not in ACCEPT_CAPACITY_ERRNOS:
                raise
            log.error("cannot accept a connection: %s", error)
            await trio.sleep(ACCEPT_PAUSE_SECONDS)
            continue
        return peer
