"""The managed Redis: one server whose every write is on disk before it is acknowledged."""

from __future__ import annotations

from decimal import Decimal

from distsync_operator import names
from distsync_operator.quantity import parse_quantity
from distsync_operator.resources.common import (
    GRACE_SECONDS,
    Defaults,
    claim_template,
    container_security,
    digest,
    metadata,
    pod_security,
)
from distsync_operator.resources.secret import PASSWORD_KEY, REDIS_AUTH_KEY
from distsync_operator.spec import Cluster, ManagedRedis, Manifest

CONFIG_FILE = "redis.conf"
CONFIG_DIRECTORY = "/etc/redis/config"
SECRET_DIRECTORY = "/etc/redis/secret"  # noqa: S105 - where it is mounted
DATA_DIRECTORY = "/data"
# A rewrite of the append-only file forks: pages that change meanwhile exist twice.
MEMORY_SHARE = Decimal("0.6")
_DEFAULT_LIMIT = "512Mi"
# A server that loads its data accepts connections and refuses commands, and `redis-cli ping` ends
# with 0 all the same. In pipe mode it does so only when a command succeeded, since version 6.2.
_PING = ["redis-cli", "--pipe", "--pipe-timeout", "2"]


def maxmemory_bytes(redis: ManagedRedis) -> int:
    """Return the share of the memory limit that Redis may fill with data."""
    limit = parse_quantity((redis.resources.get("limits") or {}).get("memory", _DEFAULT_LIMIT))
    return int((limit if limit is not None else Decimal(0)) * MEMORY_SHARE)


def redis_service(cluster: Cluster) -> Manifest:
    """Return the Service under which nodes reach it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, names.redis(cluster.name), names.REDIS),
        "spec": {
            "type": "ClusterIP",
            "selector": names.selector(cluster.name, names.REDIS),
            "ports": [
                {
                    "name": "redis",
                    "port": names.REDIS_PORT,
                    "targetPort": "redis",
                    "protocol": "TCP",
                }
            ],
        },
    }


def redis_config(cluster: Cluster, redis: ManagedRedis) -> Manifest:
    """Return the ConfigMap with its configuration; the password is in a file of its Secret."""
    lines = (
        "bind * -::*",
        f"port {names.REDIS_PORT}",
        "protected-mode no",
        f"dir {DATA_DIRECTORY}",
        "appendonly yes",
        "appendfsync always",
        'save ""',
        f"maxmemory {maxmemory_bytes(redis)}",
        "maxmemory-policy noeviction",
        f"include {SECRET_DIRECTORY}/{REDIS_AUTH_KEY}",
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, names.redis(cluster.name), names.REDIS),
        "data": {CONFIG_FILE: "\n".join(lines) + "\n"},
    }


def redis_stateful_set(
    cluster: Cluster, redis: ManagedRedis, defaults: Defaults, *, redis_hash: str
) -> Manifest:
    """Return its StatefulSet of one pod.

    `redis_hash` tells one password from another: Redis reads it only when it starts.
    """
    labels = names.labels(cluster.name, names.REDIS)
    retain = cluster.spec.storage.retention.when_deleted
    config = redis_config(cluster, redis)["data"]
    annotations = {names.GENERATION_ANNOTATION: str(cluster.generation)}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(cluster, names.redis(cluster.name), names.REDIS, annotations),
        "spec": {
            "replicas": 1,
            "serviceName": names.redis(cluster.name),
            "updateStrategy": {"type": "RollingUpdate"},
            "persistentVolumeClaimRetentionPolicy": {
                "whenScaled": "Retain",
                "whenDeleted": retain,
            },
            "selector": {"matchLabels": names.selector(cluster.name, names.REDIS)},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        names.CONFIG_HASH_ANNOTATION: digest(config),
                        names.REDIS_HASH_ANNOTATION: redis_hash,
                    },
                },
                "spec": _pod(cluster, redis, defaults),
            },
            "volumeClaimTemplates": [
                claim_template(
                    cluster, names.REDIS, redis.storage.size, redis.storage.storage_class_name
                )
            ],
        },
    }


def _pod(cluster: Cluster, redis: ManagedRedis, defaults: Defaults) -> Manifest:
    name = names.redis(cluster.name)
    pull_secrets = cluster.spec.pod_template.image_pull_secrets
    return {
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(),
        "containers": [_container(cluster, redis, defaults)],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {
                "name": "secret",
                "secret": {
                    "secretName": name,
                    "defaultMode": 0o440,
                    "items": [{"key": REDIS_AUTH_KEY, "path": REDIS_AUTH_KEY}],
                },
            },
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def _container(cluster: Cluster, redis: ManagedRedis, defaults: Defaults) -> Manifest:
    password = {"name": names.redis(cluster.name), "key": PASSWORD_KEY}
    return {
        "name": "redis",
        "image": redis.image or defaults.redis_image,
        "imagePullPolicy": cluster.spec.image_pull_policy,
        "command": ["redis-server", f"{CONFIG_DIRECTORY}/{CONFIG_FILE}"],
        "ports": [{"name": "redis", "containerPort": names.REDIS_PORT, "protocol": "TCP"}],
        # For the probes: redis-cli takes the password from there.
        "env": [{"name": "REDISCLI_AUTH", "valueFrom": {"secretKeyRef": password}}],
        "resources": redis.resources,
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": names.DATA_VOLUME, "mountPath": DATA_DIRECTORY},
            {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "secret", "mountPath": SECRET_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
        ],
        # Loading takes as long as there are data: ten minutes before anybody loses patience.
        "startupProbe": {
            "exec": {"command": _PING},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 300,
        },
        "readinessProbe": {
            "exec": {"command": _PING},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "tcpSocket": {"port": "redis"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }
