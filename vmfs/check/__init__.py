"""A second opinion: its own walk of the disk, with ondisk and device only."""

from vmfs.check.findings import CATALOGUE, Finding, Report, Severity
from vmfs.check.run import check_device, check_volume

__all__ = ["CATALOGUE", "Finding", "Report", "Severity", "check_device", "check_volume"]
