"""Contact rounds, and the reads that wait for them (ReadIndex, thesis §6.4).

A leader numbers its rounds of contact. The echo of round r proves that the follower still accepted
this leader when r was sent or later. Once a quorum has echoed a round that began after a read
arrived, no later leader can have committed anything before the read arrived, so the commit index
of that moment is fresh. Reads that arrive while a round is under way share the next one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from distsync_node.raft.types import LogIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS_REMEMBERED = 1_024


class RoundClock:
    """The rounds begun so far and when the latest of them were first sent."""

    __slots__ = ("_sent_ms", "current")

    def __init__(self) -> None:
        self.current = 0
        self._sent_ms: deque[int] = deque(maxlen=ROUNDS_REMEMBERED)

    def begin(self, now_ms: int) -> int:
        """Begin a round and return its number."""
        self.current += 1
        self._sent_ms.append(now_ms)
        return self.current

    def sent_ms(self, round_number: int) -> int | None:
        """Return when a round began; None when it is too long ago."""
        age = self.current - round_number
        if 0 <= age < len(self._sent_ms):
            return self._sent_ms[-1 - age]
        return None


class ReadQueue:
    """Reads not yet in a round, and rounds with reads in them."""

    __slots__ = ("_under_way", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._under_way: deque[tuple[int, LogIndex, list[int]]] = deque()

    @property
    def wants_round(self) -> bool:
        """Whether reads wait and no round is under way that would be worth waiting for."""
        return bool(self._waiting) and not self._under_way

    @property
    def under_way(self) -> bool:
        """Whether reads wait for a round to be confirmed."""
        return bool(self._under_way)

    def add(self, ref: int) -> None:
        """A read arrived."""
        self._waiting.append(ref)

    def join_round(self, round_number: int, commit_index: LogIndex) -> None:
        """The waiting reads take part in the round that begins now."""
        if self._waiting:
            self._under_way.append((round_number, commit_index, self._waiting))
            self._waiting = []

    def confirmed(self, round_number: int) -> Iterator[tuple[int, LogIndex]]:
        """Yield (ref, index) of the reads that a confirmed round answers, and forget them."""
        while self._under_way and self._under_way[0][0] <= round_number:
            _, index, refs = self._under_way.popleft()
            for ref in refs:
                yield ref, index

    def drain(self) -> Iterator[int]:
        """Yield every read there is, and forget them."""
        for _, _, refs in self._under_way:
            yield from refs
        self._under_way.clear()
        yield from self._waiting
        self._waiting = []
