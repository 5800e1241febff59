"""The vmfs command, one file per command group."""
