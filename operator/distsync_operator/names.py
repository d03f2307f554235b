"""Names and labels of what the operator makes.

Pods are `<cluster>-<ordinal>`; the node in a pod, its volume and its member have the pod's name.
"""

from __future__ import annotations

import re

GROUP = "distsync.dev"
VERSION = "v1alpha1"
KIND = "DistSyncCluster"
PLURAL = "distsyncclusters"
MANAGER = "distsync-operator"

CLUSTER_LABEL = f"{GROUP}/cluster"
HEADLESS_LABEL = f"{GROUP}/headless"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
NODE = "node"
REDIS = "redis"
OPERATOR = "operator"

# On the resource, by whoever runs the cluster.
REPLACE_ANNOTATION = f"{GROUP}/replace"
RESTARTED_AT_ANNOTATION = f"{GROUP}/restarted-at"
# On pods that use the cluster of its value, in the same namespace.
CLIENT_LABEL = f"{GROUP}/client"
# On what the operator makes.
HASH_ANNOTATION = f"{GROUP}/applied"
GENERATION_ANNOTATION = f"{GROUP}/generation"
CONFIG_HASH_ANNOTATION = f"{GROUP}/config"
REDIS_HASH_ANNOTATION = f"{GROUP}/redis"
REPLACING_ANNOTATION = f"{GROUP}/replacing"

CLIENT_PORT = 8080
PEER_PORT = 8180
REDIS_PORT = 6379
DATA_VOLUME = "data"
REDIS_URL_KEY = "url"
SECRET_KEY = "secret"  # noqa: S105 - the key under which it is kept

MAX_NAME_LENGTH = 40


def labels(cluster: str, component: str) -> dict[str, str]:
    """Return the labels of an object of a cluster."""
    return {**selector(cluster, component), MANAGED_BY_LABEL: MANAGER, CLUSTER_LABEL: cluster}


def selector(cluster: str, component: str) -> dict[str, str]:
    """Return what selects the pods of one component of a cluster; it never changes."""
    return {
        "app.kubernetes.io/name": "distsync",
        "app.kubernetes.io/instance": cluster,
        COMPONENT_LABEL: component,
    }


def headless(cluster: str) -> str:
    """Name of the Service that gives each pod its DNS name."""
    return f"{cluster}-nodes"


def secret(cluster: str) -> str:
    """Name of the Secret that nodes and operator share."""
    return f"{cluster}-secret"


def redis(cluster: str) -> str:
    """Name of everything of the managed Redis."""
    return f"{cluster}-redis"


def pod(cluster: str, ordinal: int) -> str:
    """Name of a pod, its node and its member."""
    return f"{cluster}-{ordinal}"


def claim(cluster: str, ordinal: int) -> str:
    """Name of the volume claim of a pod."""
    return f"{DATA_VOLUME}-{pod(cluster, ordinal)}"


def ordinal_of(cluster: str, name: str) -> int | None:
    """Return the ordinal of a pod or member of that name, None if it is not one of the cluster."""
    found = re.fullmatch(rf"{re.escape(cluster)}-(0|[1-9]\d*)", name)
    return int(found[1]) if found else None


def claim_ordinal(cluster: str, name: str) -> int | None:
    """Return the ordinal of the pod to which a volume claim belongs."""
    prefix = f"{DATA_VOLUME}-"
    return ordinal_of(cluster, name.removeprefix(prefix)) if name.startswith(prefix) else None


def host(cluster: str, namespace: str, pod_name: str) -> str:
    """Return the stable DNS name of a pod; the search path of the pod adds the cluster's domain."""
    return f"{pod_name}.{headless(cluster)}.{namespace}.svc"
