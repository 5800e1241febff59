"""Pointer blocks: 4096 bytes, 1024 addresses, nothing else. No magic, no checksum, no owner.

A pointer block of the first level (PB) holds file block addresses; one of the second level (PB2)
holds PB addresses. Both look the same on disk.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord
from vmfs.ondisk.address import AddressType
from vmfs.ondisk.record import Buffer, require_length

NAME: Final = "pointer block"
SIZE: Final = 4096
POINTER_COUNT: Final = 1024


def unpack(data: Buffer, *, address: int, kind: AddressType | None = None) -> NDArray[np.uint32]:
    """The addresses in a pointer block (a copy, writable).

    Args:
        data: the block.
        address: LV offset that it was read from.
        kind: what every address but 0 must be, when the reader knows.

    Raises:
        CorruptRecord: the length is wrong, or an address of another kind stands in it.
    """
    require_length(NAME, address, data, SIZE)
    pointers = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    if kind is not None:
        wrong = (pointers != 0) & ((pointers & np.uint32(7)) != np.uint32(kind))
        if wrong.any():
            index = int(wrong.argmax())
            raise CorruptRecord(
                NAME,
                address,
                f"address {index}",
                int(pointers[index]),
                f"0 or {kind.name} (low digit {kind.value})",
            )
    return pointers


def pack(pointers: NDArray[np.uint32]) -> bytes:
    """The block as it stands on disk."""
    assert len(pointers) == POINTER_COUNT, f"{len(pointers)} addresses in a pointer block"
    return pointers.astype("<u4").tobytes()
