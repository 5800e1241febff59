"""Every record field by field: offset, name, how to show it, what it means. For `vmfs inspect`.

The records of `ondisk` refuse what is corrupt; these tables show it. They are written down from the
format a second time (docs/format.md), and a test holds the two against each other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from vmfs.errors import CorruptRecord
from vmfs.ids import VmfsUuid
from vmfs.ondisk import address as addresses

Show = Callable[[bytes], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record."""

    offset: int
    size: int
    name: str
    show: Show
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field as it was read."""

    address: int
    """LV offset (device offset for LVM records)."""
    offset: int
    """In the record."""
    name: str
    value: str
    meaning: str
    raw: bytes


def decode(fields: Iterable[Field], data: bytes, *, address: int, base: int = 0) -> list[Row]:
    """Read a record's fields.

    Args:
        fields: its table.
        data: its bytes; fields past their end are left out.
        address: LV offset of the first byte.
        base: offset of the record in what is shown as one (a tail inside a sector).
    """
    return [
        Row(
            address=address + field.offset,
            offset=base + field.offset,
            name=field.name,
            value=field.show(data[field.offset : field.offset + field.size]),
            meaning=field.meaning,
            raw=data[field.offset : field.offset + field.size],
        )
        for field in fields
        if field.offset + field.size <= len(data)
    ]


def number(data: bytes) -> int:
    """A little-endian field."""
    return int.from_bytes(data, "little")


def show_decimal(data: bytes) -> str:
    """A count or a number."""
    return str(number(data))


def show_hex(data: bytes) -> str:
    """An offset, a size that is a power of two, a magic."""
    return f"{number(data):#x}"


def show_bytes(data: bytes) -> str:
    """Bytes that mean nothing as a number; zeroes are said in a word."""
    if not any(data):
        return "zero"
    return data.hex() if len(data) <= _BYTES_SHOWN_MAX else f"{data[:_BYTES_SHOWN_MAX].hex()}..."


def show_text(data: bytes) -> str:
    """NUL-padded text, with whatever could steer a terminal escaped."""
    return ascii(data.rstrip(b"\0").decode("utf-8", errors="backslashreplace"))


def show_uuid(data: bytes) -> str:
    """A VMFS UUID as vmkfstools prints it."""
    return str(VmfsUuid(data))


def show_seconds(data: bytes) -> str:
    """A wall-clock time in seconds."""
    return _time(number(data), number(data))


def show_microseconds(data: bytes) -> str:
    """A wall-clock time in microseconds."""
    return _time(number(data), number(data) / 1_000_000)


def show_uptime(data: bytes) -> str:
    """A host's uptime in microseconds."""
    return f"{number(data)} us ({number(data) / 1_000_000:.1f} s up)"


def show_mode(data: bytes) -> str:
    """Permission bits."""
    return f"{number(data):#o}"


def show_address(data: bytes) -> str:
    """A resource address, taken apart."""
    value = number(data)
    try:
        parsed = addresses.parse(value)
    except CorruptRecord as error:
        return f"{value:#x} (not an address: {error.field})"
    if parsed is None:
        return "0 (none)"
    if isinstance(parsed, addresses.FbAddress):
        flags = (" TBZ" if parsed.tbz else "") + (" COW" if parsed.cow else "")
        return f"{value:#x} (file block {parsed.block:#x}{flags})"
    kind = addresses.AddressType(addresses.address_type(value)).name
    return f"{value:#x} ({kind} {parsed.resource} of cluster {parsed.cluster})"


def one_of(names: Mapping[int, str]) -> Show:
    """A field with a few values that have names."""

    def show(data: bytes) -> str:
        value = number(data)
        return f"{value:#x} ({names.get(value, 'unknown')})"

    return show


_BYTES_SHOWN_MAX: Final = 24
_YEAR_9999: Final = 253_402_300_799


def _time(value: int, seconds: float) -> str:
    if value == 0:
        return "0"
    if seconds > _YEAR_9999:
        return f"{value} (no time)"
    return f"{value} ({datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%d %H:%M:%S} UTC)"


def _table(*rows: tuple[int, int, str, Show, str]) -> Sequence[Field]:
    return tuple(
        Field(offset=offset, size=size, name=name, show=show, meaning=meaning)
        for offset, size, name, show, meaning in rows
    )


FILE_TYPES: Final = {2: "directory", 3: "file", 4: "symlink", 5: "system", 6: "raw device mapping"}
ZLAS: Final = {
    0: "none",
    1: "file blocks",
    2: "sub-blocks",
    3: "pointer blocks",
    5: "second-level blocks",
    0x10D0: "double indirect",
    0x10D1: "resident",
}
LOCK_TYPES: Final = {
    0x10C00001: "file descriptor",
    0x10C00002: "file block cluster",
    0x10C00003: "sub-block cluster",
    0x10C00004: "pointer block cluster",
    0x10C00005: "file descriptor cluster",
    0x10C00006: "second-level block cluster",
}
LOCK_MODES: Final = {0: "free", 1: "exclusive", 2: "shared", 3: "multi-writer"}

DEVICE_HEADER: Final = _table(
    (0x00, 4, "magic", show_hex, "0xc001d00d"),
    (0x04, 4, "major", show_decimal, "5 for VMFS-5"),
    (0x08, 4, "minor", show_decimal, ""),
    (0x12, 8, "vendor", show_text, "SCSI INQUIRY, may be empty"),
    (0x1A, 16, "model", show_text, ""),
    (0x2A, 4, "revision", show_text, ""),
    (0x5A, 4, "sector size", show_decimal, "bytes"),
    (0x5E, 8, "device size", show_hex, "bytes of the partition"),
    (0x66, 4, "volumes", show_decimal, "logical volumes on this device"),
    (0x6A, 4, "extents", show_decimal, "extent entries"),
    (0x6E, 4, "last extent", show_decimal, ""),
    (0x72, 8, "generation", show_decimal, ""),
    (0x7A, 8, "data offset", show_hex, "from the partition's start"),
    (0x82, 16, "device UUID", show_uuid, ""),
    (0x92, 8, "created", show_microseconds, ""),
    (0x9A, 8, "modified", show_microseconds, ""),
    (0xA2, 16, "lock owner", show_uuid, "nil when free"),
    (0xBE, 4, "extent maps", show_decimal, ""),
    (0xC2, 8, "extended header", show_hex, "0: none"),
)

VOLUME_ENTRY: Final = _table(
    (0x00, 8, "size", show_hex, "bytes of the logical volume"),
    (0x08, 8, "generation", show_decimal, ""),
    (0x10, 4, "state", show_decimal, "1 is normal"),
    (0x14, 64, "UUID text", show_text, ""),
    (0x54, 16, "UUID", show_uuid, "the descriptor repeats it"),
    (0x64, 4, "snapshot id", show_decimal, ""),
    (0x68, 8, "created", show_microseconds, ""),
    (0x70, 4, "volume index", show_decimal, ""),
    (0x74, 4, "segments", show_decimal, "of 256 MiB, on this device"),
    (0x78, 8, "first segment", show_decimal, ""),
    (0x80, 8, "last segment", show_decimal, ""),
    (0x88, 8, "modified", show_microseconds, ""),
    (0x90, 4, "devices", show_decimal, ""),
)

EXTENT_ENTRY: Final = _table(
    (0x00, 1, "used", show_decimal, ""),
    (0x01, 4, "extent", show_decimal, ""),
    (0x05, 4, "volume", show_decimal, ""),
    (0x09, 8, "physical", show_hex, "from the partition's start"),
    (0x11, 8, "logical", show_hex, "LV offset"),
    (0x19, 8, "length", show_hex, "bytes"),
    (0x21, 4, "version", show_decimal, ""),
)

DESCRIPTOR: Final = _table(
    (0x00, 4, "magic", show_hex, "0x2fabf15e"),
    (0x04, 4, "major", show_decimal, "14 is VMFS-5"),
    (0x08, 1, "minor", show_decimal, ""),
    (0x09, 16, "UUID", show_uuid, ""),
    (0x19, 4, "config", show_hex, "2 public, 4 dense sub-blocks, 8 maintenance"),
    (0x1D, 128, "label", show_text, ""),
    (0x9D, 4, "sector size", show_decimal, "bytes"),
    (0xA1, 8, "block size", show_hex, "bytes of a file block"),
    (0xA9, 4, "created", show_seconds, ""),
    (0xAD, 4, "snapshot id", show_decimal, ""),
    (0xB1, 16, "LV UUID", show_uuid, "must be the LVM's"),
    (0xC1, 4, "LV snapshot id", show_decimal, ""),
    (0xD1, 4, "FDC header size", show_hex, "bytes"),
    (0xD5, 4, "FDC clusters per group", show_decimal, ""),
    (0xD9, 4, "sub-block size", show_hex, "bytes"),
    (0xDD, 4, "journal slots", show_decimal, "most in one transaction of ESXi"),
    (0xE1, 8, ".pb2.sf descriptor", show_hex, "LV offset"),
    (0xE9, 4, ".pb2.sf address", show_address, ""),
    (0xED, 16, "creating host", show_uuid, ""),
    (0xFD, 8, "generation", show_decimal, ""),
    (0x105, 8, ".sdd.sf descriptor", show_hex, "LV offset"),
    (0x10D, 4, ".sdd.sf address", show_address, ""),
)

PARAMETERS: Final = _table(
    (0x00, 4, "magic", show_hex, "0x50464d56: made by vmfs mkfs"),
    (0x04, 2, "version", show_decimal, ""),
    (0x06, 1, "lock mode", one_of({1: "ats", 2: "reservation"}), ""),
    (0x08, 4, "flags", show_hex, "1: no resident files"),
    (0x0C, 4, "journal file", show_address, ".vlj.sf"),
    (0x10, 4, "journals", show_decimal, "also the heartbeat slots in use"),
    (0x14, 8, "journal size", show_hex, "bytes of one region"),
    (0x6C, 4, "checksum", show_hex, ""),
)
PARAMETERS_OFFSET: Final = 0x190

HEARTBEAT: Final = _table(
    (0x00, 4, "state", one_of({0xABCDEF01: "free", 0xABCDEF02: "in use"}), ""),
    (0x04, 8, "own LV offset", show_hex, ""),
    (0x0C, 8, "generation", show_decimal, "grows with every acquisition"),
    (0x14, 8, "stamp", show_uptime, "of the last beat"),
    (0x1C, 16, "owner", show_uuid, "host UUID"),
    (0x2C, 4, "journal block", show_address, ""),
    (0x30, 4, "driver major", show_decimal, ""),
    (0x34, 1, "driver minor", show_decimal, ""),
    (0x35, 1, "lock kind", show_decimal, "3 with ATS"),
    (0x36, 46, "host address", show_text, ""),
    (0x64, 8, "journal", show_hex, "LV offset"),
    (0x6C, 16, "replayed by", show_uuid, "host that recovers this one"),
    (0x94, 8, "replayer's slot", show_hex, "LV offset"),
    (0x9C, 8, "replayer's generation", show_decimal, ""),
)

HOST_INFO: Final = _table(
    (0x00, 4, "host info magic", show_hex, "0x48464d56: written by vmfs"),
    (0x04, 4, "version", show_decimal, ""),
    (0x08, 64, "host name", show_text, ""),
    (0x48, 4, "pid", show_decimal, "of the mount"),
    (0x4C, 8, "nonce", show_hex, "of this start of the mount"),
    (0x54, 4, "beat interval", show_decimal, "ms"),
    (0x58, 4, "lease", show_decimal, "ms"),
)
HOST_INFO_OFFSET: Final = 0xA4

LOCK: Final = _table(
    (0x00, 4, "type", one_of(LOCK_TYPES), ""),
    (0x04, 8, "own LV offset", show_hex, ""),
    (0x0C, 8, "holder's slot", show_hex, "LV offset; history when free"),
    (0x14, 8, "generation", show_decimal, "of that slot"),
    (0x1C, 8, "token", show_decimal, "grows with every acquisition"),
    (0x24, 4, "mode", one_of(LOCK_MODES), ""),
    (0x28, 16, "owner", show_uuid, "when exclusive"),
    (0x38, 8, "acquired", show_decimal, "holder's uptime, s"),
    (0x40, 4, "shared holders", show_decimal, ""),
)
HOLDER: Final = _table(
    (0x00, 8, "slot", show_hex, "LV offset"),
    (0x08, 8, "generation", show_decimal, ""),
    (0x10, 16, "owner", show_uuid, ""),
)
HOLDERS_OFFSET: Final = 0x44
HOLDER_SIZE: Final = 32
HOLDER_COUNT_MAX: Final = 8

RESOURCE_HEADER: Final = _table(
    (0x00, 4, "resources per cluster", show_decimal, ""),
    (0x04, 4, "clusters per group", show_decimal, ""),
    (0x08, 4, "first group", show_hex, "file offset"),
    (0x0C, 4, "resource size", show_hex, "bytes; 0 for file blocks"),
    (0x10, 4, "group size", show_hex, "bytes"),
    (0x14, 4, "total", show_decimal, "resources, low word"),
    (0x18, 4, "groups", show_decimal, ""),
    (0x1C, 4, "total high", show_decimal, "high word"),
)

CLUSTER: Final = _table(
    (0x00, 4, "number", show_decimal, "own"),
    (0x04, 4, "total", show_decimal, "resources"),
    (0x08, 4, "free", show_decimal, "bits set in the bitmap"),
    (0x0C, 4, "first free", show_decimal, "a hint"),
    (0x10, 64, "bitmap", lambda data: _free_ranges(data), "free resources"),
    (0x60, 4, "priority", show_decimal, ""),
)

FILE_DESC: Final = _table(
    (0x00, 4, "address", show_address, "own"),
    (0x04, 4, "generation", show_decimal, "directory entries repeat it"),
    (0x08, 4, "links", show_decimal, "0: unused; directories: 2 + sub-directories"),
    (0x0C, 4, "type", one_of(FILE_TYPES), ""),
    (0x10, 4, "flags", show_hex, ""),
    (0x14, 8, "length", show_decimal, "bytes"),
    (0x1C, 8, "block size", show_decimal, "bytes"),
    (0x24, 8, "blocks", show_decimal, "allocated"),
    (0x2C, 4, "mtime", show_seconds, ""),
    (0x30, 4, "ctime", show_seconds, ""),
    (0x34, 4, "atime", show_seconds, ""),
    (0x38, 4, "uid", show_decimal, ""),
    (0x3C, 4, "gid", show_decimal, ""),
    (0x40, 4, "mode", show_mode, ""),
    (0x44, 4, "zla", one_of(ZLAS), "what the data area holds"),
    (0x48, 4, "TBZ blocks", show_decimal, "allocated, read as zero"),
    (0x4C, 4, "COW blocks", show_decimal, ""),
    (0x50, 4, "new blocks", show_decimal, "since the epoch"),
    (0x68, 4, "affinity", show_address, ""),
    (0x6C, 4, "TBZ shift", show_decimal, "log2 of bytes"),
    (0x89, 1, "block shift", show_decimal, "log2 of the block size"),
)

COMMIT: Final = _table(
    (0x00, 8, "magic", show_text, "VLJcommt"),
    (0x08, 4, "version", show_decimal, ""),
    (0x0C, 4, "state", one_of({1: "committed: to be replayed", 2: "done: in place"}), ""),
    (0x10, 4, "slot", show_decimal, ""),
    (0x18, 8, "generation", show_decimal, "of the slot's owner"),
    (0x20, 8, "sequence", show_decimal, ""),
    (0x28, 8, "own LV offset", show_hex, ""),
    (0x30, 4, "runs", show_decimal, ""),
    (0x34, 4, "payload", show_decimal, "bytes"),
    (0x38, 16, "body digest", show_bytes, ""),
    (0x1F0, 16, "own digest", show_bytes, ""),
)

ORPHAN: Final = _table(
    (0x00, 4, "file descriptor", show_address, ""),
    (0x04, 4, "generation", show_decimal, ""),
    (0x08, 8, "target size", show_decimal, "bytes to keep"),
)

DIRENT: Final = _table(
    (0x00, 4, "type", one_of(FILE_TYPES), ""),
    (0x04, 4, "address", show_address, ""),
    (0x08, 4, "generation", show_decimal, ""),
    (0x0C, 128, "name", show_text, ""),
)


def _free_ranges(bitmap: bytes) -> str:
    """A cluster's free resources as ranges."""
    bits, found, index = number(bitmap), [], 0
    while bits >> index:
        index += ((bits >> index) & -(bits >> index)).bit_length() - 1
        run = bits >> index
        length = (~run & (run + 1)).bit_length() - 1
        found.append(str(index) if length == 1 else f"{index}-{index + length - 1}")
        index += length
    return ", ".join(found) or "none"
