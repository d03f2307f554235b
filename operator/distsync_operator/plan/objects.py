"""The objects of a cluster other than pods and volumes: made, corrected, and taken away."""

from __future__ import annotations

from collections.abc import Iterator

from distsync_operator import names
from distsync_operator.matching import stamped
from distsync_operator.model import Action, Apply, Delete, ObjectKey, Plan, Trouble, key_of
from distsync_operator.plan.situation import Situation
from distsync_operator.resources.config import config_map, config_name
from distsync_operator.resources.disruption import disruption_budget
from distsync_operator.resources.monitor import service_monitor
from distsync_operator.resources.network import nodes_policy, redis_policy
from distsync_operator.resources.redis import redis_config, redis_service
from distsync_operator.resources.secret import redis_secret, shared_secret
from distsync_operator.resources.services import client_service, headless_service
from distsync_operator.spec import Cluster, Manifest

# Kinds of which one may be there and not be wanted any more.
_OPTIONAL = ("PodDisruptionBudget", "NetworkPolicy")


def known_names(cluster: Cluster) -> list[ObjectKey]:
    """Return every object that may belong to a cluster, pods and claims aside.

    A Redis that is not ours has none, now or before: managed and external never change places.
    """
    name, redis = cluster.name, names.redis(cluster.name)
    of_nodes = [
        ("Secret", names.secret(name)),
        ("ConfigMap", config_name(cluster)),
        ("Service", names.headless(name)),
        ("Service", name),
        ("PodDisruptionBudget", name),
        ("NetworkPolicy", name),
        ("StatefulSet", name),
        ("ServiceMonitor", name),
    ]
    of_redis = ("Secret", "ConfigMap", "Service", "NetworkPolicy", "StatefulSet")
    is_ours = cluster.spec.redis.managed is not None
    return [*of_nodes, *((kind, redis) for kind in of_redis if is_ours)]


def foreign(situation: Situation) -> Plan | None:
    """Touch nothing while an object of a wanted name belongs to somebody else."""
    named = {key_of(manifest) for manifest in wanted(situation)}
    for (kind, name), live in situation.observed.objects.items():
        is_wanted = kind == "StatefulSet" or (kind, name) in named
        if is_wanted and not _is_ours(situation.desired.cluster, live):
            message = (
                f"{kind} {name} exists and does not belong to this resource; delete or rename it"
            )
            return Plan(trouble=Trouble(reason="NameTaken", message=message))
    return None


def _is_ours(cluster: Cluster, live: Manifest) -> bool:
    metadata = live["metadata"]
    for reference in metadata.get("ownerReferences") or []:
        if reference.get("controller"):
            return bool(reference["uid"] == cluster.uid)
    labels = metadata.get("labels") or {}
    return bool(
        labels.get(names.MANAGED_BY_LABEL) == names.MANAGER
        and labels.get(names.CLUSTER_LABEL) == cluster.name
    )


def supporting(situation: Situation) -> Plan | None:
    """Make the first object that is missing or different what it should be; take away the rest."""
    objects = situation.observed.objects
    manifests = {key_of(manifest): manifest for manifest in wanted(situation)}
    for key, manifest in manifests.items():
        live = objects.get(key)
        if live is not None and live["metadata"].get("deletionTimestamp"):
            continue
        if live is None or not situation.is_as_wanted(live, manifest):
            return Plan(action=apply(manifest))
    for key, live in objects.items():
        is_ours = _is_ours(situation.desired.cluster, live)
        if key[0] in _OPTIONAL and key not in manifests and is_ours:
            return Plan(action=_delete(key, live))
    return None


def apply(manifest: Manifest) -> Action:
    """Return the action that makes a manifest true."""
    return Apply(manifest=stamped(manifest))


def _delete(key: ObjectKey, live: Manifest) -> Action:
    kind, name = key
    return Delete(kind=kind, name=name, uid=live["metadata"]["uid"])


def wanted(situation: Situation) -> Iterator[Manifest]:
    """Return what is wanted beside the StatefulSets, in the order in which it is made."""
    cluster, defaults = situation.desired.cluster, situation.desired.defaults
    yield shared_secret(
        cluster, _kept(situation, names.secret(cluster.name)), situation.desired.token
    )
    yield config_map(cluster)
    yield headless_service(cluster)
    yield client_service(cluster)
    if cluster.spec.pod_disruption_budget.enabled:
        yield disruption_budget(cluster)
    if cluster.spec.network_policy.enabled:
        yield nodes_policy(cluster, defaults)
    if situation.observed.has_service_monitor:
        yield service_monitor(cluster)
    redis = cluster.spec.redis.managed
    if redis is None:
        return
    yield redis_secret(
        cluster, _kept(situation, names.redis(cluster.name)), situation.desired.token
    )
    yield redis_config(cluster, redis)
    yield redis_service(cluster)
    if cluster.spec.network_policy.enabled:
        yield redis_policy(cluster)


def _kept(situation: Situation, name: str) -> dict[str, str] | None:
    live = situation.observed.objects.get(("Secret", name))
    return (live.get("data") or {}) if live is not None else None
