"""Queues on three real nodes and one real Redis."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import json
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from process.calls import ask, call, get
from process.cluster import Cluster
from process.queue_load import QueueLoad
from process.running import eventually
from redis_server import RedisServer


def test_a_message_crosses_from_any_node_to_any_other(cluster: Cluster) -> None:
    for pushing in cluster.names:
        for popping in cluster.names:
            queue = f"from {pushing} to {popping}/{{é}}"
            ask(cluster.url(pushing) + "/queue/push", queue=queue, body=queue)
            (message,) = ask(cluster.url(popping) + "/queue/pop", queue=queue)["messages"]
            assert message["body"] == queue
            receipts = [message["receipt"]]
            ask(cluster.url(pushing) + "/queue/ack", queue=queue, receipts=receipts)
            assert ask(cluster.url(popping) + "/queue/pop", queue=queue)["messages"] == []


def test_a_fence_is_checked_by_nodes_that_do_not_lead(cluster: Cluster) -> None:
    grant = ask(cluster.urls[0] + "/lock/acquire", name="l", owner="a", ttl_ms=60_000)
    for url in cluster.urls:
        fence = {"lock": "l", "token": grant["token"]}
        ask(url + "/queue/push", queue="fenced", body="x", fence=fence)
        fence = {"lock": "l", "token": grant["token"] + 1}
        refused = call(url + "/queue/push", {"queue": "fenced", "body": "x", "fence": fence})
        assert refused.status == 409


def test_nothing_acknowledged_is_lost_when_redis_and_a_node_are_killed(
    cluster: Cluster, redis: RedisServer
) -> None:
    """Pushes are retried under their ids until they are acknowledged, on whichever node answers."""

    def push(number: int) -> None:
        deadline = time.monotonic() + 60
        for attempt in range(10_000):
            url = cluster.urls[(number + attempt) % 3]
            body = {"queue": "safe", "body": str(number), "request_id": f"r{number}"}
            with contextlib.suppress(OSError, http.client.HTTPException):
                if call(url + "/queue/push", body).status == 200:
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        pushes = [pool.submit(push, number) for number in range(300)]
        eventually(lambda: sum(one.done() for one in pushes) > 50)
        redis.kill()
        redis.start()
        redis.wait_until_serving()
        eventually(lambda: sum(one.done() for one in pushes) > 150)
        victim = cluster.names[1]
        cluster.kill(victim)
        for one in pushes:
            one.result()
    cluster.start(victim)
    bodies: list[str] = []
    while len(bodies) < 300:
        url = cluster.urls[0]
        popped = ask(url + "/queue/pop", queue="safe", max=100, wait_ms=5_000)["messages"]
        assert popped, f"{300 - len(bodies)} messages are lost"
        bodies += [one["body"] for one in popped]
        ask(url + "/queue/ack", queue="safe", receipts=[one["receipt"] for one in popped])
    assert sorted(bodies, key=int) == [str(number) for number in range(300)]
    cluster.wait_ready()


def test_scripts_are_flushed_and_redis_is_restarted_under_load(
    cluster: Cluster, redis: RedisServer
) -> None:
    over = threading.Event()
    flushes = 0

    def flush() -> None:
        nonlocal flushes
        with redis.client() as client:
            while not over.wait(0.01):
                client.script_flush()
                flushes += 1

    with QueueLoad(cluster.urls, "flushed") as load:
        load.go_on(50)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            flushing = pool.submit(flush)
            try:
                load.go_on(100)
                eventually(lambda: flushing.done() or flushes >= 100)
            finally:
                over.set()
            flushing.result()
        for _ in range(2):
            redis.kill()
            redis.start()
            load.go_on(100)
        load.finish()


def test_queues_serve_without_a_quorum(cluster: Cluster) -> None:
    survivor = cluster.names[0]
    for name in cluster.names[1:]:
        cluster.kill(name)
    eventually(lambda: cluster.status(survivor)["leader"] is None, what="the quorum is missed")
    assert get(cluster.url(survivor) + "/readyz") == {"status": "ready"}  # clients are led to it
    ask(cluster.url(survivor) + "/queue/push", queue="alone", body="x")
    assert len(ask(cluster.url(survivor) + "/queue/pop", queue="alone")["messages"]) == 1
    cluster.start(*cluster.names[1:])
    cluster.wait_ready()


def test_schedules_of_dead_owners_are_served_without_a_quorum(cluster: Cluster) -> None:
    """Nobody takes them out of the ring; pushes and pops, which would find them dead, are none."""
    cluster.wait_for_ring(cluster.names)
    survivor, *victims = cluster.names
    others = [f"q{i}" for i in range(100)]  # of other tests
    queues = [cluster.queue_of(name, but=others) for name in victims]
    urls = [f"{cluster.url(survivor)}/queue/{queue}" for queue in queues]
    for url in urls:
        put = call(f"{url}/schedules/s", {"cron": "* * * * * *", "body": "x"}, method="PUT")
        assert put.status == 200, put
    for name in victims:
        cluster.kill(name)
    try:
        before = [get(url)["stats"]["pushed"] for url in urls]
        for url, pushed in zip(urls, before, strict=True):
            eventually(lambda url=url, pushed=pushed: get(url)["stats"]["pushed"] > pushed + 1)
    finally:
        for url in urls:
            call(f"{url}/schedules/s", method="DELETE")
        cluster.start(*victims)
        cluster.wait_ready()


def test_redis_that_is_away_is_a_503_and_comes_back_by_itself(
    cluster: Cluster, redis: RedisServer
) -> None:
    url = cluster.urls[0]
    redis.kill()
    refused = call(url + "/queue/pop", {"queue": "q"})
    assert refused.status in (503, 504)
    assert refused["retriable"]
    ask(url + "/lock/acquire", name="while redis is away", owner="a")
    redis.start()
    redis.wait_until_serving()
    popped = eventually(lambda: ask(url + "/queue/pop", queue="q"))
    assert popped["messages"] == []


def test_the_owner_is_named_and_is_the_one_of_the_ring(cluster: Cluster) -> None:
    """By the ring of the node that was asked, whenever that did not change in between."""
    cluster.wait_for_ring(cluster.names)

    def named_and_owner(url: str, queue: str) -> tuple[str, str] | None:
        """The owner a push names and the owner by the ring; None: that changed meanwhile."""
        ring_url = f"{url}/cluster/ring?key={urllib.parse.quote(queue)}"
        before = get(ring_url)
        body = json.dumps({"queue": queue, "body": "x"}).encode()
        request = urllib.request.Request(
            f"{url}/queue/push", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            named = answer.headers["distsync-owner"]
        if get(ring_url)["epoch"] != before["epoch"]:
            return None
        return named, cluster.url(before["owner"])

    for number in range(12):
        for url in cluster.urls:
            probe = functools.partial(named_and_owner, url, f"named {number}")
            named, owner = eventually(probe, within_seconds=20)
            assert named == owner


@pytest.mark.alone
def test_a_poll_on_any_node_is_woken_at_once_by_a_push_on_any_other(cluster: Cluster) -> None:
    """Well before the second after which every queue that is waited for is looked at."""
    cluster.wait_for_ring(cluster.names)
    took = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for owner in cluster.names:
            queue = cluster.queue_of(owner)
            for waiting in cluster.urls:
                for pushing in cluster.urls:
                    url = waiting + "/queue/pop"
                    poll = pool.submit(ask, url, queue=queue, wait_ms=20_000)
                    time.sleep(0.05)  # not a promise: it is woken even if it comes too late
                    started = time.monotonic()
                    ask(pushing + "/queue/push", queue=queue, body="x")
                    (message,) = poll.result()["messages"]
                    took.append(time.monotonic() - started)
                    ask(waiting + "/queue/ack", queue=queue, receipts=[message["receipt"]])
    assert sorted(took)[len(took) // 2] < 0.1, took
    assert sum(one > 0.5 for one in took) <= 2, took


@pytest.mark.alone
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_poll_outlives_the_owner_it_waits_at(cluster: Cluster, how: signal.Signals) -> None:
    cluster.wait_for_ring(cluster.names)
    victim = cluster.names[2]
    queue = cluster.queue_of(victim)
    survivors = cluster.urls[:2]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        polls = [
            pool.submit(ask, url + "/queue/pop", queue=queue, wait_ms=60_000) for url in survivors
        ]
        time.sleep(0.2)
        cluster.signal(victim, how)
        started = time.monotonic()
        for number, url in enumerate(survivors):
            ask(url + "/queue/push", queue=queue, body=str(number), request_id=f"{how}{number}")
        bodies = sorted(poll.result()["messages"][0]["body"] for poll in polls)
    assert bodies == ["0", "1"]
    assert time.monotonic() - started < 8
    if how == signal.SIGSTOP:
        cluster.signal(victim, signal.SIGCONT)
    else:
        cluster.processes[victim].wait(60)
        cluster.start(victim)
    cluster.wait_ready()


@pytest.mark.alone
def test_a_node_told_to_stop_leaves_the_ring_at_once(cluster: Cluster) -> None:
    cluster.wait_for_ring(cluster.names)
    leaving = cluster.names[1]
    cluster.signal(leaving, signal.SIGTERM)
    assert cluster.processes[leaving].wait(60) == 0
    started = time.monotonic()
    others = [name for name in cluster.names if name != leaving]
    cluster.wait_for_ring(others)
    assert time.monotonic() - started < 1.0  # its lease alone would last one and a half
    cluster.start(leaving)
    cluster.wait_ready()


@pytest.mark.long
@pytest.mark.timeout(300)  # a dozen starts of nodes, on a machine that may be slow
def test_polls_and_messages_outlive_nodes_that_join_leave_and_restart(
    tmp_path: Path, redis: RedisServer
) -> None:
    """3 -> 5 -> 3 nodes and a rolling restart, while messages are pushed and polls wait."""
    cluster = Cluster(tmp_path, nodes=5, founders=3, options=["--redis", redis.url])
    founders, late = cluster.names[:3], cluster.names[3:]

    def restart(name: str) -> None:
        cluster.signal(name, signal.SIGTERM)
        cluster.processes[name].wait(60)
        cluster.start(name)
        cluster.wait_for_ring(founders)

    try:
        cluster.start(*founders)
        eventually(lambda: all(cluster.status(name)["ready"] for name in founders))
        with QueueLoad([cluster.url(name) for name in founders], "moving") as load:
            load.go_on(100)
            cluster.start(*late)
            cluster.wait_for_ring(cluster.names)
            for name in late:
                cluster.signal(name, signal.SIGTERM)
                cluster.processes[name].wait(60)
            cluster.wait_for_ring(founders)
            for name in founders:
                restart(name)
            load.finish()
        assert len(load.pushed) > 300
    finally:
        cluster.close()
