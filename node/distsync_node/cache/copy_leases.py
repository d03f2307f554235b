"""Copy leases: one numbered lease per home and holder, for all the lines the holder has of it.

What it is for: a home that cannot reach a holder waits for the end of that holder's lease, and then
goes on as if the holder had answered. So a dead or cut-off holder delays a write by one lease.

Why no copy is served after the home has gone on:

- The holder counts from sending the request that was answered; the home from sending the answer,
  plus drift. So the lease ends at the holder first.
- While an invalidation or a snoop is unacknowledged the home answers without renewing, whatever the
  holder asks: a cut in one direction ends the lease too.
- A holder whose lease has ended drops every line it had under it, before anything else, even if an
  answer that would have renewed it comes a moment later: a lapsed lease is never revived. It then
  asks for a new one with number 0, and starts empty.
- A request for a new lease is sent again under the number it had first, until it is answered or
  given up, and the home ignores those older than the one that made the current lease: so a new
  lease is never made, and the old one's lines forgotten, on the word of a request from before it.
- Every message carries the number. Asks under another number than the current one are not looked
  at; grants under another one are refused.

An Ask is served at most once, however often it comes: within a lease the home knows all numbers
from `floor` on that it has seen, and the holder's `floor` says below which it has none outstanding.
Source: Gray and Cheriton, "Leases" (1989); Lee et al., "Implementing Linearizability at Large
Scale and Low Latency" (RIFL, 2015) for the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distsync_node.cache.messages import Result
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import PeerId


@dataclass(slots=True, kw_only=True)
class HeldLease:
    """A lease at its holder; number 0 = none."""

    home: PeerId
    number: int = 0
    ends_ms: int = 0
    renewal: int = 0  # the number of the Renew that is out; 0 = none
    renewal_sent_ms: int = 0  # when it was sent first

    def is_valid(self, now_ms: int) -> bool:
        """Whether lines under it may be served."""
        return self.number != 0 and now_ms < self.ends_ms

    def has_lapsed(self, now_ms: int) -> bool:
        """Whether it has ended and its lines have not been dropped yet."""
        return self.number != 0 and now_ms >= self.ends_ms

    def lapse(self) -> None:
        """It has ended; nothing can revive it."""
        self.number = 0
        self.ends_ms = 0
        self.renewal = 0

    def extend(self, number: int, sent_ms: int, lease_ms: int) -> None:
        """An answer under the current lease: it lasts from the sending of what was answered."""
        if number == self.number and lease_ms:
            self.ends_ms = max(self.ends_ms, sent_ms + lease_ms)

    def begin(self, number: int, sent_ms: int, lease_ms: int, now_ms: int) -> bool:
        """Take a new lease; returns whether there is one. Lines of the old one are gone by now."""
        if sent_ms + lease_ms <= now_ms:
            return False
        self.number = number
        self.ends_ms = sent_ms + lease_ms
        return True


@dataclass(slots=True, kw_only=True)
class GrantedLease:
    """A lease at the home that granted it, and the session that lives as long."""

    holder: PeerId
    number: int
    made_by: int  # the number of the Renew that asked for it
    ends_ms: int
    keys: set[str] = field(default_factory=set)  # entries that name the holder
    unacknowledged: set[tuple[int, str]] = field(default_factory=set)  # transaction, key
    floor: int = 0
    answers: dict[int, tuple[str, Result] | None] = field(default_factory=dict)

    def renew(self, options: CacheOptions, now_ms: int) -> int:
        """Return for how long an answer sent now renews the lease; 0 = not at all."""
        if self.unacknowledged:
            return 0
        self.ends_ms = max(self.ends_ms, now_ms + options.granted_ms)
        return options.copy_lease_ms

    def has_ended(self, now_ms: int) -> bool:
        """Whether the holder certainly serves nothing under it."""
        return now_ms >= self.ends_ms

    def finished_below(self, floor: int) -> None:
        """The holder has no asks below `floor` any more."""
        if floor > self.floor:
            self.floor = floor
            for number in [number for number in self.answers if number < floor]:
                del self.answers[number]


class GrantedLeases:
    """All leases that this home has granted."""

    __slots__ = ("_last_number", "_options", "by_holder", "made_by")

    def __init__(self, options: CacheOptions) -> None:
        self._options = options
        self._last_number = 0
        self.by_holder: dict[PeerId, GrantedLease] = {}
        self.made_by: dict[PeerId, int] = {}  # of the last lease of each holder, ended or not

    @property
    def lines_end_ms(self) -> int:
        """When the last of those leases ends under which a line may be held; 0: there is none."""
        return max((one.ends_ms for one in self.by_holder.values() if one.keys), default=0)

    def find(self, holder: PeerId, number: int) -> GrantedLease | None:
        """Return the holder's lease if it is the one of that number."""
        lease = self.by_holder.get(holder)
        return lease if lease is not None and lease.number == number else None

    def grant(self, holder: PeerId, made_by: int, now_ms: int) -> GrantedLease:
        """Give a new lease. What there was of an old one must have been settled."""
        self._last_number += 1
        lease = GrantedLease(
            holder=holder,
            number=self._last_number,
            made_by=made_by,
            ends_ms=now_ms + self._options.granted_ms,
        )
        self.made_by[holder] = made_by
        self.by_holder[holder] = lease
        return lease

    def renew(self, lease: GrantedLease, now_ms: int) -> int:
        """Return for how long an answer sent now renews it."""
        return lease.renew(self._options, now_ms)
