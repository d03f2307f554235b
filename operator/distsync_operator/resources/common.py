"""What all builders share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from distsync_operator import names
from distsync_operator.spec import Cluster, Manifest

USER_ID = 65532
GRACE_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What this installation of the operator fills in.

    `operator_namespace` is where the operator runs; '' if it is not known.
    """

    image: str
    redis_image: str
    operator_namespace: str = ""


def metadata(
    cluster: Cluster, name: str, component: str, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return the metadata of an object that belongs to a cluster."""
    return {
        "name": name,
        "namespace": cluster.namespace,
        "labels": names.labels(cluster.name, component),
        "ownerReferences": [cluster.owner],
        **({"annotations": dict(annotations)} if annotations else {}),
    }


def digest(value: Any) -> str:
    """Return 16 hex digits that are equal for equal JSON values."""
    content = msgspec.json.encode(value, order="sorted")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def keyed_digest(value: str, key: str) -> str:
    """Return 16 hex digits that tell a value from another, and nothing of it to who lacks the key:
    who may look at pods could else try passwords without anybody noticing."""
    return hmac.digest(key.encode(), value.encode(), "sha256").hex()[:16]


def without_empty(manifest: Manifest) -> Manifest:
    """Leave out what says nothing: None, '' and empty lists and maps at the first level."""
    return {key: value for key, value in manifest.items() if value not in (None, "", [], {})}


def pod_security(overrides: Manifest | None = None) -> Manifest:
    """Return the security context of a pod that meets the restricted standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **(overrides or {}),
    }


def container_security() -> Manifest:
    """Return the security context of a container that meets the restricted standard."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def http_probe(path: str, **timing: int) -> Manifest:
    """Return a probe of the port for clients."""
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def claim_template(
    cluster: Cluster, component: str, size: str, storage_class: str | None
) -> Manifest:
    """Return the template of the volume claims of a StatefulSet."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.DATA_VOLUME,
            "labels": names.labels(cluster.name, component),
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            **({"storageClassName": storage_class} if storage_class else {}),
        },
    }
