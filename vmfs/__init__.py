"""A clustered VM datastore: the VMFS-5 on-disk format, mounted by several hosts at once."""
