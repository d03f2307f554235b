"""A clock that runs as the machine's does and can be moved forward, as by a suspension."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from distsync import Client


class _Timer:
    def __init__(self, clock: JumpClock, when: float, callback: Callable[[], object]) -> None:
        self.clock = clock
        self.when = when
        self.callback = callback
        self.handle: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        self.clock.timers.discard(self)
        if self.handle is not None:
            self.handle.cancel()


class JumpClock:
    """Implements `distsync.clock.Clock`."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.timers: set[_Timer] = set()

    def now(self) -> float:
        return time.monotonic() + self.offset

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(self, when, callback)
        self.timers.add(timer)
        self._arm(timer)
        return timer

    def jump(self, seconds: float) -> None:
        """Let time pass at once; what is due is called in the next turns of the loop."""
        self.offset += seconds
        for timer in sorted(self.timers, key=lambda timer: timer.when):
            if timer.handle is not None:
                timer.handle.cancel()
            self._arm(timer)

    def _arm(self, timer: _Timer) -> None:
        loop = asyncio.get_running_loop()
        timer.handle = loop.call_later(max(0.0, timer.when - self.now()), self._fire, timer)

    def _fire(self, timer: _Timer) -> None:
        if self.now() < timer.when:
            self._arm(timer)
            return
        self.timers.discard(timer)
        timer.callback()


def jump(client: Client, clock: JumpClock, seconds: float) -> None:
    """Let time pass at once for a client whose event loop runs in a thread of its own."""

    async def jump() -> None:
        clock.jump(seconds)

    client._engine().portal.call(jump)
