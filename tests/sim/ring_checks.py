"""What must hold of node leases: nobody is taken out of the ring while its own lease is valid.

The names of the checks, as a failure tells them:

    ring.early_leave    a process was taken out, or replaced, that its own clock still let serve
    ring.early_end      a process was said to have no lease that its own clock still let serve
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.cluster.ring_state import EMPTY_RING, RingState
from distsync_node.raft.types import Entry, EntryKind
from sim.kernel import Violation

if TYPE_CHECKING:
    from sim.host import Host


class RingChecks:
    """The ring as it was committed."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self._hosts = hosts
        self._ring: RingState = EMPTY_RING

    def applied(self, host: Host, entry: Entry) -> None:
        """Judge the ring after an entry that nobody applied before."""
        participant = host.replica.participant
        if participant is None:
            return
        before, after = self._ring, participant.serving.ring
        self._ring = after
        if before is after:
            return
        for server in (*before.servers, *before.in_doubt):
            if server not in (*after.servers, *after.in_doubt):
                self._check_gone("ring.early_end", server.incarnation, server.name)
        if entry.kind is EntryKind.CONFIG:
            return  # who is removed from the cluster leaves the ring at once
        for server in before.servers:
            if server not in after.servers:
                self._check_gone("ring.early_leave", server.incarnation, server.name)

    def _check_gone(self, check: str, incarnation: int, name: str) -> None:
        host = self._hosts[name]
        participant = host.replica.participant
        if not host.alive or participant is None or participant.state != "member":
            return
        serving = participant.serving
        left_ms = serving.lease_ends_ms() - host.now_ms
        if serving.incarnation == incarnation and left_ms > 0:
            raise Violation(check, f"{name} may serve for {left_ms} ms more")
