"""The ConfigMap of the nodes: options that are the same for each, as environment variables."""

from __future__ import annotations

from distsync_operator import names
from distsync_operator.resources.common import metadata
from distsync_operator.spec import Cluster, Manifest

DRAIN_MS = 5_000
_DURABILITY = {"Mirrored": "mirrored", "Local": "local", "WriteThrough": "write_through"}


def config_name(cluster: Cluster) -> str:
    """Name of the ConfigMap."""
    return f"{cluster.name}-config"


def config_map(cluster: Cluster) -> Manifest:
    """Return the options of `distsync node` that the resource decides."""
    raft = cluster.spec.raft
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, config_name(cluster), names.NODE),
        "data": {
            "DISTSYNC_VIRTUAL_NODES": str(cluster.spec.ring.virtual_nodes),
            "DISTSYNC_VOTERS": str(raft.voters),
            "DISTSYNC_HEARTBEAT": f"{raft.heartbeat_ms}ms",
            "DISTSYNC_ELECTION_TIMEOUT": f"{raft.election_timeout_ms}ms",
            "DISTSYNC_DRAIN": f"{DRAIN_MS}ms",
            "DISTSYNC_CACHE_MAX_BYTES": str(cluster.spec.cache.max_bytes),
            "DISTSYNC_CACHE_DURABILITY": _DURABILITY[cluster.spec.cache.durability],
        },
    }
