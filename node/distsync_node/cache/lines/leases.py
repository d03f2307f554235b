"""Leases of homes at their holder, and the lines that are dropped with them or with the ring.

It guarantees:

- When a lease ends every line under it is dropped before anything else is done, and nothing revives
  it (`copy_leases.py`).
- When a key has another home its line is dropped. A write that is under way stays, for as long as
  who was asked can still say what became of it.
- A dirty value outlives its line: it is kept for the next home. The exception is a line under local
  durability that a home may have gone on without: it is lost, and that is said.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import HeldLease
from distsync_node.cache.effects import LineDropped
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.lines.asks import Asks, TimerName
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import Line
from distsync_node.cache.lines.writes import Writes
from distsync_node.cache.messages import Renew, Renewed
from distsync_node.cache.misses import Miss
from distsync_node.cache.tables import COMMITTING, DIRTY, Input
from distsync_node.cache.timers import Timers
from distsync_node.cache.types import Code, PeerId, Refused


class Leases:
    """Keeps one lease a home; each is renewed by the timer `renew` of its home."""

    def __init__(
        self,
        context: Context,
        kept: KeptCopies,
        held: HeldLines,
        asks: Asks,
        writes: Writes,
        timers: Timers[TimerName],
    ) -> None:
        self._context = context
        self._options = context.options
        self._kept = kept
        self._held = held
        self._asks = asks
        self._writes = writes
        self._timers = timers

    # --- Renewals -----------------------------------------------------------------------------

    def renew(self, home: PeerId) -> None:
        """Ask for the next lease, or for the first."""
        lease = self._held.leases.get(home)
        if lease is None or self._context.retired:
            return
        now_ms = self._context.now_ms
        asked = lease.number == 0 and lease.renewal != 0
        if not asked or now_ms - lease.renewal_sent_ms >= self._options.copy_lease_ms:
            lease.renewal = self._asks.next_number()
            lease.renewal_sent_ms = now_ms
        self._context.send(home, Renew(lease.number, lease.renewal, self._asks.floor()))
        again_ms = self._options.renew_ms if lease.number else self._options.resend_ms
        self._timers.set(("renew", home), now_ms + again_ms)

    def renewed(self, source: PeerId, message: Renewed) -> bool:
        """The home has answered. Return whether there is a lease that was not there before."""
        lease = self._held.leases.get(source)
        if lease is None or message.number != lease.renewal:
            return False
        now_ms = self._context.now_ms
        if lease.number == 0:
            if lease.begin(message.lease, lease.renewal_sent_ms, message.lease_ms, now_ms):
                lease.renewal = 0
                self._timers.set(("renew", source), now_ms + self._options.renew_ms)
                return True
        elif message.lease == lease.number:
            lease.extend(message.lease, lease.renewal_sent_ms, message.lease_ms)
        else:
            self._lapse(lease)
        return False

    # --- Ends ---------------------------------------------------------------------------------

    def expire(self) -> None:
        """Drop the lines of each lease that has ended. Before anything else of an event."""
        held, now_ms = self._held, self._context.now_ms
        for lease in held.leases.values():
            if lease.has_lapsed(now_ms):
                self._lapse(lease)
        if held.left:
            for lease in [one for one in held.left.values() if one.has_lapsed(now_ms)]:
                del held.left[lease.home]
                self._drop_all_of(lease)

    def next_end_ms(self) -> int | None:
        """Return when the next one ends."""
        leases = (*self._held.leases.values(), *self._held.left.values())
        return min((lease.ends_ms for lease in leases if lease.number), default=None)

    def _lapse(self, lease: HeldLease) -> None:
        self._drop_all_of(lease)
        for key in [key for key, kept in self._kept.items() if kept.owner_of == lease.home]:
            self._lose(key)
        self._timers.soonest(("renew", lease.home), self._context.now_ms)

    def _drop_all_of(self, lease: HeldLease) -> None:
        lease.lapse()
        for line in [line for _, line in self._held.lru.items()]:
            asked = None if line.ask is None else line.ask.home
            if lease.home in (line.home, asked):
                self._drop(line, keep_local=False)

    def _lose(self, key: str) -> None:
        version = self._kept.version(key)
        if version is not None:
            self._kept.drop(key)
            self._context.effects.append(LineDropped(key, version))

    def _drop(self, line: Line, *, keep_local: bool) -> None:
        """Serve the line no longer; what nobody else may have is kept for safety."""
        held = self._held
        if line.state in DIRTY and line.record is not None:
            if line.is_own and not keep_local:
                self._context.effects.append(LineDropped(line.key, line.record.version))
            else:
                held.keep(line)
        if line.record is not None:
            held.gone.note(line.key, Miss.NO_LEASE)
        if line.state in COMMITTING and line.ask is not None and held.is_heard(line.ask):
            line.ask.moved = True
            held.become(line, Input.MOVED, None)
        else:
            self._asks.end(line)
            held.become(line, Input.DROP, None)
            if line.doubt is None:
                self._writes.answer(line, Refused(Code.UNKNOWN))
        line.join_readers()
        if line.ask is not None:
            return
        if line.has_calls:
            held.park(line)
        else:
            held.settle(line)

    # --- The ring -----------------------------------------------------------------------------

    def adopt(self, *, continuous: bool) -> None:
        """A new ring: drop what has moved. `continuous`: nobody can have been home in between."""
        self._adopt_peers(continuous=continuous)
        for line in [line for _, line in self._held.lru.items()]:
            home = self._context.home_of(line.key)
            is_heard = line.ask is None or self._held.is_heard(line.ask)
            if home != line.home or not continuous or not is_heard:
                self._drop(line, keep_local=continuous)
                line.home = home
        if not continuous:
            # A home that was not told of them may have gone on without them.
            for key in [key for key, kept in self._kept.items() if kept.unmarked]:
                self._lose(key)

    def _adopt_peers(self, *, continuous: bool) -> None:
        held, peers, now_ms = self._held, self._context.peers, self._context.now_ms
        for gone in [home for home in held.leases if home not in peers]:
            lease = held.leases.pop(gone)
            self._timers.cancel(("renew", gone))
            if lease.is_valid(now_ms):
                held.left[gone] = lease
        for peer in sorted(peers - held.leases.keys()):
            held.leases[peer] = HeldLease(home=peer)
            held.left.pop(peer, None)  # it is back, and has forgotten
            self._timers.set(("renew", peer), now_ms)
        if not continuous and self._context.me in peers:
            # This home has forgotten the leases that it granted. Others hear so when they renew.
            self._timers.set(("renew", self._context.me), now_ms)
