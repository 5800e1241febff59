"""What lockctl prints: tables for people, plain values for JSON."""

import dataclasses
import time
from enum import Enum

from rich.table import Table

from lockd.protocol.messages import AuditEntry, HostStatus, ReservationStatus, StatusReport


def plain(value: object) -> object:
    """A message as JSON has it: records as objects, enums by name, bytes in hex."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def age(seconds: float) -> str:
    """A duration for people: `12 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`."""
    if seconds < 1:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.0f} d"


def clock(wall: float) -> str:
    """A moment in the local zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def status_tables(report: StatusReport) -> list[Table]:
    """LUNs, hosts, and (if there is any) who waits for whom, and why no new host is let in."""
    tables = [_lun_table(report), _host_table(report)]
    if report.state_full:
        tables.append(Table(f"STATE FULL, no new host is let in: {report.state_full}"))
    if report.waits:
        tables.append(_wait_table(report))
    return tables


def audit_line(entry: AuditEntry) -> str:
    """One event, one line."""
    where = f" block {entry.lba}" if entry.lba else ""
    lun = f" {entry.lun}" if entry.lun else ""
    kind = entry.kind.name.lower().replace("_", " ")
    who = f" by {entry.host}" if entry.lba and entry.host and entry.host not in entry.text else ""
    return f"{clock(entry.wall)} #{entry.sequence}{lun}{where} {kind}: {entry.text}{who}"


def reservation_text(reservation: ReservationStatus) -> str:
    """Who has it or wants it, since when, and what happens next."""
    since = f"{reservation.holder}, for {age(reservation.age)}"
    if reservation.ending:
        return (
            f"ending ({reservation.ending}): held by {since}; others wait until its I/O has "
            "ended, or it is fenced"
        )
    if reservation.granted:
        return f"held by {since}"
    waits_for = ", ".join(reservation.waits_for)
    left = age(reservation.seconds_left)
    return f"wanted by {since}; waits for {waits_for}, gives up in {left}"


def _lun_table(report: StatusReport) -> Table:
    table = Table(title="LUNs", title_justify="left")
    for column in ("LUN", "path", "size", "reservation"):
        table.add_column(column, overflow="fold")
    for lun in report.luns:
        held = [reservation_text(reservation) for reservation in lun.reservation]
        table.add_row(
            lun.name, lun.path, f"{lun.size / (1 << 30):.4g} GiB", held[0] if held else "-"
        )
    return table


def _host_table(report: StatusReport) -> Table:
    table = Table(title="hosts", title_justify="left")
    for column in ("LUN", "host", "pid", "gen", "since", "state", "permit", "last heard"):
        table.add_column(column, overflow="fold")
    for host in report.hosts:
        table.add_row(
            host.lun,
            host.name,
            str(host.pid or "-"),
            str(host.generation),
            clock(host.since),
            _host_state(host),
            host.permit.name.lower(),
            f"{age(host.silent)} ago",
        )
    return table


def _host_state(host: HostStatus) -> str:
    if host.proof:
        return f"{host.end.name.lower()}: {host.proof}"
    if host.blocked:
        return "refused; its exit has not been seen"
    return "connected" if host.connected else "not connected, may be writing"


def _wait_table(report: StatusReport) -> Table:
    table = Table(title="who waits for whom", title_justify="left")
    for column in ("LUN", "waits", "for", "what", "since"):
        table.add_column(column, overflow="fold")
    for wait in report.waits:
        table.add_row(wait.lun, wait.waiter, wait.holder, wait.what, age(wait.age))
    return table
