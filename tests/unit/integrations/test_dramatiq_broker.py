"""The broker for dramatiq and its consumers, call by call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, QueueJoinTimeout, QueueNotFound, Worker
from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from dramatiq.encoder import JSONEncoder, PickleEncoder
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from dramatiq.middleware import Middleware

from distsync import Client, PayloadTooLarge, QueueFull, SyncQueue
from distsync.integrations.dramatiq import DistSyncBroker
from distsync.integrations.dramatiq.consumer import DistSyncConsumer
from process.running import eventually
from unit.client.scripted_cluster import problem
from unit.integrations.conftest import Served


def a_message(*args: Any, queue: str = "default", **options: Any) -> Message[Any]:
    return Message(queue, "work", args, {}, options)


def take(consumer: DistSyncConsumer, count: int) -> list[MessageProxy]:
    taken: list[MessageProxy] = []
    deadline = time.monotonic() + 20
    while len(taken) < count:
        assert time.monotonic() < deadline
        if (message := next(consumer)) is not None:
            taken.append(message)
    return taken


def asked_until_answered(call: Callable[..., object], *arguments: Any) -> None:
    """As dramatiq's worker does, which waits longer in between."""
    for _ in range(20):
        try:
            call(*arguments)
            return
        except BrokerConnectionError:
            time.sleep(0.05)
    raise AssertionError("there is never an answer")


@pytest.fixture
def consumer(broker: DistSyncBroker) -> Iterator[DistSyncConsumer]:
    broker.declare_queue("default")
    consumer = broker.consume("default", prefetch=4, timeout=100)
    yield consumer
    consumer.close()


@contextmanager
def worker(broker: DistSyncBroker, **options: Any) -> Iterator[Worker]:
    worker = Worker(broker, worker_timeout=100, **{"worker_threads": 2, **options})
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


# --- Messages in ----------------------------------------------------------------------------------


def test_a_message_is_readable_in_the_queue(broker: DistSyncBroker, queue: SyncQueue) -> None:
    sent = a_message(1, "é")
    assert broker.enqueue(sent) == sent
    (peeked,) = queue.peek()
    assert json.loads(peeked.body) == {**sent.asdict(), "args": [1, "é"]}


def test_a_delay_is_the_queues_own_and_the_eta_is_told_here_only(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    seen: list[tuple[Any, Any]] = []

    class Listener(Middleware):
        def before_enqueue(self, broker: object, message: Any, delay: Any) -> None:
            message.options["trace"] = 7
            seen.append((message.options["eta"], delay))

        def after_enqueue(self, broker: object, message: Any, delay: Any) -> None:
            seen.append((message.options["eta"], delay))

    broker.add_middleware(Listener())
    before = current_millis()
    returned = broker.enqueue(a_message(), delay=2_000)
    eta = returned.options["eta"]
    assert before + 2_000 <= eta <= current_millis() + 2_000
    assert seen == [(eta, 2_000), (eta, 2_000)]
    assert returned.queue_name == "default"
    assert queue.stats().delayed == 1
    eventually(lambda: queue.peek())
    assert current_millis() >= before + 2_000
    assert json.loads(queue.peek()[0].body)["options"] == {"trace": 7}


def test_an_eta_without_a_delay_is_kept(broker: DistSyncBroker, queue: SyncQueue) -> None:
    broker.enqueue(a_message(eta=current_millis() + 60_000))
    broker.enqueue(a_message(eta=current_millis() - 1))
    broker.enqueue(a_message(eta="soon"))
    stats = queue.stats()
    assert (stats.delayed, stats.ready) == (1, 2)


def test_a_message_of_another_brokers_delay_queue_goes_into_the_queue(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    broker.enqueue(a_message(queue="default.DQ"))
    assert json.loads(queue.peek()[0].body)["queue_name"] == "default"


def test_a_delay_beyond_the_limit_is_refused(broker: DistSyncBroker, queue: SyncQueue) -> None:
    broker.enqueue(a_message(), delay=29 * 86_400_000)
    with pytest.raises(ValueError, match="30 days"):
        broker.enqueue(a_message(), delay=31 * 86_400_000)
    assert queue.stats().pushed == 1


def test_a_message_up_to_the_limit_is_sent_and_a_larger_one_refused(
    broker: DistSyncBroker, consumer: DistSyncConsumer
) -> None:
    room = 256 * 1024 - len(a_message("").encode())
    broker.enqueue(a_message("x" * room))
    with pytest.raises(PayloadTooLarge, match="262145 bytes"):
        broker.enqueue(a_message("x" * (room + 1)))
    (message,) = take(consumer, 1)
    assert len(message.args[0]) == room


def test_messages_are_pickled_as_well(broker: DistSyncBroker, consumer: DistSyncConsumer) -> None:
    dramatiq.set_encoder(PickleEncoder())
    try:
        broker.enqueue(a_message({1, 2}, b"\xff" * 190_000))
        (message,) = take(consumer, 1)
    finally:
        dramatiq.set_encoder(JSONEncoder())
    assert message.args == ({1, 2}, b"\xff" * 190_000)


def test_a_full_queue_says_so(broker: DistSyncBroker, queue: SyncQueue) -> None:
    queue.configure(max_length=1)
    broker.enqueue(a_message())
    with pytest.raises(QueueFull):
        broker.enqueue(a_message())


def test_a_message_that_is_enqueued_again_after_a_failure_is_there_once(
    make_broker: Callable[..., DistSyncBroker], served: Served
) -> None:
    broker = make_broker(timeout=1)
    with Client(served.cluster.urls()) as client:
        queue = client.queue(f"{broker._prefix}default")
        message = a_message(1)
        served.fault("/queue/push", drop="after")
        with pytest.raises(ConnectionClosed):
            broker.enqueue(message)
        served.heal()
        assert queue.stats().pushed == 1
        served.fault("/queue/push", drop="before")  # in vain, and the doubt remains
        with pytest.raises(BrokerConnectionError):
            broker.enqueue(message)
        served.heal()
        asked_until_answered(broker.enqueue, message)
        assert queue.stats().pushed == 1
        asked_until_answered(broker.enqueue, message)  # on purpose
        assert queue.stats().pushed == 2


def test_a_cluster_that_does_nothing_is_another_error(
    make_broker: Callable[..., DistSyncBroker], served: Served
) -> None:
    broker = make_broker(timeout=3)
    served.fault("/queue/push", answer=problem(503, "redis_unavailable", retriable=True))
    with pytest.raises(ConnectionFailed):
        broker.enqueue(a_message())


# --- Messages out ---------------------------------------------------------------------------------


def test_a_queue_that_was_not_declared_is_not_found(broker: DistSyncBroker) -> None:
    with pytest.raises(QueueNotFound):
        broker.consume("unknown")
    with pytest.raises(QueueNotFound):
        broker.join("unknown")
    broker.flush("unknown")


def test_a_consumer_idles_for_its_timeout(consumer: DistSyncConsumer) -> None:
    begun = time.monotonic()
    assert next(consumer) is None
    assert 0.09 < time.monotonic() - begun < 5


def test_a_consumer_claims_no_more_than_its_prefetch(
    broker: DistSyncBroker, consumer: DistSyncConsumer, queue: SyncQueue
) -> None:
    for number in range(7):
        broker.enqueue(a_message(number))
    messages = take(consumer, 4)
    assert [message.args[0] for message in messages] == [0, 1, 2, 3]
    assert next(consumer) is None
    assert queue.stats().in_flight == 4
    consumer.ack(messages[0])
    consumer.nack(messages[1])
    assert [message.args[0] for message in take(consumer, 2)] == [4, 5]
    stats = queue.stats()
    assert (stats.acked, stats.dead, stats.in_flight, stats.ready) == (1, 1, 4, 1)


def test_what_is_given_back_spends_no_delivery_and_one_call(
    broker: DistSyncBroker, queue: SyncQueue, served: Served
) -> None:
    queue.configure(max_deliveries=1)
    broker.declare_queue("default")
    for number in range(20):
        broker.enqueue(a_message(number))
    consumer = broker.consume("default", prefetch=20, timeout=100)
    messages = take(consumer, 20)
    consumer.requeue(iter(messages[:15]))
    assert served.asks("nack") == 1
    consumer.requeue([])
    assert served.asks("nack") == 1
    for message in messages[15:]:
        consumer.ack(message)
    consumer.close()
    stats = queue.stats()
    assert (stats.ready, stats.dead, stats.in_flight) == (15, 0, 0)
    assert {message.deliveries for message in queue.peek(20)} == {0}
    assert json.loads(queue.peek()[0].body)["args"] == [0]


def test_closing_gives_back_what_nobody_took(broker: DistSyncBroker, queue: SyncQueue) -> None:
    broker.declare_queue("default")
    for number in range(3):
        broker.enqueue(a_message(number))
    consumer = broker.consume("default", prefetch=4, timeout=100)
    (taken,) = take(consumer, 1)
    eventually(lambda: queue.stats().in_flight == 3)
    consumer.close()
    consumer.close()
    stats = queue.stats()
    assert (stats.ready, stats.in_flight) == (2, 1)
    assert {message.deliveries for message in queue.peek(3)} == {0}
    consumer.ack(taken)  # what somebody took is still theirs
    assert queue.stats().acked == 1
    assert next(consumer) is None


def test_what_a_closed_consumer_gave_out_is_extended_until_it_is_settled(
    make_broker: Callable[..., DistSyncBroker],
) -> None:
    broker = make_broker(visibility=3)
    queue = broker._client().queue(f"{broker._prefix}default")
    broker.declare_queue("default")
    broker.enqueue(a_message())
    first = broker.consume("default", timeout=100)
    (message,) = take(first, 1)
    first.close()
    second = broker.consume("default", timeout=6_000)
    assert next(second) is None
    second.ack(message)
    second.close()
    stats = queue.stats()
    assert (stats.delivered, stats.acked, stats.timed_out) == (1, 1, 0)


def test_what_cannot_be_decoded_is_a_dead_letter(
    consumer: DistSyncConsumer, queue: SyncQueue
) -> None:
    queue.push_many(["no json", "base64:é", '{"neither":1}'])
    eventually(lambda: next(consumer) is None and queue.stats().dead == 3)


def test_a_message_belongs_to_the_queue_in_which_it_was_found(
    consumer: DistSyncConsumer, queue: SyncQueue
) -> None:
    queue.push(a_message(queue="elsewhere").encode().decode())
    assert take(consumer, 1)[0].queue_name == "default"


def test_a_message_that_is_gone_may_be_settled(
    broker: DistSyncBroker, consumer: DistSyncConsumer, queue: SyncQueue
) -> None:
    broker.enqueue(a_message(1))
    broker.enqueue(a_message(2))
    messages = take(consumer, 2)
    broker.flush("default")
    consumer.ack(messages[0])
    consumer.nack(messages[1])
    consumer.requeue(messages)
    consumer.ack(MessageProxy(a_message()))  # of no broker at all
    consumer.nack(MessageProxy(a_message()))
    assert queue.stats().dead == 0


def test_an_acknowledgement_without_an_answer_is_asked_for_again(
    make_broker: Callable[..., DistSyncBroker], served: Served
) -> None:
    broker = make_broker(timeout=1)
    broker.declare_queue("default")
    asked_until_answered(broker.enqueue, a_message(1))
    asked_until_answered(broker.enqueue, a_message(2))
    consumer = broker.consume("default", prefetch=2, timeout=100)
    first, second = take(consumer, 2)
    served.fault("/queue/ack", drop="after")
    with pytest.raises(ConnectionClosed):
        consumer.ack(first)
    served.heal()
    served.fault("/queue/nack", drop="before")
    with pytest.raises(BrokerConnectionError):
        consumer.nack(second)
    served.heal()
    asked_until_answered(consumer.ack, first)
    asked_until_answered(consumer.nack, second)
    consumer.close()
    with Client(served.cluster.urls()) as client:
        stats = client.queue(f"{broker._prefix}default").stats()
    assert (stats.acked, stats.dead, stats.in_flight) == (1, 1, 0)


def test_after_closing_the_broker_its_consumers_end_and_calls_connect_anew(
    broker: DistSyncBroker, consumer: DistSyncConsumer
) -> None:
    broker.enqueue(a_message(1))
    (message,) = take(consumer, 1)
    broker.close()
    with pytest.raises(BrokerConnectionError):
        take(consumer, 1)
    consumer.ack(message)  # too late, and nobody has to be told
    consumer.close()
    broker.enqueue(a_message(2))
    second = broker.consume("default", prefetch=2, timeout=100)
    assert 2 in {message.args[0] for message in take(second, 1)}
    second.close()


def test_joining_waits_for_what_is_delayed_or_at_work(
    broker: DistSyncBroker, consumer: DistSyncConsumer
) -> None:
    broker.join("default", timeout=0)  # nothing was ever enqueued
    broker.enqueue(a_message(), delay=300)
    with pytest.raises(QueueJoinTimeout):
        broker.join("default", timeout=50, interval=10)
    (message,) = take(consumer, 1)
    with pytest.raises(QueueJoinTimeout):
        broker.join("default", timeout=50, interval=10)
    consumer.ack(message)
    broker.join("default", timeout=0)


# --- Workers --------------------------------------------------------------------------------------


def test_a_worker_that_shuts_down_claims_nothing_more_while_its_actors_end(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    begun, go = threading.Event(), threading.Event()

    @dramatiq.actor
    def work(number: int) -> None:
        begun.set()
        go.wait(20)

    for number in range(20):
        work.send(number)
    running = Worker(broker, worker_timeout=50, worker_threads=1)
    running.start()
    assert begun.wait(20)
    eventually(lambda: queue.stats().in_flight == 2)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    time.sleep(0.3)
    go.set()
    stopping.join(20)
    stats = queue.stats()
    assert (stats.acked, stats.delivered, stats.ready, stats.in_flight) == (1, 2, 19, 0)
    assert {message.deliveries for message in queue.peek(20)} == {0}


def test_a_message_whose_retry_cannot_be_enqueued_is_not_lost(
    make_broker: Callable[..., DistSyncBroker], served: Served
) -> None:
    broker = make_broker(timeout=1)
    times: list[int] = []

    @dramatiq.actor(min_backoff=1, max_backoff=1)
    def work() -> None:
        times.append(1)
        if len(times) == 1:
            served.fault("/queue/push", answer=problem(503, "unavailable", retriable=True))
            raise RuntimeError("first failure")

    asked_until_answered(work.send)
    with worker(broker):
        eventually(lambda: len(times) == 2, within_seconds=40)
        served.heal()
    assert len(times) == 2


def test_a_message_whose_successor_can_never_be_enqueued_is_a_dead_letter(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    @dramatiq.actor
    def work() -> str:
        return "x" * 300_000

    @dramatiq.actor
    def then(result: str) -> None:
        raise AssertionError

    (work.message() | then.message()).run()
    with worker(broker):
        eventually(lambda: queue.stats().dead == 1)


def test_an_actor_that_fails_to_send_is_an_actor_that_fails(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    @dramatiq.actor(max_retries=0)
    def work() -> None:
        work.send_with_options(args=("x" * 300_000,))

    work.send()
    with worker(broker):
        broker.join("default", timeout=20_000)
    assert queue.stats().dead == 1
