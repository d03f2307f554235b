"""Pods that Kubernetes cannot end by itself, and members that are replaced on request.

A request (an annotation of the resource) is first written down at the volume claim that is to go,
then taken off the resource: the new claim bears no mark, so it is done exactly once, whenever the
operator dies.
"""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.model import (
    Claim,
    Delete,
    ForgetReplace,
    MarkReplacing,
    Operation,
    Plan,
    Trouble,
)
from distsync_operator.plan.rolling import stop
from distsync_operator.plan.scaling import leave
from distsync_operator.plan.situation import Situation


def stuck(situation: Situation) -> Plan | None:
    """Force the deletion of a pod whose machine is certainly gone: nothing else ever ends it."""
    for pod in (*situation.observed.pods, *situation.observed.redis_pods):
        if pod.terminating and pod.overdue and pod.host_gone:
            action = Delete(kind="Pod", name=pod.name, uid=pod.uid, force=True)
            operation = Operation(type="Recover", target=pod.name, step="give up lost machine")
            return Plan(action=action, operation=operation)
    return None


def requested(situation: Situation) -> Plan | None:
    """Write a request down, once it can be met."""
    pod_name = situation.desired.cluster.replace
    if not pod_name:
        return None
    ordinal = names.ordinal_of(situation.name, pod_name)
    claim = situation.claims.get(ordinal) if ordinal is not None else None
    if ordinal is None or claim is None or ordinal >= situation.spec.replicas:
        message = f"{names.REPLACE_ANNOTATION}: {pod_name} is no pod of this cluster with a volume"
        return Plan(trouble=Trouble(reason="BadReplace", message=message))
    operation = Operation(type="Replace", target=pod_name, step="note request")
    if claim.replacing:
        return Plan(action=ForgetReplace(value=pod_name), operation=operation)
    ids = [member.id for member in situation.members_of(ordinal)]
    if situation.leader is None or not situation.survives_removal(ids):
        message = f"{pod_name} cannot be replaced: too few other voters answer"
        return Plan(trouble=Trouble(reason="QuorumAtRisk", message=message))
    return Plan(action=MarkReplacing(claim=claim.name, uid=claim.uid), operation=operation)


def replace(situation: Situation) -> Plan | None:
    """Take the next step of a replacement that was written down: member, volume, pod."""
    for claim in situation.observed.claims:
        if claim.replacing:
            return _replace(situation, claim)
    return None


def _replace(situation: Situation, claim: Claim) -> Plan:
    pod_name = names.pod(situation.name, claim.ordinal)
    if situation.members_of(claim.ordinal):
        return leave(situation, claim.ordinal, "Replace")
    if not claim.terminating:
        action = Delete(kind="PersistentVolumeClaim", name=claim.name, uid=claim.uid)
        operation = Operation(type="Replace", target=pod_name, step="delete volume")
        return Plan(action=action, operation=operation)
    pod = situation.pods.get(claim.ordinal)
    if pod is not None and not pod.terminating:
        operation = Operation(type="Replace", target=pod_name, step="delete pod")
        return Plan(action=stop(pod), operation=operation)
    return Plan(operation=Operation(type="Replace", target=pod_name, step="wait for new volume"))
