"""Locks, a queue and the cache under load, from a pod: what was acknowledged, what was lost.

Runs until SIGTERM, then settles and prints one JSON line: what was done, what was lost, the longest
time in which no lock was granted, and the sum of those times that are long enough to count. Started
with the client's URL in DISTSYNC_URL, in the image of a node; everything it uses is named after its
argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from distsync import AsyncClient, ClaimedMessage, DistSyncError, NotFound

LOCKERS = 4
WRITERS = 2
PAUSE_SECONDS = 0.02
SETTLE_SECONDS = 60.0
# Locks count as not served when nobody of several who ask gets one for so long, as it is without
# a leader; shorter gaps are those of a machine that has too much to do.
GAP_SECONDS = 0.5


class Load:
    """What is done, and what became of it."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self.client = client
        self.name = name
        self.stop = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.broken: list[str] = []
        self.pushed: set[str] = set()
        self.received: set[str] = set()
        self.last_grant = time.monotonic()
        self.longest_gap = self.unavailable = 0.0

    async def repeat(self, what: str, once: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; a refusal is counted, and only what was acknowledged counts."""
        while not self.stop.is_set():
            try:
                await once()
                self.done[what] += 1
            except DistSyncError as error:
                self.failed[f"{what} {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    def granted(self, now: float) -> None:
        """A lock was granted: how long had none been?"""
        gap = now - self.last_grant
        self.last_grant = now
        self.longest_gap = max(self.longest_gap, gap)
        if gap > GAP_SECONDS:
            self.unavailable += gap

    def locker(self, number: int) -> Callable[[], Awaitable[None]]:
        """Take a lock and give it back; its tokens have to rise."""
        newest = 0

        async def once() -> None:
            nonlocal newest
            lock = self.client.lock(f"{self.name}/{number}", ttl=5, wait=5)
            async with lock:
                self.granted(time.monotonic())
                if lock.token is None or lock.token <= newest:
                    self.broken.append(f"token {lock.token} after {newest}")
                newest = lock.token or newest

        return once

    async def push(self) -> None:
        """Push a message and remember it once it is acknowledged."""
        body = f"{len(self.pushed)}-{time.monotonic_ns()}"
        await self.client.queue(self.name).push(body)
        self.pushed.add(body)

    async def receive(self, message: ClaimedMessage) -> None:
        """Take a message."""
        self.received.add(message.body)

    def writer(self, number: int) -> Callable[[], Awaitable[None]]:
        """Write a rising number and read it: an older one than was acknowledged is a loss."""
        key, written = f"{self.name}/{number}", 0
        tried = 0

        async def once() -> None:
            nonlocal written, tried
            tried += 1
            await self.client.cache.set(key, tried)
            written = tried
            try:
                found = await self.client.cache.get(key)
            except NotFound:
                found = None
            if not isinstance(found, int) or found < written:
                self.broken.append(f"{key} is {found!r} after {written}")

        return once

    def summary(self) -> str:
        """One line for whoever started this."""
        return json.dumps(
            {
                "done": dict(self.done),
                "failed": dict(self.failed),
                "broken": self.broken[:20],
                "pushed": len(self.pushed),
                "lost": sorted(self.pushed - self.received)[:20],
                "longest_gap_ms": round(1000 * self.longest_gap),
                "unavailable_ms": round(1000 * self.unavailable),
            }
        )


async def main(name: str) -> None:
    """Load the cluster until SIGTERM."""
    async with AsyncClient(os.environ["DISTSYNC_URL"]) as client:
        load = Load(client, name)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop.set)
        consumer = client.queue(name).consume(concurrency=4)
        consuming = asyncio.create_task(consumer.run(load.receive))
        print("started", flush=True)
        async with asyncio.TaskGroup() as tasks:
            for number in range(LOCKERS):
                tasks.create_task(load.repeat("lock", load.locker(number)))
            for number in range(WRITERS):
                tasks.create_task(load.repeat("cache", load.writer(number)))
            tasks.create_task(load.repeat("push", load.push))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while load.pushed - load.received:
                    await asyncio.sleep(PAUSE_SECONDS)
        consumer.stop()
        await consuming
        print(load.summary(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
