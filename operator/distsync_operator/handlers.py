"""What kopf watches: resources and what belongs to them. Events only wake workers.

There are no change handlers, daemons or timers, so kopf puts no finalizer and no annotation on
anything: whatever is deleted goes at once, with or without an operator.
"""

from __future__ import annotations

from typing import Any

import kopf

from distsync_operator import names
from distsync_operator.worker import Workers

OWNED = (
    ("", "v1", "pods"),
    ("", "v1", "persistentvolumeclaims"),
    ("", "v1", "configmaps"),
    ("", "v1", "secrets"),
    ("", "v1", "services"),
    ("apps", "v1", "statefulsets"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "networkpolicies"),
)
SERVER_SECONDS = 300
CONNECT_SECONDS = 10


def register(workers: Workers) -> kopf.OperatorRegistry:
    """Return the handlers that wake these workers."""
    registry = kopf.OperatorRegistry()

    async def resource(event: Any, body: Any, **_: Any) -> None:
        metadata = body["metadata"]
        if event["type"] == "DELETED":
            workers.touched(metadata["namespace"], metadata["name"])
        else:
            workers.saw(metadata["namespace"], metadata["name"], metadata["uid"])

    async def owned(body: Any, **_: Any) -> None:
        metadata = body["metadata"]
        cluster = (metadata.get("labels") or {}).get(names.CLUSTER_LABEL)
        if cluster:
            workers.touched(metadata["namespace"], cluster)

    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(resource)
    for group, version, plural in OWNED:
        kopf.on.event(group, version, plural, registry=registry, id=f"owned-{plural}")(owned)
    kopf.on.login(registry=registry)(login)
    return registry


def settings(*, clusterwide: bool) -> kopf.OperatorSettings:
    """Return how kopf watches: only what is ours, each watch for a while, posting nothing.

    An operator of some namespaces may look at neither namespaces nor definitions. Left to itself
    kopf asks for them for a minute before it begins.
    """
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = not clusterwide
    chosen.peering.standalone = True
    chosen.posting.enabled = False
    chosen.watching.server_timeout = SERVER_SECONDS
    chosen.watching.client_timeout = SERVER_SECONDS + CONNECT_SECONDS
    chosen.watching.connect_timeout = CONNECT_SECONDS
    for group, version, plural in OWNED:
        selector = f"{names.MANAGED_BY_LABEL}={names.MANAGER}"
        chosen.watching.label_selectors[group, version, plural] = selector
    return chosen
