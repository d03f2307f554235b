"""Messages in and out: order, claims, receipts, deadlines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from distsync_node.errors import QueueFull, QueueNotFound, RequestIdReused, StaleReceipt
from distsync_node.queues import limits
from distsync_node.queues.types import NewMessage, PopStatus, Pushed, Unclaimed
from unit.queues.conftest import Queue

NAMES = ["a{b}c", "}{", "{}", "with space", "naïve/队列", "%7Bx%7D", "new\u2028line", "x" * 512]


async def test_messages_come_out_in_the_order_they_went_in(queue: Queue) -> None:
    await queue.push("1", "2")
    await queue.push("3")
    assert await queue.bodies(2) == ["1", "2"]
    assert await queue.bodies(2) == ["3"]


async def test_higher_priority_comes_first_and_equal_ones_in_order(queue: Queue) -> None:
    await queue.push("low")
    await queue.push("high 1", "high 2", priority=9)
    await queue.push("middle", priority=5)
    assert await queue.bodies() == ["high 1", "high 2", "middle", "low"]


async def test_an_unknown_queue_is_empty_and_popping_it_makes_nothing(queue: Queue) -> None:
    popped = await queue.pop()
    assert (popped.messages, popped.status, popped.next_ms) == ((), PopStatus.OK, None)
    assert queue.client.keys("dsq:*") == []
    with pytest.raises(QueueNotFound):
        await queue.stats()


async def test_a_claimed_message_is_invisible_until_its_deadline(queue: Queue) -> None:
    await queue.push("x")
    first = await queue.one(visibility_ms=100)
    assert (first.deliveries, first.visible_ms) == (1, 100)
    assert await queue.claim() == []
    assert await queue.after(99).claim() == []
    second = await queue.after(1).one()
    assert (second.id, second.deliveries) == (first.id, 2)
    assert second.receipt != first.receipt


async def test_an_acked_message_never_comes_back(queue: Queue) -> None:
    await queue.push("x")
    message = await queue.one()
    assert (await queue.ack(message)).stale == ()
    assert await queue.after(100_000).claim() == []
    stats = await queue.stats()
    assert (stats.ready, stats.in_flight, stats.acked) == (0, 0, 1)
    assert queue.client.hlen("dsq:{orders}:bodies") == 0


async def test_a_receipt_is_good_until_its_deadline_and_no_longer_swept_or_not(
    queue: Queue,
) -> None:
    await queue.push("x", "y")
    early, late = await queue.claim(2, visibility_ms=100)
    assert (await queue.after(99).ack(early)).stale == ()
    assert (await queue.after(1).ack(late)).stale == (late.receipt,)
    assert (await queue.stats()).in_flight == 1  # nobody has swept it


async def test_a_receipt_of_an_earlier_claim_changes_nothing(queue: Queue) -> None:
    await queue.push("x")
    old = await queue.one(visibility_ms=100)
    new = await queue.after(100).one(visibility_ms=100)
    for settled in (
        await queue.ack(old),
        await queue.nack(old),
        await queue.store.extend("orders", [old.receipt], visibility_ms=5_000),
    ):
        assert settled.stale == (old.receipt,)
    assert await queue.after(99).claim() == []
    assert (await queue.ack(new)).stale == ()


async def test_of_a_batch_of_receipts_the_good_ones_are_served_and_the_stale_ones_named(
    queue: Queue,
) -> None:
    await queue.push("1", "2", "3")
    first, second, third = await queue.claim(3)
    await queue.ack(second)
    settled = await queue.ack(first, second, third)
    assert settled.stale == (second.receipt,)
    with pytest.raises(StaleReceipt) as refused:
        settled.check()
    assert refused.value.fields["stale"] == [second.receipt]
    assert (await queue.stats()).acked == 3


async def test_extending_moves_the_deadline_from_now(queue: Queue) -> None:
    await queue.push("x")
    message = await queue.one(visibility_ms=100)
    settled = await queue.after(90).store.extend("orders", [message.receipt], visibility_ms=50)
    assert settled.stale == ()
    assert await queue.after(49).claim() == []
    assert [one.id for one in await queue.after(1).claim()] == [message.id]


async def test_a_nacked_message_returns_to_its_own_place(queue: Queue) -> None:
    await queue.push("1", "2", "3")
    first, _ = await queue.claim(2)
    assert (await queue.nack(first)).ready == 1
    assert await queue.bodies() == ["1", "3"]


async def test_a_nack_with_a_delay_comes_back_after_it(queue: Queue) -> None:
    await queue.push("x")
    message = await queue.one()
    assert (await queue.nack(message, delay_ms=500)).ready == 0
    popped = await queue.pop()
    assert (popped.messages, popped.next_ms) == ((), 500)
    assert await queue.after(499).bodies() == []
    assert await queue.after(1).bodies() == ["x"]


async def test_a_delayed_message_waits_and_takes_the_place_of_its_push(queue: Queue) -> None:
    await queue.push("later", delay_ms=200)
    await queue.push("now 1", "now 2")
    assert await queue.bodies(1) == ["now 1"]
    assert await queue.after(200).bodies(2) == ["later", "now 2"]


async def test_unclaim_returns_messages_at_once_and_spends_no_delivery(queue: Queue) -> None:
    await queue.push("1", "2")
    popped = await queue.pop(2, request_id="gone")
    unclaimed = await queue.store.unclaim("orders", request_id="gone", attempt=popped.attempt)
    assert unclaimed == Unclaimed(returned=2, ready=2)
    again = await queue.pop(2, request_id="gone")  # the retry of that pop claims anew
    assert again.status is PopStatus.OK
    assert [(one.body, one.deliveries) for one in again.messages] == [(b"1", 1), (b"2", 1)]


async def test_an_attempt_gives_back_only_what_no_later_one_was_answered_with(
    queue: Queue,
) -> None:
    """A client that lost its connection comes again, by another node, before the first one has
    noticed that it is gone."""
    await queue.push("x")
    first = await queue.pop(request_id="r")
    second = await queue.pop(request_id="r")
    assert second.messages == first.messages
    late = await queue.store.unclaim("orders", request_id="r", attempt=first.attempt)
    assert late == Unclaimed(returned=0, ready=0)
    assert (await queue.ack(*second.messages)).stale == ()


async def test_unclaim_leaves_what_was_settled_or_ran_out(queue: Queue) -> None:
    await queue.push("1", "2", "3")
    popped = await queue.pop(3, request_id="r", visibility_ms=100)
    first, second, _ = popped.messages
    await queue.ack(first)
    await queue.nack(second, delay_ms=10_000)
    for expected in (1, 0):
        unclaimed = await queue.store.unclaim("orders", request_id="r", attempt=popped.attempt)
        assert unclaimed.returned == expected
    popped = await queue.pop(3, request_id="s", visibility_ms=100)
    queue.after(100)
    unclaimed = await queue.store.unclaim("orders", request_id="s", attempt=popped.attempt)
    assert unclaimed.returned == 0


async def test_a_pop_says_when_something_will_be_ready(queue: Queue) -> None:
    await queue.push("x", delay_ms=700)
    assert (await queue.pop()).next_ms == 700
    await queue.push("y")
    await queue.one(visibility_ms=300)
    assert (await queue.pop()).next_ms == 300


async def test_a_message_lives_for_its_ttl_unless_it_is_claimed(queue: Queue) -> None:
    await queue.push("short", "claimed", ttl_ms=100)
    await queue.push("long", ttl_ms=1_000)
    await queue.push("forever")
    short, claimed = await queue.claim(2, visibility_ms=10_000)
    await queue.nack(short)
    assert await queue.after(100).bodies() == ["long", "forever"]
    assert (await queue.ack(claimed)).stale == ()
    stats = await queue.stats()
    assert (stats.expired, stats.acked) == (1, 1)


async def test_the_ttl_of_the_queue_is_for_messages_without_one(queue: Queue) -> None:
    await queue.configure(ttl_ms=100)
    await queue.push("default")
    await queue.push("own", ttl_ms=500)
    assert await queue.after(100).bodies() == ["own"]


async def test_max_length_refuses_a_batch_that_does_not_fit_as_a_whole(queue: Queue) -> None:
    await queue.configure(max_length=3)
    await queue.push("1", "2")
    with pytest.raises(QueueFull) as refused:
        await queue.push("3", "4", request_id="same")
    assert refused.value.status == 429
    assert (await queue.stats()).ready == 2
    await queue.ack(await queue.one())
    await queue.push("3", "4", request_id="same")  # there is room now for the same request
    assert await queue.bodies() == ["2", "3", "4"]


async def test_expired_messages_do_not_count_towards_max_length(queue: Queue) -> None:
    await queue.configure(max_length=3)
    await queue.push("a", "b", ttl_ms=10)
    await queue.push("c")
    with pytest.raises(QueueFull):
        await queue.after(9).push("d", "e")
    await queue.after(1).push("d", "e", request_id="r")
    assert await queue.bodies() == ["c", "d", "e"]
    with pytest.raises(QueueFull):
        await queue.push("f")


async def test_messages_in_flight_count_towards_max_length(queue: Queue) -> None:
    await queue.configure(max_length=1)
    await queue.push("1")
    await queue.one()
    with pytest.raises(QueueFull):
        await queue.push("2")


async def test_a_paused_queue_takes_messages_and_receipts_but_delivers_none(queue: Queue) -> None:
    await queue.push("1", "2")
    message = await queue.one()
    await queue.configure(paused=True)
    await queue.push("3")
    popped = await queue.pop()
    assert (popped.messages, popped.status) == ((), PopStatus.PAUSED)
    assert (await queue.ack(message)).stale == ()
    await queue.configure(paused=False)
    assert await queue.bodies() == ["2", "3"]


async def test_the_rate_limits_claims_and_saves_up_no_more_than_its_count(queue: Queue) -> None:
    await queue.configure(rate_count=10, rate_per_ms=1_000)
    await queue.push(*map(str, range(40)))
    assert len(await queue.claim(100)) == 10
    limited = await queue.pop(100)
    assert (limited.status, limited.messages, limited.next_ms) == (PopStatus.LIMITED, (), 100)
    assert len(await queue.after(250).claim(100)) == 2
    assert len(await queue.after(50).claim(100)) == 1  # the half that was left
    assert len(await queue.after(60_000).claim(100)) == 10


async def test_the_rate_lets_through_at_most_twice_its_count_in_any_one_time(queue: Queue) -> None:
    """What is saved up, and what comes meanwhile."""
    await queue.configure(rate_count=10, rate_per_ms=1_000)
    await queue.push(*map(str, range(100)))
    claimed = [len(await queue.after(ms).claim(100)) for ms in (60_000, *[100] * 9)]
    assert sum(claimed) == 19
    assert len(await queue.after(100).claim(100)) == 1


async def test_a_pop_is_bounded_in_bytes_but_gives_at_least_one(queue: Queue) -> None:
    body = "x" * limits.MAX_BODY_BYTES
    for _ in range(6):
        await queue.push(body)
    fits = limits.MAX_POP_BYTES // limits.MAX_BODY_BYTES
    assert len(await queue.claim(100)) == fits
    assert len(await queue.claim(100)) == 6 - fits


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_and_any_bytes(queue: Queue, name: str) -> None:
    named = queue.named(name)
    body = bytes(range(256))
    pushed = await queue.store.push(name, [NewMessage(body=body, group="{g} ü")])
    assert isinstance(pushed, Pushed)
    (message,) = await named.claim()
    assert (message.id, message.body, message.group) == (pushed.ids[0], body, "{g} ü")
    assert (await named.ack(message)).stale == ()
    assert await queue.store.queue_names() == (name,)
    tags = {bytes(key).split(b"{")[1].split(b"}")[0] for key in queue.client.keys("dsq:{*")}
    assert len(tags) == 1


async def test_queues_do_not_see_each_other(queue: Queue) -> None:
    await queue.named("a").push("1")
    await queue.named("a ").push("2")
    assert await queue.named("a").bodies() == ["1"]
    assert await queue.named("a ").bodies() == ["2"]


class TestRepetition:
    """The same request again, as by a client's retry or another node that forwards it."""

    async def test_a_push_happens_once_and_answers_with_its_first_ids(self, queue: Queue) -> None:
        first = await queue.push("x", "y", request_id="r")
        assert await queue.push("x", "y", request_id="r") == first
        assert (await queue.stats()).ready == 2

    async def test_a_push_happens_once_even_when_its_messages_are_done(self, queue: Queue) -> None:
        first = await queue.push("x", request_id="r")
        await queue.ack(await queue.one())
        assert await queue.push("x", request_id="r") == first
        assert await queue.claim() == []

    async def test_a_push_ignores_ids_that_the_queue_has(self, queue: Queue) -> None:
        for request_id in ("r1", "r2"):  # as if the first request had been forgotten
            await queue.store.push(
                "orders", [NewMessage(body=b"x")], request_id=request_id, push_id="same"
            )
        assert (await queue.stats()).ready == 1

    async def test_a_pop_gives_the_same_claims_while_their_receipts_are_good(
        self, queue: Queue
    ) -> None:
        await queue.push("1", "2", "3")
        first = await queue.pop(2, request_id="r", visibility_ms=100)
        await queue.ack(first.messages[0])
        again = await queue.after(60).pop(2, request_id="r", visibility_ms=100)
        assert again.status is PopStatus.REPEATED
        assert [one.receipt for one in again.messages] == [first.messages[1].receipt]
        assert again.messages[0].visible_ms == 40  # and not longer than before
        late = await queue.after(40).pop(2, request_id="r", visibility_ms=100)
        assert (late.status, late.messages) == (PopStatus.REPEATED, ())

    async def test_a_pop_that_found_nothing_may_find_something_later(self, queue: Queue) -> None:
        await queue.push("x", delay_ms=10)
        assert (await queue.pop(request_id="r")).messages == ()
        assert len((await queue.after(10).pop(request_id="r")).messages) == 1

    async def test_an_ack_is_not_stale_the_second_time(self, queue: Queue) -> None:
        await queue.push("x")
        message = await queue.one()
        assert (await queue.ack(message, request_id="r")).stale == ()
        again = await queue.ack(message, request_id="r")
        assert (again.stale, again.repeated) == ((), True)
        assert (await queue.ack(message)).stale == (message.receipt,)

    @pytest.mark.parametrize(
        "kind",
        ["push", "pop", "ack", "nack", "extend", "cancel", "purge", "redrive", "unschedule"],
    )
    async def test_a_repeated_request_is_heard_by_replicas(self, queue: Queue, kind: str) -> None:
        """It writes: a WAIT vouches only for what its own connection wrote."""
        store, name = queue.store, queue.name
        (waiting,) = await queue.push("waits", delay_ms=1_000)
        await queue.push("claimed", "dead")
        claimed, dead = await queue.claim(2)
        await queue.nack(dead, dead=True)
        requests: dict[str, Callable[[], Awaitable[object]]] = {
            "push": lambda: queue.push("x", request_id="r"),
            "pop": lambda: queue.pop(request_id="r", attempt="a"),
            "ack": lambda: queue.ack(claimed, request_id="r"),
            "nack": lambda: queue.nack(claimed, request_id="r"),
            "extend": lambda: store.extend(
                name, [claimed.receipt], visibility_ms=9_000, request_id="r"
            ),
            "cancel": lambda: store.cancel(name, waiting, request_id="r"),
            "purge": lambda: store.purge(name, request_id="r"),
            "redrive": lambda: store.redrive(name, request_id="r"),
            "unschedule": lambda: store.schedules.delete(name, "s"),
        }

        def written() -> int:
            return int(queue.client.info("persistence")["rdb_changes_since_last_save"])

        await queue.push("to be popped")
        await requests[kind]()
        before, state = written(), await queue.stats()
        await requests[kind]()
        assert written() > before
        assert await queue.stats() == state

    async def test_another_request_under_the_same_id_is_refused(self, queue: Queue) -> None:
        await queue.push("x", request_id="r")
        with pytest.raises(RequestIdReused):
            await queue.push("other", request_id="r")
        with pytest.raises(RequestIdReused):
            await queue.pop(request_id="r")
        assert (await queue.stats()).ready == 1

    @pytest.mark.parametrize("before_ms", [0, 59_999, 60_000, 119_999, 120_000])
    async def test_a_request_is_remembered_for_two_minutes_whenever_it_came(
        self, queue: Queue, before_ms: int
    ) -> None:
        await queue.push("begins a generation")
        await queue.after(before_ms).push("x", request_id="r")
        for _ in range(12):
            await queue.after(9_999).push("other")
        await queue.after(11).push("x", request_id="r")
        assert (await queue.stats()).pushed == 14

    async def test_requests_are_forgotten_after_four_minutes(self, queue: Queue) -> None:
        await queue.push("x", request_id="r")
        for _ in range(4):
            await queue.after(60_000).push("other")
        assert (await queue.stats()).requests_remembered <= 3
        await queue.push("x", request_id="r")
        assert (await queue.stats()).pushed == 6

    async def test_an_idle_queue_forgets_its_requests_by_sweeping(self, queue: Queue) -> None:
        await queue.push("x")
        await queue.ack(await queue.one())
        for _ in range(3):
            await queue.after(120_000).store.sweep("orders")
        assert (await queue.stats()).requests_remembered == 0
