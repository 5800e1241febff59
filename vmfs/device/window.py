"""One range of a device, as a device: how a logical volume looks like a flat array of bytes."""

from vmfs.device.base import Buffer, Device, assert_range


class Window:
    """The bytes `offset` to `offset + size` of another device. Every floor above sees only this.

    A flush is a flush of the whole device below. Closing a window closes nothing: the device
    belongs to whoever opened it.
    """

    def __init__(self, device: Device, offset: int, size: int) -> None:
        """Show `size` bytes of `device` from `offset` on."""
        assert_range(device.size, offset, size)
        self._device = device
        self._offset = offset
        self._size = size

    @property
    def device(self) -> Device:
        """The device below."""
        return self._device

    @property
    def offset(self) -> int:
        """Where the window begins on the device below, in bytes."""
        return self._offset

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def name(self) -> str:
        """The name of the device below."""
        return self._device.name

    async def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset` of the window."""
        assert_range(self._size, offset, length)
        return await self._device.read(self._offset + offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset` of the window."""
        assert_range(self._size, offset, memoryview(data).nbytes)
        await self._device.write(self._offset + offset, data)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read `length` bytes at `offset` of the window, or None when that would wait."""
        assert_range(self._size, offset, length)
        return self._device.read_now(self._offset + offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write `data` at `offset` of the window, or False when that would wait."""
        assert_range(self._size, offset, memoryview(data).nbytes)
        return self._device.write_now(self._offset + offset, data)

    async def flush(self) -> None:
        """Make every completed write durable, those outside the window too."""
        await self._device.flush()

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zero."""
        assert_range(self._size, offset, length)
        await self._device.write_zeroes(self._offset + offset, length)

    async def unmap(self, offset: int, length: int) -> None:
        """Give the range back; it reads as zero afterwards."""
        assert_range(self._size, offset, length)
        await self._device.unmap(self._offset + offset, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the window; the ranges do not overlap."""
        assert_range(self._size, source, length)
        assert_range(self._size, target, length)
        await self._device.copy(self._offset + source, self._offset + target, length)

    async def aclose(self) -> None:
        """Do nothing: the device below stays open."""
