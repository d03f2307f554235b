"""The clock by which a client judges its leases.

A lease must end for its holder before it ends for the cluster, also when the machine slept in
between. So deadlines are read from `CLOCK_BOOTTIME`, which goes on while the machine is suspended;
`time.monotonic` stands still then on Linux and would make a dead lease look alive. The event loop's
timers run on the monotonic clock, so `SystemClock` looks twice a second whether the two have
drifted apart, and if so sets its timers anew: after a resume, what is due fires within half a
second, and what asks for the time (`lock.check()`) sees it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "SystemClock", "Timer", "sleep_until"]

_LOOK_EVERY_SECONDS = 0.5
_DRIFT_SECONDS = 0.05

if hasattr(time, "CLOCK_BOOTTIME"):

    def _boottime() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # a client elsewhere than on Linux: the best there is, but it may sleep with the machine
    _boottime = time.monotonic


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""
        ...


class Clock(Protocol):
    """Where a client reads the time and waits for it. Seconds; the zero point means nothing."""

    def now(self) -> float:
        """Return the time; it never goes back and counts suspension."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back from the running event loop, not before `when`."""
        ...


class _SystemTimer:
    __slots__ = ("_clock", "callback", "handle", "when")

    def __init__(self, clock: SystemClock, when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self.when = when
        self.callback = callback
        self.handle: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
            self._clock.forget(self)


class SystemClock:
    """`CLOCK_BOOTTIME`, with timers on the running event loop."""

    def __init__(self) -> None:
        self._timers: set[_SystemTimer] = set()
        self._look: asyncio.TimerHandle | None = None
        self._offset = 0.0

    def now(self) -> float:
        """Return the seconds since the machine started, suspension included."""
        return _boottime()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back from the running event loop, not before `when`."""
        loop = asyncio.get_running_loop()
        timer = _SystemTimer(self, when, callback)
        self._timers.add(timer)
        self._arm(loop, timer)
        if self._look is None:
            self._offset = _boottime() - time.monotonic()
            self._look = loop.call_later(_LOOK_EVERY_SECONDS, self._look_for_suspension, loop)
        return timer

    def forget(self, timer: _SystemTimer) -> None:
        """Drop a timer that was cancelled or has fired."""
        self._timers.discard(timer)

    def _arm(self, loop: asyncio.AbstractEventLoop, timer: _SystemTimer) -> None:
        delay = max(0.0, timer.when - _boottime())
        timer.handle = loop.call_later(delay, self._fire, loop, timer)

    def _fire(self, loop: asyncio.AbstractEventLoop, timer: _SystemTimer) -> None:
        if _boottime() < timer.when:  # the loop rounds by a clock tick
            self._arm(loop, timer)
            return
        timer.handle = None
        self.forget(timer)
        timer.callback()

    def _look_for_suspension(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._timers:
            self._look = None
            return
        offset = _boottime() - time.monotonic()
        if abs(offset - self._offset) > _DRIFT_SECONDS:
            self._offset = offset
            for timer in self._timers:
                if timer.handle is not None:
                    timer.handle.cancel()
                self._arm(loop, timer)
        self._look = loop.call_later(_LOOK_EVERY_SECONDS, self._look_for_suspension, loop)


async def sleep_until(clock: Clock, when: float) -> None:
    """Sleep until the clock shows `when`."""
    if clock.now() >= when:
        await asyncio.sleep(0)
        return
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = clock.call_at(when, wake)
    try:
        await woken
    finally:
        timer.cancel()
