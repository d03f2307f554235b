"""A real Redis for the tests of this folder, and a queue on it whose time the test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import (
    ClaimedMessage,
    NewMessage,
    Popped,
    Pushed,
    QueueConfigChange,
)
from queue_harness import Clock, open_store
from redis_server import RedisServer


class Queue:
    """One queue, in few words."""

    def __init__(self, store: QueueStore, clock: Clock, client: redis.Redis, name: str) -> None:
        self.store = store
        self.clock = clock
        self.client = client
        self.name = name

    def after(self, ms: int) -> Queue:
        """Let time pass."""
        self.clock.advance(ms)
        return self

    def named(self, name: str) -> Queue:
        """Another queue on the same Redis."""
        return Queue(self.store, self.clock, self.client, name)

    async def push(self, *bodies: str, request_id: str = "", **fields: Any) -> tuple[str, ...]:
        """Push messages that are alike but for their bodies; return their ids."""
        messages = [NewMessage(body=body.encode(), **fields) for body in bodies]
        pushed = await self.store.push(self.name, messages, request_id=request_id)
        assert isinstance(pushed, Pushed)
        return pushed.ids

    async def pop(self, count: int = 1, visibility_ms: int = 1_000, **fields: Any) -> Popped:
        return await self.store.pop(self.name, count=count, visibility_ms=visibility_ms, **fields)

    async def claim(self, count: int = 1, visibility_ms: int = 1_000) -> list[ClaimedMessage]:
        return list((await self.pop(count, visibility_ms)).messages)

    async def one(self, visibility_ms: int = 1_000) -> ClaimedMessage:
        (message,) = await self.claim(1, visibility_ms)
        return message

    async def bodies(self, count: int = 100) -> list[str]:
        """Claim messages and return their bodies."""
        return [message.body.decode() for message in await self.claim(count)]

    async def ack(self, *messages: ClaimedMessage, request_id: str = "") -> Any:
        receipts = [message.receipt for message in messages]
        return await self.store.ack(self.name, receipts, request_id=request_id)

    async def nack(self, *messages: ClaimedMessage, **fields: Any) -> Any:
        return await self.store.nack(self.name, [one.receipt for one in messages], **fields)

    async def stats(self) -> Any:
        return await self.store.stats(self.name)

    async def configure(self, **fields: Any) -> Any:
        return await self.store.configure(self.name, QueueConfigChange(**fields), create=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
async def queue(server: RedisServer) -> AsyncIterator[Queue]:
    with server.client() as client:
        client.flushall()
        clock = Clock(client)
        store = await open_store(server)
        yield Queue(store, clock, client, "orders")
        await store.close()


@pytest.fixture
async def stores(server: RedisServer) -> AsyncIterator[list[QueueStore]]:
    """Those of two nodes."""
    server.empty()
    stores = [await QueueStore.open(server.url) for _ in range(2)]
    yield stores
    for store in stores:
        await store.close()
