"""Named deadlines: a heap with lazy removal."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Timers(Generic[Name]):
    """Each name has at most one deadline."""

    __slots__ = ("_due", "_heap", "_sequence")

    def __init__(self) -> None:
        self._due: dict[Name, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, Name]] = []
        self._sequence = 0

    def set(self, name: Name, at_ms: int) -> None:
        """Set or move a deadline."""
        self._sequence += 1
        self._due[name] = (at_ms, self._sequence)
        heapq.heappush(self._heap, (at_ms, self._sequence, name))
        if len(self._heap) > 64 + 2 * len(self._due):
            self._heap = [(at, seq, name) for name, (at, seq) in self._due.items()]
            heapq.heapify(self._heap)

    def soonest(self, name: Name, at_ms: int) -> None:
        """Set a deadline unless there is an earlier one."""
        known = self._due.get(name)
        if known is None or known[0] > at_ms:
            self.set(name, at_ms)

    def cancel(self, name: Name) -> None:
        """Forget a deadline, if there is one."""
        self._due.pop(name, None)

    def due(self, now_ms: int) -> Iterator[Name]:
        """Yield, in order, what is due; each is cancelled as it is yielded."""
        while self._heap and self._heap[0][0] <= now_ms:
            _, sequence, name = heapq.heappop(self._heap)
            known = self._due.get(name)
            if known is not None and known[1] == sequence:
                del self._due[name]
                yield name

    def next_ms(self) -> int | None:
        """Return when something is due next."""
        while self._heap:
            at_ms, sequence, name = self._heap[0]
            known = self._due.get(name)
            if known is not None and known[1] == sequence:
                return at_ms
            heapq.heappop(self._heap)
        return None
