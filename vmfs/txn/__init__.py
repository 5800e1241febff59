"""Staged metadata, the journal that makes it atomic, and the replay of it."""
