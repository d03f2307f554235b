"""A broker of scripted nodes with queues on a real Redis, all in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from distsync import Client, SyncQueue
from distsync.integrations.dramatiq import DistSyncBroker
from distsync.portal import Portal
from distsync_node.queues.service import QueueService
from redis_server import RedisServer
from unit.client.queues.conftest import QueueCluster

_namespaces = (f"app{number}" for number in itertools.count())


class Served:
    """A cluster in a thread of its own."""

    def __init__(self, redis: RedisServer) -> None:
        self.portal = Portal("cluster-under-test")
        self.cluster: QueueCluster
        self.portal.call(self._start, redis)

    async def _start(self, redis: RedisServer) -> None:
        queues = QueueService(redis.url)
        await queues.start()
        self.cluster = QueueCluster(queues)
        await self.cluster.start(2)

    def asks(self, verb: str) -> int:
        return len(self.cluster.asks(verb))

    def fault(self, path: str, **what: Any) -> None:
        """From now on, on all nodes."""
        for node in self.cluster.nodes.values():
            node.fault(path, times=1_000_000, **what)

    def heal(self) -> None:
        for node in self.cluster.nodes.values():
            node.faults.clear()

    def close(self) -> None:
        async def stop() -> None:
            await self.cluster.stop()
            await self.cluster.queues.close()

        self.portal.close(stop)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def served(redis: RedisServer) -> Iterator[Served]:
    served = Served(redis)
    yield served
    served.close()


@pytest.fixture
def make_broker(served: Served) -> Iterator[Callable[..., DistSyncBroker]]:
    made = []

    def make(**options: Any) -> DistSyncBroker:
        options = {"namespace": next(_namespaces), "timeout": 5, **options}
        broker = DistSyncBroker(served.cluster.urls(), **options)
        made.append(broker)
        dramatiq.set_broker(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make_broker: Callable[..., DistSyncBroker]) -> DistSyncBroker:
    return make_broker()


@pytest.fixture
def queue(served: Served, broker: DistSyncBroker) -> Iterator[SyncQueue]:
    """The queue `default` of that broker, as other clients see it."""
    with Client(served.cluster.urls()) as client:
        yield client.queue(f"{broker._prefix}default")
