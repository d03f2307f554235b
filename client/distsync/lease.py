"""The holder's side of a lease: renewed in time, and over in time.

- The deadline is the moment *before* the last successful request was sent, plus what was granted,
  minus a margin of 1 % and 50 ms for clocks that run at different speeds. It passes before the
  cluster's own does, whatever happened to the answer on its way, and without asking anybody: a
  holder that is cut off, or was stopped, finds its lease over by its own clock.
- Renewal begins when a third has passed and is repeated until the deadline.
- A lease is lost once and for all: an answer that comes later does not bring it back.

`check()` may be called from any thread; everything else belongs to the client's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

from distsync.background import Background
from distsync.clock import Clock, Timer
from distsync.errors import DistSyncError, LockLost, NotHolder, SessionNotFound

__all__ = ["Lease", "Lost", "Span", "margin_seconds"]

_log = logging.getLogger("distsync")

MARGIN_RATIO: Final = 0.01
MARGIN_SECONDS: Final = 0.05

Lost: TypeAlias = Callable[[LockLost], object]


class Span(NamedTuple):
    """When a successful request was about to be sent, and for how many seconds it granted."""

    sent_at: float
    seconds: float


def margin_seconds(seconds: float) -> float:
    """Return how much earlier than the cluster the holder of a lease considers it over."""
    return seconds * MARGIN_RATIO + MARGIN_SECONDS


class Lease:
    """One lease that is held."""

    def __init__(
        self,
        clock: Clock,
        background: Background,
        *,
        span: Span,
        renew: Callable[[float], Awaitable[Span]],
        error: Callable[[str], LockLost],
        name: str,
    ) -> None:
        """Begin with what `span` granted.

        `renew` asks for more until the given time; a `NotHolder`, `SessionNotFound` or `LockLost`
        of it ends the lease. `error` builds the error of a loss from its reason.
        """
        self._clock = clock
        self._background = background
        self._renew = renew
        self._error = error
        self._name = name
        self._reason: str | None = None
        self._running = True
        self._listeners: dict[int, Lost] = {}
        self._next_listener = 0
        self._renewal: asyncio.Task[None] | None = None
        self._deadline = self._renew_at = self._ends_at = 0.0
        self._set(span)
        self._deadline_timer = clock.call_at(self._deadline, self._on_deadline)
        self._renewal_timer: Timer = clock.call_at(self._renew_at, self._on_renewal_due)

    @property
    def deadline(self) -> float:
        """When the holder must have stopped, by the client's clock."""
        return self._deadline

    @property
    def ends_at(self) -> float:
        """The same without the margin: from then on the cluster may give it to others."""
        return self._ends_at

    @property
    def is_live(self) -> bool:
        """Whether it is held, by the clock of this moment."""
        return self._running and self._clock.now() < self._deadline

    def remaining(self) -> float:
        """Return the seconds until the deadline; 0 when it is over."""
        return max(0.0, self._deadline - self._clock.now()) if self._running else 0.0

    def loss(self) -> LockLost | None:
        """Return the error of the loss, or None while the lease is held or was given back."""
        if self._reason is not None:
            return self._error(self._reason)
        if self._running and self._clock.now() >= self._deadline:
            return self._error(_TOO_LATE)
        return None

    def check(self) -> None:
        """Raise the loss, if there is one; from any thread."""
        if (error := self.loss()) is not None:
            raise error

    def subscribe(self, listener: Lost) -> int:
        """Call `listener` once if the lease is lost; returns what `unsubscribe` takes."""
        self._next_listener += 1
        self._listeners[self._next_listener] = listener
        return self._next_listener

    def unsubscribe(self, number: int) -> None:
        """Do not call that listener any more."""
        self._listeners.pop(number, None)

    def stop(self) -> None:
        """It is being given back: neither renew it nor call it lost."""
        self._running = False
        self._end()

    def lose(self, reason: str) -> None:
        """It is over although it was wanted."""
        if not self._running:
            return
        self._running = False
        self._reason = reason
        self._end()
        listeners = list(self._listeners.values())
        self._listeners.clear()
        error = self._error(reason)
        for listener in listeners:
            listener(error)

    def _set(self, span: Span) -> None:
        sent_at, seconds = span
        self._ends_at = sent_at + seconds
        self._deadline = self._ends_at - margin_seconds(seconds)
        self._renew_at = sent_at + seconds / 3

    def _end(self) -> None:
        self._deadline_timer.cancel()
        self._renewal_timer.cancel()
        if self._renewal is not None and self._renewal is not asyncio.current_task():
            self._renewal.cancel()

    def _on_deadline(self) -> None:
        if not self._running:
            return
        if self._clock.now() >= self._deadline:
            self.lose(_TOO_LATE)
        else:  # it was renewed since the timer was set
            self._deadline_timer = self._clock.call_at(self._deadline, self._on_deadline)

    def _schedule_renewal(self, when: float) -> None:
        self._renewal_timer.cancel()
        if self._running:
            self._renewal_timer = self._clock.call_at(when, self._on_renewal_due)

    def _on_renewal_due(self) -> None:
        if self._running and self._renewal is None:
            work = self._run_renewal()
            self._renewal = self._background.spawn(work, name=f"distsync-renew {self._name}")

    async def _run_renewal(self) -> None:
        try:
            self._set(await self._renew(self._deadline))
        except (NotHolder, SessionNotFound, LockLost) as error:
            self.lose(f"the cluster ended it ({error.detail})")
        except DistSyncError as error:
            _log.warning("%s could not be renewed yet: %s", self._name, error)
            again = self._clock.now() + max(0.05, (self._deadline - self._clock.now()) / 4)
            self._schedule_renewal(again)
        else:
            self._schedule_renewal(self._renew_at)
        finally:
            self._renewal = None


_TOO_LATE: Final = "it could not be renewed before its deadline"
