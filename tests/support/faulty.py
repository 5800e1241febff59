"""A device in front of another that can be told to fail, to wait, or to call a hook.

faulty = FaultyDevice(MemoryDevice(MIB))
faulty.fail("write", skip=2)                  the third write from now on raises, once
hold = faulty.hold("flush")                   the next flush waits until `hold.release()`
faulty.before("write", hook)                  await hook(verb, offset, length) before each write
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from vmfs.device.base import Buffer, Device
from vmfs.errors import DeviceError, VmfsError

Hook = Callable[[str, int, int], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class _Rule:
    verb: str
    hook: Hook
    skip: int  # matching calls that pass untouched first
    count: int | None  # calls that it then applies to; None: all
    place: tuple[int, int] | None  # applies only to calls that touch this (offset, length)

    def applies(self, verb: str, offset: int, length: int) -> bool:
        if verb != self.verb or self.count == 0:
            return False
        if self.place is not None:
            start, size = self.place
            if offset + length <= start or start + size <= offset:
                return False
        if self.skip:
            self.skip -= 1
            return False
        if self.count is not None:
            self.count -= 1
        return True


class Hold:
    """One call that is being held up."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._released = trio.Event()

    def release(self) -> None:
        """Let the call go on."""
        self._released.set()

    async def wait_here(self, _verb: str, _offset: int, _length: int) -> None:
        """What the held call does."""
        self.reached.set()
        await self._released.wait()


class FaultyDevice:
    """See the module. Without rules it is the device below."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._rules: list[_Rule] = []
        self.calls: list[tuple[str, int, int]] = []

    def fail(
        self,
        verb: str,
        *,
        skip: int = 0,
        count: int | None = 1,
        place: tuple[int, int] | None = None,
        error: VmfsError | None = None,
    ) -> None:
        """Raise instead of doing `verb`, `count` times (None: for ever) after `skip` passes."""

        async def raise_it(name: str, offset: int, length: int) -> None:
            raise error or DeviceError(f"{name} of {length:#x} at {offset:#x} failed: injected")

        self.before(verb, raise_it, skip=skip, count=count, place=place)

    def hold(self, verb: str, *, skip: int = 0, place: tuple[int, int] | None = None) -> Hold:
        """Hold up one call of `verb`."""
        hold = Hold()
        self.before(verb, hold.wait_here, skip=skip, count=1, place=place)
        return hold

    def before(
        self,
        verb: str,
        hook: Hook,
        *,
        skip: int = 0,
        count: int | None = None,
        place: tuple[int, int] | None = None,
    ) -> None:
        """Await `hook` before calls of `verb`."""
        self._rules.append(_Rule(verb=verb, hook=hook, skip=skip, count=count, place=place))

    def heal(self) -> None:
        """Forget every rule."""
        self._rules.clear()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._device.size

    @property
    def name(self) -> str:
        """For messages."""
        return f"faulty {self._device.name}"

    async def read(self, offset: int, length: int) -> bytes:
        """Read, unless told otherwise."""
        await self._pass("read", offset, length)
        return await self._device.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, unless told otherwise."""
        await self._pass("write", offset, memoryview(data).nbytes)
        await self._device.write(offset, data)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: `read` is where it can be made to fail, to wait or to be seen."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never: `write` is where it can be made to fail, to wait or to be seen."""
        return False

    async def flush(self) -> None:
        """Flush, unless told otherwise."""
        await self._pass("flush", 0, self.size)
        await self._device.flush()

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes, unless told otherwise."""
        await self._pass("write_zeroes", offset, length)
        await self._device.write_zeroes(offset, length)

    async def unmap(self, offset: int, length: int) -> None:
        """Unmap, unless told otherwise."""
        await self._pass("unmap", offset, length)
        await self._device.unmap(offset, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy, unless told otherwise."""
        await self._pass("copy", target, length)
        await self._device.copy(source, target, length)

    async def aclose(self) -> None:
        """Close the device below."""
        await self._device.aclose()

    async def _pass(self, verb: str, offset: int, length: int) -> None:
        self.calls.append((verb, offset, length))
        for rule in list(self._rules):
            if rule.applies(verb, offset, length):
                await rule.hook(verb, offset, length)
