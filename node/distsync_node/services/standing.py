"""What a node says of itself, without asking others."""

from __future__ import annotations

from typing import Literal

from distsync_node.cluster.ring_state import Epoch
from distsync_node.raft.core import RaftCore
from distsync_node.raft.types import Configuration, LogIndex, MemberId, Role
from distsync_node.services.interface import NodeStatus, PeerProgress
from distsync_node.services.runtime import Runtime

# A node that has heard no leader for so long since it started serves without: queues need none.
LEADER_WAIT_MS = 10_000

RoleName = Literal["leader", "follower", "candidate", "learner"]


def starting_status(name: str) -> NodeStatus:
    """Return the status of a node that still reads its data directory."""
    return NodeStatus(
        node=name,
        member_id=MemberId(""),
        state="uninitialised",
        role="follower",
        leader=None,
        term=0,
        commit_index=0,
        applied_index=0,
        cluster_id=None,
        cluster_version=0,
        ready=False,
        disk_full=False,
        configuration=Configuration(index=LogIndex(0), members=()),
        progress={},
    )


def status_of(
    name: str,
    runtime: Runtime,
    *,
    ring_epoch: Epoch,
    is_at_work: bool,
    draining: bool,
    now_ms: int,
) -> NodeStatus:
    """Return the status of a node that has read its data directory.

    `ring_epoch` is of the newest ring known here; `is_at_work`: no service waits for that ring.
    """
    replica = runtime.replica
    raft = replica.raft
    configuration = replica.configuration
    leader = configuration.member(replica.leader) if replica.leader is not None else None
    return NodeStatus(
        node=name,
        member_id=replica.member_id,
        state=replica.state,
        role=_role(replica.member_id, configuration, raft.role if raft else Role.FOLLOWER),
        leader=leader,
        term=raft.term if raft is not None else 0,
        commit_index=raft.commit_index if raft is not None else 0,
        applied_index=raft.applied_index if raft is not None else 0,
        cluster_id=replica.cluster_id or None,
        cluster_version=replica.cluster_version,
        ready=replica.state == "member" and not draining and _is_back(runtime, now_ms),
        disk_full=replica.disk_full,
        draining=draining,
        configuration=configuration,
        progress={} if raft is None else _progress(raft, now_ms),
        leader_changes=runtime.leader_changes,
        ring_epoch=ring_epoch,
        serving=(
            replica.state == "member"
            and not draining
            and is_at_work
            and _has_its_part(runtime, ring_epoch, now_ms)
        ),
    )


def _is_back(runtime: Runtime, now_ms: int) -> bool:
    """Whether the node has found its cluster since it started, or given up waiting for a leader.

    One that loses its leader later stays ready: with the quorum every node loses it, and queues are
    served without.
    """
    participant = runtime.replica.participant
    if participant is None:
        return False
    return runtime.leader_changes > 0 or now_ms - participant.since_ms >= LEADER_WAIT_MS


def _has_its_part(runtime: Runtime, ring_epoch: Epoch, now_ms: int) -> bool:
    """Whether this process has its part of the newest ring; the log may know an older one."""
    participant = runtime.replica.participant
    if participant is None:
        return False
    serving = participant.serving
    is_newest = serving.ring.epoch == ring_epoch
    return is_newest and serving.serves(participant.raft.configuration, now_ms)


def _progress(raft: RaftCore, now_ms: int) -> dict[MemberId, PeerProgress]:
    return {
        member_id: PeerProgress(
            match_index=known.match_index,
            state=str(known.state),
            last_contact_ms=(
                None if known.last_contact_ms is None else now_ms - known.last_contact_ms
            ),
        )
        for member_id, known in raft.progress().items()
    }


def _role(member_id: MemberId, configuration: Configuration, role: Role) -> RoleName:
    if role is Role.LEADER:
        return "leader"
    if member_id not in configuration.voters:
        return "learner"
    return "follower" if role is Role.FOLLOWER else "candidate"
