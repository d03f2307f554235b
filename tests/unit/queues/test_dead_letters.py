"""Messages that cannot be handled, and how they come back."""

from __future__ import annotations

import pytest

from distsync_node.errors import MessageNotFound
from distsync_node.queues.types import Order, Phase, PurgeTarget
from unit.queues.conftest import Queue


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("by", ["nack", "deadline"])
async def test_a_message_is_delivered_exactly_n_times(queue: Queue, limit: int, by: str) -> None:
    await queue.configure(max_deliveries=limit)
    await queue.push("poison")
    for number in range(1, limit + 1):
        message = await queue.one(visibility_ms=10)
        assert message.deliveries == number
        if by == "nack":
            settled = await queue.nack(message)
            assert settled.dead == ((message.id,) if number == limit else ())
        else:
            queue.after(10)
    assert await queue.claim() == []
    stats = await queue.stats()
    assert (stats.dead, stats.ready, stats.in_flight) == (1, 0, 0)


async def test_unclaimed_deliveries_do_not_count(queue: Queue) -> None:
    await queue.configure(max_deliveries=2)
    await queue.push("x")
    for _ in range(5):
        popped = await queue.pop(request_id="r")
        await queue.store.unclaim("orders", request_id="r", attempt=popped.attempt)
    assert (await queue.one()).deliveries == 1


async def test_an_ack_of_the_last_delivery_makes_no_dead_letter(queue: Queue) -> None:
    await queue.configure(max_deliveries=1)
    await queue.push("x")
    await queue.ack(await queue.one())
    assert (await queue.after(10_000).stats()).dead == 0


async def test_a_limit_that_is_lowered_is_kept_for_messages_that_wait(queue: Queue) -> None:
    await queue.push("twice")
    await queue.push("never")
    for _ in range(2):
        await queue.nack(await queue.one())
    await queue.configure(max_deliveries=2)
    assert await queue.bodies() == ["never"]
    assert (await queue.stats()).dead == 1


async def test_without_a_limit_nothing_dies_of_itself(queue: Queue) -> None:
    await queue.configure(max_deliveries=0)
    await queue.push("x")
    for _ in range(30):
        await queue.nack(await queue.one())
    assert (await queue.one()).deliveries == 31


async def test_a_consumer_may_give_a_message_up_at_once(queue: Queue) -> None:
    (message_id,) = await queue.push("x")
    assert (await queue.nack(await queue.one(), dead=True)).dead == (message_id,)
    told = await queue.store.get("orders", message_id)
    assert (told.phase, told.body, told.deliveries) == (Phase.DEAD, b"x", 1)
    assert told.died_at_ms == queue.clock.now_ms


async def test_redrive_brings_them_back_as_if_pushed_now(queue: Queue) -> None:
    ids = await queue.push("1", "2", priority=3, ttl_ms=1_000)
    await queue.push("other", priority=3)
    for message in await queue.claim(2):
        await queue.nack(message, dead=True)
    assert await queue.after(5_000).store.redrive("orders") == 2
    messages = await queue.claim(3)
    assert [one.body for one in messages] == [b"other", b"1", b"2"]
    assert [one.id for one in messages[1:]] == list(ids)
    assert [one.deliveries for one in messages] == [1, 1, 1]
    assert (await queue.stats()).dead == 0


async def test_redrive_of_many_goes_in_pages_and_takes_all(queue: Queue) -> None:
    for _ in range(3):
        await queue.push(*(f"{i}" for i in range(90)), group="")
        for message in await queue.claim(100):
            await queue.nack(message, dead=True)
    assert await queue.store.redrive("orders", request_id="r") == 270
    assert await queue.store.redrive("orders", request_id="r") == 270  # the same request
    stats = await queue.stats()
    assert (stats.ready, stats.dead, stats.redriven) == (270, 0, 270)


async def test_one_that_dies_while_the_redrive_goes_on_is_left_for_the_next(queue: Queue) -> None:
    await queue.push(*map(str, range(100)))
    for message in await queue.claim(100):
        await queue.nack(message, dead=True)
    until = queue.clock.now_ms
    queue.after(1)
    await queue.push("later")
    await queue.nack(await queue.one(), dead=True)
    redriven = await queue.store._runner.run("redrive", "orders", ("a", "d", until, 100, 1 << 20))
    assert redriven == [["ok", 100, True, until, 100]]
    redriven = await queue.store._runner.run("redrive", "orders", ("b", "d", until, 100, 1 << 20))
    assert redriven == [["ok", 0, False, until, 0]]
    assert (await queue.stats()).dead == 1


async def test_a_redriven_message_of_a_group_is_its_last(queue: Queue) -> None:
    await queue.push("1", "2", group="g")
    await queue.nack(await queue.one(), dead=True)
    assert await queue.store.redrive("orders") == 1
    second = await queue.one()
    assert second.body == b"2"
    await queue.ack(second)
    assert await queue.bodies() == ["1"]


async def test_dead_letters_can_be_listed_cancelled_and_purged(queue: Queue) -> None:
    ids = await queue.push("1", "2", "3")
    for message in await queue.claim(3):
        await queue.nack(message, dead=True)
        queue.after(1)
    page = await queue.store.list_page("orders", Order.DEAD)
    assert [one.id for one in page.messages] == list(ids)
    await queue.store.cancel("orders", ids[0])
    with pytest.raises(MessageNotFound):
        await queue.store.get("orders", ids[0])
    assert await queue.store.purge("orders", PurgeTarget.DEAD) == 2
    assert (await queue.stats()).dead == 0
    assert queue.client.hlen("dsq:{orders}:dead_bodies") == 0


async def test_a_purge_of_messages_leaves_dead_letters(queue: Queue) -> None:
    await queue.push("dead", "alive")
    await queue.nack(await queue.one(), dead=True)
    assert await queue.store.purge("orders") == 1
    assert (await queue.stats()).dead == 1
    assert await queue.store.redrive("orders") == 1
    assert await queue.bodies() == ["dead"]
