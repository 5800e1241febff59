"""The words that lockd and its hosts speak, and how they look on the wire.

`limits` bounds everything that may grow, `terms` are the enumerations, `messages` the words as
frozen dataclasses that check themselves, `codec` turns them into bytes and back, `describe` into
tables for the document. No I/O, no clock, no knowledge of the roles.
"""
