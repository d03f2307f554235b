"""The network between members, and between clients and members.

It loses, repeats, delays and reorders; it cuts links in one direction or both. An envelope is one
exchange: its answer travels back on the reverse link, may carry messages, and is lost or late like
anything else. Nodes have names for addresses; who listens there may have changed meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from sim.kernel import US_PER_MS, Kernel

USUAL_DELAY_US = (100, 1_500)
STRAGGLERS = 0.04  # of the delayed messages come when nobody expects them any more


class Network:
    """Directed links between named places; clients are places of their own."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._rng = kernel.rng("network")
        self._cut: Counter[tuple[str, str]] = Counter()
        self.loss = 0.0
        self.duplication = 0.0
        self.reordering = 0.0
        self.delay_us = USUAL_DELAY_US

    # --- Faults -------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass from source to target; cuts add up."""
        self._cut[source, target] += 1

    def mend(self, source: str, target: str) -> None:
        """Take one cut back."""
        self._cut[source, target] -= 1
        if self._cut[source, target] <= 0:
            del self._cut[source, target]

    def heal(self) -> None:
        """End every fault."""
        self._cut.clear()
        self.loss = self.duplication = self.reordering = 0.0
        self.delay_us = USUAL_DELAY_US

    # --- Delivery -----------------------------------------------------------------------------

    def send(self, source: str, target: str, action: Callable[..., None], *args: Any) -> None:
        """Have `action(*args)` happen at the target some time later, perhaps twice, or never."""
        kernel, rng = self._kernel, self._rng
        if self._cut and (source, target) in self._cut:
            kernel.faults["message_cut"] += 1
            return
        if self.loss and rng.random() < self.loss:
            kernel.faults["message_lost"] += 1
            return
        kernel.after(self._delay_us(), self._arrive, source, target, action, args)
        if self.duplication and rng.random() < self.duplication:
            kernel.faults["message_repeated"] += 1
            kernel.after(self._delay_us(), self._arrive, source, target, action, args)

    def _arrive(
        self, source: str, target: str, action: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        # What was on its way when the link was cut is lost too.
        if self._cut and (source, target) in self._cut:
            self._kernel.faults["message_cut"] += 1
            return
        action(*args)

    def _delay_us(self) -> int:
        rng = self._rng
        if self.reordering and rng.random() < self.reordering:
            self._kernel.faults["message_delayed"] += 1
            if rng.random() < STRAGGLERS:
                return rng.randint(500, 6_000) * US_PER_MS
            return int(rng.random() * rng.random() * 600 * US_PER_MS)
        low, high = self.delay_us
        return low + int(rng.random() * (high - low))
