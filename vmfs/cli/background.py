"""Going to the background: the caller gets control back when the mount answers, or has failed.

    parent: fork ── waits for a line or the end ──► prints the line, 0
                                                 └► the child's exit status (it said why on stderr)
    child:  own session ── works ── announces ──► without terminal from here on

Forked before there is a thread, an event loop or a connection, so that the process that lockd
registers is the one that stays.
"""

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmfs.errors import InvalidArgument

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SYSLOG_FORMAT: Final = "vmfs[%(process)d]: %(levelname)s %(name)s: %(message)s"
SYSLOG_SOCKET: Final = "/dev/log"

Announce = Callable[[str], None]
"""Told the one line that says that the mount answers."""


def go_to_background() -> Announce:
    """Fork. Only the child returns, with what it has to call when the mount answers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        raise SystemExit(_follow(reader, child))
    os.close(reader)
    os.setsid()
    os.chdir("/")

    def announce(line: str) -> None:
        _leave_terminal()
        os.write(writer, line.encode() + b"\n")
        os.close(writer)

    return announce


def log_to_foreground(path: str | None) -> None:
    """Log to a file, or to stderr.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    handler = _log_file(path) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def log_to_background(path: str | None) -> None:
    """Log to a file, or to syslog; on a machine without one the log goes nowhere.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    handler: logging.Handler = logging.NullHandler()
    if path:
        handler = _log_file(path)
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
    elif Path(SYSLOG_SOCKET).exists():
        handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET)
        handler.setFormatter(logging.Formatter(SYSLOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _log_file(path: str) -> logging.FileHandler:
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise InvalidArgument(f"cannot log to {path}: {error.strerror}") from error


def _follow(reader: int, child: int) -> int:
    """Wait until the child announces or ends; the exit status of the command."""
    with os.fdopen(reader, "r", encoding="utf-8", errors="replace") as pipe:
        line = pipe.readline()
    if line:
        sys.stdout.write(line)
        return 0
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status > 0 else 1


def _leave_terminal() -> None:
    """Standard streams to /dev/null: nobody must wait for a pipe that we would keep open."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
