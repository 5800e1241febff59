"""An open volume, from the LUN to its tree of names, and its background tasks.

    session = unix_lockd("/run/lockd/sock", host, "ds1")
    async with Volume.open("ds1.img", lockd=session) as volume:
        attributes = await volume.namespace.lookup(ROOT_ADDRESS, b"disk.vmdk")

Opening to write: register with lockd, take a heartbeat slot and with it a journal, recover every
host that lockd knows to be dead, only then look at anything. Closing: commit, write in place, give
up every lock, then the slot. Whoever is killed in between is recovered by the next.

Without lockd the volume is open read-only, and takes no locks at all. So it is when something else
than we has it open (ESXi), or made it.

Tasks, all in one nursery whose errors end the volume: the heartbeat, answers to other hosts, and
housekeeping (commit at an interval, finish orphans, count free space anew).
"""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Self

import trio

from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.device.opening import open_lun_device
from vmfs.device.window import Window
from vmfs.errors import LeaseLost, LockServiceError, VmfsError
from vmfs.files.ground import Ground, NoOrphans, UnwrittenMetadata
from vmfs.files.inode_table import InodeTable
from vmfs.files.namespace import Namespace
from vmfs.ids import SlotIndex, VmfsUuid
from vmfs.locks.heartbeat import foreign, read_slots
from vmfs.locks.order import LockId
from vmfs.locks.unlocked import Unlocked
from vmfs.ondisk.descriptor import FsDescriptor
from vmfs.ondisk.disk_lock import LockMode
from vmfs.space.allocator import Allocator
from vmfs.volume.lockd_session import LockdSession, open_nexus
from vmfs.volume.mounting import Losses, Mounted, give_back, mount
from vmfs.volume.options import VolumeOptions
from vmfs.volume.structure import read_descriptor, read_structure
from vmfs.volume.timing import Timing

_log = logging.getLogger("vmfs.volume")


class Volume:
    """One open volume."""

    def __init__(
        self, *, lv: Window, ground: Ground, mounted: Mounted | None = None, reason: str = ""
    ) -> None:
        """`open` makes it; `mounted` is None when it is read-only, `reason` says why it is."""
        self._ground = ground
        self._table = InodeTable(ground)
        self._mounted = mounted
        self.lv = lv
        self.locks = ground.locks
        self.namespace = Namespace(ground, self._table)
        self.read_only_reason = reason
        self._ended_working = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        lun: str | Path | Device,
        options: VolumeOptions = VolumeOptions(),  # noqa: B008 - frozen
        *,
        lockd: LockdSession | None = None,
    ) -> AsyncIterator[Self]:
        """Open the volume on a LUN for the length of the block.

        Args:
            lun: path of an image or block device, or a device (which stays open).
            options: how.
            lockd: the session with lockd; None: read-only, without locks.

        Raises:
            NotVmfs, Unsupported: no volume there, or none that we handle.
            CorruptRecord: one of its own structures is damaged.
            DeviceError: the LUN cannot be opened or read.
            LockBusy: all heartbeat slots with a journal are taken.
            LockServiceError: lockd is not there, or refuses this host.

        Durability: everything done is durable when the block was left without an error.
        """
        async with AsyncExitStack() as stack:
            writable = lockd is not None and not options.read_only
            device = lun if not isinstance(lun, str | Path) else None
            if device is None:
                assert isinstance(lun, str | Path)
                device = open_lun_device(lun, writable=writable, mode=options.io)
                stack.push_async_callback(device.aclose)
            lv = await find_lv(device)
            descriptor = await read_descriptor(lv)
            reason = await _why_read_only(lv, descriptor, options, lockd)
            if lockd is None or reason:
                yield await cls._open_unlocked(lv, descriptor, options, reason)
                return
            yield await stack.enter_async_context(cls._open_locked(lv, descriptor, options, lockd))

    @classmethod
    async def _open_unlocked(
        cls, lv: Window, descriptor: FsDescriptor, options: VolumeOptions, reason: str
    ) -> Self:
        metadata, locks = UnwrittenMetadata(lv), Unlocked(lv)
        structure = await read_structure(metadata, descriptor)
        allocator = Allocator(
            staging=metadata, locks=locks, files=structure.resources, slot=SlotIndex(0)
        )
        await allocator.load_counts()
        ground = Ground(
            device=lv,
            metadata=metadata,
            locks=locks,
            allocator=allocator,
            orphans=NoOrphans(),
            resources=structure.resources,
            descriptor=descriptor,
            clock=options.wall_clock,
            read_only=True,
            resident_data=True,
        )
        _log.info("opened read-only label=%r reason=%r", descriptor.label, reason)
        return cls(lv=lv, ground=ground, reason=reason)

    @classmethod
    @asynccontextmanager
    async def _open_locked(
        cls, lv: Window, descriptor: FsDescriptor, options: VolumeOptions, lockd: LockdSession
    ) -> AsyncIterator[Self]:
        losses = Losses()
        rng = Random(options.seed)
        nexus_opening = open_nexus(
            lockd,
            lv,
            protocol=descriptor.must_be_ours().lock_protocol,
            timing=options.timing,
            clock=options.clock,
            rng=rng,
            on_lost=losses.note,
        )
        failure: BaseException | None = None
        async with nexus_opening as nexus:
            async with trio.open_nursery() as nursery:
                try:
                    mounted = await mount(nexus, descriptor, options, nursery, losses)
                    volume = cls(lv=lv, ground=mounted.ground, mounted=mounted)
                    await volume._start(nursery, mounted, options)
                    try:
                        yield volume
                    finally:
                        await volume._close(mounted, options)
                except BaseException as error:  # raised again below, outside of the nursery
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure

    async def _start(self, nursery: trio.Nursery, mounted: Mounted, options: VolumeOptions) -> None:
        """Answer other hosts, and keep house."""
        mounted.locks.set_hooks(
            revoke=self._revoke,
            drop=self._drop,
            attributes=self._table.packed_attributes,
            recover=mounted.dead_hosts.recover,
            write_back=self._write_back,
        )
        mounted.losses.on_first = self.namespace.lost
        await nursery.start(mounted.locks.run)
        mounted.nexus.events.attach_asked(mounted.locks.asked)
        nursery.start_soon(self._keep_house, options.timing)

    async def _revoke(self, lock: LockId, to_mode: LockMode) -> None:
        """A lock is being given up: nothing of ours may ever be written under it again.

        What is under the lock is committed and in place after a checkpoint, and so is everything
        else; nothing is left in the journal that a replay could write over the next holder's work.
        """
        await self._ground.metadata.checkpoint()
        if to_mode is LockMode.FREE:
            await self._drop(lock)

    async def _drop(self, lock: LockId) -> None:
        """Forget what is known under a lock. All that was done under it is in place."""
        await self._table.drop(lock)
        self._ground.allocator.drop(lock)

    async def _write_back(self, _lock: LockId) -> None:
        await self._ground.metadata.commit()

    async def _keep_house(self, timing: Timing) -> None:
        """Commit, free what is to be freed, count anew: at intervals, until cancelled."""
        metadata = self._ground.metadata
        refreshed = trio.current_time()
        while metadata.failed is None and not self.lost_reason:
            try:
                await self.namespace.orphans.finish_all()
                await metadata.commit()
                self._table.prune()
                if trio.current_time() - refreshed >= timing.refresh:
                    await self._ground.allocator.refresh()
                    refreshed = trio.current_time()
            except VmfsError as error:
                _log.error("housekeeping failed error=%s", error)
            await trio.sleep(timing.commit)
        _log.error("housekeeping ended failed=%s lost=%r", metadata.failed, self.lost_reason)
        self._ended_working.set()

    async def _close(self, mounted: Mounted, options: VolumeOptions) -> None:
        """Give everything back. What cannot be given back is recovered by the next who needs it.

        Raises:
            VmfsError: something was not written back, or the slot is not ours any more.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(options.timing.close) as scope:
            await self.namespace.orphans.finish_all()
            await mounted.transactions.checkpoint()
            await mounted.locks.release_all()
            await give_back(mounted.nexus, mounted.slot)
            _log.info("closed label=%r slot=%d", self.label, mounted.slot.index)
        if scope.cancelled_caught:
            raise LockServiceError(
                f"closing {self.label!r} took longer than {options.timing.close} s; what this host "
                "still holds is recovered by the next host that needs it"
            )

    async def sync(self) -> None:
        """Make everything done so far durable (syncfs).

        Raises:
            VmfsError: the journal has failed, or this host was fenced.
        """
        await self._ground.metadata.sync()

    @property
    def label(self) -> str:
        """The volume's name."""
        return self._ground.descriptor.label

    @property
    def uuid(self) -> VmfsUuid:
        """The filesystem's UUID."""
        return self._ground.descriptor.uuid

    @property
    def read_only(self) -> bool:
        """Nothing can be changed; `read_only_reason` says why."""
        return self._ground.read_only

    @property
    def lost_reason(self) -> str:
        """Why this host may not touch the LUN any more; empty while it may."""
        return "" if self._mounted is None else self._mounted.losses.first

    @property
    def failed(self) -> VmfsError | None:
        """Why nothing can be changed any more, though the volume is open for writing."""
        if self.lost_reason:
            return LeaseLost(self.lost_reason)
        return self._ground.metadata.failed

    async def until_failed(self) -> VmfsError:
        """Wait, for ever as a rule, until `failed` says something, or a commit interval longer."""
        await self._ended_working.wait()
        assert self.failed is not None, "housekeeping has ended, and nothing has failed"
        return self.failed

    @property
    def slot(self) -> SlotIndex | None:
        """The heartbeat slot of this mount; None when it is read-only."""
        return None if self._mounted is None else self._mounted.slot.index


async def _why_read_only(
    device: Device, descriptor: FsDescriptor, options: VolumeOptions, lockd: LockdSession | None
) -> str:
    """In words, why the volume is opened read-only; empty when it is opened for writing."""
    if options.read_only:
        return "asked for"
    others = foreign(await read_slots(device))
    if others and not options.write_beside_others:
        slot = others[0]
        who = f" ({slot.address_text})" if slot.address_text else ""
        return (
            f"another implementation, most likely ESXi, has it open: host {slot.owner}{who} "
            f"in heartbeat slot {slot.index}"
        )
    if descriptor.parameters() is None:
        return "it was not made by vmfs mkfs: it has no journals of ours"
    return "" if lockd is not None else "no lockd was named"
