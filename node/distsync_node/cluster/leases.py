"""Node leases: a node serves its part of the ring only while it certainly has not been replaced.

Every node sends the leader a request each heartbeat; the leader grants a lease of the current
epoch. Why two nodes never both hold a valid lease for the same part of the ring:

- Whoever holds counts from *sending* the request; whoever grants counts from sending the answer,
  plus drift. So a lease ends at its holder before it ends in the leader's table.
- A leader takes a node out only once that node's lease has ended in its table; from proposing the
  removal, or another process in its place, on it grants that node nothing.
- Who had to go at once, because its member was removed from the cluster, is in doubt until its
  lease has ended in the table; then the leader says so in the log.
- A node that leaves by itself gives its lease up before its first request that says so, and takes
  no other. So it is taken out on that request, whatever the table says.
- A leader grants only while a quorum has acknowledged a round of contact that it *sent* no longer
  than the freshness window ago. So the last grant of a deposed leader is younger than its
  successor's election by at most that window, and a new leader, which knows nothing of earlier
  grants, waits lease + freshness window + drift before it takes anyone out. It grants nothing
  before its no-op is applied.
- A lease names an epoch. Only a node that has acknowledged the current epoch gets a lease of it.

Leases are in leader memory only. Times are local `CLOCK_BOOTTIME` milliseconds, which count
suspension: a node that was stopped for long finds its lease ended. Source: design §4; Gray and
Cheriton, "Leases" (1989).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from distsync_node.cluster.ring_state import (
    EnterRing,
    Epoch,
    Incarnation,
    LeaveRing,
    RingCommand,
    RingState,
    Server,
)
from distsync_node.ring import DEFAULT_VIRTUAL_NODES

REMEMBERED_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOptions:
    """Durations in milliseconds.

    When a leader dies just after a heartbeat, a node has `lease_ms - heartbeat_ms` left, which
    covers an election (400 to 800 ms) and a heartbeat to the new leader.
    """

    heartbeat_ms: int = 300
    lease_ms: int = 1_500
    freshness_ms: int = 400
    drift_ms: int = 50  # plus 1 % of what is measured

    @property
    def granted_ms(self) -> int:
        """How long a grant counts in the leader's table: the lease and the drift."""
        return self.lease_ms + self.lease_ms // 100 + self.drift_ms

    @property
    def takeover_ms(self) -> int:
        """How long a new leader takes nobody out."""
        return self.granted_ms + self.freshness_ms


class LeaseRequest(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A node's heartbeat to the leader."""

    server: Server
    sequence: int
    acknowledged: Epoch
    draining: bool = False


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The answer: a lease of `epoch`, counted from the sending of request `sequence`."""

    incarnation: Incarnation
    sequence: int
    epoch: Epoch
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the leader makes of a request: a grant to send, a command to propose, or neither."""

    grant: LeaseGrant | None = None
    command: RingCommand | None = None


class LeaseTable:
    """The leader's side. It starts empty with each leadership."""

    __slots__ = (
        "_ends_ms",
        "_known",
        "_leading_since_ms",
        "_leaving",
        "_options",
        "_virtual_nodes",
    )

    def __init__(
        self,
        options: LeaseOptions,
        ring: RingState,
        now_ms: int,
        *,
        virtual_nodes: int = DEFAULT_VIRTUAL_NODES,
    ) -> None:
        self._options = options
        self._virtual_nodes = virtual_nodes
        self._leading_since_ms = now_ms
        self._known = set(ring.servers)
        self._ends_ms: dict[Server, int] = {}
        self._leaving: set[Server] = set()

    def request(
        self, request: LeaseRequest, ring: RingState, *, now_ms: int, quorum_contact_ms: int | None
    ) -> Verdict:
        """Judge a heartbeat of a member in the configuration."""
        server = request.server
        serving = ring.server(server.name)
        if serving != server:
            # Whoever serves that name now keeps it until its lease has ended, also when it is an
            # earlier incarnation of this very node: only its clock knows that it has stopped.
            if request.draining or (serving is not None and self._ends(serving) > now_ms):
                return Verdict()
            if serving is not None:
                self._leaving.add(serving)
            return Verdict(command=EnterRing(server=server, virtual_nodes=self._virtual_nodes))
        if request.draining:
            return Verdict(command=self._take_out(server))
        if server in self._leaving or request.acknowledged != ring.epoch:
            return Verdict()
        if quorum_contact_ms is None or now_ms - quorum_contact_ms > self._options.freshness_ms:
            return Verdict()
        self._ends_ms[server] = now_ms + self._options.granted_ms
        return Verdict(
            grant=LeaseGrant(
                incarnation=server.incarnation,
                sequence=request.sequence,
                epoch=ring.epoch,
                lease_ms=self._options.lease_ms,
            )
        )

    def overdue(self, ring: RingState, now_ms: int) -> list[LeaveRing]:
        """Return what takes out, or strikes off, the servers whose lease has certainly ended."""
        return [
            self._take_out(server)
            for server in (*ring.servers, *ring.in_doubt)
            if server not in self._leaving and self._ends(server) <= now_ms
        ]

    def next_deadline_ms(self, ring: RingState) -> int | None:
        """Return when `overdue` may have something new."""
        ends = [
            self._ends(server)
            for server in (*ring.servers, *ring.in_doubt)
            if server not in self._leaving
        ]
        return min(ends, default=None)

    def ring_changed(self, ring: RingState, now_ms: int) -> None:
        """Forget servers that have left; one that entered has a lease's time to ask for one."""
        serving = set(ring.servers)
        for server in serving - self._known:
            self._ends_ms[server] = now_ms + self._options.granted_ms
        self._known = serving
        gone = self._ends_ms.keys() - serving - set(ring.in_doubt)
        for server in gone:
            del self._ends_ms[server]
        self._leaving &= serving

    def proposal_failed(self, command: RingCommand) -> None:
        """Nothing was proposed: a later look decides again. Grants stay refused until then."""
        name = command.name if isinstance(command, LeaveRing) else command.server.name
        self._leaving = {server for server in self._leaving if server.name != name}

    def _ends(self, server: Server) -> int:
        unknown_ms = self._leading_since_ms + self._options.takeover_ms
        return max(self._ends_ms.get(server, 0), unknown_ms)

    def _take_out(self, server: Server) -> LeaveRing:
        self._leaving.add(server)
        return LeaveRing(name=server.name, member=server.member, incarnation=server.incarnation)


class LeaseHolder:
    """A node's side: its heartbeats and the lease it holds."""

    __slots__ = (
        "_lease_ends_ms",
        "_lease_epoch",
        "_next_at_ms",
        "_options",
        "_sent_ms",
        "_sequence",
        "is_leaving",
    )

    def __init__(self, options: LeaseOptions, now_ms: int) -> None:
        self._options = options
        self._next_at_ms = now_ms
        self._sequence = 0
        self._sent_ms: OrderedDict[int, int] = OrderedDict()
        self._lease_epoch: Epoch | None = None
        self._lease_ends_ms = 0
        self.is_leaving = False

    @property
    def next_at_ms(self) -> int:
        """When the next heartbeat is due."""
        return self._next_at_ms

    def heartbeat(self, server: Server, acknowledged: Epoch, now_ms: int) -> LeaseRequest:
        """Return the next heartbeat, sent now."""
        self._sequence += 1
        self._next_at_ms = now_ms + self._options.heartbeat_ms
        self._sent_ms[self._sequence] = now_ms
        if len(self._sent_ms) > REMEMBERED_REQUESTS:
            self._sent_ms.popitem(last=False)
        return LeaseRequest(server, self._sequence, acknowledged, self.is_leaving)

    def skip(self, now_ms: int) -> None:
        """There is nobody to send a heartbeat as yet: look again at the next one's time."""
        self._next_at_ms = now_ms + self._options.heartbeat_ms

    def soon(self, now_ms: int) -> None:
        """Send the next heartbeat at once (a new leader, a new epoch)."""
        self._next_at_ms = min(self._next_at_ms, now_ms)

    def granted(self, grant: LeaseGrant) -> None:
        """Take a grant; it counts from the sending of the request it answers."""
        sent_ms = self._sent_ms.pop(grant.sequence, None)
        if sent_ms is None or self.is_leaving:
            return
        ends_ms = sent_ms + grant.lease_ms
        if self._lease_epoch != grant.epoch or ends_ms > self._lease_ends_ms:
            if self._lease_epoch is not None and grant.epoch < self._lease_epoch:
                return
            self._lease_epoch = grant.epoch
            self._lease_ends_ms = ends_ms

    def leave(self) -> Epoch | None:
        """Give the lease up for good; returns the epoch that it was of.

        From now on every heartbeat says that this node leaves.
        """
        self.is_leaving = True
        self._lease_ends_ms = 0
        return self._lease_epoch

    def ends_ms(self, epoch: Epoch) -> int:
        """Return when the lease of that epoch ends; 0 without one."""
        return self._lease_ends_ms if self._lease_epoch == epoch else 0

    def is_valid(self, epoch: Epoch, now_ms: int) -> bool:
        """Whether this node may serve its part of that epoch's ring at `now_ms`."""
        return now_ms < self.ends_ms(epoch)
