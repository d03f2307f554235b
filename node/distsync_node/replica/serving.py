"""A member's part in the ring: the replicated ring, its own heartbeats, and the leader's leases.

What keeps two nodes from serving one range at once is in `cluster.leases`; this module says when
heartbeats leave, what the leader answers, and how ring commands change the ring.
"""

from __future__ import annotations

from distsync_node.cluster.leases import (
    LeaseGrant,
    LeaseHolder,
    LeaseOptions,
    LeaseRequest,
    LeaseTable,
    Verdict,
)
from distsync_node.cluster.ring_state import (
    Epoch,
    Incarnation,
    LeaveRing,
    RingCommand,
    RingState,
    Server,
    apply,
    without_member,
)
from distsync_node.raft.types import Configuration, MemberId


class Serving:
    """The ring as applied here, and this member's place in it."""

    def __init__(
        self,
        options: LeaseOptions,
        *,
        virtual_nodes: int,
        member_id: MemberId,
        incarnation: Incarnation,
        ring: RingState,
        now_ms: int,
    ) -> None:
        self.ring = ring
        self.acknowledged = ring.epoch
        self.incarnation = incarnation
        self._options = options
        self._virtual_nodes = virtual_nodes
        self._member_id = member_id
        self._holder = LeaseHolder(options, now_ms)
        self._table: LeaseTable | None = None

    # --- This member --------------------------------------------------------------------------

    @property
    def heartbeat_at_ms(self) -> int:
        """When the next heartbeat is due."""
        return self._holder.next_at_ms

    def heartbeat(self, configuration: Configuration, now_ms: int) -> LeaseRequest | None:
        """Return the heartbeat to send now; None while the cluster does not know this member."""
        server = self.server(configuration)
        if server is None:
            self._holder.skip(now_ms)
            return None
        return self._holder.heartbeat(server, self.acknowledged, now_ms)

    def server(self, configuration: Configuration) -> Server | None:
        """Return this process as it enters the ring; None while the cluster does not know it."""
        own = configuration.member(self._member_id)
        if own is None:
            return None
        return Server(name=own.name, member=own.id, incarnation=self.incarnation)

    def heartbeat_soon(self, now_ms: int) -> None:
        """A new leader or a new epoch: do not wait for the next heartbeat's time."""
        self._holder.soon(now_ms)

    def acknowledge(self, epoch: Epoch, now_ms: int) -> None:
        """This node has handed over what the ring of that epoch gives to others.

        Another node may have told it of that ring before the log does.
        """
        if epoch > self.acknowledged:
            self.acknowledged = epoch
            self._holder.soon(now_ms)

    def granted(self, grant: LeaseGrant) -> int:
        """Take the leader's grant; return when the lease of its epoch ends now, 0 if it does not
        count."""
        if grant.incarnation != self.incarnation:
            return 0
        self._holder.granted(grant)
        return self._holder.ends_ms(grant.epoch)

    def leave(self, now_ms: int) -> Epoch | None:
        """Give the lease up and leave the ring; returns the epoch that the lease was of."""
        self._holder.soon(now_ms)
        return self._holder.leave()

    def lease_ends_ms(self) -> int:
        """Return when this node's lease of the current epoch ends; 0 without one."""
        return self._holder.ends_ms(self.ring.epoch)

    def serves(self, configuration: Configuration, now_ms: int) -> bool:
        """Whether the ring names this very process, and it has the lease of its part."""
        return self.server(configuration) in self.ring.servers and now_ms < self.lease_ends_ms()

    # --- The leader ---------------------------------------------------------------------------

    def lead(self, now_ms: int) -> None:
        """This member's no-op is applied: start an empty table.

        Heartbeats that came before were not answered. The first to enter is this member: the others
        follow at once, since they send a heartbeat whenever the ring has changed.
        """
        self._table = LeaseTable(
            self._options, self.ring, now_ms, virtual_nodes=self._virtual_nodes
        )
        self._holder.soon(now_ms)

    def resign(self) -> None:
        """Grant nothing any more."""
        self._table = None

    def judge(
        self,
        request: LeaseRequest,
        sender: MemberId,
        configuration: Configuration,
        *,
        now_ms: int,
        quorum_contact_ms: int | None,
    ) -> Verdict:
        """Answer a heartbeat; of a member of the configuration, under its name there."""
        member = configuration.member(sender)
        server = request.server
        if self._table is None or member is None:
            return Verdict()
        if (server.member, server.name) != (sender, member.name):
            return Verdict()
        return self._table.request(
            request, self.ring, now_ms=now_ms, quorum_contact_ms=quorum_contact_ms
        )

    def overdue(self, now_ms: int) -> list[LeaveRing]:
        """Return what takes out nodes whose lease has certainly ended."""
        return self._table.overdue(self.ring, now_ms) if self._table is not None else []

    def overdue_at_ms(self) -> int | None:
        """Return when `overdue` may have something new."""
        return self._table.next_deadline_ms(self.ring) if self._table is not None else None

    def proposal_failed(self, command: RingCommand) -> None:
        """A command was certainly not appended."""
        if self._table is not None:
            self._table.proposal_failed(command)

    # --- The replicated ring --------------------------------------------------------------------

    def apply(self, command: RingCommand, now_ms: int) -> bool:
        """Apply a committed command; returns whether the ring changed."""
        return self._adopt(apply(self.ring, command), now_ms)

    def remove_member(self, member_id: MemberId, now_ms: int) -> bool:
        """A member that was removed leaves the ring; returns whether it changed."""
        return self._adopt(without_member(self.ring, member_id), now_ms)

    def restore(self, ring: RingState, now_ms: int) -> bool:
        """Take over the ring of a snapshot."""
        return self._adopt(ring, now_ms)

    def _adopt(self, ring: RingState, now_ms: int) -> bool:
        if ring is self.ring or ring == self.ring:
            return False
        self.ring = ring
        if self._table is not None:
            self._table.ring_changed(ring, now_ms)
        self._holder.soon(now_ms)
        return True
