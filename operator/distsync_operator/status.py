"""The status of a resource, from what was observed and decided: pure, and never read back.

What was written before serves one purpose: a condition keeps the time of its last change, and a
status that says the same is not written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsync_operator import names
from distsync_operator.model import Desired, Node, Observed, Plan, Trouble
from distsync_operator.plan.situation import Situation
from distsync_operator.spec import Manifest

Condition = tuple[str, str, str]  # status, reason, message
_MAX_MESSAGE = 1_000
_JUDGED = ("Degraded", "Ready")


def status_of(
    observed: Observed,
    desired: Desired,
    plan: Plan,
    before: Mapping[str, Any],
    now: str,
    failure: Trouble | None = None,
) -> Manifest:
    """Return the whole status. `now` is the time for conditions that change; `failure` is what the
    API server or a node refused in this pass."""
    situation = Situation(observed, desired)
    cluster = desired.cluster
    status: Manifest = {
        "observedGeneration": cluster.generation,
        "replicas": len(observed.pods),
        "readyReplicas": sum(pod.ready and not pod.terminating for pod in observed.pods),
        "selector": ",".join(
            f"{key}={value}" for key, value in names.selector(cluster.name, names.NODE).items()
        ),
        "members": _members(situation),
    }
    view = situation.view
    if view.cluster_id:
        status["clusterId"] = view.cluster_id
        status["term"] = view.term
        status["configIndex"] = view.config_index
    if situation.leader is not None:
        status["leader"] = situation.leader[0].name
    if observed.ring_epoch:
        status["ringEpoch"] = observed.ring_epoch
    versions = {node.version for node in observed.nodes.values() if node.version}
    if len(versions) == 1:
        status["version"] = versions.pop()
    if plan.operation is not None:
        operation = plan.operation
        status["operation"] = {
            "type": operation.type,
            "target": operation.target,
            "step": operation.step,
        }
    trouble = failure or plan.trouble
    found = {
        "Available": _available(situation),
        "Degraded": _degraded(trouble),
        "Progressing": _progressing(situation, plan),
        "Ready": _ready(situation, plan, trouble),
        "RedisReady": _redis_ready(situation),
    }
    status["conditions"] = [
        _condition(kind, *said, cluster.generation, before, now) for kind, said in found.items()
    ]
    return status


def spec_status(body: Manifest, trouble: Trouble, before: Mapping[str, Any], now: str) -> Manifest:
    """Return the status of a resource that cannot be read: what was known, and what is wrong."""
    generation = body["metadata"].get("generation", 0)
    unknown = [one for one in before.get("conditions") or [] if one["type"] not in _JUDGED]
    said = {
        "Degraded": _degraded(trouble),
        "Ready": ("False", trouble.reason, trouble.message),
    }
    conditions = [_condition(kind, *what, generation, before, now) for kind, what in said.items()]
    return {**before, "observedGeneration": generation, "conditions": [*unknown, *conditions]}


def change_of(before: Mapping[str, Any], status: Manifest) -> Manifest | None:
    """Return the merge patch that turns one status into the other, None if there is nothing."""
    if dict(before) == status:
        return None
    return {**{key: None for key in before if key not in status}, **status}


def _members(situation: Situation) -> list[Manifest]:
    pods = {pod.name: pod for pod in situation.observed.pods}
    found = {}
    for member in situation.members:
        node = situation.observed.nodes.get(member.name, Node(state="silent"))
        is_this = node.member_id == member.id
        found[member.name] = {  # the last of a name is the one that came back
            "name": member.name,
            "id": member.id,
            "role": _role(member.voter, leads=situation.leads(member)),
            "state": _state(node) if is_this else "silent",
            "ready": member.name in pods and pods[member.name].ready,
            **({"version": node.version} if is_this and node.version else {}),
        }
    return [found[name] for name in sorted(found)]


def _role(voter: bool, *, leads: bool) -> str:
    if leads:
        return "leader"
    return "voter" if voter else "learner"


def _state(node: Node) -> str:
    if node.state != "member":
        return node.state
    return "draining" if node.draining else "serving"


def _available(situation: Situation) -> Condition:
    if situation.leader is None:
        if not situation.clusters:
            return "False", "NotCreated", "the cluster has not been created yet"
        return "False", "NoLeader", "no node leads: locks are not served"
    if not any(pod.ready for pod in situation.observed.pods):
        return "False", "NoPodReady", "no node is ready"
    return "True", "Serving", "a leader serves locks and nodes are ready"


def _degraded(trouble: Trouble | None) -> Condition:
    if trouble is None:
        return "False", "AsExpected", "nothing is wrong"
    return "True", trouble.reason, trouble.message


def _progressing(situation: Situation, plan: Plan) -> Condition:
    if situation.spec.paused:
        return "Unknown", "Paused", "spec.paused is true: nothing is changed"
    before = situation.desired.waits_for
    if plan.operation is None and before:
        message = f"a new version of the operator changes one cluster at a time: {before} is before"
        return "True", "WaitsForTurn", message
    if plan.operation is None:
        return "False", "Settled", "everything is as wanted"
    operation = plan.operation
    return "True", operation.type, f"{operation.target}: {operation.step}"


def _ready(situation: Situation, plan: Plan, trouble: Trouble | None) -> Condition:
    well = [pod for pod in situation.observed.pods if situation.is_well(pod)]
    wanted = situation.spec.replicas
    redis_status, _, redis_message = _redis_ready(situation)
    if redis_status != "True":
        return "False", "RedisNotReady", redis_message
    if len(well) < wanted:
        message = f"{len(well)} of {wanted} nodes are ready and serve their part of the ring"
        return "False", "NodesNotReady", message
    if trouble is not None:
        return "False", trouble.reason, trouble.message
    if plan.operation is not None:
        return "False", plan.operation.type, f"{plan.operation.target}: {plan.operation.step}"
    return "True", "Ready", f"all {wanted} nodes are ready and serve their part of the ring"


def _redis_ready(situation: Situation) -> Condition:
    observed = situation.observed
    if situation.spec.redis.external is not None:
        if observed.redis_url is None:
            return "False", "SecretMissing", "the Secret with the URL of Redis is not there"
        return "True", "External", "the URL of Redis is known; nodes say whether it answers"
    if observed.redis_set is None or observed.redis_set.ready_replicas < 1:
        trouble = observed.redis_trouble
        if trouble is not None:
            return "False", trouble.reason, trouble.message
        return "False", "NotReady", "the managed Redis is not ready yet"
    return "True", "Ready", "the managed Redis is ready"


def _condition(
    kind: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    before: Mapping[str, Any],
    now: str,
) -> Manifest:
    known = next((one for one in before.get("conditions") or [] if one["type"] == kind), None)
    is_same = known is not None and known.get("status") == status
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": known["lastTransitionTime"] if known and is_same else now,
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
    }
