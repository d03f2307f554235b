"""How a cluster comes to be, and how pods come to belong to it.

A cluster is created of all pods at once, after every one of them said that it is empty; its id is
the uid of the resource, so that a repeated call says the same. Members that miss the call are
reached by the others. Any pod that reports a cluster is adopted, whatever the operator knew before.
"""

from __future__ import annotations

from distsync_operator.model import (
    AddMember,
    Archive,
    Bootstrap,
    Member,
    Node,
    Operation,
    Plan,
    Pod,
    Trouble,
)
from distsync_operator.plan import rolling
from distsync_operator.plan.objects import apply
from distsync_operator.plan.sets import nodes_manifest
from distsync_operator.plan.situation import Situation


def create(situation: Situation) -> Plan | None:
    """Create the cluster if no pod reports one."""
    live = situation.observed.stateful_set
    if situation.clusters or live is None:
        return None
    if live.replicas != situation.spec.replicas:
        return _resize_before(situation, live.replicas)
    repaired = rolling.repair(situation)
    if repaired is not None:
        return repaired
    operation = Operation(type="Create", target=situation.name, step="wait for empty nodes")
    pods = [situation.pods.get(ordinal) for ordinal in range(live.replicas)]
    members: list[Member] = []
    for pod in pods:
        if pod is None or pod.terminating or not situation.node(pod).is_empty:
            return Plan(operation=operation, trouble=_why_not_empty(situation, pod))
        members.append(_member(pod, situation.node(pod)))
    return Plan(
        action=Bootstrap(
            cluster_id=situation.desired.cluster.uid,
            members=tuple(members),
            pods=tuple(pod.name for pod in pods if pod is not None),
        ),
        operation=Operation(type="Create", target=situation.name, step="bootstrap"),
    )


def _resize_before(situation: Situation, replicas: int) -> Plan:
    """The wish changed before there was a cluster. A pod is given up only if it certainly holds
    none: it said so, or its volume never was."""
    wanted = situation.spec.replicas
    operation = Operation(type="Create", target=situation.name, step="resize")
    for ordinal in range(wanted, replicas):
        pod, claim = situation.pods.get(ordinal), situation.claims.get(ordinal)
        is_empty = pod is not None and situation.node(pod).is_empty
        if not is_empty and claim is not None and claim.bound:
            message = f"the volume {claim.name} may hold a cluster; its node has to answer first"
            return Plan(operation=operation, trouble=Trouble(reason="Unknown", message=message))
    return Plan(action=apply(nodes_manifest(situation, wanted)), operation=operation)


def _why_not_empty(situation: Situation, pod: Pod | None) -> Trouble | None:
    if pod is None or situation.node(pod).state != "refused":
        return None
    return refused(situation, [pod.name])


def refused(situation: Situation, pods: list[str]) -> Trouble:
    """Say that nodes have another secret than the operator."""
    message = (
        f"{', '.join(pods)} started with another value than Secret {situation.name}-secret has;"
        " put the old one back, or delete these pods together: locks stop until they are back"
    )
    return Trouble(reason="SecretMismatch", message=message)


def archive(situation: Situation) -> Plan | None:
    """Have a node that was removed once, and is wanted again, start anew."""
    for pod in situation.observed.pods:
        claim = situation.claims.get(pod.ordinal)
        if (
            pod.ordinal < situation.spec.replicas
            and not pod.terminating
            and situation.node(pod).state == "removed"
            and not (claim is not None and claim.replacing)
        ):
            operation = Operation(type="ScaleUp", target=pod.name, step="archive old data")
            return Plan(action=Archive(pod=pod.name), operation=operation)
    return None


def join(situation: Situation) -> Plan | None:
    """Add the first empty node to the cluster, as a learner."""
    for ordinal, pod in sorted(situation.pods.items()):
        node, claim = situation.node(pod), situation.claims.get(ordinal)
        if not node.is_empty or pod.terminating or ordinal >= situation.spec.replicas:
            continue
        if claim is not None and claim.replacing:
            continue
        if situation.member_by_id(node.member_id) is not None:
            continue  # the leader's first message is on its way
        known = situation.members_of(ordinal)
        return Plan(
            action=AddMember(
                via=situation.via,
                member=_member(pod, node),
                config_index=situation.config_index,
            ),
            operation=Operation(
                type="Recover" if known else "ScaleUp", target=pod.name, step="add learner"
            ),
        )
    return None


def _member(pod: Pod, node: Node) -> Member:
    return Member(
        id=node.member_id,
        name=pod.name,
        voter=False,
        peer_url=node.peer_url,
        client_url=node.client_url,
    )
