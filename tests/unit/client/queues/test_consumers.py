"""Consuming a queue until stopped, on a real Redis behind scripted nodes."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import aclosing

import pytest

from distsync import (
    AsyncClient,
    Backoff,
    BadRequest,
    ClaimedMessage,
    ClaimLost,
    ClientClosed,
    Consumer,
    Queue,
)
from distsync.popping import Popper
from unit.client.jump_clock import JumpClock
from unit.client.queues.conftest import QueueCluster
from unit.client.scripted_cluster import problem
from waiting_for import eventually


class Handler:
    """Notes what it is given, and holds messages until it is told to let them go."""

    def __init__(self) -> None:
        self.messages: list[ClaimedMessage] = []
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.go = asyncio.Event()
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, message: ClaimedMessage) -> None:
        self.messages.append(message)
        self.begun.append(message.body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.body)
            raise
        finally:
            self.at_once -= 1
        self.ended.append(message.body)


async def deliveries(queue: Queue) -> dict[str, int]:
    """Claim all there is and return how often each was delivered before."""
    found: dict[str, int] = {}
    while messages := await queue.pop(100):
        found.update({one.body: one.deliveries - 1 for one in messages})
    return found


async def stopped(consumer: Consumer, running: asyncio.Task[None]) -> None:
    consumer.stop()
    async with asyncio.timeout(10):
        await running


# --- run ----------------------------------------------------------------------------------------


async def test_handlers_run_up_to_the_concurrency_and_no_more_is_claimed(
    queue: Queue, cluster: QueueCluster
) -> None:
    bodies = [str(number) for number in range(20)]
    await queue.push_many(bodies)
    handler = Handler()
    consumer = queue.consume(concurrency=4)
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: handler.at_once == 4)
    assert (await queue.stats()).in_flight == 4
    handler.go.set()
    await eventually(lambda: len(handler.ended) == 20)
    await stopped(consumer, running)
    assert handler.most_at_once == 4
    assert sorted(handler.ended, key=int) == bodies
    stats = await queue.stats()
    assert (stats.acked, stats.in_flight, stats.ready) == (20, 0, 0)
    assert stats.delivered == 20


async def test_a_handler_that_fails_gives_back_with_the_back_off_and_others_go_on(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.push_many(["bad", "good"])
    seen: list[tuple[str, int]] = []

    async def handle(message: ClaimedMessage) -> None:
        seen.append((message.body, message.deliveries))
        if message.body == "bad" and message.deliveries < 3:
            raise ValueError("it is bad")

    consumer = queue.consume(backoff=Backoff(first=0.01, jitter=0))
    running = asyncio.create_task(consumer.run(handle))
    await eventually(lambda: ("bad", 3) in seen)
    await stopped(consumer, running)
    assert seen.count(("good", 1)) == 1
    stats = await queue.stats()
    assert (stats.nacked, stats.acked) == (2, 2)
    assert sum("the handler" in record.message for record in caplog.records) == 2


async def test_the_back_off_is_any_function_of_the_deliveries(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push("x")

    async def handle(message: ClaimedMessage) -> None:
        raise ValueError

    consumer = queue.consume(backoff=lambda deliveries: 100.0 * deliveries)
    running = asyncio.create_task(consumer.run(handle))
    await eventually(lambda: cluster.asks("nack"))
    await stopped(consumer, running)
    assert cluster.asks("nack")[0].body["delay_ms"] == 100_000


async def test_stopping_while_it_waits_spends_no_delivery(
    queue: Queue, cluster: QueueCluster
) -> None:
    consumer = queue.consume(wait=600)
    running = asyncio.create_task(consumer.run(Handler()))
    await eventually(lambda: cluster.queues.waiting == 1)
    await stopped(consumer, running)
    await eventually(lambda: cluster.queues.waiting == 0)
    await queue.push("x")
    (message,) = await queue.pop()
    assert message.deliveries == 1


async def test_an_answer_that_meets_the_closing_connection_spends_no_delivery(
    queue: Queue, cluster: QueueCluster
) -> None:
    """The node has answered, so far as it knows, when the consumer hangs up."""
    for node in cluster.nodes.values():
        node.fault("/queue/pop", hold_answer=asyncio.Event())
    handler = Handler()
    consumer = queue.consume(wait=600)
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: cluster.queues.waiting == 1)
    await queue.push("x")
    while not (await queue.stats()).in_flight:
        await asyncio.sleep(0.01)
    cluster.forget_faults()  # of the nodes that were not asked
    await stopped(consumer, running)
    assert handler.begun == []
    (message,) = await queue.pop()
    assert message.deliveries == 1


async def test_stopping_under_load_spends_no_delivery_of_what_was_not_begun(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push_many(str(number) for number in range(300))
    begun: set[str] = set()

    async def handle(message: ClaimedMessage) -> None:
        begun.add(message.body)
        if len(begun) == 100:
            consumer.stop()
        await asyncio.sleep(0)

    consumer = queue.consume(concurrency=5, visibility=10)
    async with asyncio.timeout(20):
        await consumer.run(handle)
    left = await deliveries(queue)
    assert set(left) == {str(number) for number in range(300)} - begun
    assert [body for body, before in left.items() if before] == []


async def test_an_answer_that_comes_with_the_stop_is_given_back(
    queue: Queue, cluster: QueueCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.push("x")
    handler = Handler()
    consumer = queue.consume()
    pop = Popper.pop

    async def pop_and_stop(popper: Popper, count: int, until: float) -> list[ClaimedMessage]:
        messages = await pop(popper, count, until)
        consumer.stop()
        return messages

    monkeypatch.setattr(Popper, "pop", pop_and_stop)
    async with asyncio.timeout(10):
        await consumer.run(handler)
    monkeypatch.undo()
    assert handler.begun == []
    (message,) = await queue.pop()
    assert message.body == "x"


async def test_handlers_have_a_grace_to_end(queue: Queue) -> None:
    await queue.push("x")
    handler = Handler()
    consumer = queue.consume()
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: handler.at_once)
    consumer.stop()
    assert not running.done()
    handler.go.set()
    await running
    assert (await queue.stats()).acked == 1


async def test_handlers_that_outlast_the_grace_are_cancelled_and_their_messages_return(
    queue: Queue,
) -> None:
    await queue.push("x")
    handler = Handler()
    consumer = queue.consume()
    running = asyncio.create_task(consumer.run(handler, grace=0))
    await eventually(lambda: handler.at_once)
    await stopped(consumer, running)
    assert handler.cancelled == ["x"]
    assert await deliveries(queue) == {"x": 1}


async def test_a_cancellation_stops_gracefully_and_a_second_one_ends_the_grace(
    queue: Queue,
) -> None:
    await queue.push_many(["a", "b"])
    for patient in (True, False):
        handler = Handler()
        running = asyncio.create_task(queue.consume(concurrency=1).run(handler, grace=60))
        await eventually(lambda h=handler: h.at_once)
        running.cancel()
        await asyncio.sleep(0)
        if patient:
            handler.go.set()
        else:
            await asyncio.sleep(0.05)  # the grace goes on
            assert not running.done()
            running.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await running
    assert handler.cancelled == ["b"]
    stats = await queue.stats()
    assert (stats.acked, stats.nacked) == (1, 1)


async def test_messages_are_kept_beyond_their_visibility(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    await queue.push_many(["a", "b", "c"])
    handler = Handler()
    consumer = queue.consume(visibility=30, wait=600)
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: handler.at_once == 3)
    for _ in range(4):
        clock.jump(10.1)
        await eventually(lambda: all(one.expires_in() > 25 for one in handler.messages))
    assert len(cluster.asks("extend")) >= 4
    assert await queue.pop() == []
    handler.go.set()
    await stopped(consumer, running)
    stats = await queue.stats()
    assert (stats.acked, stats.timed_out) == (3, 0)
    assert max(len(ask.body["receipts"]) for ask in cluster.asks("extend")) == 3


async def test_a_lost_claim_cancels_its_handler_alone(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.push_many(["a", "b"])
    handler = Handler()
    consumer = queue.consume(visibility=0.9)
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: handler.at_once == 2)
    await queue.purge()
    await queue.push("c")
    await eventually(lambda: len(handler.cancelled) == 2)
    await eventually(lambda: "c" in handler.begun)
    handler.go.set()
    await stopped(consumer, running)
    assert handler.ended == ["c"]
    assert "a handler was cancelled" in caplog.text


async def test_a_deadline_that_passes_offline_cancels_the_handler(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    await queue.push("x")
    handler = Handler()
    consumer = queue.consume()
    running = asyncio.create_task(consumer.run(handler))
    await eventually(lambda: handler.at_once)
    for node in cluster.nodes.values():
        await node.stop()
    clock.jump(30)
    await eventually(lambda: handler.cancelled)
    await stopped(consumer, running)


async def test_an_outage_does_not_end_it(
    queue: Queue, cluster: QueueCluster, make_client: Callable[..., AsyncClient]
) -> None:
    impatient = make_client(timeout=0.05).queue("q")
    handler = Handler()
    handler.go.set()
    consumer = impatient.consume()
    for node in cluster.nodes.values():
        node.fault("/queue/pop", times=3, answer=problem(503, "redis_unavailable"))
    running = asyncio.create_task(consumer.run(handler))
    await queue.push("x")
    await eventually(lambda: handler.ended == ["x"], within_seconds=20)
    await stopped(consumer, running)


async def test_what_the_cluster_refuses_ends_it(client: AsyncClient) -> None:
    with pytest.raises(BadRequest):
        await client.queue("a\nb").consume().run(Handler())
    with pytest.raises(ValueError, match="concurrency"):
        client.queue("q").consume(concurrency=0)
    used = client.queue("q").consume()
    used.stop()
    await used.run(Handler())
    with pytest.raises(RuntimeError, match="once"):
        await used.run(Handler())


async def test_closing_the_client_ends_it_and_its_handlers(
    queue: Queue, make_client: Callable[..., AsyncClient]
) -> None:
    await queue.push("x")
    client = make_client()
    handler = Handler()
    running = asyncio.create_task(client.queue("q").consume().run(handler))
    await eventually(lambda: handler.at_once)
    await client.close()
    with pytest.raises(ClientClosed):
        await running
    assert handler.cancelled == ["x"]


# --- async for ----------------------------------------------------------------------------------


async def test_asking_for_the_next_acknowledges_the_one_before(queue: Queue) -> None:
    await queue.push_many(["a", "b", "c"])
    acked_before = []
    consumer = queue.consume()
    async for message in consumer:
        acked_before.append((message.body, (await queue.stats()).acked))
        if message.body == "c":
            consumer.stop()
    assert acked_before == [("a", 0), ("b", 1), ("c", 2)]
    assert (await queue.stats()).acked == 3


async def test_it_claims_ahead_up_to_the_concurrency_and_keeps_what_it_has(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    await queue.push_many(str(number) for number in range(10))
    seen = []
    async with queue.consume(concurrency=4, visibility=30, wait=600) as consumer:
        async for message in consumer:
            seen.append(message.body)
            if len(seen) == 2:
                stats = await queue.stats()
                for _ in range(4):
                    clock.jump(10.1)
                    await eventually(lambda m=message: m.expires_in() > 25)
                break
    assert len(cluster.asks("extend")) >= 4
    assert stats.in_flight <= 4
    stats = await queue.stats()
    assert (stats.acked, stats.timed_out) == (1, 0)
    assert (stats.ready, stats.in_flight) == (8, 1)  # given back, but not the one at hand


async def test_leaving_by_break_or_exception_does_not_acknowledge_and_gives_back_the_rest(
    queue: Queue,
) -> None:
    for _ in range(2):
        await queue.purge()
        await queue.push_many(["a", "b", "c"])
        with pytest.raises(KeyError):  # noqa: PT012
            async for message in queue.consume(visibility=0.6):
                assert message.body == "a"
                raise KeyError
        gc.collect(0)
        found: dict[str, int] = {}
        async with asyncio.timeout(10):
            while len(found) < 3:  # that at hand when its claim ends
                found.update({one.body: one.deliveries for one in await queue.pop(3, wait=5)})
        assert found["a"] == 2
    assert (await queue.stats()).acked == 0


async def test_a_message_held_by_async_with_is_settled_by_it(queue: Queue) -> None:
    await queue.push_many(["a", "b"])
    consumer = queue.consume(concurrency=1, backoff=lambda deliveries: 3600)
    async for message in consumer:
        try:
            async with message:
                if message.body == "a":
                    raise KeyError
                consumer.stop()
        except KeyError:
            pass
    stats = await queue.stats()
    assert (stats.acked, stats.nacked, stats.delayed) == (1, 1, 1)


async def test_without_auto_ack_other_tasks_settle(queue: Queue) -> None:
    await queue.push_many(str(number) for number in range(12))
    handler = Handler()
    consumer = queue.consume(concurrency=3, auto_ack=False)

    async def work(message: ClaimedMessage) -> None:
        async with message:
            await handler(message)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:

        async def consume() -> None:
            async for message in consumer:
                group.create_task(work(message))

        group.create_task(consume())
        await eventually(lambda: handler.at_once == 3)
        assert (await queue.stats()).in_flight == 3
        handler.go.set()
        await eventually(lambda: len(handler.ended) == 12)
        consumer.stop()
    assert handler.most_at_once == 3
    assert (await queue.stats()).acked == 12


async def test_a_claim_lost_while_ahead_is_not_handed_out(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push_many(["a", "b"])
    async with aclosing(aiter(queue.consume(visibility=0.9))) as messages:
        first = await anext(messages)
        await eventually(lambda: len(cluster.asks("pop")) > 1)
        await queue.purge()
        await eventually(lambda: first.expires_in() == 0)
        await queue.push("c")
        assert (await anext(messages)).body == "c"
    with pytest.raises(ClaimLost):
        first.check()


async def test_no_task_is_left_by_a_loop_that_was_broken_off(queue: Queue) -> None:
    await queue.push("x")
    async for _ in queue.consume():
        break

    def at_work() -> list[str]:
        names = (task.get_name() for task in asyncio.all_tasks())
        return [name for name in names if name.startswith(("distsync-pull", "distsync-finish"))]

    await eventually(lambda: not at_work())


@pytest.fixture(autouse=True)
def _log_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "distsync")
