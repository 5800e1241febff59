"""Open a volume as the next mount will find it: journals that wait for replay laid over it.

`check`, `inspect`, `ls`, `cat` and `cp` all begin here, so that after a kill they see the same.
"""

from dataclasses import dataclass

from vmfs.check.findings import Findings
from vmfs.check.journals import JournalRegion, find_regions, lay_journals, read_parameters
from vmfs.check.reader import Reader, Source, open_volume
from vmfs.check.slots import Slots, read_slots
from vmfs.device.base import Device
from vmfs.device.locate import find_lv


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVolume:
    """A volume, open for reading."""

    reader: Reader
    slots: Slots
    regions: tuple[JournalRegion, ...]


async def open_lun(device: Device, findings: Findings) -> OpenVolume:
    """Find the volume on a LUN and open it.

    Raises:
        NotVmfs, Unsupported: there is no VMFS-5 volume.
        CorruptRecord: its LVM header, descriptor or a system file is damaged.
        DeviceError: the LUN cannot be read.
    """
    window = await find_lv(device)
    reader = await open_volume(window)
    slots = await read_slots(reader, findings)
    return await lay_over(window, reader, slots, findings)


async def lay_over(source: Source, reader: Reader, slots: Slots, findings: Findings) -> OpenVolume:
    """The same volume, with every transaction that waits for replay in place.

    Raises:
        CorruptRecord: a system file is damaged.
    """
    parameters = read_parameters(reader, findings)
    if parameters is None:  # ESXi's journals are its own business
        return OpenVolume(reader=reader, slots=slots, regions=())
    regions = await find_regions(reader, parameters, findings)
    overlay = await lay_journals(reader, regions, slots, findings)
    if overlay.sector_count:
        reader = await open_volume(overlay)
    return OpenVolume(reader=reader, slots=slots, regions=tuple(regions))
