"""Looking at a queue and changing it as a whole: get, cancel, peek, list, stats, purge, names."""

from __future__ import annotations

import pytest

from distsync_node.errors import (
    BadRequest,
    MessageInFlight,
    MessageNotFound,
    QueueNotFound,
    RequestIdReused,
)
from distsync_node.queues.types import MessageInfo, Order, Phase, QueueConfigChange
from unit.queues.conftest import Queue


async def every(queue: Queue, order: Order, limit: int = 7) -> list[MessageInfo]:
    """Read a list page by page."""
    found: list[MessageInfo] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await queue.store.list_page("orders", order, cursor=cursor, limit=limit)
        assert len(page.messages) <= limit
        found += page.messages
        cursor = page.cursor
    return found


class TestGet:
    async def test_it_tells_all_phases(self, queue: Queue) -> None:
        ready, claimed, delayed = (
            *(await queue.push("ready", priority=4)),
            *(await queue.push("claimed", priority=9, ttl_ms=5_000)),
            *(await queue.push("delayed", delay_ms=300, group="g")),
        )
        await queue.one(visibility_ms=200)
        now = queue.clock.now_ms
        told = await queue.store.get("orders", ready)
        assert (told.phase, told.priority, told.body) == (Phase.READY, 4, b"ready")
        told = await queue.store.get("orders", claimed)
        assert (told.phase, told.deadline_ms, told.deliveries) == (Phase.IN_FLIGHT, now + 200, 1)
        assert told.expires_at_ms == now + 5_000
        told = await queue.store.get("orders", delayed)
        assert (told.phase, told.due_at_ms, told.group) == (Phase.DELAYED, now + 300, "g")
        queue.after(300)
        for message_id in (ready, claimed, delayed):
            assert (await queue.store.get("orders", message_id)).phase is Phase.READY

    async def test_there_is_none(self, queue: Queue) -> None:
        (message_id,) = await queue.push("x", ttl_ms=10)
        for wrong in ("nothing", message_id[:-1], ""):
            with pytest.raises(MessageNotFound):
                await queue.store.get("orders", wrong)
        queue.after(10)
        with pytest.raises(MessageNotFound):
            await queue.store.get("orders", message_id)


class TestCancel:
    async def test_a_waiting_message_is_gone(self, queue: Queue) -> None:
        first, second, third = (
            *(await queue.push("1", "2")),
            *(await queue.push("3", delay_ms=5)),
        )
        await queue.store.cancel("orders", first)
        await queue.store.cancel("orders", third)
        assert await queue.after(5).bodies() == ["2"]
        with pytest.raises(MessageNotFound):
            await queue.store.cancel("orders", first)
        assert (await queue.stats()).cancelled == 2
        assert second

    async def test_a_claimed_message_stays_until_its_claim_is_over(self, queue: Queue) -> None:
        (message_id,) = await queue.push("x")
        await queue.one(visibility_ms=100)
        with pytest.raises(MessageInFlight):
            await queue.store.cancel("orders", message_id)
        await queue.after(100).store.cancel("orders", message_id)
        assert await queue.claim() == []

    async def test_the_same_request_twice(self, queue: Queue) -> None:
        first, second = await queue.push("1", "2")
        await queue.store.cancel("orders", first, request_id="r")
        await queue.store.cancel("orders", first, request_id="r")
        with pytest.raises(RequestIdReused):
            await queue.store.cancel("orders", second, request_id="r")


class TestPeek:
    async def test_it_shows_what_a_pop_would_claim_and_claims_nothing(self, queue: Queue) -> None:
        await queue.push("2", "4")
        await queue.push("1", priority=1)
        await queue.push("3", "hidden behind 3", group="g")
        await queue.push("due", delay_ms=50)
        queue.after(50)
        shown = [one.body for one in await queue.store.peek("orders", count=10)]
        claimed = [one.body for one in await queue.claim(10)]
        assert shown == claimed == [b"1", b"2", b"3", b"4", b"due"]

    async def test_an_unknown_queue(self, queue: Queue) -> None:
        assert await queue.store.peek("orders", count=10) == ()
        assert queue.client.keys("dsq:*") == []


class TestList:
    async def test_each_order_page_by_page(self, queue: Queue) -> None:
        await queue.push(*(f"dead {i}" for i in range(10)))
        for message in await queue.claim(10):
            await queue.nack(message, dead=True)  # all in the same millisecond
        await queue.push(*(f"claimed {i}" for i in range(20)))
        await queue.claim(20)
        await queue.push(*(f"delayed {i}" for i in range(30)), delay_ms=100)
        for group in ("a", "b{}"):
            await queue.push(*(f"{group} {i}" for i in range(10)), group=group)
        await queue.push(*(f"ready {i}" for i in range(16)))

        def bodies(messages: list[MessageInfo]) -> list[str]:
            return [one.body.decode() for one in messages]

        dead = await every(queue, Order.DEAD)
        assert sorted(bodies(dead)) == sorted(f"dead {i}" for i in range(10))
        assert {one.phase for one in dead} == {Phase.DEAD}
        claimed = await every(queue, Order.IN_FLIGHT)
        assert sorted(bodies(claimed)) == sorted(f"claimed {i}" for i in range(20))
        delayed = await every(queue, Order.DELAYED)
        assert sorted(bodies(delayed)) == sorted(f"delayed {i}" for i in range(30))
        assert {one.phase for one in delayed} == {Phase.DELAYED}
        grouped = await every(queue, Order.GROUPED)
        assert bodies(grouped) == [f"{group} {i}" for group in ("a", "b{}") for i in range(10)]
        ready = await every(queue, Order.READY)
        assert bodies(ready) == [f"ready {i}" for i in range(16)]

    async def test_messages_that_go_and_come_disturb_no_other(self, queue: Queue) -> None:
        ids = await queue.push(*map(str, range(40)), delay_ms=100)  # all due at one time
        first = await queue.store.list_page("orders", Order.DELAYED, limit=20)
        assert first.cursor is not None
        told = [one.id for one in first.messages]
        gone = {told[0], told[-1]}  # the last one told is where the next page begins
        for message_id in gone:
            await queue.store.cancel("orders", message_id)
        await queue.push("new", delay_ms=100)
        rest = await queue.store.list_page("orders", Order.DELAYED, cursor=first.cursor)
        told += [one.id for one in rest.messages]
        assert len(told) == len(set(told))
        assert set(ids) <= set(told)

    async def test_a_page_is_bounded_in_bytes(self, queue: Queue) -> None:
        for _ in range(8):
            await queue.push("x" * 250_000)
        page = await queue.store.list_page("orders", Order.READY)
        assert len(page.messages) == 4
        assert len(await every(queue, Order.READY)) == 8

    @pytest.mark.parametrize("cursor", ["x", "!!", "gaZyZWFkeQ", "k6VyZWFkeaE", "a" * 5_000])
    async def test_a_cursor_that_is_none_is_refused(self, queue: Queue, cursor: str) -> None:
        with pytest.raises(BadRequest) as refused:
            await queue.store.list_page("orders", Order.READY, cursor=cursor)
        assert refused.value.fields["field"] == "cursor"

    async def test_a_cursor_of_another_order_is_refused(self, queue: Queue) -> None:
        await queue.push("1", "2")
        page = await queue.store.list_page("orders", Order.READY, limit=1)
        assert page.cursor is not None
        with pytest.raises(BadRequest):
            await queue.store.list_page("orders", Order.DEAD, cursor=page.cursor)


class TestStats:
    async def test_counts(self, queue: Queue) -> None:
        await queue.push("a", "b", "c")
        await queue.push("d", "e", group="g")
        await queue.push("f", delay_ms=1_000)
        await queue.nack(await queue.one())
        stats = await queue.after(250).stats()
        assert (stats.ready, stats.grouped, stats.delayed, stats.in_flight) == (3, 2, 1, 0)
        assert (stats.groups, stats.groups_ready, stats.dead) == (1, 1, 0)
        assert (stats.pushed, stats.delivered, stats.nacked) == (6, 1, 1)
        assert stats.oldest_ready_ms == 250
        assert stats.config.max_deliveries == 10

    async def test_of_an_empty_queue_that_was_used(self, queue: Queue) -> None:
        await queue.push("a")
        await queue.ack(await queue.one())
        stats = await queue.after(250).stats()
        assert (stats.ready, stats.oldest_ready_ms, stats.acked) == (0, 0, 1)


class TestConfigure:
    async def test_an_unknown_queue_is_not_made_unless_asked_for(self, queue: Queue) -> None:
        with pytest.raises(QueueNotFound):
            await queue.store.configure("orders", QueueConfigChange(paused=True))
        assert queue.client.keys("dsq:*") == []
        await queue.store.configure("orders", QueueConfigChange(paused=True), create=True)
        assert await queue.store.queue_names() == ("orders",)
        assert (await queue.stats()).config.paused

    async def test_only_what_is_named_changes(self, queue: Queue) -> None:
        await queue.configure(max_length=5)
        config = await queue.configure(max_deliveries=2)
        assert (config.max_length, config.max_deliveries, config.paused) == (5, 2, False)
        assert (await queue.stats()).config == config


class TestPurge:
    async def test_everything_goes_and_receipts_are_stale(self, queue: Queue) -> None:
        await queue.push("1", "2", "3")
        await queue.push("4", "5", group="g")
        await queue.push("6", delay_ms=100, ttl_ms=1_000)
        message = await queue.one()
        assert await queue.store.purge("orders", request_id="r") == 6
        assert (await queue.ack(message)).stale == (message.receipt,)
        assert await queue.after(10_000).claim(10) == []
        await queue.push("new", group="g")
        assert await queue.store.purge("orders", request_id="r") == 6  # the same request
        assert await queue.bodies() == ["new"]


class TestNames:
    async def test_by_prefix_and_page(self, queue: Queue) -> None:
        names = ["a", "a/1", "a/2", "b", "ä", "a/{x}"]
        for name in names:
            await queue.named(name).push("x")
        assert await queue.store.queue_names() == tuple(sorted(names, key=str.encode))
        assert await queue.store.queue_names(prefix="a/") == ("a/1", "a/2", "a/{x}")
        assert await queue.store.queue_names(prefix="a/", after="a/1", limit=1) == ("a/2",)
        assert await queue.store.queue_names(prefix="a/", after="a/{x}") == ()
        assert await queue.store.queue_names(prefix="z") == ()

    async def test_a_register_that_was_lost_is_made_again_by_the_next_push(
        self, queue: Queue
    ) -> None:
        await queue.push("x")
        queue.client.flushall()
        queue.clock.set()
        await queue.push("x")
        assert await queue.store.queue_names() == ("orders",)
