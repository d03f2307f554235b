"""Options of `distsync node` that an operator sets, on a real node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from process.calls import call, get
from process.cluster import Cluster, ready_cluster
from process.running import eventually
from redis_server import RedisServer


def test_virtual_nodes_stay_and_a_file_names_the_redis(tmp_path: Path, redis: RedisServer) -> None:
    url = tmp_path / "redis-url"
    url.write_text(f"{redis.url}\n")
    options = ["--virtual-nodes=8", f"--redis-file={url}"]
    with ready_cluster(tmp_path, 1, options=options) as cluster:
        assert _ring_of(cluster)["virtual_nodes"] == 8
        reply = call(f"{cluster.url('n1')}/queue/push", {"queue": "q", "body": "hello"})
        assert reply.status == 200, reply

        cluster.kill("n1")
        cluster.options = ["--virtual-nodes=16", *options[1:]]
        cluster.start()
        assert _ring_of(cluster)["virtual_nodes"] == 8, "where keys belong must not change"


def _ring_of(cluster: Cluster) -> dict[str, Any]:
    """The ring, once the node serves in it."""

    def serving() -> dict[str, Any]:
        ring = dict(get(f"{cluster.url('n1')}/cluster/ring"))
        return ring if ring["servers"] else {}

    return eventually(serving, what="a node in the ring")
