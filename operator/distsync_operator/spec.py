"""The resource `DistSyncCluster` as the API server hands it out, with the defaults of its CRD.

Pod-shaped parts (affinity, env, ...) are passed on as they are: the API server has judged them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from distsync_operator import names
from distsync_operator.errors import SpecError

Manifest = dict[str, Any]


class _Part(Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of the spec."""


class Raft(_Part, frozen=True):
    """How nodes agree; durations are milliseconds."""

    heartbeat_ms: int = 100
    election_timeout_ms: int = 500
    voters: Literal[1, 3, 5, 7] = 7


class Ring(_Part, frozen=True):
    """The hash ring."""

    virtual_nodes: int = 160


class Retention(_Part, frozen=True):
    """What becomes of volumes."""

    when_scaled: Literal["Delete", "Retain"] = "Delete"
    when_deleted: Literal["Delete", "Retain"] = "Retain"


class RedisStorage(_Part, frozen=True):
    """The volume of Redis."""

    size: str = "2Gi"
    storage_class_name: str | None = None


class Storage(RedisStorage, frozen=True):
    """The volumes of nodes."""

    retention: Retention = Retention()


def _redis_resources() -> Manifest:
    return {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}


def _node_resources() -> Manifest:
    return {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


class ManagedRedis(_Part, frozen=True):
    """A Redis that the operator runs."""

    image: str = ""
    storage: RedisStorage = RedisStorage()
    resources: Manifest = field(default_factory=_redis_resources)


class SecretRef(_Part, frozen=True):
    """A key of a Secret in the namespace of the resource."""

    name: str
    key: str = names.REDIS_URL_KEY


class ExternalRedis(_Part, frozen=True):
    """A Redis that is there already."""

    url_secret_ref: SecretRef


class Redis(_Part, frozen=True):
    """Exactly one of them."""

    managed: ManagedRedis | None = None
    external: ExternalRedis | None = None


class Cache(_Part, frozen=True):
    """The cache of each node."""

    max_bytes: int = 67_108_864
    durability: Literal["Mirrored", "Local", "WriteThrough"] = "Mirrored"


class Service(_Part, frozen=True):
    """The Service for clients."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: dict[str, str] = field(default_factory=dict)


class PodTemplate(_Part, frozen=True):
    """What is added to the pods of nodes."""

    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    env: list[Manifest] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Manifest] = field(default_factory=list)
    affinity: Manifest = field(default_factory=dict)
    topology_spread_constraints: list[Manifest] = field(default_factory=list)
    priority_class_name: str = ""
    image_pull_secrets: list[Manifest] = field(default_factory=list)
    security_context: Manifest = field(default_factory=dict)
    resources: Manifest = field(default_factory=_node_resources)


class PodDisruptionBudget(_Part, frozen=True):
    """Whether evictions are limited."""

    enabled: bool = True


class NetworkPolicy(_Part, frozen=True):
    """Whether connections are limited; `clients` are peers as in a NetworkPolicy."""

    enabled: bool = True
    clients: list[Manifest] = field(default_factory=list)


class Spec(_Part, frozen=True):
    """What is wanted."""

    replicas: Annotated[int, Meta(ge=1, le=9)] = 3
    image: str = ""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    raft: Raft = Raft()
    ring: Ring = Ring()
    storage: Storage = Storage()
    redis: Redis = Redis(managed=ManagedRedis())
    cache: Cache = Cache()
    service: Service = Service()
    pod_template: PodTemplate = PodTemplate()
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    network_policy: NetworkPolicy = NetworkPolicy()
    paused: bool = False


class Cluster(Struct, frozen=True, kw_only=True):
    """One resource: who it is and what it wants."""

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: dict[str, str]
    deleting: bool
    spec: Spec

    @property
    def restarted_at(self) -> str:
        """The value of the annotation that asks for a rolling restart."""
        return self.annotations.get(names.RESTARTED_AT_ANNOTATION, "")

    @property
    def replace(self) -> str:
        """The pod that is to be replaced with its volume, if any."""
        return self.annotations.get(names.REPLACE_ANNOTATION, "")

    @property
    def owner(self) -> Manifest:
        """The owner reference of what belongs to this resource."""
        return {
            "apiVersion": f"{names.GROUP}/{names.VERSION}",
            "kind": names.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def read_cluster(body: Mapping[str, Any]) -> Cluster:
    """Read a resource.

    Raises:
        SpecError: it is not what the CRD of this version lets through.
    """
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(body.get("spec") or {}, Spec)
    except msgspec.ValidationError as error:
        raise SpecError(f"spec: {error}") from None
    if (spec.redis.managed is None) == (spec.redis.external is None):
        raise SpecError("spec: exactly one of redis.managed and redis.external is needed")
    if len(metadata["name"]) > names.MAX_NAME_LENGTH:
        raise SpecError(f"the name is longer than {names.MAX_NAME_LENGTH} characters")
    return Cluster(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        annotations=dict(metadata.get("annotations") or {}),
        deleting=metadata.get("deletionTimestamp") is not None,
        spec=spec,
    )
