"""Pushing, claiming and settling, on a real Redis behind scripted nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from distsync import (
    AsyncClient,
    BadRequest,
    ClaimLost,
    Fenced,
    LimitReached,
    Message,
    MessageInFlight,
    MessageNotFound,
    OutcomeUnknown,
    Queue,
    QueueFull,
    QueueNotFound,
    RedisFull,
    RedisUnavailable,
    Schedule,
    StaleReceipt,
)
from distsync import popping as popping_module
from unit.client.jump_clock import JumpClock
from unit.client.queues.conftest import QueueCluster
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually


async def test_a_message_is_pushed_claimed_and_done(queue: Queue) -> None:
    pushed = await queue.push("héllo", priority=3, group="ada")
    (message,) = await queue.pop()
    assert (message.id, message.body, message.deliveries) == (pushed, "héllo", 1)
    assert (message.priority, message.group, message.queue) == (3, "ada", "q")
    assert 25 < message.expires_in() < 30
    assert await queue.pop() == []
    await message.ack()
    assert message.settled
    assert message.expires_in() == 0
    stats = await queue.stats()
    assert (stats.ready, stats.in_flight, stats.acked) == (0, 0, 1)


async def test_options_of_a_push_are_seconds_or_timedeltas(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push("x", delay=1.5, ttl=timedelta(minutes=2), dedupe_id="d")
    await queue.push("y")
    first, second = (ask.body["messages"][0] for ask in cluster.asks("push"))
    assert first == {"body": "x", "delay_ms": 1500, "ttl_ms": 120_000, "dedupe_id": "d"}
    assert second == {"body": "y"}
    assert (await queue.stats()).delayed == 1


async def test_many_messages_go_in_batches_and_keep_their_order(
    queue: Queue, cluster: QueueCluster
) -> None:
    messages: list[str | Message] = [str(number) for number in range(250)]
    messages[7] = Message("7", priority=5)
    ids = await queue.push_many(messages)
    assert len(set(ids)) == 250
    assert [len(ask.body["messages"]) for ask in cluster.asks("push")] == [100, 100, 50]
    popped = [one for _ in range(3) for one in await queue.pop(100)]
    assert [one.body for one in popped] == ["7", *(str(n) for n in range(250) if n != 7)]
    await queue.ack_many(popped)
    assert (await queue.stats()).acked == 250


@pytest.mark.parametrize("letter", ["x", "é", '"', "\x01"])
async def test_large_messages_go_in_batches_that_a_node_takes(
    queue: Queue, cluster: QueueCluster, letter: str
) -> None:
    body = letter * (256 * 1024 // len(letter.encode()))
    assert len(await queue.push_many([body] * 20)) == 20
    assert len(cluster.asks("push")) >= 2


async def test_each_message_of_a_batch_that_cannot_be_is_told(queue: Queue) -> None:
    """They count from the first message of the call, also in its later batches."""
    messages = [Message(str(number)) for number in range(160)]
    for number in (103, 120, 121, 130, 131, 159):
        messages[number] = Message("x", priority=10)
    messages[120] = Message("x", group="g" * 257)
    with pytest.raises(BadRequest) as bad:
        await queue.push_many(messages)
    error = bad.value
    assert len(error.fields["pushed"]) == (await queue.stats()).pushed == 100
    assert [one.index for one in error.errors] == [103, 120, 121, 130, 131, 159]
    assert error.field == error.errors[0].field == "messages[103].priority"
    assert error.errors[1].field == "messages[120].group"
    assert str(error).startswith("messages[103].priority: ")
    assert "; messages[120].group: " in str(error)
    assert "messages[131]" in str(error)
    assert str(error).endswith("; and 1 more")


async def test_nothing_to_push_asks_for_nothing(queue: Queue, cluster: QueueCluster) -> None:
    assert await queue.push_many([]) == []
    assert cluster.asks("push") == []


async def test_a_push_repeated_over_a_lost_connection_is_done_once(
    queue: Queue, cluster: QueueCluster
) -> None:
    for node in cluster.nodes.values():
        node.fault("/queue/push", drop="after")
    await queue.push("once")
    asks = cluster.asks("push")
    assert len(asks) > 1
    assert len({ask.body["request_id"] for ask in asks}) == 1
    assert (await queue.stats()).pushed == 1


async def test_a_pop_repeated_over_a_lost_connection_claims_once(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push_many(["a", "b"])
    for node in cluster.nodes.values():
        node.fault("/queue/pop", drop="after")
    (message,) = await queue.pop()
    assert (message.body, message.deliveries) == ("a", 1)
    assert len({ask.body["request_id"] for ask in cluster.asks("pop")}) == 1
    assert (await queue.stats()).in_flight == 1


async def test_a_503_is_sent_again_as_it_is(queue: Queue, cluster: QueueCluster) -> None:
    for node in cluster.nodes.values():
        node.fault("/queue/push", answer=problem(503, "redis_unavailable"))
    await queue.push("x")
    assert len({ask.body["request_id"] for ask in cluster.asks("push")}) == 1
    assert (await queue.stats()).pushed == 1


async def test_an_acknowledgement_asked_again_after_doubt_is_the_same_request(
    queue: Queue, cluster: QueueCluster, make_client: Callable[..., AsyncClient]
) -> None:
    await queue.push("x")
    (message,) = await make_client(timeout=0.2).queue("q").pop()
    for node in cluster.nodes.values():
        node.fault("/queue/ack", times=10_000, drop="after")
    with pytest.raises(OutcomeUnknown):
        await message.ack()
    cluster.forget_faults()
    await message.ack()
    assert (await queue.stats()).acked == 1


async def test_without_redis_it_says_so(make_client: Callable[..., AsyncClient]) -> None:
    bare = ScriptedCluster()
    await bare.start(1)
    with pytest.raises(RedisUnavailable) as refused:
        await make_client(bare.urls(), timeout=0.2).queue("q").push("x")
    assert refused.value.retriable
    await bare.stop()


async def test_errors_of_queues_have_their_classes_and_fields(
    queue: Queue, client: AsyncClient, cluster: QueueCluster
) -> None:
    with pytest.raises(QueueNotFound):
        await queue.stats()
    with pytest.raises(QueueNotFound):
        await queue.configure(max_length=1, create=False)
    await queue.configure(max_length=2)
    with pytest.raises(QueueFull) as full:
        await queue.push_many(["x"] * 3)
    assert full.value.limit == "max_length"
    assert full.value.fields["pushed"] == []
    with pytest.raises(BadRequest):
        await queue.push("x", priority=10)
    with pytest.raises(ValueError, match="delay"):
        await queue.push("x", delay=-1)
    for node in cluster.nodes.values():
        node.fault("/queue/push", answer=problem(507, "redis_full"))
    with pytest.raises(RedisFull):
        await queue.push("x")


async def test_a_pop_acknowledges_in_its_request(queue: Queue, cluster: QueueCluster) -> None:
    await queue.push_many(["a", "b"])
    (first,) = await queue.pop()
    for node in cluster.nodes.values():
        node.fault("/queue/pop", drop="after")
    (second,) = await queue.pop(ack=[first])
    assert (first.settled, second.body, second.settled) == (True, "b", False)
    assert await queue.pop(wait=0.2, ack=[second]) == []
    assert second.settled
    stats = await queue.stats()
    assert (stats.acked, stats.in_flight, stats.ready) == (2, 0, 0)
    assert cluster.asks("ack") == []


async def test_a_message_whose_claim_had_ended_is_not_settled_by_a_pop(queue: Queue) -> None:
    """And what the pop brought is not lost for that."""
    await queue.push_many(["a", "b", "c"])
    lost, done = await queue.pop(2)
    await queue._calls.nack([lost.receipt], delay_ms=60_000)  # elsewhere
    (message,) = await queue.pop(ack=[lost, done])
    assert (message.body, done.settled, lost.settled) == ("c", True, False)
    with pytest.raises(ClaimLost):
        lost.check()


async def test_a_pop_in_doubt_leaves_what_it_acknowledges_unsettled(
    queue: Queue, cluster: QueueCluster, make_client: Callable[..., AsyncClient]
) -> None:
    await queue.push("a")
    hasty = make_client(timeout=0.2).queue("q")
    (message,) = await hasty.pop()
    for node in cluster.nodes.values():
        node.fault("/queue/pop", times=10_000, drop="after")
    with pytest.raises(OutcomeUnknown):
        await hasty.pop(ack=[message])
    assert not message.settled
    assert (await queue.stats()).acked == 1
    with pytest.raises(StaleReceipt):
        await message.ack()


async def test_a_message_is_not_cancelled_for_the_pop_that_acknowledges_it(queue: Queue) -> None:
    """Its claim is extended no more: an extension would find that it has ended."""
    await queue.push("a")
    (message,) = await queue.pop(visibility=0.6)
    async with message:
        assert await queue.pop(wait=1.0, ack=[message]) == []
    assert message.settled
    assert (await queue.stats()).acked == 1


async def test_a_pop_that_acknowledges_a_message_of_another_queue_is_refused(
    queue: Queue, client: AsyncClient
) -> None:
    await queue.push("a")
    await client.queue("other").push("b")
    (message,) = await queue.pop()
    with pytest.raises(BadRequest) as refused:
        await client.queue("other").pop(ack=[message])
    assert [one.field for one in refused.value.errors] == ["ack[0]"]
    assert not message.settled
    await message.ack()


async def test_stale_receipts_are_named_and_the_others_acknowledged(queue: Queue) -> None:
    await queue.push_many(["a", "b"])
    first, second = await queue.pop(2)
    await first.ack()
    with pytest.raises(StaleReceipt) as stale:
        await queue.ack_many([first, second])
    assert stale.value.stale == [first.receipt]
    assert second.settled
    assert (await queue.stats()).acked == 2


async def test_a_fence_is_a_held_lock_or_its_name_and_token(
    queue: Queue, client: AsyncClient
) -> None:
    async with client.lock("orders/42") as lock:
        await queue.push("x", fence=lock)
        await queue.push_many(["y"], fence=("orders/42", lock.token))
    async with client.lock("orders/42") as newer:
        await queue.push("z", fence=newer)
        with pytest.raises(Fenced) as refused:
            await queue.push("late", fence=lock)
        with pytest.raises(Fenced):
            await queue.push("never", fence=("orders/42", newer.token + 1))
    assert refused.value.newest == newer.token
    assert (await queue.stats()).pushed == 3


async def test_nack_delays_or_makes_a_dead_letter(queue: Queue) -> None:
    await queue.push("x")
    (message,) = await queue.pop()
    assert await message.nack() is False
    (message,) = await queue.pop()
    assert message.deliveries == 2
    assert await message.nack(dead=True) is True
    assert (await queue.stats()).dead == 1
    assert await queue.redrive() == 1
    (message,) = await queue.pop()
    await message.nack(3600)
    assert (await queue.stats()).delayed == 1


async def test_a_message_is_found_by_its_id_wherever_it_is(queue: Queue) -> None:
    delayed = await queue.push("later", delay=3600, priority=4, ttl=7200)
    info = await queue.get(delayed)
    assert (info.id, info.phase, info.body, info.size) == (delayed, "delayed", "later", 5)
    assert (info.priority, info.group, info.deliveries) == (4, "", 0)
    assert info.due_at_ms == info.pushed_at_ms + 3_600_000
    assert info.expires_at_ms == info.pushed_at_ms + 7_200_000
    assert (info.deadline_ms, info.died_at_ms) == (0, 0)
    await queue.push("now", group="ada")
    (claimed,) = await queue.pop()
    info = await queue.get(claimed.id)
    assert (info.phase, info.deliveries, info.group) == ("in_flight", 1, "ada")
    await claimed.nack(dead=True)
    assert (await queue.get(claimed.id)).phase == "dead"
    with pytest.raises(MessageNotFound):
        await queue.get("no-such")
    for id in ("..", "../stats", "é"):
        with pytest.raises(BadRequest):
            await queue.get(id)


async def test_a_message_is_cancelled_unless_it_is_claimed(queue: Queue) -> None:
    waiting, claimed = await queue.push_many(["waits", Message("claimed", priority=1)])
    (message,) = await queue.pop()
    with pytest.raises(MessageInFlight):
        await queue.cancel(claimed)
    await queue.cancel(waiting)
    with pytest.raises(MessageNotFound) as missing:
        await queue.cancel(waiting)
    assert not missing.value.after_doubt
    await message.nack(dead=True)
    await queue.cancel(claimed)
    stats = await queue.stats()
    assert (stats.ready, stats.in_flight, stats.dead, stats.cancelled) == (0, 0, 0, 2)


async def test_a_cancellation_whose_answer_was_lost_is_done(
    queue: Queue, cluster: QueueCluster
) -> None:
    id = await queue.push("x")
    for node in cluster.nodes.values():
        node.fault(f"/queue/q/messages/{id}", drop="after")
    await queue.cancel(id)
    asks = cluster.asked_for(f"/queue/q/messages/{id}")
    assert len(asks) > 1
    assert all(ask.body == {} for ask in asks)  # a DELETE has none
    assert (await queue.stats()).cancelled == 1


async def test_a_cancellation_that_was_not_done_before_finds_no_message(
    queue: Queue, cluster: QueueCluster
) -> None:
    for node in cluster.nodes.values():
        node.fault("/queue/q/messages/9f-0", answer=problem(503, "redis_unavailable"))
    with pytest.raises(MessageNotFound):
        await queue.cancel("9f-0")
    assert len(cluster.asked_for("/queue/q/messages/9f-0")) > 1


async def test_a_cancellation_in_doubt_is_refused_for_a_claimed_message(
    queue: Queue, cluster: QueueCluster
) -> None:
    id = await queue.push("x")
    await queue.pop()
    for node in cluster.nodes.values():
        node.fault(f"/queue/q/messages/{id}", drop="after")
    with pytest.raises(MessageInFlight) as refused:
        await queue.cancel(id)
    assert refused.value.after_doubt


async def test_a_cancellation_without_any_answer_is_in_doubt(
    queue: Queue, cluster: QueueCluster, make_client: Callable[..., AsyncClient]
) -> None:
    id = await queue.push("x")
    for node in cluster.nodes.values():
        node.fault(f"/queue/q/messages/{id}", times=10_000, drop="after")
    with pytest.raises(OutcomeUnknown):
        await make_client(timeout=0.2).queue("q").cancel(id)


async def test_a_schedule_is_kept_replaced_and_forgotten(
    queue: Queue, cluster: QueueCluster
) -> None:
    kept = await queue.schedule(
        "b", "30 2 * * *", "é", timezone="Europe/Berlin", priority=3, ttl=90, group="ada"
    )
    assert (kept.id, kept.cron, kept.timezone, kept.body) == (
        *("b", "30 2 * * *", "Europe/Berlin", "é"),
    )
    assert (kept.priority, kept.ttl, kept.ttl_ms, kept.group) == (3, 90.0, 90_000, "ada")
    assert kept.next_at is not None
    assert kept.next_at.tzinfo is UTC
    assert (kept.next_at.hour, kept.next_at.minute) in ((0, 30), (1, 30))  # summer or winter
    assert timedelta(0) < kept.next_at - datetime.now(UTC) < timedelta(hours=26)
    plain = await queue.schedule("a", "0 0 1 1 *", "x")
    (asked,) = cluster.asked_for("/queue/q/schedules/a")
    assert asked.body == {"cron": "0 0 1 1 *", "body": "x"}
    assert await queue.schedules() == [plain, kept]
    again = await queue.schedule("b", "0 0 1 1 *", "y")
    assert await queue.schedules() == [plain, again]
    assert await queue.unschedule("b") is True
    assert await queue.unschedule("b") is False
    assert await queue.schedules() == [plain]


@pytest.mark.parametrize("id", [".", "..", "../a/b", "a?b #%é"])
async def test_a_schedule_may_have_any_id(client: AsyncClient, id: str) -> None:
    queue = client.queue("a/b %é")
    await queue.schedule(id, "0 0 1 1 *", "x")
    assert [one.id for one in await queue.schedules()] == [id]
    assert await queue.unschedule(id)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "never"}, "cron"),
        ({"timezone": "Nowhere"}, "timezone"),
        ({"priority": 10}, "priority"),
        ({"body": "x" * 16 * 1024 + "y"}, "body"),
    ],
)
async def test_what_is_no_schedule_is_refused_by_its_field(
    queue: Queue, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadRequest) as bad:
        await queue.schedule("s", **{"cron": "0 0 1 1 *", "body": "x", **change})
    assert bad.value.field == field


async def test_a_queue_has_so_many_schedules_at_most(queue: Queue) -> None:
    await asyncio.gather(*(queue.schedule(str(n), "0 0 1 1 *", "x") for n in range(100)))
    with pytest.raises(LimitReached) as full:
        await queue.schedule("one more", "0 0 1 1 *", "x")
    assert full.value.limit == "schedules"


async def test_a_schedule_whose_time_never_comes_has_no_next_one() -> None:
    schedule = Schedule(id="s", cron="0 0 1 1 *", body="x")
    assert schedule.next_at is None


async def test_a_schedule_is_put_and_removed_once_over_lost_connections(
    queue: Queue, cluster: QueueCluster
) -> None:
    for node in cluster.nodes.values():
        node.fault("/queue/q/schedules/s", drop="after")
    put = await queue.schedule("s", "0 0 1 1 *", "x")
    assert await queue.schedules() == [put]
    asked_before = len(cluster.asked_for("/queue/q/schedules/s"))
    assert asked_before > 1
    for node in cluster.nodes.values():
        node.fault("/queue/q/schedules/s", drop="after")
    assert await queue.unschedule("s") is True
    assert len(cluster.asked_for("/queue/q/schedules/s")) > asked_before + 1
    assert await queue.schedules() == []


async def test_a_schedule_without_any_answer_is_in_doubt(
    queue: Queue, cluster: QueueCluster, make_client: Callable[..., AsyncClient]
) -> None:
    hurried = make_client(timeout=0.2).queue("q")
    for node in cluster.nodes.values():
        node.fault("/queue/q/schedules/s", times=10_000, drop="after")
    with pytest.raises(OutcomeUnknown):
        await hurried.schedule("s", "0 0 1 1 *", "x")
    with pytest.raises(OutcomeUnknown):
        await hurried.unschedule("s")


async def test_messages_are_listed_where_they_are_over_pages(queue: Queue) -> None:
    await queue.push_many([str(number) for number in range(130)])
    await queue.push_many([Message("g", group="ada"), Message("later", delay=60)])
    assert [one.body async for one in queue.list()] == [str(number) for number in range(130)]
    assert [one.body async for one in queue.list("grouped")] == ["g"]
    assert [one.body async for one in queue.list("delayed")] == ["later"]
    assert [one.body async for one in queue.list("dead")] == []
    first, second = await queue.pop(2)
    await first.nack(dead=True)
    assert [one.id async for one in queue.list("in_flight")] == [second.id]
    assert [one.id async for one in queue.list("dead")] == [first.id]


async def test_queues_are_listed_over_pages_peeked_at_paused_and_purged(
    client: AsyncClient, queue: Queue
) -> None:
    names = sorted(f"many/{number:03}" for number in range(130))
    await asyncio.gather(*(client.queue(name).push("x") for name in names))
    odd = client.queue("a/b %é")
    await odd.push("odd")
    assert [name async for name in client.queues("many/")] == names
    assert [name async for name in client.queues()] == ["a/b %é", *names]
    assert [one.body for one in await odd.peek(5)] == ["odd"]
    assert (await odd.pause()).paused
    assert await odd.pop() == []
    assert not (await odd.resume()).paused
    assert await odd.purge() == 1
    assert await odd.purge(dead=True) == 0
    config = await odd.configure(ttl=timedelta(hours=1), rate_count=5, rate_per=2)
    assert (config.ttl, config.rate_count, config.rate_per) == (3600, 5, 2)


async def test_a_claim_counts_from_the_sending_of_the_request(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    await queue.push("x")
    answered = asyncio.Event()
    for node in cluster.nodes.values():
        node.fault("/queue/pop", hold_answer=answered)
    popping = asyncio.create_task(queue.pop(visibility=100))
    await eventually(lambda: cluster.asks("pop"))
    clock.jump(5)
    answered.set()
    (message,) = await popping
    assert 90 < message.expires_in() < 95
    assert cluster.asks("extend") == []
    clock.jump(95)
    with pytest.raises(ClaimLost):
        message.check()


async def test_claims_that_are_old_when_they_come_are_extended_first(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    popping = asyncio.create_task(queue.pop(2, wait=30, visibility=9))
    await eventually(lambda: cluster.asks("pop"))
    clock.jump(4)
    await queue.push("x")
    (message,) = await popping
    assert len(cluster.asks("extend")) == 1
    assert message.expires_in() > 6
    await message.ack()


async def test_a_wait_longer_than_one_request_may_last_asks_again(
    queue: Queue, cluster: QueueCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(popping_module, "_LONGEST_SECONDS", 0.05)
    assert await queue.pop(wait=0.2) == []
    asks = cluster.asks("pop")
    assert len(asks) >= 2  # four, unless this machine is slow
    assert all(ask.body["wait_ms"] <= 50 for ask in asks)
    assert len({ask.body["request_id"] for ask in asks}) == len(asks)
    forever = asyncio.create_task(queue.pop(wait=None))
    await eventually(lambda: len(cluster.asks("pop")) > len(asks) + 2)
    await queue.push("x")
    assert len(await forever) == 1


async def test_a_pop_that_is_cancelled_while_it_waits_spends_no_delivery(
    queue: Queue, cluster: QueueCluster
) -> None:
    popping = asyncio.create_task(queue.pop(wait=60))
    await eventually(lambda: cluster.queues.waiting == 1)
    popping.cancel()
    await asyncio.wait([popping])
    await eventually(lambda: cluster.queues.waiting == 0)
    await queue.push("x")
    (message,) = await queue.pop(wait=10)
    assert message.deliveries == 1


async def test_a_pop_that_is_cancelled_when_it_has_been_answered_spends_no_delivery(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push("x")
    for node in cluster.nodes.values():
        node.fault("/queue/pop", hold_answer=asyncio.Event())
    popping = asyncio.create_task(queue.pop())
    while not (await queue.stats()).in_flight:
        await asyncio.sleep(0.01)
    cluster.forget_faults()  # of the nodes that were not asked
    popping.cancel()
    await asyncio.wait([popping])
    (message,) = await queue.pop(wait=10)
    assert message.deliveries == 1


async def test_a_pop_stays_at_a_node_without_a_leader(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    """Queues need no majority, so that nobody leads is no reason to ask elsewhere."""
    cluster.leader = None
    popping = asyncio.create_task(queue.pop(wait=600))
    await eventually(lambda: cluster.asks("pop"))
    for probes in range(1, 6):
        clock.jump(2.5)
        await eventually(lambda n=probes: len(cluster.asked_for("/cluster/status")) >= n)
    assert not popping.done()
    await queue.push("x")
    assert len(await popping) == 1
    assert len(cluster.asks("pop")) == 1


# --- async with ---------------------------------------------------------------------------------


async def claimed(queue: Queue, visibility: float = 30.0) -> Any:
    await queue.push("x")
    (message,) = await queue.pop(visibility=visibility)
    return message


async def test_leaving_acknowledges(queue: Queue) -> None:
    message = await claimed(queue)
    async with message:
        pass
    assert message.settled
    assert (await queue.stats()).acked == 1
    with pytest.raises(RuntimeError):
        async with message:
            pass


async def test_an_exception_gives_back_with_a_delay_that_grows_with_deliveries(
    queue: Queue, cluster: QueueCluster
) -> None:
    await queue.push("x")
    for deliveries in (1, 2):
        (message,) = await queue.pop(wait=5)
        with pytest.raises(KeyError):
            async with message:
                raise KeyError
        assert message.settled
        (asked,) = cluster.asks("nack")[-1:]
        most = 1000 * deliveries
        assert most / 2 <= asked.body["delay_ms"] <= most
    assert (await queue.stats()).nacked == 2


async def test_a_cancelled_body_gives_back_at_once(queue: Queue) -> None:
    message = await claimed(queue)
    inside = asyncio.Event()

    async def work() -> None:
        async with message:
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (again,) = await queue.pop()
    assert again.deliveries == 2


async def test_what_the_body_settled_stays_so(queue: Queue, cluster: QueueCluster) -> None:
    async with await claimed(queue) as message:
        await message.nack(dead=True)
    assert (await queue.stats()).dead == 1
    assert cluster.asks("ack") == []


async def test_a_claim_is_extended_while_the_body_runs(queue: Queue, cluster: QueueCluster) -> None:
    """In real time: Redis would end a claim that is not extended."""
    async with await claimed(queue, visibility=3) as message:
        await eventually(lambda: len(cluster.asks("extend")) >= 4)
        message.check()
        assert await queue.pop() == []
    stats = await queue.stats()
    assert (stats.acked, stats.timed_out) == (1, 0)


async def test_an_extension_by_hand_counts_for_those_that_follow(
    queue: Queue, cluster: QueueCluster
) -> None:
    async with await claimed(queue, visibility=15) as message:
        await message.extend(300)
        assert message.expires_in() > 290
        assert [ask.body["visibility_ms"] for ask in cluster.asks("extend")] == [300_000]


async def test_a_claim_that_the_cluster_ended_cancels_the_body(queue: Queue) -> None:
    message = await claimed(queue, visibility=0.9)
    await queue.purge()
    with pytest.raises(ClaimLost) as lost:  # noqa: PT012
        async with message:
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
    assert lost.value.stale == [message.receipt]


async def test_a_claim_whose_deadline_passes_offline_cancels_the_body(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    message = await claimed(queue)
    with pytest.raises(ClaimLost):  # noqa: PT012
        async with message:
            for node in cluster.nodes.values():
                await node.stop()
            clock.jump(30)
            async with asyncio.timeout(5):
                await asyncio.Event().wait()


async def test_extensions_go_on_after_an_outage(
    queue: Queue, cluster: QueueCluster, clock: JumpClock
) -> None:
    async with await claimed(queue) as message:
        for node in cluster.nodes.values():
            node.fault("/queue/extend", times=2, answer=problem(503, "redis_unavailable"))
        clock.jump(11)
        await eventually(lambda: message.expires_in() > 25)
        message.check()


async def test_closing_the_client_ends_the_bodies(
    queue: Queue, make_client: Callable[..., AsyncClient]
) -> None:
    await queue.push("x")
    client = make_client()
    (message,) = await client.queue("q").pop()
    with pytest.raises(ClaimLost, match="closed"):  # noqa: PT012
        async with message:
            await client.close()
            await asyncio.Event().wait()
