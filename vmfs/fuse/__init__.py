"""The edge towards the kernel: the only importer of pyfuse3."""
