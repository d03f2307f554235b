"""Who may be the home of which key: what a node does when the ring changes, on both sides.

Leaving: on adopting an epoch a node reports to every process of the new ring what it keeps of that
process' keys (`kept.py`), in parts, until each part is acknowledged; also if it keeps nothing.

Taking over: a home serves a key that was not its own under the epoch before only when

- every process of the new ring has reported under the new epoch, which says that it does nothing
  under an older one any more, and
- those who are not in the new ring have certainly no lease: the ring says so, or a node lease's
  time has passed since the ring was adopted here, and
- when this node does not know all rings in between, the copy leases have ended that it granted and
  under which a line was held: whose home it stayed keeps those lines.

`basis` is what needs no waiting: the rings adopted one after the other, without a gap, since the
last takeover that was completed. A key that this node owns in all of them has had no other home.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from distsync_node.cache.context import Context
from distsync_node.cache.kept import Kept, KeptCopies
from distsync_node.cache.messages import Report, ReportTaken
from distsync_node.cache.timers import Timers
from distsync_node.cache.types import Copy, PeerId, peer_id
from distsync_node.cluster.ring_state import RingState

RECHECK: Final = PeerId("")  # the timer that looks for copies kept for too long


class Ownership:
    """The homes of all keys in one ring."""

    __slots__ = ("_peers", "_ring")

    def __init__(self, state: RingState) -> None:
        self._ring = state.ring()
        self._peers = {server.name: peer_id(server) for server in state.servers}

    def home_of(self, key: str) -> PeerId | None:
        """Return the home of a key."""
        name = self._ring.owner(key)
        return None if name is None else self._peers[name]


class Handover:
    """Reports out and in, and the authority that comes of them."""

    def __init__(self, context: Context, kept: KeptCopies) -> None:
        self._context = context
        self._options = context.options
        self._kept = kept
        self._basis: list[Ownership] = []
        self._is_complete = False
        self._left_until_ms = 0
        self._lines_until_ms = 0
        self._parts: dict[PeerId, set[int]] = {}
        self._reported: set[PeerId] = set()
        self._unanswered: dict[PeerId, dict[int, Report]] = {}
        self.reporters: frozenset[PeerId] = frozenset()  # of the last takeover completed
        self.timers: Timers[PeerId] = Timers()

    # --- Authority ----------------------------------------------------------------------------

    def covers(self, key: str) -> bool:
        """Whether nobody else can be serving this key, whose home this node is in its ring."""
        if self._is_complete:
            return True
        me = self._context.me
        return bool(self._basis) and all(ring.home_of(key) == me for ring in self._basis)

    @property
    def is_complete(self) -> bool:
        """Whether this node serves all its part of the ring."""
        return self._is_complete

    def adopt(self, *, continuous: bool, lines_end_ms: int) -> None:
        """A new ring, the context's, was adopted.

        By `lines_end_ms` all lines have ended that others hold of this home under the ring before.
        """
        context = self._context
        ownership = Ownership(context.ring.state)
        self._basis = [*self._basis, ownership] if continuous and self._basis else []
        self._is_complete = False
        self._parts = {}
        self._reported = {context.me}
        self._left_until_ms = 0
        if not context.left_have_ended:
            self._left_until_ms = context.now_ms + self._options.node_lease_granted_ms
        if not continuous:  # and the next ring, should it follow without a gap, changes nothing
            self._lines_until_ms = max(self._lines_until_ms, lines_end_ms)
        self._report()

    def left_have_ended(self) -> None:
        """It is certain now that who left the ring of now has no lease."""
        self._left_until_ms = 0

    def completes(self) -> bool:
        """Complete the takeover if nothing is missing any more; whether this call did."""
        context = self._context
        if (
            self._is_complete
            or context.me not in context.peers
            or not self._reported >= context.peers
            or context.now_ms < max(self._left_until_ms, self._lines_until_ms)
        ):
            return False
        self._is_complete = True
        self._basis = [Ownership(context.ring.state)]
        self.reporters = frozenset(self._reported)
        return True

    # --- Reports ------------------------------------------------------------------------------

    def _report(self) -> None:
        context = self._context
        for peer in self._unanswered:
            self.timers.cancel(peer)
        self._unanswered = {}
        self.timers.soonest(RECHECK, context.now_ms + self._options.recheck_copies_ms)
        if context.me not in context.peers:
            return
        copies: dict[PeerId, list[tuple[str, Copy]]] = {
            peer: [] for peer in sorted(context.peers) if peer != context.me
        }
        for key, kept in self._kept.items():
            home = context.home_of(key)
            if home in copies:
                copies[home].append((key, kept.record.copy(context.now_ms)))
        for peer, mine in copies.items():
            parts = self._split(mine)
            self._unanswered[peer] = {
                number: Report(number, len(parts), part, self._unmarked(part))
                for number, part in enumerate(parts, 1)
            }
            self._send_reports(peer)

    def _split(self, copies: list[tuple[str, Copy]]) -> list[tuple[tuple[str, Copy], ...]]:
        parts: list[tuple[tuple[str, Copy], ...]] = []
        part: list[tuple[str, Copy]] = []
        size = 0
        for key, copy in copies:
            part.append((key, copy))
            size += len(key) + len(copy.value or b"")
            if size >= self._options.report_bytes:
                parts.append(tuple(part))
                part, size = [], 0
        return parts if parts and not part else [*parts, tuple(part)]

    def _unmarked(self, part: Sequence[tuple[str, Copy]]) -> tuple[str, ...]:
        known = ((key, self._kept.get(key)) for key, _ in part)
        return tuple(key for key, kept in known if kept is not None and kept.unmarked)

    def _send_reports(self, peer: PeerId) -> None:
        for report in self._unanswered.get(peer, {}).values():
            self._context.send(peer, report)
            self.timers.set(peer, self._context.now_ms + self._options.resend_ms)

    def report(self, source: PeerId, message: Report) -> None:
        """A report of the epoch of now came; its copies are the home's business."""
        if message.part:
            parts = self._parts.setdefault(source, set())
            parts.add(message.part)
            if len(parts) == message.parts:
                self._reported.add(source)
        self._context.send(source, ReportTaken(message.part))

    def taken(self, source: PeerId, message: ReportTaken) -> None:
        """A part of a report has arrived."""
        self._unanswered.get(source, {}).pop(message.part, None)

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Send again what was not answered, and copies that have been kept for too long."""
        for peer in self.timers.due(self._context.now_ms):
            if peer == RECHECK:
                self._recheck()
            else:
                self._send_reports(peer)

    def _recheck(self) -> None:
        """Report those that have been kept for longest, so many at a time."""
        context, options = self._context, self._options
        # A node that is about to leave wants to be rid of them.
        again_ms = options.resend_ms if context.draining else options.recheck_copies_ms
        due: list[tuple[str, Kept]] = []
        if context.me in context.peers:
            due = self._kept.not_since(context.now_ms - again_ms, options.write_backs_at_once)
        copies: dict[PeerId, list[tuple[str, Copy]]] = {}
        for key, kept in due:
            self._kept.refresh(key, context.now_ms)
            home = context.home_of(key)
            if home is not None:
                copies.setdefault(home, []).append((key, kept.record.copy(context.now_ms)))
        for home, mine in copies.items():
            for part in self._split(mine):
                context.send(home, Report(0, 0, part, self._unmarked(part)))
        if len(due) == options.write_backs_at_once:
            again_ms = options.report_again_ms
        self.timers.set(RECHECK, context.now_ms + again_ms)

    def begin_to_leave(self) -> None:
        """Offer all that is kept to its homes now, and again until it is gone."""
        self.timers.set(RECHECK, self._context.now_ms)

    def next_tick_ms(self) -> int | None:
        """Return when something is due next."""
        times = [self.timers.next_ms()]
        if not self._is_complete:
            waits_ms = max(self._left_until_ms, self._lines_until_ms)
            times.append(waits_ms if waits_ms > self._context.now_ms else None)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)
