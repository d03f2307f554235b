"""The ring as one node sees it: the newest epoch it was told of, by its own log or by another node.

Guarantees: the view never goes back to an older epoch; the hash ring is computed once an epoch.
Every request and reply between nodes that concerns the ring carries an epoch; the lower side adopts
the higher, so that a node whose log lags (or has no quorum) still finds owners.
"""

from __future__ import annotations

from distsync_node.cluster.ring_state import EMPTY_RING, Epoch, RingState, Server
from distsync_node.ring import HashRing

MAX_OWNERS_KEPT = 10_000


class RingView:
    """The newest ring known here."""

    __slots__ = ("_by_name", "_hash_ring", "_owners", "_state")

    def __init__(self) -> None:
        self._state = EMPTY_RING
        self._hash_ring = HashRing({})
        self._by_name: dict[str, Server] = {}
        self._owners: dict[str, Server | None] = {}  # of keys that were asked for

    @property
    def state(self) -> RingState:
        """The ring itself."""
        return self._state

    @property
    def epoch(self) -> Epoch:
        """Its epoch."""
        return self._state.epoch

    def adopt(self, state: RingState) -> bool:
        """Take over a newer ring; returns whether it was newer."""
        if state.epoch <= self._state.epoch:
            return False
        self._state = state
        self._hash_ring = state.ring()
        self._by_name = {server.name: server for server in state.servers}
        self._owners.clear()
        return True

    def owner(self, key: str) -> Server | None:
        """Return who serves a key; None on an empty ring."""
        try:
            return self._owners[key]
        except KeyError:
            name = self._hash_ring.owner(key)
            owner = None if name is None else self._by_name[name]
            if len(self._owners) >= MAX_OWNERS_KEPT:
                self._owners.clear()
            self._owners[key] = owner
            return owner

    def successors(self, key: str) -> list[Server]:
        """Return every server: the owner, who would own the key after it, and so on."""
        return [self._by_name[name] for name in self._hash_ring.owners(key)]

    def shares(self) -> dict[str, float]:
        """Return the part of the ring of each server."""
        return self._hash_ring.shares()
