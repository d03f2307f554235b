"""Resources and observations for tests of the pure parts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from distsync_operator import names
from distsync_operator.matching import stamped
from distsync_operator.model import Claim, Desired, Member, Node, Observed, Pod, StatefulSet, key_of
from distsync_operator.plan.objects import wanted
from distsync_operator.plan.sets import nodes_manifest, redis_manifest
from distsync_operator.plan.situation import Situation, wanted_voters
from distsync_operator.resources.common import Defaults
from distsync_operator.spec import Cluster, read_cluster

DEFAULTS = Defaults(image="node:1", redis_image="redis:7", operator_namespace="operators")
UID = "11111111-2222-3333-4444-555555555555"
REDIS_URL = "redis://:secret@demo-redis.apps.svc:6379/0"


def cluster(
    *, annotations: dict[str, str] | None = None, generation: int = 1, **spec: Any
) -> Cluster:
    """A resource `demo` in `apps`."""
    return read_cluster(
        {
            "metadata": {
                "name": "demo",
                "namespace": "apps",
                "uid": UID,
                "generation": generation,
                "annotations": annotations or {},
            },
            "spec": spec,
        }
    )


def desired(resource: Cluster, **changes: Any) -> Desired:
    """What is wanted, by an operator with fixed defaults."""
    fields: dict[str, Any] = {"defaults": DEFAULTS, "token": "t" * 32, **changes}
    return Desired(cluster=resource, **fields)


def member(ordinal: int, *, voter: bool = True, **changes: Any) -> Member:
    """A member that the leader hears and that keeps up."""
    fields: dict[str, Any] = {
        "id": f"id-{ordinal}",
        "name": f"demo-{ordinal}",
        "voter": voter,
        "silent_ms": 50,
        "caught_up": True,
        **changes,
    }
    return Member(**fields)


def pod(ordinal: int, **changes: Any) -> Pod:
    """A ready pod of the current revision."""
    fields: dict[str, Any] = {
        "name": f"demo-{ordinal}",
        "ordinal": ordinal,
        "uid": f"pod-uid-{ordinal}",
        "revision": "rev-2",
        "ip": f"10.0.0.{ordinal}",
        "ready": True,
        **changes,
    }
    return Pod(**fields)


def claim(ordinal: int, **changes: Any) -> Claim:
    """A bound claim."""
    fields: dict[str, Any] = {
        "name": names.claim("demo", ordinal),
        "ordinal": ordinal,
        "size": "2Gi",
        "uid": f"claim-uid-{ordinal}",
        **changes,
    }
    return Claim(**fields)


def node(
    ordinal: int, *, members: tuple[Member, ...] = (), leader: int = 0, **changes: Any
) -> Node:
    """A node that is a member; the one of ordinal `leader` leads."""
    fields: dict[str, Any] = {
        "state": "member",
        "member_id": f"id-{ordinal}",
        "cluster_id": UID,
        "role": "leader" if ordinal == leader else "follower",
        "leader": f"demo-{leader}",
        "term": 3,
        "config_index": 9,
        "members": members,
        "serving": True,
        "ring_epoch": 4,
        **changes,
    }
    return Node(**fields)


def empty(ordinal: int) -> Node:
    """A node that belongs to no cluster."""
    return Node(
        state="uninitialised",
        member_id=f"new-{ordinal}",
        peer_url=f"http://demo-{ordinal}.demo-nodes.apps.svc:8180",
        client_url=f"http://demo-{ordinal}.demo-nodes.apps.svc:8080",
    )


def observed(
    wish: Desired, *, pods: int = 3, replicas: int | None = None, leader: int = 0, **changes: Any
) -> Observed:
    """A cluster of `pods` ready members whose objects are what `wish` wants."""
    count = pods if replicas is None else replicas
    voters = wanted_voters(pods, wish.cluster.spec.raft.voters)
    members = tuple(member(ordinal, voter=ordinal < voters) for ordinal in range(pods))
    stateful_set = StatefulSet(
        name="demo",
        uid="set-uid",
        replicas=count,
        update_revision="rev-2",
        claim_size=wish.cluster.spec.storage.size,
        ready_replicas=pods,
    )
    fields: dict[str, Any] = {
        "objects": objects(wish, count),
        "stateful_set": stateful_set,
        "redis_set": StatefulSet(
            name="demo-redis",
            uid="redis-set-uid",
            replicas=1,
            update_revision="r",
            claim_size="2Gi",
            ready_replicas=1,
        ),
        "pods": tuple(pod(ordinal) for ordinal in range(pods)),
        "claims": tuple(claim(ordinal) for ordinal in range(pods)),
        "nodes": {
            f"demo-{ordinal}": node(ordinal, members=members, leader=leader)
            for ordinal in range(pods)
        },
        "redis_url": REDIS_URL,
        "ring": tuple(f"demo-{ordinal}" for ordinal in range(pods)),
        "ring_epoch": 4,
        **changes,
    }
    return Observed(**fields)


def objects(wish: Desired, replicas: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object as the operator last applied it for this wish."""
    manifests = list(wanted(Situation(Observed(), wish)))
    made = {key_of(manifest): manifest for manifest in manifests}
    before = Situation(Observed(objects=made, redis_url=REDIS_URL), wish)
    manifests.append(nodes_manifest(before, replicas))
    managed = wish.cluster.spec.redis.managed
    if managed is not None:
        manifests.append(redis_manifest(before, managed))
    live = {}
    for manifest in manifests:
        body = deepcopy(stamped(manifest))
        body["metadata"]["uid"] = f"uid-of-{manifest['metadata']['name']}"
        live[key_of(manifest)] = body
    return live
