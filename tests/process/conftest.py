from __future__ import annotations

from collections.abc import Iterator

import pytest

from process.cluster import Cluster, ready_cluster
from redis_server import RedisServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Cluster]:
    """Three nodes on a Redis."""
    options = ["--redis", redis.url]
    with ready_cluster(tmp_path_factory.mktemp("cluster"), options=options) as cluster:
        yield cluster
