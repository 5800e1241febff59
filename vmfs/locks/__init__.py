"""Who may write what, and when: lock records, the order they are taken in, permits, heartbeats."""
