"""Which block belongs to which byte of a file, and which blocks are free."""
