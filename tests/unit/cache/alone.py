"""A cache service that is alone in its ring, on a real Redis; ring and lease as the test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from distsync_node.cache.options import CacheOptions
from distsync_node.cache.service import CacheService
from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    EnterRing,
    Epoch,
    Incarnation,
    RingState,
    Server,
    apply,
)
from distsync_node.peers.outbound import Target
from distsync_node.raft.types import Member, MemberId
from distsync_node.services.runtime import boottime_ms

SERVER = Server(name="node-1", member=MemberId("m-1"), incarnation=Incarnation(1))
LONG_MS = 3_600_000


class Alone:
    """Implements `cache.service.Places`."""

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.acknowledged = Epoch(0)
        self._ring = apply(EMPTY_RING, EnterRing(server=SERVER))
        self._rings: list[Callable[[RingState], None]] = []
        self._leases: list[Callable[[Epoch, int], None]] = []

    def own_server(self) -> Server:
        return SERVER

    def member(self, member_id: MemberId) -> Member | None:
        if member_id != SERVER.member:
            return None
        urls = {"peer_url": "http://node-1:8180", "client_url": "http://node-1:8080"}
        return Member(id=member_id, name="node-1", voter=True, **urls)

    def on_log_ring(self, callback: Callable[[RingState], None]) -> None:
        self._rings.append(callback)

    def on_lease(self, callback: Callable[[Epoch, int], None]) -> None:
        self._leases.append(callback)

    def acknowledge(self, epoch: Epoch) -> None:
        self.acknowledged = epoch

    def change_rings(self, times: int) -> None:
        """The ring has changed as often as that: this process has been in it again and again."""
        for _ in range(times):
            self._ring = RingState(Epoch(self._ring.epoch + 1), self._ring.servers)

    def adopt_ring(self) -> None:
        """The log has a ring of this node alone."""
        for callback in self._rings:
            callback(self._ring)

    def grant(self, for_ms: int = LONG_MS) -> None:
        """The leader has granted a lease."""
        for callback in self._leases:
            callback(self._ring.epoch, boottime_ms() + for_ms)


@contextlib.asynccontextmanager
async def service_alone(
    url: str,
    options: CacheOptions | None = None,
    *,
    in_ring: bool = True,
    cluster_id: str = "cluster",
) -> AsyncIterator[tuple[CacheService, Alone, list[BaseException]]]:
    """A started service, its places, and what broke."""
    places, broken = Alone(cluster_id), list[BaseException]()

    def no_peer(url: str) -> Target:
        raise AssertionError(f"{url} was to be reached")

    service = CacheService(
        url, places, no_peer, options=options or CacheOptions(), on_broken=broken.append
    )
    await service.start()
    if in_ring:
        places.adopt_ring()
        places.grant()
    try:
        yield service, places, broken
    finally:
        await service.close()
