"""One check, from the partition table to the last directory entry.

    LVM -> descriptor -> heartbeat slots -> journals (laid over in memory)
        -> clusters -> file descriptors and their blocks -> directories -> what does not fit

Contract: read-only; every damage is a finding, none is an exception; memory is bounded by the size
of the volume's own tables (a byte for each block, a record for each file), never by a number that
was read from it. Only a LUN that cannot be read, or holds no VMFS-5, raises.
"""

from collections.abc import Sequence
from typing import Final

from vmfs.check.clusters import Progress, check_clusters, compare
from vmfs.check.findings import Findings, Report
from vmfs.check.journals import JournalRegion, Orphans, read_orphans
from vmfs.check.opening import OpenVolume, lay_over
from vmfs.check.owners import OwnerWalk
from vmfs.check.reader import Reader, ResourceKind, Source, open_descriptor, open_volume
from vmfs.check.slots import Slots, describe, read_slots
from vmfs.check.tree import TreeWalk
from vmfs.device.base import Device
from vmfs.device.locate import find_lv
from vmfs.errors import CorruptRecord
from vmfs.ids import VmfsUuid
from vmfs.ondisk import lvm
from vmfs.ondisk.address import FbAddress, parse
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET

_MESSAGE_OF_NO_REST: Final = "nothing behind it can be checked"


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """For callers who do not want to watch."""


async def check_device(device: Device, *, progress: Progress = no_progress) -> Report:
    """Check the volume on a LUN.

    A volume that a host has open changes while it is read, so what looks like an error there is
    looked at a second time, and only told if it is still to be seen.

    Args:
        device: the LUN: bare, or with an MBR or GPT partition.
        progress: called often, with what is being done.

    Raises:
        NotVmfs, Unsupported: there is no VMFS-5 volume to check.
        DeviceError: the LUN cannot be read.
    """
    report = await _check_once(device, progress)
    if report.exit_status and "host-active" in report.counts:
        return report.confirmed_by(await _check_once(device, progress))
    return report


async def _check_once(device: Device, progress: Progress) -> Report:
    findings = Findings()
    try:
        window = await find_lv(device)
        uuid = await _volume_uuid(device, window.offset)
    except CorruptRecord as error:
        text = f"{error}: {_MESSAGE_OF_NO_REST}"
        findings.add("lvm-corrupt", text, address=error.address)
        return findings.report()
    return await check_volume(window, lv_uuid=uuid, findings=findings, progress=progress)


async def check_volume(
    source: Source,
    *,
    lv_uuid: VmfsUuid | None = None,
    findings: Findings | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Check a logical volume.

    Args:
        source: its bytes.
        lv_uuid: what the LVM calls it; the descriptor must agree.
        findings: what was found before it, on the way to the volume.
        progress: called often, with what is being done.

    Raises:
        NotVmfs, Unsupported: it holds no VMFS-5 filesystem.
        DeviceError: the LUN cannot be read.
    """
    findings = findings or Findings()
    try:
        reader = await open_descriptor(source)
    except CorruptRecord as error:
        text = f"{error}: {_MESSAGE_OF_NO_REST}"
        findings.add("descriptor-corrupt", text, address=error.address)
        return findings.report()
    found = reader.descriptor.lv_uuid
    if lv_uuid is not None and found != lv_uuid:
        text = f"the descriptor belongs to logical volume {found}, the LVM says {lv_uuid}"
        findings.add("descriptor-corrupt", text, address=DESCRIPTOR_OFFSET)
    slots = await read_slots(reader, findings)
    try:
        volume = await lay_over(source, await open_volume(source), slots, findings)
    except CorruptRecord as error:
        text = f"{error}: {_MESSAGE_OF_NO_REST}"
        findings.add("system-file-corrupt", text, address=error.address)
        return findings.report()
    return await _check_contents(volume, findings, progress)


async def _check_contents(volume: OpenVolume, findings: Findings, progress: Progress) -> Report:
    reader, slots, regions = volume.reader, volume.slots, volume.regions
    _check_descriptor(reader, findings)
    orphans = await read_orphans(reader, regions, findings)
    findings.statistics["block_size"] = reader.block_size
    owners = await check_clusters(reader, slots, findings, progress)
    walk = OwnerWalk(
        reader=reader,
        slots=slots,
        findings=findings,
        owners=owners,
        orphans=orphans.generations,
    )
    await walk.run(progress)
    tree = TreeWalk(
        reader=reader,
        findings=findings,
        files=walk.files,
        damaged=frozenset(walk.damaged),
        orphans=orphans.generations,
    )
    await tree.run(progress)
    compare(reader, owners, findings, foreign_journals=_foreign_journals(slots, regions))
    _check_orphans(orphans, walk, findings)
    slots.report_holders()
    return findings.report(tree.path_of)


async def _volume_uuid(device: Device, lv_base: int) -> VmfsUuid:
    """What the volume table calls the volume (`find_lv` has read it, and found it sound)."""
    at = lv_base - lvm.LV_START + lvm.HEADER_OFFSET + lvm.VOLUME_TABLE
    entry = lvm.VolumeEntry.unpack(await device.read(at, lvm.VolumeEntry.SIZE), address=at)
    return entry.uuid


def _check_descriptor(reader: Reader, findings: Findings) -> None:
    """Hold what the descriptor repeats against where it comes from."""
    descriptor = reader.descriptor
    fdc = reader.resources[ResourceKind.FDC]
    sub_blocks = reader.resources[ResourceKind.SBC].header
    expected = {
        "FDC header size": (descriptor.fdc_header_size, fdc.header.first_group),
        "FDC clusters per group": (
            descriptor.fdc_clusters_per_group,
            fdc.header.clusters_per_group,
        ),
        "sub-block size": (descriptor.sub_block_size, sub_blocks.resource_size),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            text = f"{name} is {found:#x}, the resource file says {wanted:#x}"
            findings.add("descriptor-corrupt", text, address=DESCRIPTOR_OFFSET)


def _foreign_journals(slots: Slots, regions: Sequence[JournalRegion]) -> dict[int, str]:
    """Blocks that ESXi hosts use as journals: marked used, and named by nothing but their slot."""
    ours = {region.layout.region_offset for region in regions}
    found: dict[int, str] = {}
    for slot in slots.in_use:
        if slot.journal_offset in ours:
            continue
        try:
            address = parse(slot.journal_fb)
        except CorruptRecord:
            continue
        if isinstance(address, FbAddress):
            found[address.block] = describe(slot)
    return found


def _check_orphans(orphans: Orphans, walk: OwnerWalk, findings: Findings) -> None:
    for address, entry in orphans.entries.items():
        facts = walk.files.get(address)
        if address in walk.damaged or (facts is not None and facts.generation == entry.generation):
            continue
        state = "not in use" if facts is None else f"generation {facts.generation} now"
        text = f"an orphan table names generation {entry.generation} of it, but it is {state}"
        findings.add("orphan-stale", text, address=orphans.places[address], fd=address)
