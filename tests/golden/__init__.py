"""The bytes on disk, written out: a change of format shows as a change of these files."""
