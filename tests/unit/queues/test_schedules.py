"""Recurring schedules on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from distsync_node.errors import BadRequest, LimitReached, PayloadTooLarge
from distsync_node.queues import limits, model, serving
from distsync_node.queues.schedules import Specification, _Kept, encode, next_time_ms
from distsync_node.queues.service import QueueService
from distsync_node.queues.serving import ScheduleServer
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage
from redis_server import RedisServer

EVERY_MINUTE = "* * * * *"


def specification(cron: str = EVERY_MINUTE, body: bytes = b"x", **fields: str) -> Specification:
    return Specification(
        cron=cron, timezone=fields.get("timezone", "UTC"), message=NewMessage(body=body)
    )


def at(text: str, timezone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone)).timestamp() * 1_000)


async def make_due(server: RedisServer, store: QueueStore, schedule_id: str = "s") -> None:
    """As if the time of a schedule came now."""
    (due,) = [one for one in await store.schedules.list("q") if one.id == schedule_id]
    client = server.client()
    packed = client.hget(model.key("q", "schedules").decode(), schedule_id)
    assert isinstance(packed, bytes)
    past = due.next_at_ms - 120_000
    pattern = due.next_at_ms.to_bytes(8, "big")
    assert pattern in packed
    changed = packed.replace(pattern, past.to_bytes(8, "big"))
    client.hset(model.key("q", "schedules").decode(), schedule_id, changed)
    client.zadd(model.SCHEDULED_KEY.decode(), {"q": past})


async def serve(store: QueueStore) -> list[str]:
    """What a node does for a queue of its own; returns the ids that were pushed."""
    ids: list[str] = []
    for queue, _ in await store.schedules.to_look_at(limit=100):
        for due in await store.schedules.due(queue):
            pushed = await store.push(
                queue, [due.message], request_id=due.push_id, push_id=due.push_id
            )
            ids += pushed.ids
            await store.schedules.served(due)
        await store.schedules.looked_at(queue)
    return ids


def test_times_are_those_of_the_time_zone() -> None:
    after = at("2026-06-01T12:00", "UTC")
    assert next_time_ms("30 2 * * *", "UTC", after) == at("2026-06-02T02:30", "UTC")
    berlin = at("2026-06-02T02:30", "Europe/Berlin")
    assert next_time_ms("30 2 * * *", "Europe/Berlin", after) == berlin


def test_a_time_is_never_the_one_it_comes_after() -> None:
    now = at("2026-06-01T12:00", "UTC")
    assert next_time_ms(EVERY_MINUTE, "UTC", now) == now + 60_000
    assert next_time_ms(EVERY_MINUTE, "UTC", now + 59_999) == now + 60_000


def test_days_on_which_clocks_change_have_every_time_once() -> None:
    spring, autumn = (
        at("2026-03-28T12:00", "Europe/Berlin"),
        at("2026-10-24T12:00", "Europe/Berlin"),
    )
    for after in (spring, autumn):
        first = next_time_ms("30 2 * * *", "Europe/Berlin", after)
        second = next_time_ms("30 2 * * *", "Europe/Berlin", first)
        assert 10 * 3_600_000 < first - after < 20 * 3_600_000
        assert 22 * 3_600_000 < second - first < 26 * 3_600_000


@pytest.mark.parametrize(
    ("cron", "timezone", "field"),
    [
        ("", "UTC", "cron"),
        ("* * * *", "UTC", "cron"),
        ("61 * * * *", "UTC", "cron"),
        ("* * 30 2 *", "UTC", "cron"),
        (EVERY_MINUTE, "Mars/Base", "timezone"),
        (EVERY_MINUTE, "../etc/passwd", "timezone"),
    ],
)
async def test_what_is_no_schedule_is_refused(
    stores: list[QueueStore], cron: str, timezone: str, field: str
) -> None:
    with pytest.raises(BadRequest) as bad:
        await stores[0].schedules.put("q", "s", specification(cron, timezone=timezone))
    assert bad.value.fields["field"] == field
    assert await stores[0].schedules.list("q") == ()


async def test_a_schedule_is_kept_replaced_and_forgotten(stores: list[QueueStore]) -> None:
    schedules = stores[0].schedules
    await schedules.put("q", "b", specification(body=b"1"))
    await schedules.put("q", "a", specification(body=b"2"))
    await schedules.put("q", "b", specification("0 0 1 1 *", body=b"3"))
    listed = await stores[1].schedules.list("q")
    assert [(one.id, one.specification.message.body) for one in listed] == [
        ("a", b"2"),
        ("b", b"3"),
    ]
    assert await stores[0].queue_names() == ("q",)
    assert await schedules.delete("q", "b")
    assert not await schedules.delete("q", "b")
    assert [one.id for one in await schedules.list("q")] == ["a"]


async def test_a_time_that_comes_is_served_once_whoever_serves_it(
    stores: list[QueueStore], server: RedisServer
) -> None:
    await stores[0].schedules.put("q", "s", specification())
    assert await serve(stores[0]) == []
    await make_due(server, stores[0])
    # Two nodes that both believe that the queue is theirs, each at every step of the other.
    due = [(await store.schedules.due("q"))[0] for store in stores]
    assert due[0].push_id == due[1].push_id
    for store, one in zip(stores, due, strict=True):
        await store.push("q", [one.message], request_id=one.push_id, push_id=one.push_id)
    for store, one in zip(stores, due, strict=True):
        await store.schedules.served(one)
        await store.schedules.looked_at("q")
    stats = await stores[0].stats("q")
    assert (stats.pushed, stats.ready) == (1, 1)
    (kept,) = await stores[0].schedules.list("q")
    assert kept.next_at_ms > await stores[0].schedules._runner.time_ms()
    assert await serve(stores[1]) == []


async def test_times_that_passed_are_served_as_one(
    stores: list[QueueStore], server: RedisServer
) -> None:
    await stores[0].schedules.put("q", "s", specification())
    await make_due(server, stores[0])  # two minutes ago
    assert len(await serve(stores[0])) == 1
    assert await serve(stores[0]) == []


async def test_a_schedule_that_is_changed_while_it_is_served_stays_changed(
    stores: list[QueueStore], server: RedisServer
) -> None:
    await stores[0].schedules.put("q", "s", specification())
    await make_due(server, stores[0])
    (due,) = await stores[0].schedules.due("q")
    changed = await stores[1].schedules.put("q", "s", specification("0 0 1 1 *", b"new"))
    await stores[0].schedules.served(due)
    await stores[0].schedules.looked_at("q")
    assert await stores[0].schedules.list("q") == (changed,)
    score = server.client().zscore(model.SCHEDULED_KEY.decode(), "q")
    assert score == changed.next_at_ms


async def test_a_sooner_schedule_added_meanwhile_is_not_overlooked(
    stores: list[QueueStore], server: RedisServer
) -> None:
    await stores[0].schedules.put("q", "yearly", specification("0 0 1 1 *"))
    minutely = await stores[1].schedules.put("q", "minutely", specification())
    await stores[0].schedules.put("q", "yearly", specification("0 0 1 2 *"))
    assert server.client().zscore(model.SCHEDULED_KEY.decode(), "q") == minutely.next_at_ms
    await stores[0].schedules.delete("q", "minutely")
    await stores[0].schedules.looked_at("q")
    (yearly,) = await stores[0].schedules.list("q")
    assert server.client().zscore(model.SCHEDULED_KEY.decode(), "q") == yearly.next_at_ms
    await stores[0].schedules.delete("q", "yearly")
    await stores[0].schedules.looked_at("q")
    assert server.client().zscore(model.SCHEDULED_KEY.decode(), "q") is None


async def test_limits(stores: list[QueueStore]) -> None:
    schedules = stores[0].schedules
    for number in range(limits.MAX_SCHEDULES):
        await schedules.put("q", str(number), specification())
    with pytest.raises(LimitReached) as many:
        await schedules.put("q", "one more", specification())
    assert many.value.fields["limit"] == "schedules"
    await schedules.put("q", "0", specification("0 0 1 1 *"))  # replaced
    with pytest.raises(PayloadTooLarge):
        await schedules.put("q", "0", specification(body=b"x" * (16 * 1024 + 1)))


async def test_a_node_serves_what_is_due_and_wakes_who_waits(
    stores: list[QueueStore], server: RedisServer
) -> None:
    node = QueueService(server.url)
    await node.start()
    await stores[0].schedules.put("q", "s", specification("* * * * * *", b"each second"))
    for number in range(2):
        taken = await node.pop(
            "q", count=1, wait_ms=10_000, visibility_ms=60_000, request_id=f"r{number}"
        )
        assert [one.body for one in taken.messages] == [b"each second"]
    await node.close()


async def test_a_schedule_that_cannot_be_served_holds_up_no_other(
    stores: list[QueueStore], server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What another version wrote, say, or a time zone that this node does not know."""
    client = server.client()
    far = encode(_Kept(0, specification(timezone="Mars/Base")))
    for queue, schedule_id, packed in (("a", "garbage", b"\xc1"), ("q", "far", far)):
        client.hset(model.key(queue, "schedules").decode(), schedule_id, packed)
        client.zadd(model.SCHEDULED_KEY.decode(), {queue: 0})
    await stores[0].schedules.put("q", "near", specification("* * * * * *", b"near"))
    client.zadd(model.SCHEDULED_KEY.decode(), {"q": 0})
    node = QueueService(server.url)
    await node.start()
    try:
        async with asyncio.timeout(20):
            while (await stores[0].stats("q")).pushed < 2:
                await asyncio.sleep(0.05)
        assert {one.body for one in (await stores[0].pop("q", count=100)).messages} == {b"near"}
    finally:
        await node.close()
    told = [one.getMessage() for one in caplog.records]
    assert sum("schedules of a are not served" in one for one in told) == 1
    assert sum("schedule far of q is not served" in one for one in told) == 1


async def test_a_schedule_is_looked_at_even_if_its_node_dies_right_after_writing_it(
    stores: list[QueueStore], server: RedisServer
) -> None:
    schedules = stores[0].schedules
    run = schedules._runner.run

    async def run_and_die(*arguments: Any) -> list[Any]:
        await run(*arguments)
        raise asyncio.CancelledError

    schedules._runner.run = run_and_die  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await schedules.put("q", "s", specification())
    (kept,) = await stores[1].schedules.list("q")
    assert server.client().zscore(model.SCHEDULED_KEY.decode(), "q") == kept.next_at_ms


async def make_many_due(server: RedisServer, store: QueueStore, names: Sequence[str]) -> None:
    """Give each queue a schedule whose time comes now."""
    now_ms = await store.schedules._runner.time_ms()
    kept = encode(_Kept(now_ms, specification("0 0 1 1 *")))
    with server.client() as client:
        for name in names:
            client.hset(model.key(name, "schedules").decode(), "s", kept)
        client.zadd(model.SCHEDULED_KEY.decode(), dict.fromkeys(names, now_ms))


async def served_by_a_node(
    store: QueueStore, is_ours: Callable[[str], bool], expected: set[str]
) -> None:
    """Run what serves the schedules of a node until it has served these queues."""
    over = asyncio.Event()
    served: list[str] = []
    node = ScheduleServer(store, is_ours, lambda queue, _ready: served.append(queue))
    running = asyncio.create_task(node.run(over))
    try:
        async with asyncio.timeout(20):
            while not expected <= set(served):
                await asyncio.sleep(0.02)
    finally:
        over.set()
        await running
    assert sorted(served) == sorted(expected)


async def test_any_number_of_queues_due_at_once_is_served_in_one_round(
    stores: list[QueueStore], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is due and for other nodes to serve."""
    monkeypatch.setattr(serving, "QUEUES_PER_PAGE", 10)
    monkeypatch.setattr(serving, "LOOK_SECONDS", 600)
    monkeypatch.setattr(serving, "LATE_MS", 600_000)
    names = [f"q{number:03}" for number in range(100)]
    await make_many_due(server, stores[0], names)
    ours = set(names[2::3])
    await served_by_a_node(stores[0], ours.__contains__, ours)


async def test_what_its_owner_has_not_served_for_seconds_is_served_by_any_node(
    stores: list[QueueStore], server: RedisServer
) -> None:
    began = asyncio.get_running_loop().time()
    await make_many_due(server, stores[0], ["q"])
    await served_by_a_node(stores[0], lambda _queue: False, {"q"})
    assert asyncio.get_running_loop().time() - began > serving.LATE_MS / 1_000 - 0.1
