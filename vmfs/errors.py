"""What can go wrong, as one tree. `errno` is a class attribute; only `vmfs.fuse` turns it into one.

An exception without an errno is a bug of ours, never an answer to a user.
`exit_status` is what a command ends with when the error reaches its edge.
"""

import errno as codes
from typing import ClassVar


class VmfsError(Exception):
    """Base of everything that vmfs raises on purpose: says what, where, and what to do."""

    errno: ClassVar[int] = codes.EIO
    exit_status: ClassVar[int] = 1


class NotFound(VmfsError):
    """No such name in that directory."""

    errno = codes.ENOENT


class Exists(VmfsError):
    """The name is taken."""

    errno = codes.EEXIST


class NotEmpty(VmfsError):
    """The directory still has names in it."""

    errno = codes.ENOTEMPTY


class NotADirectory(VmfsError):
    """A directory was needed, and this is none."""

    errno = codes.ENOTDIR


class IsADirectory(VmfsError):
    """This is a directory, and the operation is not for directories."""

    errno = codes.EISDIR


class InvalidArgument(VmfsError):
    """The request makes no sense as asked."""

    errno = codes.EINVAL


class NotPermitted(VmfsError):
    """The operation is not allowed on this object by anyone, or not by this caller."""

    errno = codes.EPERM


class NotSupported(VmfsError):
    """VMFS-5 cannot express it (device nodes, FIFOs, extended attributes)."""

    errno = codes.EOPNOTSUPP


class NameTooLong(VmfsError):
    """The format holds names of up to 127 bytes, and symlink targets of up to one sub-block."""

    errno = codes.ENAMETOOLONG


class TooManyLinks(VmfsError):
    """The link count is at its limit."""

    errno = codes.EMLINK


class FileTooBig(VmfsError):
    """Past the largest file that the format can address."""

    errno = codes.EFBIG


class NoSpace(VmfsError):
    """No free resource of the kind that is needed."""

    errno = codes.ENOSPC


class ReadOnly(VmfsError):
    """The volume is mounted read-only, or must be (another implementation has it open)."""

    errno = codes.EROFS


class StaleHandle(VmfsError):
    """The file descriptor has been freed, perhaps reused, since the caller learned of it."""

    errno = codes.ESTALE


class LockBusy(VmfsError):
    """Another host has the object in use. `holder` says who, in words a person can act on."""

    errno = codes.EBUSY

    def __init__(self, message: str, *, holder: str = "") -> None:
        """`holder` names the host (and pid) that has it, when known."""
        super().__init__(message)
        self.holder = holder


class ReservationConflict(VmfsError):
    """Another host has the whole LUN reserved (SCSI status 18h)."""

    errno = codes.EBADE


class LeaseLost(VmfsError):
    """This host was fenced, or cannot prove that it was not: nothing it holds is its own."""

    errno = codes.EIO


class DeviceError(VmfsError):
    """The LUN answered a read, write or flush with an error."""

    errno = codes.EIO


class LockServiceError(VmfsError):
    """lockd cannot be reached, or refused in a way that no operation can go on from."""

    errno = codes.EIO


class CorruptRecord(VmfsError):
    """A record on disk is not what the format says it must be."""

    errno = codes.EUCLEAN

    def __init__(
        self, record: str, address: int, field: str, found: object, expected: object
    ) -> None:
        """`address` is the byte offset that was read (LV offset, or device offset for LVM)."""
        super().__init__(
            f"corrupt {record} at {address:#x}: {field} is {_show(found)}, "
            f"expected {_show(expected)}"
        )
        self.record = record
        self.address = address
        self.field = field
        self.found = found
        self.expected = expected


class NotVmfs(VmfsError):
    """There is no VMFS volume where one was looked for."""

    errno = codes.EINVAL


class Unsupported(VmfsError):
    """A VMFS volume, but of a kind that we do not handle (VMFS-6, several extents, ...)."""

    errno = codes.EINVAL


class WouldOverwrite(VmfsError):
    """The target holds a filesystem or partition table, and --force was not given."""

    errno = codes.EEXIST


def _show(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
