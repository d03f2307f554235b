"""What an empty node of a static list does: create the cluster, join it, or wait.

Guarantees, whatever is lost, delayed or wiped meanwhile:

- A cluster is created only by the first-listed node, and only after *every* listed node, itself
  included, has answered under its own name and another id that it belongs to none. (A list that
  leads to one process twice would found a cluster whose quorum that process is.)
- Any node that reports a cluster forbids creating another.
- Two quorums that do not meet cannot come to be: a genesis names member ids, each id is minted once
  for an empty disk, and a member adopts at most one cluster before it votes. Two competing lists
  would need a common member that adopts both.

Source: design §2, "Identity".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from distsync_node.raft.types import Member, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a node says of itself; `known_ids` are the members of its cluster."""

    member: Member
    uninitialised: bool
    cluster_id: str | None
    known_ids: tuple[MemberId, ...] = ()
    leader: Member | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCluster:
    """Send a bootstrap with these members to each of them."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCluster:
    """Ask the leader of that cluster to add us as a learner."""

    cluster_id: str
    leader: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Probe again later."""

    reason: str


Decision: TypeAlias = CreateCluster | JoinCluster | Wait


def decide(
    own: Identity,
    listed: tuple[str, ...],
    answers: Mapping[str, Identity | None],
    *,
    may_create: bool,
) -> Decision:
    """Return what the empty node `own` does, given the answers of the listed names.

    `answers` maps each other listed name to what it said, or to None if it did not answer.
    """
    clusters = [
        answer
        for answer in answers.values()
        if answer is not None and answer.cluster_id is not None
    ]
    if clusters:
        return _join(own, clusters)
    if not may_create or not listed or listed[0] != own.member.name:
        return Wait(reason="waiting for the cluster to be created")
    members = []
    for name in listed:
        answer = own if name == own.member.name else answers.get(name)
        if answer is None:
            return Wait(reason=f"waiting for {name} to answer")
        if answer.member.name != name:
            return Wait(reason=f"at the address of {name} in the list answers {answer.member.name}")
        if not answer.uninitialised:
            return Wait(reason=f"waiting for {name}, which is joining a cluster or was removed")
        members.append(answer.member)
    if len({member.id for member in members}) != len(members):
        return Wait(
            reason="two of the listed nodes answer with one id: is a data directory a copy?"
        )
    return CreateCluster(members=tuple(members))


def _join(own: Identity, clusters: list[Identity]) -> Decision:
    ids = {answer.cluster_id for answer in clusters}
    if len(ids) > 1:
        return Wait(
            reason=f"the listed nodes belong to different clusters: {sorted(map(str, ids))}"
        )
    if any(own.member.id in answer.known_ids for answer in clusters):
        return Wait(reason="waiting for the leader's first message")
    for answer in clusters:
        if answer.leader is not None and answer.cluster_id is not None:
            return JoinCluster(cluster_id=answer.cluster_id, leader=answer.leader)
    return Wait(reason="waiting for the cluster to have a leader")
