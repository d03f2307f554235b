"""Groups: one at a time, in order, in rotation."""

from __future__ import annotations

from unit.queues.conftest import Queue


async def push(queue: Queue, group: str, *bodies: str, **fields: int) -> None:
    await queue.push(*bodies, group=group, **fields)


async def test_a_group_has_one_message_in_flight(queue: Queue) -> None:
    await push(queue, "g", "1", "2", "3")
    (first,) = await queue.claim(10)
    assert first.body == b"1"
    assert await queue.claim(10) == []
    assert (await queue.ack(first)).ready == 1
    assert await queue.bodies() == ["2"]


async def test_groups_take_turns_however_long_they_are(queue: Queue) -> None:
    await push(queue, "a", "a1", "a2", "a3", "a4")
    await push(queue, "b", "b1", "b2")
    await push(queue, "c", "c1")
    order = []
    for _ in range(7):
        message = await queue.one()
        order.append(message.body.decode())
        await queue.ack(message)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_a_batch_takes_one_of_each_group(queue: Queue) -> None:
    await push(queue, "a", "a1", "a2")
    await push(queue, "b", "b1", "b2")
    assert await queue.bodies(10) == ["a1", "b1"]


async def test_messages_without_a_group_share_a_turn_with_each_group(queue: Queue) -> None:
    await queue.push(*(f"s{i}" for i in range(6)))
    await push(queue, "a", "a1", "a2")
    order = []
    for _ in range(5):
        message = await queue.one()
        order.append(message.body.decode())
        await queue.ack(message)
    assert order == ["s0", "a1", "s1", "a2", "s2"]


async def test_a_failed_message_is_the_first_of_its_group_again(queue: Queue) -> None:
    await push(queue, "g", "1", "2")
    await queue.nack(await queue.one())
    assert await queue.bodies() == ["1"]
    assert await queue.after(1_000).bodies() == ["1"]  # its deadline passed


async def test_a_delay_of_the_first_message_holds_up_its_group_and_no_other(queue: Queue) -> None:
    await push(queue, "g", "1", "2")
    await push(queue, "h", "other")
    await queue.nack(await queue.one(), delay_ms=100)
    assert await queue.bodies() == ["other"]
    assert (await queue.pop()).next_ms == 100
    assert await queue.after(100).bodies() == ["1"]


async def test_a_message_pushed_with_a_delay_into_a_group_keeps_its_place(queue: Queue) -> None:
    await push(queue, "g", "1")
    await push(queue, "g", "2", delay_ms=500)
    await push(queue, "g", "3")
    await queue.ack(await queue.one())
    assert await queue.bodies() == []
    message = await queue.after(500).one()
    assert message.body == b"2"
    await queue.ack(message)
    assert await queue.bodies() == ["3"]


async def test_a_poison_message_does_not_stop_its_group(queue: Queue) -> None:
    await queue.configure(max_deliveries=1)
    await push(queue, "g", "poison", "2")
    settled = await queue.nack(await queue.one())
    assert (len(settled.dead), settled.ready) == (1, 1)
    assert await queue.bodies() == ["2"]


async def test_an_expired_message_does_not_stop_its_group(queue: Queue) -> None:
    await push(queue, "g", "mortal", ttl_ms=50)
    await push(queue, "g", "2")
    assert await queue.after(50).bodies() == ["2"]


async def test_a_group_of_expired_messages_gives_way(queue: Queue) -> None:
    await push(queue, "g", *(str(i) for i in range(5)), ttl_ms=50)
    await push(queue, "h", "alive")
    assert await queue.after(50).bodies() == ["alive"]
    await push(queue, "g", "new")
    assert await queue.bodies() == ["new"]


async def test_cancelling_the_first_message_lets_the_next_one_go(queue: Queue) -> None:
    (first,) = await queue.push("1", group="g", delay_ms=10_000)
    await push(queue, "g", "2")
    assert await queue.bodies() == []
    await queue.store.cancel("orders", first)
    assert await queue.bodies() == ["2"]


async def test_the_priority_of_its_first_message_is_that_of_the_group(queue: Queue) -> None:
    await push(queue, "low", "1")
    await push(queue, "high", "2", priority=3)
    await queue.push("single")
    assert await queue.bodies(1) == ["2"]


async def test_names_of_groups_that_begin_alike_do_not_meet(queue: Queue) -> None:
    for group in ("a", "a:", "ab", "a0", "ü"):
        await push(queue, group, f"{group} 1", f"{group} 2")
    seen = []
    for _ in range(10):
        message = await queue.one()
        seen.append(message.body.decode())
        await queue.ack(message)
    for group in ("a", "a:", "ab", "a0", "ü"):
        assert seen.index(f"{group} 1") < seen.index(f"{group} 2")
    assert (await queue.stats()).groups == 0
