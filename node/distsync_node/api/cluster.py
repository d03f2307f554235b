"""What a node says of itself: status, health and readiness."""

from __future__ import annotations

from typing import Literal

from distsync_node import __version__
from distsync_node.api.call import Call
from distsync_node.api.locks import encode
from distsync_node.api.reads import query_of
from distsync_node.api.schemas import (
    ConfigurationResponse,
    HealthResponse,
    MemberResponse,
    ReadyResponse,
    RingQuery,
    RingResponse,
    RingServer,
    StatusResponse,
)
from distsync_node.errors import (
    DistSyncError,
    MemberRemoved,
    NoLeader,
    ShuttingDown,
    Uninitialised,
)
from distsync_node.locks.views import Counts
from distsync_node.raft.types import Configuration, Member
from distsync_node.services.interface import Node, NodeStatus

_HEALTHY = encode(HealthResponse())
_READY = encode(ReadyResponse())
_NOTHING = Counts(
    locks=0,
    grants=0,
    waiting_requests=0,
    places=0,
    sessions=0,
    requests=0,
    finished_requests=0,
)


def members_of(status: NodeStatus, configuration: Configuration) -> list[MemberResponse]:
    """Return the members of a configuration with what this node knows of each."""
    return [_member(member, status) for member in configuration.members]


def _member(member: Member, status: NodeStatus) -> MemberResponse:
    role: Literal["leader", "follower", "learner"] = "follower" if member.voter else "learner"
    if status.leader is not None and status.leader.id == member.id:
        role = "leader"
    known = status.progress.get(member.id)
    return MemberResponse(
        id=member.id,
        name=member.name,
        peer_url=member.peer_url,
        client_url=member.client_url,
        voter=member.voter,
        role=role,
        match_index=known.match_index if known is not None else None,
        progress=known.state if known is not None else None,
        last_contact_ms=known.last_contact_ms if known is not None else None,
    )


def configuration_response(status: NodeStatus, configuration: Configuration) -> bytes:
    """Return the answer to a membership call."""
    return encode(
        ConfigurationResponse(
            config_index=configuration.index, members=members_of(status, configuration)
        )
    )


def why_unready(status: NodeStatus) -> DistSyncError | None:
    """Say why a node does not serve, if it does not."""
    match status.state:
        case "uninitialised":
            return Uninitialised("this node belongs to no cluster yet")
        case "joining":
            return Uninitialised("this node is joining and has not caught up yet")
        case "removed":
            return MemberRemoved("this node was removed from its cluster")
        case "stopped":
            return ShuttingDown("this node has stopped; see its log")
        case "member":
            if status.draining:
                return ShuttingDown("this node is draining")
            return None if status.ready else NoLeader("this node has heard no leader yet")


class ClusterEndpoints:
    """GET /cluster/status, /cluster/ring, /healthz, /readyz"""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def status(self, _call: Call) -> bytes:
        """GET /cluster/status"""
        status = self._node.status()
        counts = self._counts()
        configuration = status.configuration
        leader = status.leader
        return encode(
            StatusResponse(
                node=status.node,
                member_id=status.member_id,
                state=status.state,
                role=status.role,
                leader=leader.name if leader is not None else None,
                leader_url=self._node.leader_client_url(),
                term=status.term,
                commit_index=status.commit_index,
                applied_index=status.applied_index,
                config_index=configuration.index,
                cluster_id=status.cluster_id,
                cluster_version=status.cluster_version,
                version=__version__,
                ready=status.ready,
                serving=status.serving,
                ring_epoch=status.ring_epoch,
                disk_full=status.disk_full,
                members=members_of(status, configuration),
                locks=counts.locks,
                waiters=counts.waiting_requests,
                sessions=counts.sessions,
            )
        )

    async def ring(self, call: Call) -> bytes:
        """GET /cluster/ring?key="""
        key = query_of(call, RingQuery).key
        view = self._node.ring()
        shares = view.shares()
        configuration = self._node.status().configuration
        owner = view.owner(key) if key is not None else None
        return encode(
            RingResponse(
                epoch=view.epoch,
                virtual_nodes=view.state.virtual_nodes,
                servers=[
                    RingServer(
                        name=server.name,
                        member_id=server.member,
                        incarnation=server.incarnation,
                        weight=server.weight,
                        share=round(shares[server.name], 6),
                        client_url=member.client_url if member is not None else "",
                    )
                    for server in view.state.servers
                    for member in (configuration.member(server.member),)
                ],
                key=key,
                owner=owner.name if owner is not None else None,
            )
        )

    async def health(self, _call: Call) -> bytes:
        """GET /healthz: the process answers, whatever the state of the cluster."""
        return _HEALTHY

    async def ready(self, _call: Call) -> bytes:
        """GET /readyz"""
        reason = why_unready(self._node.status())
        if reason is not None:
            raise reason
        return _READY

    def _counts(self) -> Counts:
        try:
            return self._node.machine.counts()
        except Uninitialised:  # it is still reading its data directory
            return _NOTHING
