"""A broker of scripted nodes with queues on a real Redis, all in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest

from distsync import Client, SyncQueue
from distsync.integrations.dramatiq import DistSyncBroker
from redis_server import RedisServer
from unit.client.queues.conftest import ServedQueues

_namespaces = (f"app{number}" for number in itertools.count())


class Served(ServedQueues):
    def fault(self, path: str, **what: Any) -> None:
        """From now on, on all nodes."""
        for node in self.cluster.nodes.values():
            node.fault(path, times=1_000_000, **what)

    def heal(self) -> None:
        self.cluster.forget_faults()


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
