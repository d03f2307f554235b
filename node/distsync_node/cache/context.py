"""What the parts of a node's cache share: who it is, the ring, the time and effects of an event."""

from __future__ import annotations

from collections import deque
from typing import Final

from distsync_node.cache.effects import Effect, Send
from distsync_node.cache.messages import Message
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import PeerId, peer_id
from distsync_node.cluster.ring_state import Epoch, RingState
from distsync_node.cluster.ring_view import RingView

MAX_RINGS: Final = 8  # remembered, for those who have missed some


class Context:
    """One a node. Messages to itself stay here, in order, for the node to deliver in the step."""

    def __init__(self, me: PeerId, options: CacheOptions) -> None:
        self.me = me
        self.options = options
        self.now_ms = 0
        self.effects: list[Effect] = []
        self.to_self: deque[Message] = deque()
        self.ring = RingView()
        self._rings: deque[RingState] = deque(maxlen=MAX_RINGS)
        self.peers: frozenset[PeerId] = frozenset()
        self.left_have_ended = False
        self.retired = False
        self.draining = False
        self.lease_epoch = Epoch(0)
        self.lease_ends_ms = 0

    @property
    def epoch(self) -> Epoch:
        """The newest epoch adopted."""
        return self.ring.epoch

    def adopt(self, state: RingState) -> None:
        """Take over a newer ring."""
        self.ring.adopt(state)
        self._rings.append(state)
        self.peers = frozenset(peer_id(server) for server in state.servers)

    def rings_after(self, epoch: Epoch) -> tuple[RingState, ...]:
        """Return the rings known here that came after that epoch; the newest at least."""
        later = tuple(ring for ring in self._rings if ring.epoch > epoch)
        return later or (self.ring.state,)

    def send(self, target: PeerId, message: Message) -> None:
        """Send a message under the epoch of now."""
        if target == self.me:
            self.to_self.append(message)
        else:
            self.effects.append(Send(target, self.epoch, message))

    def home_of(self, key: str) -> PeerId | None:
        """Return the home of a key; None while the ring is empty."""
        server = self.ring.owner(key)
        return None if server is None else peer_id(server)

    def successor_of(self, key: str) -> PeerId | None:
        """Return who would be the key's home after this node; None if it is alone."""
        for server in self.ring.successors(key):
            peer = peer_id(server)
            if peer != self.me:
                return peer
        return None

    def holds_node_lease(self) -> bool:
        """Whether nobody has taken this node's place at the time of this event."""
        return (
            not self.retired and self.lease_epoch == self.epoch and self.now_ms < self.lease_ends_ms
        )
