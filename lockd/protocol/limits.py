"""Every bound of the protocol, with its reason. Sizes are bytes, waits are seconds."""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Raised when a message changes its meaning or its fields. Said first by both sides."""

BLOCK_SIZE: Final = 512
"""The block that compare-and-write works on. VMFS-5 lock records are one such block."""

REQUEST_SIZE_MAX: Final = 16 << 10
"""A compare-and-write is 1.1 KiB and an answer with attributes up to 8 KiB. What is longer is not
meant for lockd (the first bytes of an HTTP request read as a length of 1.1 GiB)."""

REPLY_SIZE_MAX: Final = 1 << 20
"""A status report of `STATUS_HOSTS_MAX` hosts, or `HISTORY_COUNT_MAX` entries, with room."""

PAYLOAD_SIZE_MAX: Final = 8 << 10
"""What a host may send with an answer: a file descriptor's metadata is 2 KiB."""

LABEL_SIZE_MAX: Final = 256
"""A label is for people: the end of a path, a resource cluster, a reason."""

NAME_SIZE_MAX: Final = 64
"""Host names, as the heartbeat slot has room for them; LUN names alike (VMFS labels too)."""

TEXT_SIZE_MAX: Final = 1024
"""A sentence of lockd's own: an error, a proof, an audit line. Longer ones are cut."""

BACKLOG_SIZE_MAX: Final = 4 << 20
"""Unsent bytes for one peer. A peer that does not read for so long is cut off, so that it cannot
make lockd grow; four of the largest replies fit."""

SESSIONS_MAX: Final = 1024
"""Connections at once, people's tools included: far below the usual limit of open files (each
needs a socket and a pidfd), far above the 64 hosts of the largest VMware cluster."""

WAITING_PER_SESSION_MAX: Final = 256
"""Requests of one session that wait for another party (ask, reserve, fence, register). A mount
runs at most a few dozen operations at a time; requests that need nobody else never count."""

WATCHERS_MAX: Final = 64
"""Sessions that follow the event stream: people, and a monitoring system or two."""

HOSTS_ENDED_MAX: Final = 1024
"""Hosts per LUN that are kept in memory after they ended, to prove at once that they did. The
oldest is forgotten first; generations count per LUN, so forgetting lets none of them repeat."""

EARLIER_STARTS_MAX: Final = 32
"""Ended starts of one host whose nonces are remembered, so that its next start can prove that the
slots they left are dead. Each start recovers what the last one left; 32 is far more than one."""

STATUS_HOSTS_MAX: Final = 1024
"""Hosts in one status report; open ones come first."""

STATUS_WAITS_MAX: Final = 1024
"""Waits in one status report; the oldest come first."""

HISTORY_COUNT_MAX: Final = 500
"""Audit entries in one reply; ask again with `before` for older ones."""

AUDIT_ENTRIES_MAX: Final = 100_000
"""Audit entries kept; about 30 MB, some weeks of a quiet cluster. The oldest go first."""

PACE_MS_MIN: Final = 100
"""The shortest lease or recall that a host may ask for: below it a busy machine is a dead one."""

PACE_MS_MAX: Final = 300_000
"""And the longest, five minutes: for so long one host may hold up all others without a word."""

LOCK_BYTE: Final = 1 << 62
"""The byte of a LUN on which the lockd that serves it holds an OFD lock: far beyond any LUN, so
that nobody else's locks on ranges of it (qemu's) are met. Who overwrites a LUN looks for it."""
