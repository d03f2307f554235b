"""taskiq: `taskiq worker` starts the worker, `python -m` this module the producer.

Of the brokers of taskiq-redis, the stream is the one that acknowledges.
"""

from __future__ import annotations

import uvloop
from taskiq_redis import RedisStreamBroker

from bench.queue_peers import handling

broker = RedisStreamBroker(url=handling.REDIS_URL)


@broker.task(task_name="handle")
async def handle(body: str) -> None:
    handling.handled(body)


async def main() -> None:
    await broker.startup()
    await handling.produce(handle.kiq)
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
