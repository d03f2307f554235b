"""NetworkPolicies: who may connect to the nodes and to the managed Redis."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import Defaults, metadata
from distsync_operator.spec import Cluster, Manifest


def nodes_policy(cluster: Cluster, defaults: Defaults) -> Manifest:
    """Close the peer port to all but nodes and operator, the other to all but the named clients and
    those of the same namespace that call themselves so."""
    trusted = [_pods(cluster), _operator(defaults)]
    clients = cluster.spec.network_policy.clients
    return _policy(
        cluster,
        cluster.name,
        names.NODE,
        [
            {
                "ports": [{"port": names.CLIENT_PORT, "protocol": "TCP"}],
                **({"from": [*clients, _labelled(cluster), *trusted]} if clients else {}),
            },
            {"ports": [{"port": names.PEER_PORT, "protocol": "TCP"}], "from": trusted},
        ],
    )


def redis_policy(cluster: Cluster) -> Manifest:
    """Close the managed Redis to all but the nodes of its cluster."""
    return _policy(
        cluster,
        names.redis(cluster.name),
        names.REDIS,
        [{"ports": [{"port": names.REDIS_PORT, "protocol": "TCP"}], "from": [_pods(cluster)]}],
    )


def _policy(cluster: Cluster, name: str, component: str, ingress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster, name, component),
        "spec": {
            "podSelector": {"matchLabels": names.selector(cluster.name, component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _pods(cluster: Cluster) -> Manifest:
    return {"podSelector": {"matchLabels": names.selector(cluster.name, names.NODE)}}


def _labelled(cluster: Cluster) -> Manifest:
    return {"podSelector": {"matchLabels": {names.CLIENT_LABEL: cluster.name}}}


def _operator(defaults: Defaults) -> Manifest:
    namespace = defaults.operator_namespace
    labels = {"kubernetes.io/metadata.name": namespace} if namespace else {}
    return {
        "namespaceSelector": {"matchLabels": labels} if labels else {},
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": names.MANAGER,
                names.COMPONENT_LABEL: names.OPERATOR,
            }
        },
    }
