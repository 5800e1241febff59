"""An open regular file: read, write, fsync, release.

An open file holds its lock *in use* (shared for reading, exclusive for writing), so nobody takes
its contents away while it is open, and data operations need no pin.
"""

import logging
from collections.abc import Awaitable, Callable

from vmfs.device.base import Buffer
from vmfs.errors import NotPermitted, VmfsError
from vmfs.files.attributes import PERMISSION_BITS, Attributes
from vmfs.files.data import FileData
from vmfs.files.ground import Ground
from vmfs.files.inode import Inode
from vmfs.ids import FdAddress
from vmfs.ondisk.disk_lock import LockMode
from vmfs.ondisk.file_desc import FileType

_log = logging.getLogger("vmfs.files")

LastClose = Callable[[Inode], Awaitable[None]]
"""What becomes of a file without names when its last open file is closed."""


class OpenFile:
    """One open file description (what open(2) made), from `Namespace.open` or `create`."""

    def __init__(  # noqa: PLR0913 - made in two places of this package only
        self,
        *,
        ground: Ground,
        data: FileData,
        inode: Inode,
        writing: bool,
        append: bool,
        last_close: LastClose,
    ) -> None:
        """Count the open file. The caller has the lock pinned, and the inode loaded."""
        self._ground = ground
        self._data = data
        self._inode = inode
        self._writing = writing
        self._append = append
        self._last_close = last_close
        self._mode = LockMode.EXCLUSIVE if writing else LockMode.SHARED
        self._label = str(inode)
        self._open = True
        # The volume's own files are metadata: what is staged of them counts.
        self._reads_now = inode.desc.type is not FileType.SYSTEM
        ground.locks.hold_open(inode.lock, self._mode, label=self._label)
        if writing:
            inode.writers += 1
        else:
            inode.readers += 1

    @property
    def address(self) -> FdAddress:
        """The file's node."""
        return self._inode.address

    @property
    def writing(self) -> bool:
        """It was opened for writing."""
        return self._writing

    @property
    def attributes(self) -> Attributes:
        """As they are now; no I/O, since an open file's contents are known."""
        return self._inode.attributes()

    @property
    def mode(self) -> int:
        """Permission bits, as they are now."""
        return self._inode.desc.mode & PERMISSION_BITS

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """As `read`, or None where that would wait: then nothing has happened.

        Returns:
            Bytes that are good until the next `await`: use them at once, or copy them.

        Raises:
            DeviceError: the LUN cannot be read.
        """
        return self._data.read_now(self._inode, offset, length) if self._reads_now else None

    def write_now(self, offset: int, data: bytes) -> bool:
        """As `write`, or False where that would wait, or be refused: then nothing is written.

        Raises:
            DeviceError: the LUN cannot be written.
        """
        if not self._writing:
            return False
        at = self._inode.desc.length if self._append else offset
        return self._data.write_now(self._inode, at, data)

    async def read(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes at `offset`; fewer only at the end of the file.

        Raises:
            CorruptRecord: a pointer of the file is damaged.
            DeviceError: the LUN cannot be read.
            LeaseLost: this host was fenced.
        """
        guard = self._inode.guard
        await guard.enter_shared()
        try:
            return await self._data.read(self._inode, offset, length)
        finally:
            guard.exit_shared()

    async def write(self, offset: int, data: Buffer) -> int:
        """Write all of `data` at `offset` (at the true end when opened to append).

        Returns:
            The number of bytes written: all.

        Raises:
            FileTooBig: past the largest file of the format.
            NoSpace: some of it may have been written.
            NotPermitted: not opened for writing.
            LockBusy: free space is in the hands of a host that does not give it up.

        Durability: none before `fsync`.
        """
        if not self._writing:
            raise NotPermitted(f"{self._inode} is not open for writing")
        guard = self._inode.guard
        await guard.enter_exclusive()
        try:
            at = self._inode.desc.length if self._append else offset
            await self._data.write(self._inode, at, data)
        finally:
            guard.exit_exclusive()
        return memoryview(data).nbytes

    async def fsync(self, *, data_only: bool = False) -> None:
        """Make data and metadata durable.

        `data_only` (fdatasync) may leave out the times; a change of size or blocks is always
        included, so today both are the same: one flush when nothing but data has changed.

        Raises:
            VmfsError: the journal has failed, or the LUN cannot be flushed.
        """
        await self._ground.metadata.sync()

    async def release(self) -> None:
        """Close: the lock is cached from now on, no longer in use. A second call does nothing.

        A file that lost its last name while it was open is freed now. That may fail (it is logged,
        and tried again later); closing does not.
        """
        if not self._open:
            return
        self._open = False
        inode = self._inode
        if self._writing:
            inode.writers -= 1
            if not inode.writers:
                inode.give_back_preallocation()
        else:
            inode.readers -= 1
        self._ground.locks.drop_open(inode.lock, self._mode, label=self._label)
        if inode.orphaned and not inode.is_open:
            try:
                await self._last_close(inode)
            except VmfsError as error:
                _log.warning("unlinked file not freed yet file=%s error=%s", inode, error)
