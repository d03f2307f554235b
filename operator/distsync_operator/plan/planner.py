"""The order in which the rules are asked; the first that has something to say decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as changed

from distsync_operator import names
from distsync_operator.model import Desired, Observed, Operation, Plan, Trouble
from distsync_operator.plan import formation, objects, replacing, rolling, scaling, sets
from distsync_operator.plan.situation import Situation, quorum

_Rule = Callable[[Situation], Plan | None]


def plan(observed: Observed, desired: Desired) -> Plan:
    """Return what to do next, at most one thing, and what is to be said about it."""
    situation = Situation(observed, desired)
    if desired.cluster.deleting:
        return Plan()
    if desired.cluster.spec.paused:
        return Plan(trouble=_trouble(situation))
    decision = _first(situation, _RULES) or _settle(situation)
    decision = _grow_meanwhile(situation, decision)
    if decision.trouble is None:
        decision = changed(decision, trouble=_trouble(situation))
    return decision


def _first(situation: Situation, rules: tuple[_Rule, ...]) -> Plan | None:
    """Return the first decision with something to do or to wait for; keep the first trouble."""
    trouble: Trouble | None = None
    for rule in rules:
        decision = rule(situation)
        if decision is None:
            continue
        trouble = trouble or decision.trouble
        if decision.action is not None or decision.operation is not None:
            return changed(decision, trouble=trouble)
        if rule in _BARRIERS:
            return decision
    return Plan(trouble=trouble) if trouble is not None else None


def _grow_meanwhile(situation: Situation, decision: Plan) -> Plan:
    """Grow volumes while there is nothing else to do.

    Nothing waits for it, since it may be refused for ever; and it waits for nothing that is under
    way, since full volumes may be what keeps nodes from getting on.
    """
    if decision.action is not None or objects.foreign(situation) is not None:
        return decision
    growth = sets.grow(situation)
    if growth is None:
        return decision
    operation = decision.operation or growth.operation
    return Plan(action=growth.action, operation=operation, trouble=decision.trouble)


def _without_leader(situation: Situation) -> Plan | None:
    """Mend what no quorum needs, wait for an election, or say what has to come back."""
    if situation.leader is not None:
        return None
    if len(situation.leaders) > 1:
        return Plan(operation=_recover(situation, "wait"), trouble=_conflict(situation))
    repaired = rolling.repair(situation)
    if repaired is not None:
        return repaired
    missing = [member.name for member in situation.voters if not situation.is_alive(member)]
    voters = len(situation.voters)
    if not voters or voters - len(missing) >= quorum(voters):
        return Plan(operation=_recover(situation, "wait for a leader"))
    return Plan(operation=_recover(situation, "wait for a quorum"), trouble=_lost(missing, voters))


def _lost(missing: list[str], voters: int) -> Trouble:
    message = (
        f"{', '.join(sorted(set(missing)))} of {voters} voters do not answer, and"
        f" {quorum(voters)} are needed. Bring their pods back on their volumes, and delete no"
        " volume: they hold what was acknowledged. The cluster goes on by itself then; queues are"
        " served meanwhile. If the volumes are lost for good, see docs/kubernetes.md"
    )
    return Trouble(reason="QuorumLost", message=message)


def _conflict(situation: Situation) -> Trouble:
    message = (
        f"nodes belong to different clusters ({', '.join(sorted(situation.clusters))}); replace the"
        " volumes that do not belong here"
    )
    return Trouble(reason="ConflictingClusters", message=message)


def _recover(situation: Situation, step: str) -> Operation:
    return Operation(type="Recover", target=situation.name, step=step)


def _settle(situation: Situation) -> Plan:
    """Everything is done but for nodes that are not well yet."""
    for ordinal in range(situation.spec.replicas):
        pod = situation.pods.get(ordinal)
        if pod is None or not situation.is_well(pod):
            target = names.pod(situation.name, ordinal)
            return Plan(operation=Operation(type="Recover", target=target, step="wait for node"))
    return Plan()


def _trouble(situation: Situation) -> Trouble | None:
    """What keeps the cluster from being as wanted although nothing can be done here."""
    pods = situation.observed.pods
    refused = [pod.name for pod in pods if situation.node(pod).state == "refused"]
    if refused:
        return formation.refused(situation, refused)
    for pod in pods:
        if pod.trouble is not None and not pod.ready:
            return pod.named_trouble
    live = situation.observed.stateful_set
    if live is not None and live.trouble is not None:
        return live.trouble
    for claim in situation.observed.claims:
        if claim.lost:
            message = f"the volume of {claim.name} is lost; replace its member"
            return Trouble(reason="VolumeLost", message=message)
    if len(situation.clusters) > 1:
        return _conflict(situation)
    return sets.missing_url(situation) or situation.observed.redis_trouble


_RULES: tuple[_Rule, ...] = (
    objects.foreign,
    replacing.stuck,
    objects.supporting,
    sets.redis,
    rolling.repair_redis,
    sets.nodes,
    formation.create,
    scaling.restore,
    _without_leader,
    formation.archive,
    formation.join,
    rolling.repair,
    replacing.requested,
    replacing.replace,
    scaling.down,
    rolling.roll,
    scaling.up,
)
# Nothing further is done while these say something, even if that is only that something is wrong.
_BARRIERS = (objects.foreign, sets.nodes)
