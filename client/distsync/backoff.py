"""How long a message that failed waits before it is delivered again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from distsync.durations import Duration

__all__ = ["AnyBackoff", "Backoff"]

AnyBackoff: TypeAlias = Callable[[int], Duration]
"""Given how often a message was delivered, returns the delay before the next delivery."""

_LARGEST_EXPONENT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """A delay that grows with each delivery: `first`, then `factor` times as much, up to `longest`.

    Seconds. `jitter` is the part of the delay that is random, so that messages that failed together
    do not come back together.
    """

    first: float = 1.0
    factor: float = 2.0
    longest: float = 300.0
    jitter: float = 0.5

    def __call__(self, deliveries: int) -> float:
        """Return the delay in seconds after so many deliveries."""
        exponent = min(max(deliveries, 1) - 1, _LARGEST_EXPONENT)
        delay = min(self.first * self.factor**exponent, self.longest)
        return delay * (1 - self.jitter * random.random())
