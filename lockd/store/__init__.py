"""What must outlive lockd, and the audit trail. `tests/contract/test_store.py` holds both to it.

`commit` is durable when it returns: it survives a power cut. `append` is not: it survives the end
of the process, and a power cut may take the newest entries (never the committed records).

The records are few and small, so each change is one synced transaction. What the LUN itself says
(lock records, heartbeats) is never stored here.
"""

from lockd.store.base import Store, StoreError
from lockd.store.lmdb import LmdbStore, set_aside_if_damaged
from lockd.store.memory import MemoryStore

__all__ = ["LmdbStore", "MemoryStore", "Store", "StoreError", "set_aside_if_damaged"]
