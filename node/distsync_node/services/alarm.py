"""When a core that has deadlines and no clock is to be stepped again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` when the next deadline has come. `look` for it whenever it may be another.

    A deadline that has become a later one is found when the alarm rings for the earlier one.
    """

    def __init__(
        self,
        clock_ms: Callable[[], int],
        next_ms: Callable[[], int | None],
        ring: Callable[[], object],
        *,
        least_ms: int = 0,
    ) -> None:
        """`next_ms` tells the next deadline, None if there is none; `least_ms` is how long even one
        that has passed takes to ring."""
        self._clock_ms = clock_ms
        self._next_ms = next_ms
        self._ring = ring
        self._least_ms = least_ms
        self._ringing: asyncio.TimerHandle | None = None
        self._rings_at_ms = 0
        self._looking: asyncio.TimerHandle | None = None
        self._is_over = False

    def look_within(self, seconds: float) -> None:
        """Look a moment later, once for all that happens until then."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(seconds, self.look)

    def look(self) -> None:
        """Ring at the next deadline, if that is sooner than what it is set to."""
        self._looking = None
        at_ms = self._next_ms()
        if at_ms is None or self._is_over:
            return
        if self._ringing is not None:
            if self._rings_at_ms <= at_ms:
                return
            self._ringing.cancel()
        delay_seconds = max(self._least_ms, at_ms - self._clock_ms()) / 1_000
        self._rings_at_ms = at_ms
        self._ringing = asyncio.get_running_loop().call_later(delay_seconds, self._go_off)

    def end(self) -> None:
        """Never ring again."""
        self._is_over = True
        for timer in (self._ringing, self._looking):
            if timer is not None:
                timer.cancel()

    def _go_off(self) -> None:
        self._ringing = None
        self._ring()
