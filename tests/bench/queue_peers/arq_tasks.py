"""arq: `arq` starts the worker, `python -m` this module the producer.

Set otherwise than by default: polls every 5 ms, not 500 ms, which would bound it to some hundred
messages a second; no results kept; no log line for each task; uvloop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings

from bench.queue_peers import handling

REDIS = RedisSettings.from_dsn(handling.REDIS_URL)
QUIET = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def handle(_: dict[Any, Any], body: str) -> None:
    handling.handled(body)


class WorkerSettings:
    functions = (handle,)
    redis_settings = REDIS
    max_jobs = handling.CONCURRENCY
    poll_delay = 0.005
    keep_result = 0


async def main() -> None:
    pool = await create_pool(REDIS)
    await handling.produce(lambda body: pool.enqueue_job("handle", body))
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main())
