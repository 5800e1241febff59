"""What lockd says unasked, brought to whom it concerns.

`lockd.client.connect` wants a callback before there is a permit, a writer or a lock manager; what
comes too early waits here, in order.

    events = LockdEvents()
    async with connect(socket, host, lun, events) as client:
        permit = Permit(returned=client.returned, granted=client.permit)
        events.attach(permit=permit, writer=writer)
        ...
        events.attach_asked(manager.asked)
"""

import logging
from collections.abc import Callable
from typing import Protocol

from lockd.client import Disconnected, LastingEvent, Lost, Reconnected
from lockd.protocol.messages import (
    Asked,
    EventNotice,
    FencedNotice,
    PermitGranted,
    PermitRecalled,
    UnitAttention,
)
from vmfs.locks.permit import Permit
from vmfs.locks.writers import ReservationWriter

log = logging.getLogger("vmfs.locks.nexus")


class OnAsked(Protocol):
    """`LockManager.asked`."""

    def __call__(self, event: Asked, /) -> None:
        """Begin to answer; never blocks."""
        ...


class LockdEvents:
    """The `on_event` of a mount. Never blocks, never raises."""

    def __init__(self, *, on_lost: Callable[[str], None] | None = None) -> None:
        """`on_lost` is told when the nexus is gone or fenced, after the permit was stopped."""
        self._on_lost = on_lost
        self._permit: Permit | None = None
        self._writer: ReservationWriter | None = None
        self._on_asked: OnAsked | None = None
        self._early: list[LastingEvent] = []

    def __call__(self, event: LastingEvent) -> None:
        """Take one event."""
        if isinstance(event, Asked):
            if self._on_asked is None:
                self._early.append(event)
            else:
                self._on_asked(event)
        elif self._permit is None:
            self._early.append(event)
        else:
            self._drive(self._permit, event)

    def attach(self, *, permit: Permit, writer: object) -> None:
        """From now on there is a permit to drive; what came before comes now.

        Args:
            permit: made with `granted=client.permit`, and no await since.
            writer: of lock records; a `ReservationWriter` is told of unit attentions.
        """
        self._permit = permit
        self._writer = writer if isinstance(writer, ReservationWriter) else None
        self._replay()

    def attach_asked(self, on_asked: OnAsked) -> None:
        """From now on there is somebody to answer asks; what came before comes now."""
        self._on_asked = on_asked
        self._replay()

    def _replay(self) -> None:
        early, self._early = self._early, []
        for event in early:
            self(event)

    def _drive(self, permit: Permit, event: LastingEvent) -> None:
        match event:
            case PermitRecalled():
                log.debug("permit recalled by=%r", event.by)
                permit.recall()
            case PermitGranted():
                permit.grant()
            case UnitAttention():
                log.warning("unit attention reason=%s text=%r", event.reason.name, event.text)
                self._lose_reservation()
            case Disconnected():
                permit.disconnected()
                self._lose_reservation()
            case Reconnected():
                permit.reconnected(granted=event.permit)
            case FencedNotice():
                self._stop(permit, f"this host was fenced: {event.reason}")
            case Lost():
                # For good: nobody will ever tell us that the LUN was reserved, or we were fenced.
                self._stop(permit, f"the connection to lockd was lost: {event.reason}")
            case EventNotice() | Asked():
                pass  # nobody watches here; asks were taken out above

    def _lose_reservation(self) -> None:
        if self._writer is not None:
            self._writer.reservation_lost()

    def _stop(self, permit: Permit, reason: str) -> None:
        permit.stop(reason)
        if self._on_lost is not None:
            self._on_lost(reason)
