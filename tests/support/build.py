"""Small volumes for other people's tests: in memory, made in milliseconds."""

from typing import Final

from vmfs.device.memory import MemoryDevice
from vmfs.mkfs import Identity, Plan, Request, make_volume, plan_volume
from vmfs.ondisk.descriptor import LockProtocol, VolumeFlag
from vmfs.ondisk.layout import Limits
from vmfs.ondisk.lvm import EXTENT_SIZE, LV_START
from vmfs.ondisk.partition import TableKind
from vmfs.units import MIB

TIME: Final = 1_751_281_404
IDENTITY: Final = Identity.from_seed(b"a seed for tests", now=TIME)

TINY_LIMITS: Final = Limits(
    files=400,
    sub_blocks=512,
    pointer_blocks=256,
    pointer_blocks_2=32,
    hosts=4,
    journal_size=MIB,
)
"""Three clusters of descriptors, 8 of sub-blocks, 16 of pointer blocks; four hosts."""


def tiny_request(
    *,
    extents: int = 1,
    label: str = "tiny",
    table: TableKind = TableKind.NONE,
    lock_protocol: LockProtocol = LockProtocol.ATS,
    flags: VolumeFlag = VolumeFlag.NONE,
    limits: Limits = TINY_LIMITS,
) -> Request:
    """A volume of so many 256 MiB extents, on a LUN just large enough."""
    room = 0 if table is TableKind.NONE else 2 * MIB
    return Request(
        lun_size=LV_START + extents * EXTENT_SIZE + room,
        label=label,
        identity=IDENTITY,
        table=table,
        lock_protocol=lock_protocol,
        flags=flags,
        limits=limits,
    )


async def build_volume(request: Request | None = None) -> tuple[MemoryDevice, Plan]:
    """Make a volume in memory; returns the LUN, and the plan that tells where everything is."""
    plan = plan_volume(request or tiny_request())
    device = MemoryDevice(plan.request.lun_size)
    await make_volume(device, plan)
    return device, plan
