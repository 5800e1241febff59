"""The names things go by: hosts, heartbeat slots, file descriptors, addresses.

An *address* is the packed u32 that VMFS-5 uses to name a resource; `vmfs.ondisk.address` takes it
apart. An *LV offset* is a byte of the logical volume, which begins after the LVM header.
"""

from dataclasses import dataclass
from typing import ClassVar, NewType, Self

LvOffset = NewType("LvOffset", int)
"""Byte offset in the logical volume."""

FdAddress = NewType("FdAddress", int)
"""Packed address of a file descriptor, the inode number of VMFS."""

SlotIndex = NewType("SlotIndex", int)
"""Index of a heartbeat slot, which is also the index of its journal."""


@dataclass(frozen=True, slots=True)
class VmfsUuid:
    """A UUID as VMFS writes it: u32 time, u32 random, u16 random, 6 MAC bytes, all packed.

    Printed `%08x-%08x-%04x-<12 hex>`, the form that vmkfstools and blkid show.
    """

    raw: bytes
    NIL: ClassVar[Self]

    def __post_init__(self) -> None:
        if len(self.raw) != 16:
            raise ValueError(f"a VMFS UUID has 16 bytes, not {len(self.raw)}")

    def __str__(self) -> str:
        raw = self.raw
        time = int.from_bytes(raw[0:4], "little")
        high = int.from_bytes(raw[4:8], "little")
        rand = int.from_bytes(raw[8:10], "little")
        return f"{time:08x}-{high:08x}-{rand:04x}-{raw[10:].hex()}"

    def __bool__(self) -> bool:
        """False for the all-zero UUID, which means nobody."""
        return any(self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the printed form back.

        Raises:
            ValueError: not four dash-separated groups of 8, 8, 4 and 12 hex digits.
        """
        groups = text.strip().split("-")
        if [len(group) for group in groups] != [8, 8, 4, 12]:
            raise ValueError(f"{text!r} is not a VMFS UUID (8-8-4-12 hex digits)")
        time, high, rand = (int(group, 16) for group in groups[:3])
        return cls(
            time.to_bytes(4, "little")
            + high.to_bytes(4, "little")
            + rand.to_bytes(2, "little")
            + bytes.fromhex(groups[3])
        )


VmfsUuid.NIL = VmfsUuid(bytes(16))
