"""What every record module shares: the checks of ``unpack``, in the order that they are made.

A record is checked as *length, magic, version, own address, field ranges*, and a record that fails
one check is never returned. Whatever passes, packs to the very bytes that it was unpacked from:
bytes that we do not interpret are kept in fields named ``tail`` or ``reserved_...``.
"""

from vmfs.errors import CorruptRecord

Buffer = bytes | bytearray | memoryview


def require_length(record: str, address: int, data: Buffer, size: int) -> None:
    """The first check of every `unpack`: exactly the record, nothing more and nothing less."""
    if len(data) != size:
        raise CorruptRecord(record, address, "length", len(data), size)


def require(record: str, address: int, field: str, found: int, expected: int) -> None:
    """The field must be exactly this: a magic, a version, the record's own address."""
    if found != expected:
        raise CorruptRecord(record, address, field, found, expected)


def require_within(record: str, address: int, field: str, found: int, allowed: range) -> None:
    """The field must lie in the half-open range."""
    if found not in allowed:
        raise CorruptRecord(
            record, address, field, found, f"{allowed.start:#x} to {allowed.stop - 1:#x}"
        )


def require_one_of(
    record: str, address: int, field: str, found: int, allowed: tuple[int, ...]
) -> None:
    """The field must be one of a few values."""
    if found not in allowed:
        names = ", ".join(f"{value:#x}" for value in allowed)
        raise CorruptRecord(record, address, field, found, f"one of {names}")


def require_power_of_two(record: str, address: int, field: str, found: int, allowed: range) -> None:
    """The field must be a power of two in the range: a block size, a sector size."""
    require_within(record, address, field, found, allowed)
    if found & (found - 1):
        raise CorruptRecord(record, address, field, found, "a power of two")


def require_zero(record: str, address: int, field: str, data: bytes) -> None:
    """Bytes that nobody may have written, where keeping them would hide damage."""
    if any(data):
        raise CorruptRecord(record, address, field, data.hex(), "zeroes")


def unpack_text(record: str, address: int, field: str, data: bytes) -> str:
    """NUL-padded UTF-8; what is returned packs to the same bytes."""
    try:
        return data.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptRecord(record, address, field, data.hex(), "UTF-8 text") from None


def pack_text(text: str, size: int) -> bytes:
    """The reverse of `unpack_text`; the text must fit (the caller has checked it)."""
    data = text.encode("utf-8")
    assert len(data) <= size, f"text of {len(data)} bytes for a field of {size}"
    return data.ljust(size, b"\0")
