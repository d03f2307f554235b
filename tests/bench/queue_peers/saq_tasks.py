"""saq: `saq` starts the worker, `python -m` this module the producer.

Set otherwise than by default: finished jobs are not kept; uvloop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from saq import Queue

from bench.queue_peers import handling

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

queue = Queue.from_url(handling.REDIS_URL)


async def handle(_: dict[str, Any], *, body: str) -> None:
    handling.handled(body)


settings = {"queue": queue, "functions": [handle], "concurrency": handling.CONCURRENCY}


async def main() -> None:
    await queue.connect()
    await handling.produce(lambda body: queue.enqueue("handle", body=body, ttl=-1))
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
