"""What the tasks and producers of all libraries share; nothing but the standard library.

A body is 200 characters that begin with 20 of a stamp: when its push was sent, nanoseconds of
CLOCK_MONOTONIC. A handled task writes how long that is ago to the pipe BENCH_HANDLED, eight bytes.

A producer pushes one message for each byte that comes on standard input, with at most SENDERS
pushes under way, and ends with that input.
"""

from __future__ import annotations

import asyncio
import os
import queue
import struct
import threading
import time
from collections.abc import Awaitable, Callable

REDIS_URL = os.environ["BENCH_REDIS_URL"]
SENDERS = 64
SENDER_THREADS = 16
CONCURRENCY = 64

_LATENCY = struct.Struct("<q")
_handled = os.open(os.environ["BENCH_HANDLED"], os.O_WRONLY)


def handled(body: str) -> None:
    """The task of every library."""
    os.write(_handled, _LATENCY.pack(time.monotonic_ns() - int(body[:20])))


def new_body() -> str:
    """A body whose push is sent now."""
    return f"{time.monotonic_ns():020d}".ljust(200, "x")


async def produce(push: Callable[[str], Awaitable[object]]) -> None:
    """Push as standard input says."""
    loop = asyncio.get_running_loop()
    credits_left = asyncio.Semaphore(0)
    ended = loop.create_future()

    def on_credits() -> None:
        granted = len(os.read(0, 65_536))
        if not granted and not ended.done():
            loop.remove_reader(0)
            ended.set_result(None)
        for _ in range(granted):
            credits_left.release()

    async def sender() -> None:
        while True:
            await credits_left.acquire()
            await push(new_body())

    async with asyncio.TaskGroup() as senders:
        tasks = [senders.create_task(sender()) for _ in range(SENDERS)]
        loop.add_reader(0, on_credits)
        await ended
        for task in tasks:
            task.cancel()


def produce_in_threads(push: Callable[[str], object]) -> None:
    """The same for a library that blocks."""
    credits_left: queue.SimpleQueue[None] = queue.SimpleQueue()

    def sender() -> None:
        while True:
            credits_left.get()
            push(new_body())

    for _ in range(SENDER_THREADS):
        threading.Thread(target=sender, daemon=True).start()
    while granted := len(os.read(0, 65_536)):
        for _ in range(granted):
            credits_left.put(None)
