"""Look at everything of one cluster: its objects, its pods and volumes, and what its nodes say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from distsync_operator import names
from distsync_operator.errors import KubeError
from distsync_operator.kube import Kube
from distsync_operator.model import (
    Claim,
    Node,
    ObjectKey,
    Observed,
    Pod,
    StatefulSet,
    Trouble,
    key_of,
)
from distsync_operator.nodes import Nodes
from distsync_operator.plan.objects import known_names
from distsync_operator.resources.secret import secret_value
from distsync_operator.spec import Cluster, Manifest

_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
# What the controller of StatefulSets says of pods and of their claims.
_CREATED, _NOT_CREATED = "SuccessfulCreate", "FailedCreate"
# Why a container does not run, where waiting alone will not help.
_HOPELESS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "CrashLoopBackOff",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}


async def observe_objects(kube: Kube, cluster: Cluster, *, has_monitor: bool) -> Observed:
    """Look at the API server: everything but what nodes say.

    Raises:
        KubeError: it does not answer, or refuses.
    """
    selector = {
        names.MANAGED_BY_LABEL: names.MANAGER,
        names.CLUSTER_LABEL: cluster.name,
    }
    keys = [key for key in known_names(cluster) if has_monitor or key[0] != "ServiceMonitor"]
    kinds = sorted({kind for kind, _ in keys} | {"Pod", "PersistentVolumeClaim"})
    lists = await asyncio.gather(
        *(kube.list(kind, cluster.namespace, labels=selector) for kind in kinds)
    )
    listed = {key_of(item): item for items in lists for item in items or ()}
    objects = await _known(kube, cluster, keys, listed)
    pods = [item for (kind, _), item in listed.items() if kind == "Pod"]
    bodies = [item for (kind, _), item in listed.items() if kind == "PersistentVolumeClaim"]
    pod_uids = {pod["metadata"]["uid"] for pod in pods}
    claims = read_claims(cluster.name, bodies, pod_uids)
    redis_claims = read_claims(names.redis(cluster.name), bodies, pod_uids)
    return Observed(
        objects=objects,
        stateful_set=await _set(kube, objects.get(("StatefulSet", cluster.name)), pods),
        redis_set=await _set(kube, objects.get(("StatefulSet", names.redis(cluster.name))), pods),
        pods=await _pods(kube, cluster.name, names.NODE, pods, claims),
        redis_pods=await _pods(kube, names.redis(cluster.name), names.REDIS, pods, redis_claims),
        claims=claims,
        redis_claims=redis_claims,
        redis_url=await _redis_url(kube, cluster, objects),
        has_service_monitor=has_monitor and lists[kinds.index("ServiceMonitor")] is not None,
    )


async def observe_nodes(
    nodes: Nodes, observed: Observed
) -> tuple[dict[str, Node], int, tuple[str, ...]]:
    """Ask every node who it is, and one that leads (else any) for the ring."""
    answers = await asyncio.gather(*(nodes.look(pod) for pod in observed.pods))
    seen = {pod.name: answer for pod, answer in zip(observed.pods, answers, strict=True)}
    members = [pod for pod in observed.pods if seen[pod.name].state == "member"]
    members.sort(key=lambda pod: seen[pod.name].role != "leader")
    epoch, ring = await nodes.ring(members[0]) if members else (0, ())
    return seen, epoch, ring


async def _known(
    kube: Kube, cluster: Cluster, keys: Iterable[ObjectKey], listed: dict[ObjectKey, Manifest]
) -> dict[ObjectKey, Manifest]:
    """Return the objects of these names, also those that bear no label of ours."""
    missing = [key for key in keys if key not in listed]
    found = await asyncio.gather(
        *(kube.get(kind, cluster.namespace, name) for kind, name in missing)
    )
    unlabelled = zip(missing, found, strict=True)
    return {
        **{key: listed[key] for key in keys if key in listed},
        **{key: {**body, "kind": key[0]} for key, body in unlabelled if body is not None},
    }


async def _redis_url(
    kube: Kube, cluster: Cluster, objects: dict[ObjectKey, Manifest]
) -> str | None:
    external = cluster.spec.redis.external
    if external is None:
        body = objects.get(("Secret", names.redis(cluster.name)))
        return secret_value((body or {}).get("data"), names.REDIS_URL_KEY)
    wanted = external.url_secret_ref
    body = await kube.get("Secret", cluster.namespace, wanted.name)
    return secret_value((body or {}).get("data"), wanted.key)


async def _set(kube: Kube, body: Manifest | None, pods: list[Manifest]) -> StatefulSet | None:
    if body is None:
        return None
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    templates = spec.get("volumeClaimTemplates") or [{}]
    is_current = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    requests = templates[0].get("spec", {}).get("resources", {}).get("requests", {})
    return StatefulSet(
        name=metadata["name"],
        uid=metadata["uid"],
        replicas=spec.get("replicas", 1),
        update_revision=status.get("updateRevision", "") if is_current else "",
        claim_size=str(requests.get("storage", "0")),
        ready_replicas=status.get("readyReplicas", 0),
        terminating="deletionTimestamp" in metadata,
        trouble=await _creation_trouble(kube, body, pods),
    )


async def _creation_trouble(kube: Kube, body: Manifest, pods: list[Manifest]) -> Trouble | None:
    """Return why pods are missing: a quota or a policy may forbid them. Nothing but the Events of
    the StatefulSet says so, and the newest of them counts."""
    metadata = body["metadata"]
    ordinals = [names.ordinal_of(metadata["name"], pod["metadata"]["name"]) for pod in pods]
    there = len([ordinal for ordinal in ordinals if ordinal is not None])
    if there >= body["spec"].get("replicas", 1):
        return None
    of_this = {"involvedObject.uid": metadata["uid"]}
    try:
        events = await kube.list("Event", metadata["namespace"], fields=of_this) or []
    except KubeError as error:
        if error.status == 403:
            return None  # an account that was made for an earlier version may not look at them
        raise
    told = [event for event in events if event.get("reason") in (_CREATED, _NOT_CREATED)]
    newest = max(told, key=_moment, default=None)
    if newest is None or newest["reason"] == _CREATED:
        return None
    return Trouble(reason=_NOT_CREATED, message=newest.get("message") or "pods cannot be created")


def _moment(event: Manifest) -> tuple[str, bool]:
    """Times are whole seconds; of one second, what failed counts."""
    return event.get("lastTimestamp") or "", event["reason"] == _NOT_CREATED


async def _pods(
    kube: Kube, name: str, component: str, bodies: list[Manifest], claims: tuple[Claim, ...]
) -> tuple[Pod, ...]:
    """Return the pods of a StatefulSet of this name."""
    pods = []
    for body in bodies:
        ordinal = names.ordinal_of(name, body["metadata"]["name"])
        labels = body["metadata"].get("labels", {})
        if ordinal is not None and labels.get(names.COMPONENT_LABEL) == component:
            overdue = _is_overdue(body)
            gone = overdue and await _is_machine_gone(kube, body)
            trouble = pod_trouble(body, claims)
            pods.append(_pod(body, ordinal, trouble, overdue=overdue, host_gone=gone))
    return tuple(sorted(pods, key=lambda pod: pod.ordinal))


def _pod(
    body: Manifest, ordinal: int, trouble: Trouble | None, *, overdue: bool, host_gone: bool
) -> Pod:
    metadata, status = body["metadata"], body.get("status") or {}
    return Pod(
        name=metadata["name"],
        ordinal=ordinal,
        uid=metadata["uid"],
        revision=metadata.get("labels", {}).get("controller-revision-hash", ""),
        ip=status.get("podIP", "") or "",
        ready=_condition(status, "Ready").get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        overdue=overdue,
        host_gone=host_gone,
        trouble=trouble,
    )


def _is_overdue(body: Manifest) -> bool:
    """Its deletion timestamp is the end of its grace period; what clock says so decides nothing but
    whether its machine is looked at."""
    stamp = body["metadata"].get("deletionTimestamp")
    if stamp is None:
        return False
    return datetime.now(UTC) > datetime.fromisoformat(stamp) + timedelta(seconds=5)


async def _is_machine_gone(kube: Kube, body: Manifest) -> bool:
    machine = body.get("spec", {}).get("nodeName")
    if not machine:
        return True
    try:
        node = await kube.get("Node", "", machine)
    except KubeError as error:
        if error.status == 403:
            return False  # an operator of one namespace may not look at machines
        raise
    taints = [] if node is None else node.get("spec", {}).get("taints") or []
    return node is None or any(taint.get("key") == _OUT_OF_SERVICE for taint in taints)


def pod_trouble(body: Manifest, claims: Iterable[Claim] = ()) -> Trouble | None:
    """Return why a pod does not run, if it will not by itself; `claims` may be the reason."""
    status = body.get("status") or {}
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return Trouble(
            reason=scheduled.get("reason") or "Unschedulable",
            message=(scheduled.get("message") or "no machine takes the pod")
            + _unbound(body["metadata"]["name"], claims),
        )
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _HOPELESS:
            ended = (container.get("lastState") or {}).get("terminated") or {}
            told = waiting.get("message") or waiting["reason"]
            code = f" (exit code {ended['exitCode']})" if "exitCode" in ended else ""
            return Trouble(reason=waiting["reason"], message=f"{told}{code}")
    return None


def _unbound(pod: str, claims: Iterable[Claim]) -> str:
    """Say that the claim of a pod has no volume, and of which class: the scheduler does not."""
    for claim in claims:
        if claim.name == f"data-{pod}" and not claim.bound:
            of_class = f" of storage class {claim.storage_class}" if claim.storage_class else ""
            return f"; {claim.name} has no volume{of_class}"
    return ""


def _condition(status: Manifest, kind: str) -> dict[str, Any]:
    conditions = status.get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), {})


def read_claims(name: str, bodies: list[Manifest], pod_uids: set[str]) -> tuple[Claim, ...]:
    """Return the claims of a StatefulSet of this name, beside pods with these uids."""
    claims = []
    for body in bodies:
        metadata = body["metadata"]
        ordinal = names.claim_ordinal(name, metadata["name"])
        if ordinal is None:
            continue
        phase = (body.get("status") or {}).get("phase", "")
        claims.append(
            Claim(
                name=metadata["name"],
                ordinal=ordinal,
                size=str(body["spec"]["resources"]["requests"]["storage"]),
                uid=metadata["uid"],
                terminating="deletionTimestamp" in metadata or _is_orphan(metadata, pod_uids),
                storage_class=body["spec"].get("storageClassName") or "",
                bound=phase == "Bound",
                lost=phase == "Lost",
                replacing=names.REPLACING_ANNOTATION in (metadata.get("annotations") or {}),
            )
        )
    return tuple(sorted(claims, key=lambda claim: claim.ordinal))


def _is_orphan(metadata: Manifest, pod_uids: set[str]) -> bool:
    """Whether a claim belongs to a pod that is gone: it will be collected, and until then its
    StatefulSet makes no pod of that name, nor looks again afterwards.
    """
    owners = metadata.get("ownerReferences") or []
    return any(one.get("kind") == "Pod" and one.get("uid") not in pod_uids for one in owners)
