"""Where bytes live: a LUN as an image file, a block device, or memory."""
