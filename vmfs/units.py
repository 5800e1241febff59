"""Sizes, and the arithmetic of blocks. Everything here is a plain function on integers.

*index* counts from 0, *count* says how many, *size* and *offset* are bytes; ranges are half open.
"""

from typing import Final

SECTOR_SIZE: Final = 512
KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_SUFFIXES: Final = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def div_ceil(value: int, divisor: int) -> int:
    """Divide and round up: how many pieces of `divisor` cover `value`."""
    return -(-value // divisor)


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` that is not above `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return div_ceil(value, alignment) * alignment


def parse_size(text: str) -> int:
    """Read a size as people write it: `512`, `64K`, `1.5G`, `2TiB`, `100GB` (powers of 1024).

    Raises:
        ValueError: the text is not a size, or not a whole number of bytes.
    """
    stripped = text.strip().upper().removesuffix("IB") if len(text.strip()) > 2 else text.strip()
    stripped = stripped.upper()
    if stripped.endswith("B") and not stripped[:-1].isdigit():
        stripped = stripped[:-1]
    number = stripped.rstrip("BKMGT")
    suffix = stripped[len(number) :]
    if suffix not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a size; write for example 512, 64K, 100G or 2T")
    try:
        size = (
            float(number) * _SUFFIXES[suffix] if "." in number else int(number) * _SUFFIXES[suffix]
        )
    except ValueError:
        raise ValueError(
            f"{text!r} is not a size; write for example 512, 64K, 100G or 2T"
        ) from None
    if size < 0:
        raise ValueError(f"{text!r} is less than nothing; write for example 512, 64K, 100G or 2T")
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Write a size for people: `512 B`, `64 KiB`, `1.5 GiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} B"
