"""A second opinion: its own walk of the disk, with ondisk and device only."""
