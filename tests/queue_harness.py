"""Queues on a real Redis whose time the test decides.

The scripts of the package read Redis' TIME and nothing else. Here the one file that does so is read
from this module instead: the time is the value of a key. There is no such door in the package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis

from distsync_node.errors import OutcomeUnknown, RedisUnavailable
from distsync_node.queues.runner import Runner
from distsync_node.queues.scripts import read_source
from distsync_node.queues.store import QueueStore, new_request_id
from distsync_node.redis_link.scripts import SourceReader
from redis_server import RedisServer

T = TypeVar("T")

NOW_KEY = "test:now"
START_MS = 1_700_000_000_000
CLOCK_SOURCE = f"local now = tonumber(call('GET', '{NOW_KEY}'))\n"


def read_changed(read: SourceReader, changes: dict[str, Callable[[str], str]]) -> SourceReader:
    """Return a reader that changes some files."""

    def reader(path: str) -> str:
        source = read(path)
        return changes[path](source) if path in changes else source

    return reader


def with_test_clock(read: SourceReader) -> SourceReader:
    """Return a reader of scripts whose clock is the test's."""
    return read_changed(read, {"lib/clock.lua": lambda _: CLOCK_SOURCE})


read_with_test_clock = with_test_clock(read_source)


class Clock:
    """The time of a server, which only the test moves."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.now_ms = START_MS
        self.set()

    def set(self) -> None:
        """Tell the server, which may have been emptied."""
        self._client.set(NOW_KEY, self.now_ms)

    def advance(self, by_ms: int) -> None:
        """Let time pass."""
        self.now_ms += by_ms
        self.set()


async def open_store(server: RedisServer, read: SourceReader = read_with_test_clock) -> QueueStore:
    """Return a store of a node, with the test's clock."""
    runner = Runner(server.url, read_script=read)
    await runner.start()
    return QueueStore(runner)


async def retried(call: Callable[[str], Awaitable[T]]) -> T:
    """Do as a client does: the same request id until there is an answer."""
    request_id = new_request_id()
    while True:
        try:
            return await call(request_id)
        except (RedisUnavailable, OutcomeUnknown):
            continue
