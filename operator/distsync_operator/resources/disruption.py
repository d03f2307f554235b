"""The PodDisruptionBudget: evictions take one node at a time."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import metadata
from distsync_operator.spec import Cluster, Manifest


def disruption_budget(cluster: Cluster) -> Manifest:
    """Let a drain of a Kubernetes node evict one pod of the cluster at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(cluster, cluster.name, names.NODE),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(cluster.name, names.NODE)},
        },
    }
