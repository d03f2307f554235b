"""Leader time: the clock by which every lease of the cluster is judged.

Leader time is the last committed stamp plus the local time that has passed since it was applied.
Every entry carries a stamp of it; deadlines are compared with stamps only.

Guarantees:

- **It never goes back**: `read` is never below a stamp that was applied or handed out.
- **Nothing ends early after a leader change**: a member applies a stamp after it was made, so its
  reading is at most the true one (but for the drift of its clock since the last stamp).
- **Nothing lives for ever**: the time between two leaders counts, because followers keep counting
  from the stamp they applied last; an entry that repeats an old stamp (a new leader's no-op) does
  not move that anchor, however often leaders change.

A follower re-anchors at each new stamp, so that its clock's drift does not add up. A leader does
not: while it leads, its own clock is the cluster's.
"""

from __future__ import annotations


class LeaderClock:
    """Reads leader time in milliseconds from local milliseconds."""

    __slots__ = ("_anchor_at_ms", "_anchor_stamp_ms", "_floor_ms")

    def __init__(self, stamp_ms: int, now_ms: int) -> None:
        self._anchor_stamp_ms = stamp_ms
        self._anchor_at_ms = now_ms
        self._floor_ms = stamp_ms

    @property
    def floor_ms(self) -> int:
        """The highest stamp applied or handed out."""
        return self._floor_ms

    def read(self, now_ms: int) -> int:
        """Return leader time at local time `now_ms`."""
        return max(self._floor_ms, self._anchor_stamp_ms + now_ms - self._anchor_at_ms)

    def stamp(self, now_ms: int) -> int:
        """Return leader time for a new entry; later readings are not below it."""
        self._floor_ms = self.read(now_ms)
        return self._floor_ms

    def applied(self, stamp_ms: int, now_ms: int, *, leading: bool) -> None:
        """Learn the stamp of an entry or a snapshot that was applied at local time `now_ms`."""
        if stamp_ms <= self._floor_ms:
            return
        # A leader applies entries of earlier leaders late: the time passed since must count.
        self._anchor_stamp_ms = max(stamp_ms, self.read(now_ms)) if leading else stamp_ms
        self._anchor_at_ms = now_ms
        self._floor_ms = stamp_ms

    def local_ms(self, leader_ms: int) -> int:
        """Return the local time at which `read` reaches `leader_ms`."""
        return self._anchor_at_ms + leader_ms - self._anchor_stamp_ms
