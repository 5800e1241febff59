"""Telling the kernel that what it keeps holds no more: notifications on the session's descriptor.

Only those that wait for nothing: no page, no directory and no request is locked by them, so they
may be sent from the loop and from inside of a handler (each takes 1 to 30 us). `everything` is the
exception, and says so. pyfuse3 has none of them in this form: its own invalidations cover pages.

The layouts are those of `include/uapi/linux/fuse.h`: a header (length, code in place of the error,
0 in place of a request's number) and the structure of the code.
"""

import logging
import os
import struct
from errno import EINVAL, ENOENT
from typing import Final, Protocol

log = logging.getLogger("vmfs.fuse")

_INVAL_INODE: Final = 2  # fuse_notify_inval_inode_out: nodeid, offset, length
_STORE: Final = 4  # fuse_notify_store_out: nodeid, offset, size, padding
_INC_EPOCH: Final = 8  # nothing follows; Linux 6.16

_HEADER: Final = struct.Struct("<IiQ")
_RANGE: Final = struct.Struct("<Qqq")
_PLACE: Final = struct.Struct("<QQII")
_NO_PAGES: Final = -1  # as an offset: attributes only
_ALL_PAGES: Final = 0  # as an offset, with length 0: to the end


class Notifier(Protocol):
    """What can be said to the kernel."""

    @property
    def attributes_expire(self) -> bool:
        """Whether `attributes` does anything; if not, none may be told without an end."""
        ...

    @property
    def names_expire(self) -> bool:
        """Whether `names` does anything; if not, no name may be told without an end."""
        ...

    def attributes(self, inode: int) -> bool:
        """Ask anew for a node's attributes, and ignore replies to what was asked before this.

        Returns:
            False when the kernel has no such inode (yet, or any more).
        """
        ...

    def grown(self, inode: int, size: int) -> None:
        """A file has at least `size` bytes. Plants no page."""
        ...

    def names(self) -> None:
        """Look every name of the mount up again, those that are not there too."""
        ...

    def everything(self, inode: int) -> None:
        """Drop attributes and pages. Waits for pages that are being read: never from the loop."""
        ...


class Session:
    """`Notifier` for a mount of this process."""

    def __init__(self, fd: int) -> None:
        """`fd` is the mount's; it is duplicated, so that its number is never another file's."""
        self._fd = os.dup(fd)
        self.attributes_expire = True
        self.names_expire = self._write(_message(_INC_EPOCH, b"")) == 0
        if not self.names_expire:
            log.info("names are looked up every time: the kernel is older than 6.16")

    def attributes(self, inode: int) -> bool:
        """See `Notifier.attributes`."""
        return self._write(_message(_INVAL_INODE, _RANGE.pack(inode, _NO_PAGES, 0))) != ENOENT

    def grown(self, inode: int, size: int) -> None:
        """See `Notifier.grown`: storing no bytes at the end moves the end alone."""
        self._write(_message(_STORE, _PLACE.pack(inode, size, 0, 0)))

    def names(self) -> None:
        """See `Notifier.names`."""
        self._write(_message(_INC_EPOCH, b""))

    def everything(self, inode: int) -> None:
        """See `Notifier.everything`."""
        self._write(_message(_INVAL_INODE, _RANGE.pack(inode, _ALL_PAGES, 0)))

    def close(self) -> None:
        """The mount is gone. What is still notified reaches nobody."""
        os.close(self._fd)
        self._fd = -1

    def _write(self, message: bytes) -> int:
        """Send; the errno, 0 for none. A mount that is gone keeps nothing, so nothing is lost."""
        try:
            os.write(self._fd, message)
        except OSError as error:
            if error.errno not in (ENOENT, EINVAL):
                log.debug("notification: %s", error)
            return error.errno or EINVAL
        return 0


class Silence:
    """`Notifier` of an edge that no kernel listens to."""

    attributes_expire = False
    names_expire = False

    def attributes(self, inode: int) -> bool:
        """Nobody keeps any."""
        return True

    def grown(self, inode: int, size: int) -> None:
        """Nobody keeps it."""

    def names(self) -> None:
        """Nobody keeps any."""

    def everything(self, inode: int) -> None:
        """Nobody keeps anything."""


def _message(code: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), code, 0) + body
