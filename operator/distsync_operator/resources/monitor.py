"""The ServiceMonitor of the Prometheus operator, where its CRD is installed."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import metadata
from distsync_operator.spec import Cluster, Manifest


def service_monitor(cluster: Cluster) -> Manifest:
    """Have every node scraped, ready or not: the headless Service lists them all."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(cluster, cluster.name, names.NODE),
        "spec": {
            "selector": {
                "matchLabels": {
                    **names.selector(cluster.name, names.NODE),
                    names.HEADLESS_LABEL: "true",
                }
            },
            "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
        },
    }
