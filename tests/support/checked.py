"""The postcondition of every filesystem test: a check of the LUN finds nothing wrong."""

from typing import Final

from vmfs.check import Report, check_device
from vmfs.check.findings import Severity
from vmfs.device.base import Device

REPLAY: Final = frozenset({"needs-replay"})
"""What is allowed by default: on a live volume, and after a kill, the last transaction may wait."""


async def assert_clean(device: Device, *, allowed: frozenset[str] = REPLAY) -> Report:
    """Check the LUN; fail with every error and warning spelled out.

    Args:
        device: the LUN (not the logical volume).
        allowed: codes of warnings and errors that the test expects.
    """
    report = await check_device(device)
    wrong = [
        found
        for found in report.findings
        if found.severity >= Severity.WARNING and found.code not in allowed
    ]
    assert not wrong, "vmfs check found:\n" + "\n".join(describe(report))
    return report


def describe(report: Report) -> list[str]:
    """One line for each finding of a report, for the message of a failing test."""
    return [
        f"  {found.severity.name} {found.code}"
        + (f" at {found.address:#x}" if found.address is not None else "")
        + (f" FD {found.fd:#x}" if found.fd is not None else "")
        + (f" {found.path}" if found.path is not None else "")
        + f": {found.text}"
        for found in report.findings
    ]
