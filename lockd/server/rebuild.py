"""lockd's database was lost (deleted, or damaged), and hosts may be at work that it knew.

What they hold is on the LUN, and lockd needs to know nothing of it: compare-and-write goes on, and
a host that connects again says who it is. What is lost with the database is which hosts may have
I/O in flight. They have the LUN open for writing, which /proc shows. So a lockd that knows nobody
on a LUN does not start while a process that it does not know has that open; and with `--rebuild` it
starts, and grants no reservation before each of them has registered, or has ended.

The time does not matter: a host that is stopped, and comes back an hour later, is waited for; by
the next lockd too, if this one is restarted meanwhile (`LunRecord.rebuilding`).

Numbers must not come again (I2): session generations, and the incarnation, by which hosts tell
whose questions they answer. How far the lost ones went nobody knows, so they go on from the seconds
since 1970, which grow faster than hosts and lockds start. It is the one use of wall time: when the
clock was set back by more than the lost database was old, numbers may come again.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from lockd.machine import StrangersSeen
from lockd.server.engine import Engine
from lockd.server.processes import find_openers
from lockd.state import Moment, Record, State
from lockd.store import Store

log = logging.getLogger("lockd.rebuild")

LOOK_SECONDS: Final = 0.5
"""Between two looks for processes that have not registered yet; one reads all of /proc."""

Find = Callable[[Path, frozenset[int]], tuple[tuple[str, ...], bool]]


class DatabaseLost(Exception):
    """Processes are at work on a LUN on which this state directory knows nobody."""


def numbers_above(now: Moment, *, rebuild: bool) -> int:
    """What generations and incarnation must be above, although the database knows of none."""
    return int(now.wall) if rebuild else 0


def refuse_strangers(
    state: State,
    store: Store,
    paths: Mapping[str, Path],
    *,
    rebuild: bool,
    find: Find = find_openers,
) -> tuple[str, ...]:
    """Look who has LUNs open on which nobody is known; keep reservations from them.

    What the next lockd has to know of it, and the generations to begin with, are durable on return.

    Returns:
        The LUNs that are to be watched until their strangers have registered, or ended.

    Raises:
        DatabaseLost: there are some, and `rebuild` was not asked for.
    """
    watched = []
    changed: list[Record] = []
    above = numbers_above(state.started, rebuild=rebuild)
    for name, lun in state.luns.items():
        if lun.record.generation and not (rebuild or lun.record.rebuilding):
            continue
        strangers, complete = find(paths[name], _known(state, name))
        if not complete:
            log.warning("lun=%s not every process could be looked at (not root?)", name)
        if strangers and not (rebuild or lun.record.rebuilding):
            raise DatabaseLost(
                f"LUN {name} is open for writing by {', '.join(strangers)}, and this state "
                "directory knows nobody there. If they are hosts, and lockd's database was lost: "
                "start it with --rebuild. Else end them first."
            )
        generation = max(lun.record.generation, above)
        record = replace(
            lun.record,
            generation=generation,
            rebuilding=bool(strangers),
            lost=generation if rebuild else lun.record.lost,
        )
        if record != lun.record:
            lun.record = record
            changed.append(record)
        if strangers:
            lun.strangers = strangers
            watched.append(name)
            log.warning("no reservation before they have registered: lun=%s %s", name, strangers)
    if changed:
        store.commit(changed)
    return tuple(watched)


async def watch_strangers(
    engine: Engine, name: str, path: Path, *, find: Find = find_openers
) -> None:
    """Return when nobody has the LUN open but registered hosts; reservations are granted again."""
    before = engine.state.luns[name].strangers
    while before:
        await trio.sleep(LOOK_SECONDS)
        try:
            strangers, _ = await trio.to_thread.run_sync(
                find, path, _known(engine.state, name), abandon_on_cancel=True
            )
        except OSError as error:
            log.warning("search for openers failed: lun=%s error=%s", name, error)
            continue
        if strangers != before:
            log.warning("rebuilding lun=%s still not registered: %s", name, strangers or "nobody")
            engine.submit(StrangersSeen(name, strangers))
            before = strangers


def _known(state: State, lun: str) -> frozenset[int]:
    pids = {host.record.pid for host in state.hosts_of(lun) if host.open}
    return frozenset(pids - {0})
