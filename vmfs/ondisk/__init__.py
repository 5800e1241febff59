"""Bytes to frozen records and back: VMFS-5 as it is on disk, and our private records beside it."""
