"""Secrets: made once from randomness that is handed in, and kept as they are from then on."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping

from distsync_operator import names
from distsync_operator.resources.common import metadata
from distsync_operator.spec import Cluster, Manifest

PASSWORD_KEY = "password"  # noqa: S105 - the key under which it is kept
REDIS_AUTH_KEY = "auth.conf"


def shared_secret(cluster: Cluster, kept: Mapping[str, str] | None, token: str) -> Manifest:
    """Return the Secret that nodes, administrators and the operator share.

    `kept` is the data of the one that exists, base64-encoded as the API server has it.
    """
    value = _kept_value(kept, names.SECRET_KEY) or token
    return _secret(cluster, names.secret(cluster.name), names.NODE, {names.SECRET_KEY: value})


def redis_secret(cluster: Cluster, kept: Mapping[str, str] | None, token: str) -> Manifest:
    """Return the Secret with the password of Redis: as a URL for nodes, as a file for Redis."""
    password = _kept_value(kept, PASSWORD_KEY) or token
    host = f"{names.redis(cluster.name)}.{cluster.namespace}.svc"
    data = {
        PASSWORD_KEY: password,
        names.REDIS_URL_KEY: f"redis://:{password}@{host}:{names.REDIS_PORT}/0",
        REDIS_AUTH_KEY: f"requirepass {password}\n",
    }
    return _secret(cluster, names.redis(cluster.name), names.REDIS, data)


def secret_of(objects: Mapping[tuple[str, str], Manifest], cluster: str) -> str | None:
    """Return the secret that nodes and operator share, None if there is none among the objects."""
    return secret_value(
        objects.get(("Secret", names.secret(cluster)), {}).get("data"), names.SECRET_KEY
    )


def secret_value(data: Mapping[str, str] | None, key: str) -> str | None:
    """Return a value of a Secret's data, None if it is absent, empty or no text."""
    try:
        return b64decode((data or {}).get(key, ""), validate=True).decode().strip() or None
    except ValueError:
        return None


def _kept_value(kept: Mapping[str, str] | None, key: str) -> str | None:
    value = secret_value(kept, key)
    return value if value is not None and value.isprintable() else None


def _secret(cluster: Cluster, name: str, component: str, data: Mapping[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(cluster, name, component),
        "type": "Opaque",
        "data": {key: b64encode(value.encode()).decode() for key, value in data.items()},
    }
