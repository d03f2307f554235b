"""Queues for threads: the same promises."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from distsync import (
    Backoff,
    ClaimLost,
    Client,
    Message,
    MessageNotFound,
    StaleReceipt,
    SyncMessage,
    SyncQueue,
)
from process.running import eventually
from redis_server import RedisServer
from unit.client.jump_clock import JumpClock, jump
from unit.client.queues.conftest import ServedQueues


@pytest.fixture
def served(redis: RedisServer) -> Iterator[ServedQueues]:
    redis.empty()
    served = ServedQueues(redis)
    yield served
    served.close()


@pytest.fixture
def client(served: ServedQueues, clock: JumpClock) -> Iterator[Client]:
    with Client(served.cluster.urls(), clock=clock) as client:
        yield client


@pytest.fixture
def queue(client: Client) -> SyncQueue:
    return client.queue("q")


def test_messages_are_pushed_claimed_and_settled(client: Client, queue: SyncQueue) -> None:
    with client.lock("l") as lock:
        first = queue.push("a", priority=1, fence=lock)
    assert len(queue.push_many(["b", Message("c"), "d", "e"])) == 4
    assert [one.body for one in queue.peek(10)] == ["a", "b", "c", "d", "e"]
    messages = queue.pop(5, wait=1)
    assert (messages[0].id, messages[0].priority, messages[0].deliveries) == (first, 1, 1)
    assert 25 < messages[0].expires_in() < 30
    messages[0].ack()
    messages[1].extend(60)
    assert messages[1].expires_in() > 50
    queue.ack_many(messages[1:2])
    assert queue.pop(ack=[messages[2]]) == []
    assert messages[1].settled
    assert messages[2].settled
    assert messages[3].nack(dead=True)
    assert queue.redrive() == 1
    messages[4].nack(60)
    with pytest.raises(StaleReceipt):
        messages[3].ack()
    stats = queue.stats()
    assert (stats.acked, stats.ready, stats.delayed) == (3, 1, 1)
    assert list(client.queues()) == ["q"]
    assert queue.pause().paused
    assert not queue.resume().paused
    assert queue.configure(max_deliveries=3).max_deliveries == 3
    assert queue.purge() == 2


def test_messages_are_found_listed_and_cancelled(queue: SyncQueue) -> None:
    first, second = queue.push_many(["a", "b"])
    assert (queue.get(first).body, queue.get(first).phase) == ("a", "ready")
    assert [one.id for one in queue.list()] == [first, second]
    queue.cancel(first)
    assert [one.id for one in queue.list("ready")] == [second]
    with pytest.raises(MessageNotFound):
        queue.get(first)


def test_messages_are_scheduled(queue: SyncQueue) -> None:
    kept = queue.schedule(
        "s", "30 2 * * *", "x", timezone="Europe/Berlin", priority=1, ttl=60, group="ada"
    )
    assert (kept.timezone, kept.priority, kept.ttl, kept.group) == ("Europe/Berlin", 1, 60, "ada")
    assert kept.next_at is not None
    assert queue.schedules() == [kept]
    assert queue.unschedule("s")
    assert not queue.unschedule("s")


def test_with_settles_and_tells_of_a_lost_claim(
    client: Client, queue: SyncQueue, served: ServedQueues, clock: JumpClock
) -> None:
    queue.push_many(["good", "bad", "lost"])
    (good,) = queue.pop(visibility=30)
    with good:
        for _ in range(4):
            jump(client, clock, 10.1)
            eventually(lambda: good.expires_in() > 25, within_seconds=20)
        assert served.asks("extend") == 4
        good.check()
    (bad,) = queue.pop()
    with pytest.raises(KeyError), bad:
        raise KeyError
    stats = queue.stats()
    assert (stats.acked, stats.delayed, stats.ready) == (1, 1, 1)
    (lost,) = queue.pop(visibility=0.9)
    with pytest.raises(ClaimLost), lost:  # noqa: PT012
        queue.purge()
        eventually(lambda: lost.expires_in() == 0)
        with pytest.raises(ClaimLost):
            lost.check()


def test_a_loop_works_on_one_message_at_a_time(queue: SyncQueue, served: ServedQueues) -> None:
    queue.push_many(["a", "b", "c", "d"])
    seen = []
    for message in queue.consume():
        seen.append((message.body, queue.stats().acked))
        if message.body == "c":
            break
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    stats = queue.stats()
    assert (stats.acked, stats.ready, stats.in_flight) == (2, 1, 1)


def test_a_loop_ends_when_it_is_stopped(queue: SyncQueue) -> None:
    queue.push("a")
    with queue.consume() as consumer:
        for message in consumer:
            with message:
                consumer.stop()
    assert queue.stats().acked == 1


def test_handlers_run_in_threads_up_to_the_concurrency(queue: SyncQueue) -> None:
    queue.push_many(str(number) for number in range(12))
    lock = threading.Lock()
    at_once = most = done = 0
    together = threading.Barrier(3)

    def handle(message: SyncMessage) -> None:
        nonlocal at_once, most, done
        with lock:
            at_once += 1
            most = max(most, at_once)
        together.wait(10)
        with lock:
            at_once -= 1
            done += 1
            if done == 12:
                consumer.stop()
        if message.body == "5" and message.deliveries == 1:
            raise ValueError("once")

    consumer = queue.consume(concurrency=3, backoff=Backoff(first=3600))
    consumer.run(handle)
    assert most == 3
    stats = queue.stats()
    assert (stats.acked, stats.nacked, stats.in_flight) == (11, 1, 0)


def test_a_thread_is_told_of_a_lost_claim_and_takes_its_slot_until_it_ends(
    queue: SyncQueue,
) -> None:
    queue.push("lost")
    told = []

    def handle(message: SyncMessage) -> None:
        if message.body == "next":
            consumer.stop()
            return
        queue.purge()
        queue.push("next")
        eventually(lambda: message.expires_in() == 0)
        try:
            message.check()
        except ClaimLost:
            told.append(message.body)
        assert queue.stats().ready == 1

    consumer = queue.consume(concurrency=1, visibility=0.9)
    consumer.run(handle)
    assert told == ["lost"]
    assert queue.stats().acked == 1


def test_a_thread_that_outlasts_the_grace_is_left_behind(queue: SyncQueue) -> None:
    queue.push("x")
    go, begun = threading.Event(), threading.Event()

    def handle(message: SyncMessage) -> None:
        begun.set()
        go.wait(30)

    consumer = queue.consume()
    running = threading.Thread(target=consumer.run, args=(handle,), kwargs={"grace": 0.05})
    running.start()
    begun.wait(10)
    consumer.stop()
    running.join(10)
    assert not running.is_alive()
    assert queue.stats().in_flight == 1
    go.set()


def test_an_interruption_stops_it_gracefully(queue: SyncQueue) -> None:
    queue.push("x")
    ended = []

    def handle(message: SyncMessage) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # time in which it could be cut off
        ended.append(message.body)

    with pytest.raises(KeyboardInterrupt):
        queue.consume().run(handle)
    assert ended == ["x"]
    assert queue.stats().acked == 1
