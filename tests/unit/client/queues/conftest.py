"""Scripted nodes with queues on a real Redis, and a client of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from distsync import AsyncClient, Queue
from distsync_node.queues.service import QueueService
from redis_server import RedisServer
from unit.client.scripted_cluster import Asked, ScriptedCluster, Served


class QueueCluster(ScriptedCluster):
    """Nodes that share one queue service."""

    queues: QueueService

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(QueueService(redis.url))

    async def start(self, count: int) -> None:
        await self.queues.start()
        await super().start(count)

    async def stop(self) -> None:
        await super().stop()
        await self.queues.close()

    def asks(self, verb: str) -> list[Asked]:
        return self.asked_for(f"/queue/{verb}")


class ServedQueues(Served[QueueCluster]):
    def __init__(self, redis: RedisServer) -> None:
        super().__init__(lambda: QueueCluster(redis), 2)

    def asks(self, verb: str) -> int:
        return len(self.cluster.asks(verb))


@pytest.fixture
async def cluster(redis: RedisServer) -> AsyncIterator[QueueCluster]:
    redis.empty()
    cluster = QueueCluster(redis)
    await cluster.start(3)
    yield cluster
    await cluster.stop()


@pytest.fixture
def queue(client: AsyncClient) -> Queue:
    return client.queue("q")
