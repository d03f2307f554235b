"""What the API layer may ask of the node; `services.node.NodeService` is the real thing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from distsync_node.cluster.ring_state import EMPTY_RING, Epoch
from distsync_node.cluster.ring_view import RingView
from distsync_node.locks.commands import LockCommand, Outcome
from distsync_node.locks.machine import LockMachine
from distsync_node.raft.types import Configuration, LogIndex, Member, MemberId

NodeState = Literal["uninitialised", "joining", "member", "removed", "stopped"]


class CommandReply(msgspec.Struct, frozen=True, kw_only=True):
    """The final outcome of a command (never `Waiting`).

    `remaining_ms` is how long the lease of the outcome had left when the *leader* answered; 0 where
    the outcome has no lease.
    """

    outcome: Outcome
    remaining_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerProgress:
    """What the leader knows of another member."""

    match_index: int
    state: str
    last_contact_ms: int | None  # age in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """This node's own view, without asking others."""

    node: str
    member_id: MemberId
    state: NodeState
    role: Literal["leader", "follower", "candidate", "learner"]
    leader: Member | None
    term: int
    commit_index: int
    applied_index: int
    cluster_id: str | None
    cluster_version: int
    ready: bool
    disk_full: bool
    configuration: Configuration
    progress: dict[MemberId, PeerProgress]
    draining: bool = False
    leader_changes: int = 0  # times this node saw another leader since it started
    ring_epoch: Epoch = EMPTY_RING.epoch  # of the newest ring known here
    serving: bool = False  # this process serves its part of that ring


class Node(Protocol):
    """One node, as seen from its HTTP endpoints.

    Every call may raise: NoLeader, Uninitialised, MemberRemoved, ShuttingDown (nothing was
    proposed), OutcomeUnknown (may have been), DiskFull, LimitReached.
    """

    async def submit(self, command: LockCommand, *, timeout_ms: int) -> CommandReply:
        """Run a command through the leader, wherever it is, and return its final outcome.

        Retries by itself under the same key until `timeout_ms` (plus the command's own wait) has
        passed, or until nothing has come of trying for `timeout_ms`: no leader, or no answer.
        Cancelling the awaiting task is a disconnect: a waiting request is cancelled.
        """
        ...

    async def read_barrier(self, *, timeout_ms: int) -> None:
        """Return once `machine` reflects everything acknowledged before the call (ReadIndex)."""
        ...

    @property
    def machine(self) -> LockMachine:
        """The local replica of the lock state; linearizable to read right after `read_barrier`."""
        ...

    def leader_time_ms(self) -> int:
        """This node's estimate of leader time, to turn deadlines into remaining time."""
        ...

    def watch(self, name: str) -> AsyncIterator[None]:
        """Yield once at the start and then whenever the lock may have changed (coalesced)."""
        ...

    def status(self) -> NodeStatus:
        """Return this node's own view."""
        ...

    def leader_client_url(self) -> str | None:
        """Where clients reach the leader, if one is known."""
        ...

    def ring(self) -> RingView:
        """Return the ring as known here."""
        ...

    async def bootstrap(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        """Create the cluster on this member (idempotent); AlreadyBootstrapped, ClusterMismatch."""
        ...

    async def add_member(
        self, member: Member, expected_config_index: LogIndex | None
    ) -> Configuration:
        """Add a learner (forwards to the leader). Idempotent for the same id; ConfigConflict."""
        ...

    async def promote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """Make a learner a voter; ConfigConflict while it is not caught up."""
        ...

    async def demote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """Make a voter a learner."""
        ...

    async def remove_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """Remove and tombstone a member; idempotent."""
        ...

    async def transfer_leadership(self, target: MemberId | None) -> MemberId:
        """Hand leadership over; returns the new leader. ConfigConflict if it did not work."""
        ...

    async def drain(self) -> None:
        """Become unready and begin to leave the ring, for good; requests are still forwarded.

        It leaves when the cache is written back, which this does not wait for.
        """

    async def archive(self) -> str:
        """Move a removed member's data aside so that the node starts empty; returns where to."""
        ...
