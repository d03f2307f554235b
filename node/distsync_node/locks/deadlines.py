"""Deadlines in order, cheap to renew.

A heap entry is not moved when its lease is renewed. It comes up at the old deadline, is compared
with the deadline now in force and put back there; so renewals cost nothing here, and a lease has
one entry however often it is renewed. Only a deadline that moves *forward* in time (a renewal with
a shorter ttl) needs a new entry; the later one is then dropped when it comes up.

Entries of what has ended stay until they come up or until the heap has doubled since it was last
cleaned, so its size is at most twice that of the live entries at that time, plus a constant.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
GONE = -1
SLACK = 64


class DeadlineHeap(Generic[T]):
    """Items by deadline. `current` tells an item's deadline now, or GONE; `identity` names it.

    An item is pushed once `current` knows it: pushing may clean the heap.
    """

    __slots__ = ("_clean_at", "_current", "_heap", "_identity", "_pushes")

    def __init__(self, *, current: Callable[[T], int], identity: Callable[[T], Hashable]) -> None:
        self._current = current
        self._identity = identity
        self._heap: list[tuple[int, int, T]] = []
        self._pushes = 0  # makes entries unique, so that items are never compared
        self._clean_at = SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, deadline_ms: int, item: T) -> None:
        """Enter an item, or one of which the deadline has become earlier."""
        self._pushes += 1
        heapq.heappush(self._heap, (deadline_ms, self._pushes, item))
        if len(self._heap) > self._clean_at:
            self._clean()

    def next_ms(self) -> int | None:
        """Return the earliest deadline in force."""
        heap = self._heap
        while heap:
            deadline_ms, number, item = heap[0]
            actual_ms = self._current(item)
            if actual_ms == deadline_ms:
                return deadline_ms
            if actual_ms > deadline_ms:
                heapq.heapreplace(heap, (actual_ms, number, item))
            else:
                heapq.heappop(heap)
        return None

    def due(self, now_ms: int, limit: int) -> list[tuple[int, T]]:
        """Return up to `limit` items whose deadline is at or before now, earliest first.

        They stay in the heap: they leave it once they have ended.
        """
        found: dict[Hashable, tuple[int, int, T]] = {}
        while len(found) < limit:
            deadline_ms = self.next_ms()
            if deadline_ms is None or deadline_ms > now_ms:
                break
            entry = heapq.heappop(self._heap)
            found.setdefault(self._identity(entry[2]), entry)
        for entry in found.values():
            heapq.heappush(self._heap, entry)
        return [(deadline_ms, item) for deadline_ms, _, item in found.values()]

    def _clean(self) -> None:
        live: dict[Hashable, tuple[int, int, T]] = {}
        for _, number, item in self._heap:
            actual_ms = self._current(item)
            if actual_ms != GONE:
                live[self._identity(item)] = (actual_ms, number, item)
        self._heap = list(live.values())
        heapq.heapify(self._heap)
        self._clean_at = 2 * len(self._heap) + SLACK
