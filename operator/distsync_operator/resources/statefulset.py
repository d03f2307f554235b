"""The StatefulSet of the nodes.

`OnDelete`: the operator decides when a pod is replaced, since only it knows who leads and whether
a quorum survives. `Parallel`: pods do not wait for each other, or a cluster that lost its quorum
could not come back.
"""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import (
    GRACE_SECONDS,
    Defaults,
    claim_template,
    container_security,
    digest,
    http_probe,
    metadata,
    pod_security,
    without_empty,
)
from distsync_operator.resources.config import config_map, config_name
from distsync_operator.spec import Cluster, Manifest

SECRET_DIRECTORY = "/etc/distsync/secret"  # noqa: S105 - where it is mounted
REDIS_DIRECTORY = "/etc/distsync/redis"
DATA_DIRECTORY = "/var/lib/distsync"
STARTUP_SECONDS = 600
_HEALTH_PERIOD_SECONDS = 5
# So long the endpoint of a pod that ends stays in use after the API server was told.
PRE_STOP_SECONDS = 2


def stateful_set(
    cluster: Cluster, defaults: Defaults, *, replicas: int, redis_hash: str
) -> Manifest:
    """Return the StatefulSet with that many replicas.

    `redis_hash` tells one Redis URL from another: pods are replaced when it changes.
    """
    retention = cluster.spec.storage.retention
    storage = cluster.spec.storage
    annotations = {names.GENERATION_ANNOTATION: str(cluster.generation)}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(cluster, cluster.name, names.NODE, annotations),
        "spec": {
            "replicas": replicas,
            "serviceName": names.headless(cluster.name),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {
                "whenScaled": retention.when_scaled,
                "whenDeleted": retention.when_deleted,
            },
            "selector": {"matchLabels": names.selector(cluster.name, names.NODE)},
            "template": _pod_template(cluster, defaults, redis_hash),
            "volumeClaimTemplates": [
                claim_template(cluster, names.NODE, storage.size, storage.storage_class_name)
            ],
        },
    }


def _pod_template(cluster: Cluster, defaults: Defaults, redis_hash: str) -> Manifest:
    wanted = cluster.spec.pod_template
    annotations = {
        **wanted.annotations,
        names.CONFIG_HASH_ANNOTATION: digest(config_map(cluster)["data"]),
        names.REDIS_HASH_ANNOTATION: redis_hash,
    }
    if cluster.restarted_at:
        annotations[names.RESTARTED_AT_ANNOTATION] = cluster.restarted_at
    return {
        "metadata": {
            "labels": {**wanted.labels, **names.labels(cluster.name, names.NODE)},
            "annotations": annotations,
        },
        "spec": without_empty(
            {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "securityContext": pod_security(wanted.security_context),
                "containers": [_container(cluster, defaults)],
                "volumes": [
                    {
                        "name": "secret",
                        "secret": {
                            "secretName": names.secret(cluster.name),
                            "defaultMode": 0o440,
                        },
                    },
                    {
                        "name": "redis",
                        "secret": {**_redis_secret(cluster), "defaultMode": 0o440},
                    },
                    {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
                ],
                "nodeSelector": wanted.node_selector,
                "tolerations": wanted.tolerations,
                "affinity": wanted.affinity,
                "topologySpreadConstraints": wanted.topology_spread_constraints or _spread(cluster),
                "priorityClassName": wanted.priority_class_name,
                "imagePullSecrets": wanted.image_pull_secrets,
            }
        ),
    }


def _spread(cluster: Cluster) -> list[Manifest]:
    """Prefer different zones and machines, without refusing to start on one."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector(cluster.name, names.NODE)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def _container(cluster: Cluster, defaults: Defaults) -> Manifest:
    return {
        "name": "node",
        "image": cluster.spec.image or defaults.image,
        "imagePullPolicy": cluster.spec.image_pull_policy,
        "command": ["distsync", "node"],
        "ports": [
            {"name": "http", "containerPort": names.CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": names.PEER_PORT, "protocol": "TCP"},
        ],
        # What the resource adds comes last and wins: it is for whoever knows better.
        "envFrom": [{"configMapRef": {"name": config_name(cluster)}}],
        "env": [*_environment(cluster), *cluster.spec.pod_template.env],
        "resources": cluster.spec.pod_template.resources,
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": names.DATA_VOLUME, "mountPath": DATA_DIRECTORY},
            {"name": "secret", "mountPath": SECRET_DIRECTORY, "readOnly": True},
            {"name": "redis", "mountPath": REDIS_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
        ],
        # The ports listen before the log is replayed; what takes long is the start of a container.
        "startupProbe": http_probe(
            "/healthz",
            periodSeconds=1,
            timeoutSeconds=_HEALTH_PERIOD_SECONDS,
            failureThreshold=STARTUP_SECONDS,
        ),
        "livenessProbe": http_probe(
            "/healthz",
            periodSeconds=2 * _HEALTH_PERIOD_SECONDS,
            timeoutSeconds=_HEALTH_PERIOD_SECONDS,
            failureThreshold=6,
        ),
        "readinessProbe": http_probe(
            "/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=2
        ),
        "lifecycle": {
            "preStop": {
                "exec": {
                    "command": ["python3", "-c", f"import time; time.sleep({PRE_STOP_SECONDS})"]
                }
            }
        },
    }


def _environment(cluster: Cluster) -> list[Manifest]:
    host = names.host(cluster.name, cluster.namespace, "$(DISTSYNC_NAME)")
    return [
        {"name": "DISTSYNC_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "DISTSYNC_HOST", "value": "0.0.0.0"},
        {"name": "DISTSYNC_PORT", "value": str(names.CLIENT_PORT)},
        {"name": "DISTSYNC_PEER_PORT", "value": str(names.PEER_PORT)},
        {"name": "DISTSYNC_PEER_URL", "value": f"http://{host}:{names.PEER_PORT}"},
        {"name": "DISTSYNC_CLIENT_URL", "value": f"http://{host}:{names.CLIENT_PORT}"},
        # Not the root of the volume: file systems keep something of their own there.
        {"name": "DISTSYNC_DATA_DIR", "value": f"{DATA_DIRECTORY}/node"},
        {"name": "DISTSYNC_SECRET_FILE", "value": f"{SECRET_DIRECTORY}/{names.SECRET_KEY}"},
        {"name": "DISTSYNC_REDIS_FILE", "value": f"{REDIS_DIRECTORY}/{names.REDIS_URL_KEY}"},
    ]


def _redis_secret(cluster: Cluster) -> Manifest:
    """The URL of Redis has a password in it: a file, not a variable that every child inherits."""
    external = cluster.spec.redis.external
    name, key = names.redis(cluster.name), names.REDIS_URL_KEY
    if external is not None:
        name, key = external.url_secret_ref.name, external.url_secret_ref.key
    return {"secretName": name, "items": [{"key": key, "path": names.REDIS_URL_KEY}]}
