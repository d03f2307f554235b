"""dramatiq: `dramatiq` starts the worker, `python -m` this module the producer."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.queue_peers import handling

dramatiq.set_broker(RedisBroker(url=handling.REDIS_URL))


@dramatiq.actor(actor_name="handle")
def handle(body: str) -> None:
    handling.handled(body)


if __name__ == "__main__":
    handling.produce_in_threads(handle.send)
