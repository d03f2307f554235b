"""Queues in the client against real nodes and a real Redis, which are killed meanwhile."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections import Counter

import pytest

from distsync import AsyncClient, ClaimedMessage, Client, Queue, SyncMessage
from process.calls import get
from process.cluster import Cluster
from redis_server import RedisServer
from waiting_for import eventually


async def in_flight(queue: Queue, count: int) -> None:
    async with asyncio.timeout(30):
        while (await queue.stats()).in_flight != count:
            await asyncio.sleep(0.02)


async def test_nothing_is_lost_when_nodes_and_redis_are_killed_while_pushing_and_consuming(
    cluster: Cluster, redis: RedisServer
) -> None:
    """Every acknowledged push is handled; one is handled twice only after its claim has ended."""
    total = 600
    handled: Counter[str] = Counter()
    pushed: list[str] = []

    async def handle(message: ClaimedMessage) -> None:
        await asyncio.sleep(0.002)
        handled[message.body] += 1

    async def push(queue: Queue, numbers: range) -> None:
        pushed.extend([await queue.push(str(number)) for number in numbers])

    async def kill() -> None:
        for threshold, victim in ((100, cluster.names[0]), (200, cluster.names[1])):
            await eventually(lambda t=threshold: len(handled) > t, within_seconds=60)
            await asyncio.to_thread(cluster.kill, victim)
            await eventually(lambda t=threshold: len(handled) > t + 50, within_seconds=60)
            cluster.start(victim)
            await asyncio.to_thread(cluster.wait_ready)
        await eventually(lambda: len(handled) > 350, within_seconds=60)
        await asyncio.to_thread(redis.kill)
        await asyncio.to_thread(redis.start)

    async with (
        AsyncClient(cluster.urls, timeout=40) as one,
        AsyncClient(cluster.urls[:1], timeout=40) as two,
        AsyncClient(cluster.urls[::-1], timeout=40) as three,
    ):
        consumers = [c.queue("safe").consume(visibility=5, wait=2) for c in (two, three)]
        running = [asyncio.create_task(consumer.run(handle)) for consumer in consumers]
        async with asyncio.timeout(110):
            async with asyncio.TaskGroup() as group:
                group.create_task(kill())
                for first in range(4):
                    group.create_task(push(one.queue("safe"), range(first, total, 4)))
            await eventually(lambda: len(handled) == total, within_seconds=60)
            await in_flight(one.queue("safe"), 0)
            for consumer in consumers:
                consumer.stop()
            await asyncio.gather(*running)
        stats = await one.queue("safe").stats()
    assert len(set(pushed)) == total
    assert stats.pushed == total
    assert (stats.ready, stats.delayed, stats.in_flight, stats.dead) == (0, 0, 0, 0)
    twice = sum(times - 1 for times in handled.values())
    assert twice <= stats.timed_out + stats.nacked


async def test_a_message_is_kept_far_beyond_its_visibility_also_over_a_dead_node(
    cluster: Cluster,
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def handle(message: ClaimedMessage) -> None:
        begun.set()
        await go.wait()

    async with AsyncClient(cluster.urls, timeout=30) as client:
        queue = client.queue("kept")
        await queue.push("x")
        consumer = queue.consume(visibility=5)
        running = asyncio.create_task(consumer.run(handle))
        await begun.wait()
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        await asyncio.to_thread(cluster.kill, leader)
        assert await queue.pop(wait=11) == []  # more than two visibilities
        cluster.start(leader)
        await asyncio.to_thread(cluster.wait_ready)
        go.set()
        await in_flight(queue, 0)
        consumer.stop()
        await running
        stats = await queue.stats()
    assert (stats.delivered, stats.acked, stats.timed_out) == (1, 1, 0)


async def test_a_fence_keeps_an_old_holder_out(cluster: Cluster) -> None:
    from distsync import Fenced

    async with AsyncClient(cluster.urls) as client:
        queue = client.queue("fenced")
        async with client.lock("orders/42") as old:
            await queue.push("a", fence=old)
        async with client.lock("orders/42") as new:
            await queue.push("b", fence=new)
            with pytest.raises(Fenced):
                await queue.push("c", fence=old)
        assert (await queue.stats()).pushed == 2


WORKER = """
    import asyncio, signal, sys
    from distsync import AsyncClient

    async def handle(message):
        print("begun", message.body, flush=True)
        await asyncio.sleep(0.2)
        print("ended", message.body, flush=True)

    async def main():
        async with AsyncClient(sys.argv[1]) as client:
            consumer = client.queue("graceful").consume(concurrency=3, wait=30)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
            print("ready", flush=True)
            await consumer.run(handle)

    asyncio.run(main())
"""


def test_a_worker_that_is_terminated_spends_no_delivery(cluster: Cluster) -> None:
    def start() -> subprocess.Popen[str]:
        code = textwrap.dedent(WORKER)
        command = [sys.executable, "-c", code, ",".join(cluster.urls)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    with Client(cluster.urls) as client:
        queue = client.queue("graceful")
        idle, busy = start(), start()
        idle.send_signal(signal.SIGTERM)
        assert idle.communicate(timeout=20)[0] == ""
        queue.push_many(str(number) for number in range(100))
        assert busy.stdout is not None
        lines = [busy.stdout.readline() for _ in range(4)]
        busy.send_signal(signal.SIGTERM)
        lines += busy.stdout.readlines()
        assert busy.wait(20) == 0
        begun = {line.split()[1] for line in lines if line.startswith("begun")}
        ended = {line.split()[1] for line in lines if line.startswith("ended")}
        assert begun == ended
        left = queue.pop(100, wait=5)
        assert {one.body for one in left} == {str(n) for n in range(100)} - ended
        assert {one.deliveries for one in left} == {1}
        queue.ack_many(left)


def test_threads_work_on_what_a_program_without_asyncio_consumes(cluster: Cluster) -> None:
    with Client(cluster.urls) as client:
        queue = client.queue("threads")
        queue.push_many(str(number) for number in range(50))
        handled: list[str] = []

        def handle(message: SyncMessage) -> None:
            message.check()
            handled.append(message.body)
            if len(handled) == 50:
                consumer.stop()

        consumer = queue.consume(concurrency=5)
        consumer.run(handle)
        assert sorted(handled, key=int) == [str(number) for number in range(50)]
        queue.push("last")
        for message in queue.consume():
            with message:
                break
        stats = queue.stats()
        assert (stats.acked, stats.in_flight) == (51, 0)


async def test_calls_go_to_the_owner_of_the_queue_once_it_is_known(cluster: Cluster) -> None:
    def is_known() -> bool:
        """Who serves, and where clients reach everyone, on each node."""
        rings = [get(f"{url}/cluster/ring") for url in cluster.urls]
        statuses = [get(f"{url}/cluster/status") for url in cluster.urls]
        return all(len(one["servers"]) == 3 for one in rings) and all(
            member["client_url"] for status in statuses for member in status["members"]
        )

    async with AsyncClient(cluster.urls) as client:
        await eventually(is_known)
        for number in range(6):
            queue = client.queue(f"routed {number}")
            owner = get(f"{cluster.urls[0]}/cluster/ring?key=routed%20{number}")["owner"]
            await queue.push("x")
            await eventually(lambda: not client._core.transport.nodes.unproven(1e9))
            assert client._core.queue_owners[f"routed {number}"] == cluster.url(owner)
            before = served(cluster)
            await queue.push("y")
            asked = {name for name, count in served(cluster).items() if count > before[name]}
            assert asked == {owner}


def served(cluster: Cluster) -> dict[str, float]:
    """How many pushes clients have sent to each node."""
    counts = {}
    for name in cluster.names:
        with urllib.request.urlopen(f"{cluster.url(name)}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        counts[name] = sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("distsync_http_requests_total") and "/queue/push" in line
        )
    return counts
