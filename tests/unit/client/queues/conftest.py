"""Scripted nodes with queues on a real Redis, and a client of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from distsync import AsyncClient, Queue
from distsync_node.queues.service import QueueService
from redis_server import RedisServer
from unit.client.scripted_cluster import Asked, ScriptedCluster


class QueueCluster(ScriptedCluster):
    """Nodes that share one queue service."""

    queues: QueueService

    def asks(self, verb: str) -> list[Asked]:
        return self.asked_for(f"/queue/{verb}")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
async def cluster(redis: RedisServer) -> AsyncIterator[QueueCluster]:
    with redis.client() as connection:
        connection.flushall()
    queues = QueueService(redis.url)
    await queues.start()
    cluster = QueueCluster(queues)
    await cluster.start(3)
    yield cluster
    await cluster.stop()
    await queues.close()


@pytest.fixture
def queue(client: AsyncClient) -> Queue:
    return client.queue("q")
