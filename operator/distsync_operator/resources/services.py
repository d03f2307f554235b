"""The two Services of a cluster: one that names its pods, one that clients use."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import metadata
from distsync_operator.spec import Cluster, Manifest

_HTTP = {"name": "http", "port": names.CLIENT_PORT, "targetPort": "http", "protocol": "TCP"}
_PEER = {"name": "peer", "port": names.PEER_PORT, "targetPort": "peer", "protocol": "TCP"}


def headless_service(cluster: Cluster) -> Manifest:
    """Name every pod, also while it is not ready: nodes need the names to become ready."""
    meta = metadata(cluster, names.headless(cluster.name), names.NODE)
    meta["labels"] |= {names.HEADLESS_LABEL: "true"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(cluster.name, names.NODE),
            "ports": [_HTTP, _PEER],
        },
    }


def client_service(cluster: Cluster) -> Manifest:
    """Lead clients to any node that is ready."""
    service = cluster.spec.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, cluster.name, names.NODE, service.annotations),
        "spec": {
            "type": service.type,
            "selector": names.selector(cluster.name, names.NODE),
            "ports": [_HTTP],
        },
    }
