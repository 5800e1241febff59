"""`LUN:/path`: a file on a volume that is not mounted, as the read-only commands name it."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from vmfs.check.findings import Findings, Severity
from vmfs.check.opening import OpenVolume, open_lun
from vmfs.check.slots import describe
from vmfs.device.opening import open_lun_device


@dataclass(frozen=True, slots=True, kw_only=True)
class LunPath:
    """A LUN, and a path from the root of the volume on it."""

    lun: Path
    path: bytes


class LunPathType(click.ParamType[LunPath]):
    """`LUN:/path`, or only `LUN` for the root."""

    name = "LUN:/path"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> LunPath:
        """Split at the first `:/`; colons in the LUN's own name are fine (/dev/disk/by-path)."""
        if isinstance(value, LunPath):
            return value
        lun, separator, path = str(value).partition(":/")
        if not separator:
            lun = lun.removesuffix(":")
        if not lun:
            self.fail(f"{value!r} names no LUN; write LUN:/path", param, ctx)
        return LunPath(lun=Path(lun), path=b"/" + os.fsencode(path))


@asynccontextmanager
async def opened(lun: Path) -> AsyncIterator[OpenVolume]:
    """The volume on a LUN, for reading; says on stderr what makes its answers uncertain.

    Raises:
        VmfsError: there is no volume, it is damaged at its root, or cannot be read.
    """
    device = open_lun_device(lun, writable=False)
    try:
        findings = Findings()
        volume = await open_lun(device, findings)
        for note in notes(volume, findings):
            click.echo(f"note: {note}", err=True)
        sys.stderr.flush()
        yield volume
    finally:
        await device.aclose()


def notes(volume: OpenVolume, findings: Findings) -> list[str]:
    """What a reader of this volume should know."""
    found = [
        f"{describe(slot)} has the volume open; this is what is on the LUN now"
        for slot in volume.slots.in_use
    ]
    return found + [
        f"{finding.code}: {finding.text}"
        for finding in findings.kept
        if finding.severity is Severity.ERROR
    ]
