"""Pods of an old revision are replaced one at a time: dead ones first, the leader last."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.model import Delete, Operation, Plan, Pod, Transfer, Trouble
from distsync_operator.plan.situation import Situation


def repair(situation: Situation) -> Plan | None:
    """Replace an old pod that serves nothing: a new revision may be what mends it.

    Without a leader that is a pod whose node does not answer; whoever answers may be needed.
    """
    for pod in situation.observed.pods:
        if not situation.is_outdated(pod) or pod.terminating or pod.ready:
            continue
        member = situation.member_by_id(situation.node(pod).member_id)
        is_needed = member is not None and member.voter and situation.is_alive(member)
        if is_needed and not (
            situation.leader is not None and situation.survives_stop([member.id] if member else [])
        ):
            continue
        return Plan(action=stop(pod), operation=_step(pod, "replace dead pod"))
    return None


def repair_redis(situation: Situation) -> Plan | None:
    """Replace an old pod of the managed Redis that is not ready.

    Its StatefulSet replaces one that is; for the other it waits to become ready, which a revision
    that cannot start never does.
    Source: https://github.com/kubernetes/kubernetes/issues/67250
    """
    live = situation.observed.redis_set
    for pod in situation.observed.redis_pods:
        is_outdated = live is not None and live.update_revision not in ("", pod.revision)
        if is_outdated and not pod.ready and not pod.terminating:
            operation = Operation(type="Update", target=pod.name, step="replace dead pod")
            return Plan(action=stop(pod), operation=operation)
    return None


def roll(situation: Situation) -> Plan | None:
    """Replace the next old pod once every new one is back."""
    old = [pod for pod in situation.observed.pods if _must_restart(situation, pod)]
    if not old:
        return None
    waiting = _not_back(situation)
    if waiting is not None:
        return waiting
    pod = min(old, key=lambda pod: _turn(situation, pod))
    member = situation.member_by_id(situation.node(pod).member_id)
    if member is None:
        return Plan(action=stop(pod), operation=_step(pod, "restart pod"))
    if situation.leads(member):
        heirs = [other for other in situation.alive_voters() if other.id != member.id]
        if heirs:
            heir = max(heirs, key=lambda one: situation.ordinal(one) or 0)
            action = Transfer(via=situation.via, member=heir)
            return Plan(action=action, operation=_step(pod, f"transfer leadership to {heir.name}"))
    if member.voter and not situation.survives_stop([member.id]):
        message = f"{pod.name} cannot be restarted: too few other voters answer"
        trouble = Trouble(reason="QuorumAtRisk", message=message)
        return Plan(operation=_step(pod, "wait for a quorum"), trouble=trouble)
    return Plan(action=stop(pod), operation=_step(pod, "restart pod"))


def stop(pod: Pod) -> Delete:
    """Delete a pod in good order; its StatefulSet makes it again."""
    return Delete(kind="Pod", name=pod.name, uid=pod.uid)


def _must_restart(situation: Situation, pod: Pod) -> bool:
    """An old revision, or a node that drains although it is to stay: the wish changed meanwhile."""
    stays = pod.ordinal < situation.spec.replicas
    drains = situation.node(pod).draining
    return not pod.terminating and stays and (situation.is_outdated(pod) or drains)


def _not_back(situation: Situation) -> Plan | None:
    """Wait for pods that are replaced already, or were never well."""
    live = situation.observed.stateful_set
    for ordinal in range(min(live.replicas if live else 0, situation.spec.replicas)):
        pod = situation.pods.get(ordinal)
        if pod is not None and (_must_restart(situation, pod) or situation.is_well(pod)):
            continue
        target = names.pod(situation.name, ordinal)
        return Plan(operation=Operation(type="RollingUpdate", target=target, step="wait for node"))
    return None


def _turn(situation: Situation, pod: Pod) -> tuple[bool, bool, int]:
    """Learners before voters, the leader last, higher ordinals first."""
    member = situation.member_by_id(situation.node(pod).member_id)
    leads = member is not None and situation.leads(member)
    votes = member is not None and member.voter
    return leads, votes, -pod.ordinal


def _step(pod: Pod, text: str) -> Operation:
    return Operation(type="RollingUpdate", target=pod.name, step=text)
