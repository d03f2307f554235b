"""Leader time: the clock by which every lease of the cluster is judged.

Leader time is the last committed stamp plus the local time that has passed since the entry that
carries it *arrived* here. Every entry carries a stamp of it; deadlines are compared with stamps
only.

Guarantees:

- **It never goes back** in the log: what a leader hands out is never below what it handed out or
  applied before, and it applies everything of earlier leaders before it hands out anything.
- **Nothing ends early after a leader change**: an entry arrives after it was stamped, so a new
  leader's reading is at most what the leader before it would read now (but for the drift of clocks
  since that stamp). This is why only the last committed stamp counts. A leader whose disk or
  process was away for a while reads less than other members do, and may have promised leases by
  that reading; a successor that trusted its own older and higher reading would end them early. So
  would one that trusted a stamp it handed out itself and never saw committed.
- **Nothing lives for ever**: the time between two leaders counts, because an entry counts from its
  arrival, not from when a successor got around to applying it; and a new leader's no-op, which
  repeats the stamp before it, moves nothing. So leases end however often leaders change.

Each new stamp sets the anchor anew, so that the drift of a follower's clock does not add up. For a
leader this changes nothing: its own entries arrive when it stamps them.
"""

from __future__ import annotations

from collections import deque


class LeaderClock:
    """Reads leader time in milliseconds from local milliseconds."""

    __slots__ = ("_anchor_at_ms", "_anchor_stamp_ms", "_arrivals", "_floor_ms")

    def __init__(self, stamp_ms: int, now_ms: int) -> None:
        self._anchor_stamp_ms = stamp_ms
        self._anchor_at_ms = now_ms
        self._floor_ms = stamp_ms
        # (first index, when): entries from that index on came then, up to the next run's first.
        # What the disk held at the start certainly came before the start.
        self._arrivals: deque[tuple[int, int]] = deque(((0, now_ms),))

    @property
    def floor_ms(self) -> int:
        """The highest stamp applied or, as a leader, handed out."""
        return self._floor_ms

    def read(self, now_ms: int) -> int:
        """Return leader time at local time `now_ms`."""
        return max(self._floor_ms, self._anchor_stamp_ms + now_ms - self._anchor_at_ms)

    def stamp(self, now_ms: int) -> int:
        """Return leader time for a new entry; later readings of this leader are not below it."""
        self._floor_ms = self.read(now_ms)
        return self._floor_ms

    def arrived(self, first_index: int, now_ms: int) -> None:
        """Learn that the log got new entries, from that index on."""
        arrivals = self._arrivals
        while len(arrivals) > 1 and arrivals[-1][0] >= first_index:
            arrivals.pop()  # replaced
        arrivals.append((first_index, now_ms))

    def applied(self, index: int, stamp_ms: int) -> None:
        """Learn the stamp of an entry that was committed and applied (no-ops are left out)."""
        arrivals = self._arrivals
        while len(arrivals) > 1 and arrivals[1][0] <= index:
            arrivals.popleft()
        self._anchor(stamp_ms, arrivals[0][1])

    def restored(self, stamp_ms: int, now_ms: int) -> None:
        """Learn the stamp of a snapshot that replaced log and state."""
        self._arrivals = deque(((0, now_ms),))
        self._anchor(stamp_ms, now_ms)

    def resigned(self) -> None:
        """Stamps handed out by this member and not committed mean nothing any more."""
        self._floor_ms = self._anchor_stamp_ms

    def local_ms(self, leader_ms: int) -> int:
        """Return the local time at which `read` reaches `leader_ms`."""
        return self._anchor_at_ms + leader_ms - self._anchor_stamp_ms

    def _anchor(self, stamp_ms: int, at_ms: int) -> None:
        if stamp_ms >= self._anchor_stamp_ms:
            self._anchor_stamp_ms = stamp_ms
            self._anchor_at_ms = at_ms
            self._floor_ms = max(self._floor_ms, stamp_ms)
