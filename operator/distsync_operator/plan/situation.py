"""The observations of a pass, joined into what the rules ask: who leads, votes, is well."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from distsync_operator import names
from distsync_operator.matching import lacking, stamped
from distsync_operator.model import (
    SILENT,
    Claim,
    Desired,
    Member,
    Node,
    Observed,
    Pod,
    key_of,
)
from distsync_operator.spec import Manifest, Spec

# Silence after which the leader's word that a member was there is no longer taken.
ALIVE_MS = 2_000
MAX_REPLICAS = 9


@dataclass(frozen=True)
class Situation:
    """One pass: everything here is derived from its two fields."""

    observed: Observed
    desired: Desired

    @property
    def name(self) -> str:
        """Name of the cluster."""
        return self.desired.cluster.name

    @property
    def spec(self) -> Spec:
        """What is wanted."""
        return self.desired.cluster.spec

    def is_as_wanted(self, live: Manifest, manifest: Manifest) -> bool:
        """Whether a live object says what the manifest wants, or as much of it as can be had."""
        refused = self.observed.altered.get(key_of(manifest), frozenset())
        return lacking(live, stamped(manifest)) <= refused

    # --- Pods -----------------------------------------------------------------------------------

    @cached_property
    def pods(self) -> dict[int, Pod]:
        """The pods of nodes by ordinal."""
        return {pod.ordinal: pod for pod in self.observed.pods}

    @cached_property
    def claims(self) -> dict[int, Claim]:
        """The volume claims of nodes by ordinal."""
        return {claim.ordinal: claim for claim in self.observed.claims}

    def node(self, pod: Pod) -> Node:
        """Return what the node in a pod said."""
        return self.observed.nodes.get(pod.name, SILENT)

    def is_outdated(self, pod: Pod) -> bool:
        """Whether the pod runs another revision than the StatefulSet wants."""
        live = self.observed.stateful_set
        return live is not None and live.update_revision not in ("", pod.revision)

    @cached_property
    def ring_epoch(self) -> int:
        """The epoch of the newest ring that a member of the cluster in view knows."""
        members = (n for n in self.observed.nodes.values() if n.member_id in self.answering)
        return max((node.ring_epoch for node in members), default=0)

    def serves(self, pod: Pod) -> bool:
        """Whether its node serves its part of that ring; its pod is ready without."""
        node = self.node(pod)
        return node.serving and node.ring_epoch == self.ring_epoch

    def is_well(self, pod: Pod) -> bool:
        """Whether the pod is ready and its node a member that keeps up, and serves."""
        node = self.node(pod)
        member = self.member_by_id(node.member_id)
        return (
            pod.ready
            and not pod.terminating
            and node.state == "member"
            and not node.draining
            and self.serves(pod)
            and member is not None
            and self.is_alive(member)
            and (member.caught_up or self.leads(member))
        )

    @property
    def is_whole(self) -> bool:
        """Whether every node that is wanted is well, and Redis is there."""
        redis, pods = self.observed.redis_set, self.pods
        has_redis = redis is not None and redis.ready_replicas > 0
        return (has_redis or self.spec.redis.managed is None) and all(
            ordinal in pods and self.is_well(pods[ordinal]) for ordinal in range(self.spec.replicas)
        )

    # --- The cluster ----------------------------------------------------------------------------

    @cached_property
    def clusters(self) -> set[str]:
        """The ids of all clusters that nodes report."""
        return {node.cluster_id for node in self.observed.nodes.values() if node.cluster_id}

    @cached_property
    def leaders(self) -> dict[str, tuple[Pod, Node]]:
        """Who leads each cluster, of those that say they do the one of the highest term."""
        found: dict[str, tuple[Pod, Node]] = {}
        for pod in self.observed.pods:
            node = self.node(pod)
            if node.role != "leader" or node.state != "member":
                continue
            known = found.get(node.cluster_id)
            if known is None or known[1].term < node.term:
                found[node.cluster_id] = (pod, node)
        return found

    @cached_property
    def leader(self) -> tuple[Pod, Node] | None:
        """Who leads, with its pod; None also while two clusters have a leader each."""
        return next(iter(self.leaders.values())) if len(self.leaders) == 1 else None

    @property
    def via(self) -> str:
        """The pod to send calls to: the leader's."""
        return self.leader[0].name if self.leader else ""

    @cached_property
    def view(self) -> Node:
        """The leader, or without one the node that knows the newest configuration."""
        if self.leader is not None:
            return self.leader[1]
        known = [node for node in self.observed.nodes.values() if node.members]
        return max(known, key=lambda node: (node.config_index, node.term), default=SILENT)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members in force."""
        return self.view.members

    @property
    def config_index(self) -> int:
        """The index of the membership in force."""
        return self.view.config_index

    def members_of(self, ordinal: int) -> list[Member]:
        """Return the members of a pod's name: two while a wiped one comes back."""
        name = names.pod(self.name, ordinal)
        return [member for member in self.members if member.name == name]

    def member_by_id(self, member_id: str) -> Member | None:
        """Return a member in force."""
        return next((member for member in self.members if member.id == member_id), None)

    def ordinal(self, member: Member) -> int | None:
        """Return the ordinal of a member, None for one that is not the operator's."""
        return names.ordinal_of(self.name, member.name)

    def leads(self, member: Member) -> bool:
        """Whether it is the leader."""
        return self.leader is not None and self.leader[1].member_id == member.id

    # --- Quorums --------------------------------------------------------------------------------

    @cached_property
    def voters(self) -> list[Member]:
        """The members that vote."""
        return [member for member in self.members if member.voter]

    @cached_property
    def answering(self) -> set[str]:
        """The ids of members whose node answers, as a member of the cluster in view."""
        return {
            node.member_id
            for node in self.observed.nodes.values()
            if node.state == "member" and node.cluster_id == self.view.cluster_id
        }

    def is_alive(self, member: Member) -> bool:
        """Whether leader (if there is one) and operator both hear the member."""
        if member.id not in self.answering and self.ordinal(member) is not None:
            return False
        if self.leader is None or self.leads(member):
            return True
        return member.silent_ms is not None and member.silent_ms < ALIVE_MS

    def alive_voters(self, without: Collection[str] = ()) -> list[Member]:
        """Return the voters that are heard and, unless they lead, keep up."""
        return [
            member
            for member in self.voters
            if member.id not in without
            and self.is_alive(member)
            and (self.leader is None or member.caught_up or self.leads(member))
        ]

    def survives_stop(self, ids: Collection[str]) -> bool:
        """Whether a quorum is left while these members are stopped. A single voter has none to
        keep: it cannot be restarted in any other way."""
        if len(self.voters) == 1:
            return True
        return len(self.alive_voters(ids)) >= quorum(len(self.voters))

    def survives_removal(self, ids: Collection[str]) -> bool:
        """Whether those that stay have a quorum of their own, and one now to commit the change."""
        staying = [member for member in self.voters if member.id not in ids]
        return (
            bool(staying)
            and len(self.alive_voters(ids)) >= quorum(len(staying))
            and len(self.alive_voters()) >= quorum(len(self.voters))
        )


def quorum(voters: int) -> int:
    """Return how many of so many voters decide."""
    return voters // 2 + 1


def wanted_voters(members: int, ceiling: int) -> int:
    """Return how many of so many members vote: the largest odd number not above either."""
    wanted = max(1, min(members, ceiling))
    return wanted if wanted % 2 else wanted - 1
