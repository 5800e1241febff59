"""Directory entries: a directory is a dense array of these, 140 bytes each, "." and ".." first.

The name field has 128 bytes, and readers (dissect.vmfs, vmfs-tools) treat the field as a C string:
the last byte must stay NUL, so a name has at most 127 bytes. There are no holes in the array: the
last entry moves into the place of a removed one, for vmfs-tools takes a zeroed entry for an error.
"""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from vmfs.errors import CorruptRecord
from vmfs.ids import FdAddress
from vmfs.ondisk.address import AddressType, address_type
from vmfs.ondisk.file_desc import FileType
from vmfs.ondisk.record import Buffer, require_length, require_one_of, require_zero

NAME_MAX: Final = 127
NAME_FIELD: Final = 128

_TYPES: Final = tuple(file_type for file_type in FileType if file_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirEntry:
    """One name in a directory."""

    type: FileType  # repeats the descriptor's type
    address: FdAddress
    generation: int  # repeats the descriptor's: tells a stale entry from a true one
    name: bytes  # 1..127 bytes, no NUL, no slash

    NAME: ClassVar[str] = "directory entry"
    LAYOUT: ClassVar[Struct] = Struct("<III128s")
    SIZE: ClassVar[int] = 140

    def pack(self) -> bytes:
        """The entry as it stands on disk; the name field is filled with zeroes to its end."""
        assert 0 < len(self.name) <= NAME_MAX, f"a name of {len(self.name)} bytes"
        assert b"\0" not in self.name, "NUL in a name"
        assert b"/" not in self.name, "slash in a name"
        return self.LAYOUT.pack(self.type, self.address, self.generation, self.name)

    @classmethod
    def unpack(cls, data: Buffer, *, address: int) -> Self:
        """Read an entry.

        Args:
            data: its 140 bytes.
            address: LV offset that it was read from.

        Raises:
            CorruptRecord: no file type, no FD address, or no name.
        """
        require_length(cls.NAME, address, data, cls.SIZE)
        file_type, fd_address, generation, field = cls.LAYOUT.unpack(data)
        require_one_of(cls.NAME, address, "type", file_type, _TYPES)
        if address_type(fd_address) != AddressType.FD or fd_address & 0x38:
            raise CorruptRecord(cls.NAME, address, "address", fd_address, "a file descriptor's")
        name, _, rest = field.partition(b"\0")
        require_zero(cls.NAME, address, "name padding", rest)
        if not 0 < len(name) <= NAME_MAX or b"/" in name:
            raise CorruptRecord(
                cls.NAME, address, "name", repr(name), f"1 to {NAME_MAX} bytes without a slash"
            )
        return cls(
            type=FileType(file_type),
            address=FdAddress(fd_address),
            generation=generation,
            name=name,
        )


assert DirEntry.LAYOUT.size == DirEntry.SIZE


def unpack_all(data: Buffer, *, address: int = 0) -> list[DirEntry]:
    """Read a directory's whole content.

    Args:
        data: `length` bytes of the directory.
        address: LV offset of its first byte; messages count on from it.

    Raises:
        CorruptRecord: the length is not a whole number of entries, or an entry is corrupt.
    """
    size = DirEntry.SIZE
    if len(data) % size:
        raise CorruptRecord("directory", address, "length", len(data), f"a multiple of {size}")
    view = memoryview(data)
    return [
        DirEntry.unpack(view[start : start + size], address=address + start)
        for start in range(0, len(data), size)
    ]
