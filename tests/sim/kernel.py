"""Virtual time, the event heap, clocks that drift, and the trace: all that makes a run repeatable.

One thread, one heap, one seed. Virtual time is true time, in microseconds; no member of the
simulated system can read it. Events at one instant run in the order in which they were planned.
Every source of chance is a generator derived from the seed by name, so that a new fault does not
change what the network does.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

US_PER_MS = 1_000
US_PER_S = 1_000_000
TRACE_LINES_KEPT = 4_000


class Violation(Exception):
    """A promise was broken; `check` names which."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check
        self.detail = detail


class Kernel:
    """The heap, the time, the chance and the trace of one run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_us = 0
        self.faults: Counter[str] = Counter()
        self.events = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE_LINES_KEPT)
        self._hash = hashlib.blake2b(digest_size=8)

    def rng(self, name: str) -> random.Random:
        """Return the generator of that name; string seeds do not depend on PYTHONHASHSEED."""
        return random.Random(f"{self.seed}/{name}")

    # --- Events -------------------------------------------------------------------------------

    def at(self, time_us: int, action: Callable[..., None], *args: Any) -> None:
        """Plan an action; what lies in the past happens now."""
        self._sequence += 1
        when_us = time_us if time_us > self.now_us else self.now_us
        heapq.heappush(self._heap, (when_us, self._sequence, action, args))

    def after(self, delay_us: int, action: Callable[..., None], *args: Any) -> None:
        """Plan an action `delay_us` from now."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_us + delay_us, self._sequence, action, args))

    def run_until(self, end_us: int, done: Callable[[], bool] | None = None) -> None:
        """Run events up to and including `end_us`, or until `done()` holds after an event."""
        heap = self._heap
        while heap and heap[0][0] <= end_us:
            time_us, _, action, args = heapq.heappop(heap)
            self.now_us = time_us
            self.events += 1
            action(*args)
            if done is not None and self.events % 16 == 0 and done():
                return
        self.now_us = end_us

    # --- Trace --------------------------------------------------------------------------------

    def trace(self, *what: Any) -> None:
        """Note what happened, as small plain values; they are hashed and kept for the end."""
        line = (self.now_us, *what)
        self._trace.append(line)
        self._hash.update(repr(line).encode())

    def trace_hash(self) -> str:
        """Return the hash of everything noted so far."""
        return self._hash.hexdigest()

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines of the trace, readable."""
        lines = list(self._trace)[-count:]
        return [f"{line[0] / US_PER_S:10.6f}  {' '.join(map(str, line[1:]))}" for line in lines]


class DriftingClock:
    """A clock that started at any value, runs a little fast or slow, and reads milliseconds."""

    __slots__ = ("_offset_us", "_rate")

    def __init__(self, offset_ms: int, drift_ppm: int) -> None:
        self._offset_us = offset_ms * US_PER_MS
        self._rate = 1_000_000 + drift_ppm

    def read_us(self, time_us: int) -> int:
        """Return what the clock shows at a virtual time."""
        return self._offset_us + time_us * self._rate // 1_000_000

    def read_ms(self, time_us: int) -> int:
        """Return what the clock shows at a virtual time, in milliseconds."""
        return (self._offset_us + time_us * self._rate // 1_000_000) // US_PER_MS

    def when_us(self, local_ms: int) -> int:
        """Return the first virtual time at which the clock shows `local_ms`."""
        local_us = local_ms * US_PER_MS - self._offset_us
        return -(-local_us * 1_000_000 // self._rate)

    def rebooted(self, offset_ms: int, time_us: int) -> DriftingClock:
        """Return this clock after a reboot: the same crystal, another value now."""
        clock = DriftingClock(0, self._rate - 1_000_000)
        clock._offset_us = offset_ms * US_PER_MS - clock.read_us(time_us)
        return clock
