"""The cache of a node: its lines, the keys whose home it is, and what it keeps for others. Pure.

One event in, effects out, in the order in which they are to be carried out. Time is a stamp; leases
are judged by it before anything else is done for the event.
"""

from __future__ import annotations

from typing import assert_never

from distsync_node.cache.context import Context
from distsync_node.cache.effects import Answer, Effect, EpochAcknowledged, Retired
from distsync_node.cache.events import (
    ClientGone,
    ClientRead,
    ClientWrite,
    Drain,
    Event,
    Forgotten,
    Loaded,
    NodeLease,
    PeerMessage,
    RedisFailed,
    RingAdopted,
    Stored,
    Tick,
)
from distsync_node.cache.handover import Handover
from distsync_node.cache.home.home import Home
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.lines.lines import Lines
from distsync_node.cache.messages import (
    Ask,
    Cleaned,
    Dropped,
    Invalidate,
    Message,
    Mirror,
    Mirrored,
    Renew,
    Renewed,
    Reply,
    Report,
    ReportTaken,
    RingNews,
    RingWanted,
    Snoop,
    Yielded,
)
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import Code, OpId, PeerId, Record, Refused, peer_id
from distsync_node.cluster.ring_state import RingState, Server


class CacheNode:
    """Everything the cache knows in one process."""

    def __init__(self, server: Server, options: CacheOptions) -> None:
        self.context = Context(peer_id(server), options)
        self.kept = KeptCopies()
        self.handover = Handover(self.context, self.kept)
        self.home = Home(self.context, self.kept, self.handover)
        self.lines = Lines(self.context, self.kept, lambda: self.home.directory.dirty_bytes)

    def hit(self, key: str, now_ms: int) -> Record | None:
        """Return what can be served at once: the clock is read for it, with no await between."""
        self.context.now_ms = now_ms
        return self.lines.held.hit(key)

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event."""
        context = self.context
        context.now_ms = now_ms
        self.lines.leases.expire()
        self.home.endings.expire_leases()
        self._take(event)
        self._deliver_to_self()
        if self.handover.completes():
            self.home.transactions.resume()
            self._deliver_to_self()
        if context.draining:
            self._drain()
            self._deliver_to_self()
        if self.lines.write_backs.make_room():
            self._deliver_to_self()
        effects, context.effects = context.effects, []
        return effects

    @property
    def is_settled(self) -> bool:
        """Whether no crash of one node, of those of the ring of now, can lose what is kept here.

        After a crash it is so again once the ring is without who died, all have reported what they
        keep, and Redis has what was left in one place. Another crash before that may lose lines.
        """
        return self.handover.is_complete and self.home.is_mirrored

    @property
    def is_at_work(self) -> bool:
        """Whether no call waits here for the ring: this home has taken over all its keys, and every
        process of the ring has a copy lease of it."""
        leases = self.home.directory.leases
        return self.handover.is_complete and self.context.peers <= leases.by_holder.keys()

    @property
    def unwritten_bytes(self) -> int:
        """How much is here that Redis has not."""
        return self.lines.held.dirty_bytes + self.home.directory.dirty_bytes + self.kept.bytes

    def dirty_since_ms(self, now_ms: int) -> int:
        """Return since when there has been a value that Redis has not; now if there is none."""
        entries = self.home.directory.entries.values()
        since_ms = min((one.dirty_since_ms for one in entries if one.dirty), default=now_ms)
        return min(self.lines.held.dirty_since_ms(now_ms), since_ms)

    def next_tick_ms(self) -> int | None:
        """Return when `Tick` has something to do; it may turn out to be nothing."""
        times = [part.next_tick_ms() for part in (self.lines, self.home, self.handover)]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _take(self, event: Event) -> None:
        match event:
            case ClientRead():
                if self._serves(event.op):
                    self.lines.read(event.op, event.key)
            case ClientWrite():
                if self._serves(event.op):
                    self.lines.write(event.op, event.key, event.change)
            case ClientGone():
                self.lines.gone(event.op)
            case PeerMessage():
                self._message(event)
            case RingAdopted():
                self._adopt(event.ring, left_have_ended=event.left_have_ended)
            case NodeLease():
                self._node_lease(event)
            case Loaded():
                self.home.loaded(event)
            case Stored():
                self.home.stored(event)
            case Forgotten():
                self.home.forgotten(event)
            case RedisFailed():
                self.home.failed(event)
            case Drain():
                self.context.draining = True
                self.handover.begin_to_leave()
            case Tick():
                self.lines.tick()
                self.home.tick()
                self.handover.tick()
            case _:
                assert_never(event)

    def _serves(self, op: OpId) -> bool:
        if self.context.draining:
            self.context.effects.append(Answer(op, Refused(Code.UNAVAILABLE)))
        return not self.context.draining

    def _deliver_to_self(self) -> None:
        while self.context.to_self:
            self._handle(self.context.me, self.context.to_self.popleft())

    def _message(self, event: PeerMessage) -> None:
        """Nothing from another epoch changes state: the lower side learns the ring first."""
        context, message = self.context, event.message
        if isinstance(message, RingNews):
            *between, newest = message.rings
            for ring in between:
                self._adopt(ring, left_have_ended=False)
            self._adopt(newest, left_have_ended=message.left_have_ended)
        elif isinstance(message, RingWanted) or event.epoch < context.epoch:
            rings = context.rings_after(event.epoch)
            context.send(event.source, RingNews(rings, left_have_ended=context.left_have_ended))
        elif event.epoch > context.epoch:
            context.send(event.source, RingWanted())
        elif self._takes(event.source, message):
            self._handle(event.source, message)

    def _takes(self, source: PeerId, message: Message) -> bool:
        """Whether they belong together: in the ring, or by a write that was under way."""
        if self.context.retired:
            return isinstance(message, Ask) and source in self.context.peers
        left = isinstance(message, Reply) and source in self.lines.held.left
        return left or source in self.context.peers

    def _handle(self, source: PeerId, message: Message) -> None:
        lines, home = self.lines, self.home
        match message:
            case Renew():
                home.renew(source, message)
            case Ask():
                home.ask(source, message)
            case Yielded():
                home.yielded(source, message)
            case Dropped():
                home.dropped(source, message)
            case Mirrored():
                home.mirrored(source, message)
            case Renewed():
                lines.renewed(source, message)
            case Reply():
                lines.reply(source, message)
            case Snoop() | Invalidate():
                lines.yield_line(source, message)
            case Cleaned():
                lines.yields.cleaned(message)
            case Mirror():
                lines.yields.mirror(source, message)
            case Report():
                self.handover.report(source, message)
                unmarked = frozenset(message.unmarked)
                for key, copy in message.copies:
                    home.offer(source, key, copy, unmarked=key in unmarked)
            case ReportTaken():
                self.handover.taken(source, message)
            case RingWanted() | RingNews():
                pass
            case _:
                assert_never(message)

    def _adopt(self, state: RingState, *, left_have_ended: bool) -> None:
        context = self.context
        if state.epoch <= context.epoch:
            if state.epoch == context.epoch and left_have_ended and not context.left_have_ended:
                context.left_have_ended = True
                self.handover.left_have_ended()
                self.home.endings.lapse_those_who_left()
            return
        was_in = context.me in context.peers
        consecutive = state.epoch == context.epoch + 1
        # What was sent to this node itself under the old epoch does not count under the new one.
        context.to_self.clear()
        context.adopt(state)
        context.left_have_ended = left_have_ended
        continuous = consecutive and was_in and context.me in context.peers
        lines_end_ms = self.home.directory.leases.lines_end_ms
        self.home.endings.give_up_moved(continuous=continuous)
        self.lines.adopt(continuous=continuous)
        self.handover.adopt(continuous=continuous, lines_end_ms=lines_end_ms)
        self.home.endings.go_on()
        for key, kept in list(self.kept.items()):
            if context.home_of(key) == context.me:
                copy = kept.record.copy(context.now_ms)
                self.home.offer(context.me, key, copy, unmarked=kept.unmarked)
        context.effects.append(EpochAcknowledged(context.epoch))

    def _node_lease(self, event: NodeLease) -> None:
        context = self.context
        if event.epoch != context.epoch:
            return
        context.lease_epoch, context.lease_ends_ms = event.epoch, event.ends_ms
        if context.holds_node_lease():
            self.home.transactions.resume()
            self.lines.drive_parked()

    def _drain(self) -> None:
        """Write back some at a time; when Redis has everything, serve nothing any more."""
        context = self.context
        if context.retired:
            return
        self.lines.write_backs.evict_more()
        self.home.write_back_more()
        self._deliver_to_self()
        if self.lines.is_clean and self.home.directory.is_clean and not len(self.kept):
            context.retired = True
            self.home.endings.retire()
            self.lines.retire()
            context.effects.append(Retired())
