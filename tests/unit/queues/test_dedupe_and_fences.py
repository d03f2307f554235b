"""What keeps messages out: dedupe ids and fences."""

from __future__ import annotations

import pytest

from distsync_node.errors import Fenced
from distsync_node.queues.types import Fence, FenceUnverified, NewMessage, Pushed, PushOutcome
from queue_harness import open_store, read_changed, read_with_test_clock
from redis_server import RedisServer
from unit.queues.conftest import Queue

WINDOW_MS = 300_000


class TestDedupe:
    async def test_a_second_push_within_the_window_is_the_first(self, queue: Queue) -> None:
        first = await queue.push("x", dedupe_id="d")
        assert await queue.push("y", dedupe_id="d") == first
        assert await queue.bodies() == ["x"]

    async def test_the_window_is_not_shortened_by_handling_the_message(self, queue: Queue) -> None:
        first = await queue.push("x", dedupe_id="d")
        await queue.ack(await queue.one())
        assert await queue.after(WINDOW_MS - 1).push("y", dedupe_id="d") == first
        assert await queue.after(1).push("z", dedupe_id="d") != first
        assert await queue.bodies() == ["z"]

    async def test_the_window_counts_from_the_push_that_went_in(self, queue: Queue) -> None:
        await queue.push("x", dedupe_id="d")
        await queue.after(WINDOW_MS - 1).push("y", dedupe_id="d")
        await queue.after(1).push("z", dedupe_id="d")
        assert await queue.bodies() == ["x", "z"]

    async def test_within_one_batch_the_first_of_a_dedupe_id_counts(self, queue: Queue) -> None:
        messages = [NewMessage(body=body, dedupe_id="d") for body in (b"1", b"2")]
        pushed = await queue.store.push("orders", [*messages, NewMessage(body=b"3")])
        assert isinstance(pushed, Pushed)
        assert pushed.ids[0] == pushed.ids[1] != pushed.ids[2]
        assert await queue.bodies() == ["1", "3"]

    async def test_a_push_that_was_refused_leaves_its_dedupe_id_free(self, queue: Queue) -> None:
        await queue.configure(max_length=1)
        await queue.push("first")
        with pytest.raises(Exception, match="at most 1"):
            await queue.push("x", dedupe_id="d")
        await queue.ack(await queue.one())
        await queue.push("x", dedupe_id="d")
        assert await queue.bodies() == ["x"]

    async def test_dedupe_ids_are_forgotten_when_their_windows_are_over(self, queue: Queue) -> None:
        await queue.configure(dedupe_window_ms=100)
        for number in range(50):
            await queue.after(20).push("x", dedupe_id=f"d{number}")
        kept = sum(queue.client.hlen(f"dsq:{{orders}}:dedupe_{one}") for one in (0, 1))
        assert 5 <= kept <= 15

    async def test_an_idle_queue_forgets_them_by_sweeping(self, queue: Queue) -> None:
        def kept() -> int:
            return queue.client.exists(*[f"dsq:{{orders}}:dedupe_{one}" for one in (0, 1)])

        await queue.push("x", dedupe_id="old")
        await queue.after(WINDOW_MS).push("y", dedupe_id="new")
        await queue.after(WINDOW_MS - 1).store.sweep("orders")
        assert kept()
        await queue.push("z", dedupe_id="new")
        await queue.after(1).store.sweep("orders")
        assert not kept()
        await queue.push("z", dedupe_id="new")
        assert await queue.bodies() == ["x", "y", "z"]

    async def test_a_window_that_is_made_shorter_keeps_what_was_promised(
        self, queue: Queue
    ) -> None:
        first = await queue.push("x", dedupe_id="long")
        await queue.configure(dedupe_window_ms=10)
        for number in range(20):
            await queue.after(10).push("y", dedupe_id=f"d{number}")
        assert await queue.push("x", dedupe_id="long") == first


class TestFences:
    async def push(
        self, queue: Queue, token: int, checked: str = "", lock: str = "lock", **fields: str
    ) -> PushOutcome:
        fence = Fence(lock=lock, token=token, checked=checked)
        return await queue.store.push("orders", [NewMessage(body=b"x")], fence=fence, **fields)

    async def verified(self, queue: Queue, token: int, lock: str = "lock") -> None:
        outcome = await self.push(queue, token, lock=lock)
        if isinstance(outcome, FenceUnverified):
            outcome = await self.push(queue, token, outcome.mark, lock=lock)
        assert isinstance(outcome, Pushed)

    async def test_a_token_that_was_never_seen_is_not_taken_on_trust(self, queue: Queue) -> None:
        outcome = await self.push(queue, 7)
        assert isinstance(outcome, FenceUnverified)
        assert queue.client.keys("dsq:{*") == []
        assert isinstance(await self.push(queue, 7, outcome.mark), Pushed)

    async def test_the_newest_token_passes_without_another_look(self, queue: Queue) -> None:
        await self.verified(queue, 7)
        assert isinstance(await self.push(queue, 7), Pushed)

    async def test_an_older_token_is_refused_and_nothing_is_pushed(self, queue: Queue) -> None:
        await self.verified(queue, 7)
        mark = queue.client.hget("dsq:{orders}:meta", "fence_mark") or b"0"
        for checked in ("", mark.decode()):
            with pytest.raises(Fenced) as refused:
                await self.push(queue, 6, checked)
            assert refused.value.fields["newest"] == 7
        assert (await queue.stats()).pushed == 1

    async def test_locks_do_not_meet(self, queue: Queue) -> None:
        await self.verified(queue, 7)
        await self.verified(queue, 3, lock="other lock")

    async def test_the_retry_of_a_push_that_was_done_is_answered_though_the_lock_went_on(
        self, queue: Queue
    ) -> None:
        await self.verified(queue, 7)
        first = await self.push(queue, 7, request_id="r")
        await self.verified(queue, 8)
        again = await self.push(queue, 7, request_id="r")
        assert isinstance(first, Pushed)
        assert isinstance(again, Pushed)
        assert again.ids == first.ids

    async def test_a_refused_push_does_not_raise_the_fence(self, queue: Queue) -> None:
        await queue.configure(max_length=1)
        await self.verified(queue, 7)
        outcome = await self.push(queue, 8)
        assert isinstance(outcome, FenceUnverified)
        with pytest.raises(Exception, match="at most 1"):
            await self.push(queue, 8, outcome.mark)
        await queue.ack(await queue.one())
        assert isinstance(await self.push(queue, 7), Pushed)

    async def test_tokens_outlive_a_purge(self, queue: Queue) -> None:
        await self.verified(queue, 7)
        await queue.store.purge("orders")
        with pytest.raises(Fenced):
            await self.push(queue, 6)

    async def test_who_verified_before_tokens_were_forgotten_has_to_verify_again(
        self, queue: Queue, server: RedisServer
    ) -> None:
        """A push that was verified and then held up for however long cannot pass a newer grant that
        was seen and forgotten meanwhile."""
        few = read_changed(
            read_with_test_clock,
            {"lib/fences.lua": lambda text: text.replace("GENERATION = 10000", "GENERATION = 3")},
        )
        queue.store = await open_store(server, few)
        held_up = await self.push(queue, 7)
        assert isinstance(held_up, FenceUnverified)
        await self.verified(queue, 8)
        for number in range(12):
            await self.verified(queue, 9 + number, lock=f"lock {number}")
        kept = [queue.client.hgetall(f"dsq:{{orders}}:fences_{one}") for one in (0, 1)]
        assert sum(map(len, kept)) <= 6
        assert all(b"lock" not in one for one in kept)
        assert isinstance(await self.push(queue, 7, held_up.mark), FenceUnverified)
        await queue.store.close()
