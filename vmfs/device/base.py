"""The contract of every device, stated once. `tests/contract/test_device.py` holds each to it.

A device is a flat array of bytes with a fixed size. Its verbs:

* ``read`` returns exactly the bytes asked for, or raises. What a completed ``write`` of the same
  process wrote is what a later ``read`` returns.
* ``write`` returns when other processes of this kernel would read the new bytes. It is *not*
  durable. A crash may keep, lose or tear it (at a sector boundary, never inside a sector).
* ``flush`` returns when every write that had completed before the call survives a power cut.
  Writes issued after it started are not promised anything. It never reorders.
* ``write_zeroes`` makes a range read as zero without moving zeroes through Python where the layer
  below can do it; ``unmap`` gives the range back (afterwards it reads as zero); ``copy`` copies
  inside the device. All three are as durable as ``write``.

* ``read_now`` and ``write_now`` do the same as their namesakes, without ``async``, when that takes
  no waiting; otherwise they do nothing and say so, and the caller awaits the namesake. They are for
  the data path, where a pass of the scheduler costs more than the I/O.

Offsets and lengths are bytes; a range that leaves the device is our own mistake (AssertionError),
an error of the medium is a `DeviceError` that names verb, offset and length.

The verbs are ``async`` so that an implementation may wait without a thread (AIO); the ones that
work inline complete without a checkpoint, on purpose: a thread hop costs more than the I/O.
A write that was started is waited for even by a caller that is cancelled.
"""

from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Device(Protocol):
    """Where the bytes of a LUN, or of a logical volume on it, live."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def name(self) -> str:
        """For messages: the path of the image, or ``memory``."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        ...

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`; visible on return, durable after the next `flush`."""
        ...

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """As `read`, or None when that would wait.

        What it returns is good until the next verb or `await`: use it at once, or copy it.
        """
        ...

    def write_now(self, offset: int, data: Buffer) -> bool:
        """As `write`, or False when that would wait; then nothing was written."""
        ...

    async def flush(self) -> None:
        """Make every completed write durable."""
        ...

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zero; it stays allocated where the layer below can say so."""
        ...

    async def unmap(self, offset: int, length: int) -> None:
        """Give the range back to the layer below; it reads as zero afterwards."""
        ...

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the device; the ranges do not overlap."""
        ...

    async def aclose(self) -> None:
        """Release what the device holds. Does not flush."""
        ...


def assert_range(size: int, offset: int, length: int) -> None:
    """Hold a range against a device of `size` bytes; leaving it is our own mistake."""
    assert offset >= 0, f"range begins at {offset}"
    assert length >= 0, f"range has length {length}"
    assert offset + length <= size, f"range {offset:#x}+{length:#x} leaves a device of {size:#x}"
