"""The leader, idealised: real lease tables and ring commands, without Raft under them.

It never loses what it committed; it may be replaced by another, which knows nothing of the leases
that were granted. Rings reach the nodes one after the other, or, now and then, only the newest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.cluster.leases import LeaseOptions, LeaseRequest, LeaseTable
from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    LeaveRing,
    RingCommand,
    RingState,
    apply,
    without_member,
)
from distsync_node.raft.types import MemberId
from sim.kernel import US_PER_MS, DriftingClock

if TYPE_CHECKING:
    from sim.cache.world import World

NAME = "leader"


class Leader:
    """Grants node leases and changes the ring."""

    def __init__(self, world: World, options: LeaseOptions, clock: DriftingClock) -> None:
        self._world = world
        self._kernel = world.kernel
        self._rng = world.kernel.rng("leader")
        self._options = options
        self._clock = clock
        self.rings: list[tuple[RingState, bool]] = [(EMPTY_RING, True)]  # and left_have_ended
        self._in_doubt_until_us = 0
        self._table = LeaseTable(options, EMPTY_RING, self._now())
        self._kernel.after(10 * US_PER_MS, self._tick)

    @property
    def ring(self) -> RingState:
        """The newest ring."""
        return self.rings[-1][0]

    def _now(self) -> int:
        return self._clock.read_ms(self._kernel.now_us)

    def replace(self, clock: DriftingClock) -> None:
        """Another leads from now on."""
        self._clock = clock
        self._table = LeaseTable(self._options, self.ring, self._now())

    def request(self, name: str, request: LeaseRequest) -> None:
        """A heartbeat has come."""
        verdict = self._table.request(
            request, self.ring, now_ms=self._now(), quorum_contact_ms=self._now()
        )
        if verdict.command is not None:
            self._commit(verdict.command)
        if verdict.grant is not None:
            host = self._world.hosts[name]
            self._world.network.send(NAME, name, host.granted, verdict.grant)

    def remove(self, member: MemberId) -> None:
        """The member is removed from the cluster, whatever lease it has."""
        granted_us = 2 * self._options.granted_ms * US_PER_MS
        self._in_doubt_until_us = self._kernel.now_us + granted_us
        self._changed(without_member(self.ring, member))

    def _commit(self, command: RingCommand) -> None:
        self._changed(apply(self.ring, command))

    def _changed(self, ring: RingState) -> None:
        if ring is self.ring:
            return
        for host in self._world.hosts.values():
            if host.server in self.ring.servers and host.server not in ring.servers:
                self._world.lost_with(host)
        certain = self._kernel.now_us >= self._in_doubt_until_us
        self.rings.append((ring, certain))
        names = " ".join(f"{one.name}.{one.incarnation}" for one in ring.servers)
        self._kernel.trace("ring", ring.epoch, names, certain)
        self._table.ring_changed(ring, self._now())
        for name in self._world.hosts:
            self._tell(name)

    def _tell(self, name: str) -> None:
        """Send a node the rings that it has not heard of."""
        host = self._world.hosts[name]
        known = host.ring_index
        if known + 1 >= len(self.rings):
            return
        index = known + 1
        if self._rng.random() < 0.1:
            index = len(self.rings) - 1
        if index > known + 1:
            self._kernel.faults["epoch_skipped"] += 1
        ring, certain = self.rings[index]
        self._world.network.send(NAME, name, host.told_ring, index, ring, certain)

    def _tick(self) -> None:
        for command in self._table.overdue(self.ring, self._now()):
            if isinstance(command, LeaveRing):
                self._commit(command)
        for name in self._world.hosts:
            self._tell(name)
        self._kernel.after(self._rng.randint(20, 60) * US_PER_MS, self._tick)
