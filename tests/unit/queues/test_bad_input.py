"""What cannot be is refused with the field that is wrong, and leaves no trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distsync_node.errors import BadRequest, PayloadTooLarge
from distsync_node.queues import limits
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import Fence, NewMessage, QueueConfigChange
from unit.queues.conftest import Queue

GOOD = NewMessage(body=b"good")
Call = Callable[[QueueStore], Awaitable[Any]]


def push(*messages: NewMessage, **options: Any) -> Call:
    return lambda store: store.push("orders", messages, **options)


def message(**fields: Any) -> Call:
    return push(GOOD, NewMessage(body=b"x", **fields))


def receipts(*some: str) -> Call:
    return lambda store: store.ack("orders", some)


def change(**fields: Any) -> Call:
    return lambda store: store.configure("orders", QueueConfigChange(**fields), create=True)


CASES: dict[str, tuple[Call, str]] = {
    "no name": (lambda store: store.pop(""), "queue"),
    "a name too long": (lambda store: store.pop("ü" * 257), "queue"),
    "a control character": (lambda store: store.stats("a\nb"), "queue"),
    "half a surrogate": (lambda store: store.peek("\ud800"), "queue"),
    "no messages": (push(), "messages"),
    "too many messages": (push(*[GOOD] * (limits.MAX_BATCH + 1)), "messages"),
    "a negative delay": (message(delay_ms=-1), "messages[1].delay_ms"),
    "a delay too long": (message(delay_ms=limits.MAX_DELAY_MS + 1), "messages[1].delay_ms"),
    "a priority too high": (message(priority=10), "messages[1].priority"),
    "a priority too low": (message(priority=-1), "messages[1].priority"),
    "a negative ttl": (message(ttl_ms=-5), "messages[1].ttl_ms"),
    "a group too long": (message(group="g" * 257), "messages[1].group"),
    "a zero byte in a group": (message(group="g\0h"), "messages[1].group"),
    "a dedupe id too long": (message(dedupe_id="d" * 257), "messages[1].dedupe_id"),
    "a token of nothing": (push(GOOD, fence=Fence(lock="l", token=0)), "fence.token"),
    "a fence of no lock": (push(GOOD, fence=Fence(lock="", token=1)), "fence.lock"),
    "a request id too long": (push(GOOD, request_id="r" * 129), "request_id"),
    "a push id of other letters": (push(GOOD, push_id="A.b"), "push_id"),
    "pop of none": (lambda store: store.pop("orders", count=0), "max"),
    "pop of too many": (lambda store: store.pop("orders", count=101), "max"),
    "no visibility": (lambda store: store.pop("orders", visibility_ms=0), "visibility_ms"),
    "no receipts": (receipts(), "receipts"),
    "too many receipts": (receipts(*["x"] * 101), "receipts"),
    "no receipt": (receipts("rubbish"), "receipts[0]"),
    "a receipt with more behind it": (receipts("a-0.b.12345678\n"), "receipts[0]"),
    "a negative max_length": (change(max_length=-1), "max_length"),
    "a rate per nothing": (change(rate_per_ms=0), "rate_per_ms"),
    "sweep of too many": (lambda store: store.sweep("orders", limit=10_000), "limit"),
}


@pytest.mark.parametrize("case", CASES)
async def test_it_names_the_field_and_changes_nothing(queue: Queue, case: str) -> None:
    call, field = CASES[case]
    with pytest.raises(BadRequest) as refused:
        await call(queue.store)
    assert refused.value.fields["field"] == field
    assert refused.value.detail.startswith(field)
    assert refused.value.status == 422
    assert queue.client.keys("dsq:*") == []


async def test_a_body_too_long(queue: Queue) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        await queue.store.push(
            "orders", [GOOD, NewMessage(body=b"x" * (limits.MAX_BODY_BYTES + 1))]
        )
    assert refused.value.fields["field"] == "messages[1].body"
    assert queue.client.keys("dsq:*") == []


async def test_bodies_too_long_together(queue: Queue) -> None:
    count = limits.MAX_BATCH_BYTES // limits.MAX_BODY_BYTES
    largest = NewMessage(body=b"x" * limits.MAX_BODY_BYTES)
    with pytest.raises(PayloadTooLarge):
        await queue.store.push("orders", [*[largest] * count, GOOD])
    await queue.store.push("orders", [largest] * count)


async def test_a_receipt_of_another_queue_and_none_of_the_batch_is_served(queue: Queue) -> None:
    await queue.push("x")
    await queue.named("other").push("y")
    mine, other = await queue.one(), await queue.named("other").one()
    with pytest.raises(BadRequest) as refused:
        await queue.store.ack("orders", [mine.receipt, other.receipt])
    assert refused.value.fields["field"] == "receipts[1]"
    assert (await queue.stats()).in_flight == 1


async def test_the_largest_of_everything_is_taken(queue: Queue) -> None:
    body = NewMessage(
        body=b"x",
        delay_ms=limits.MAX_DELAY_MS,
        priority=9,
        ttl_ms=limits.MAX_TTL_MS,
        group="g" * 256,
        dedupe_id="d" * 256,
    )
    name = "ü" * 256
    await queue.store.push(name, [body] + [GOOD] * 99, request_id="r" * 128)
    assert len(await queue.named(name).claim(100, limits.MAX_VISIBILITY_MS)) == 99


async def test_each_message_of_a_batch_that_cannot_be_is_told(queue: Queue) -> None:
    too_long = NewMessage(body=b"x" * (limits.MAX_BODY_BYTES + 1))
    batch = [NewMessage(body=b"x", delay_ms=-1), GOOD, too_long, NewMessage(body=b"x", group="\0")]
    with pytest.raises(BadRequest) as refused:
        await queue.store.push("orders", batch)
    assert refused.value.fields["field"] == "messages[0].delay_ms"
    assert [
        (one["index"], one["field"], one["code"]) for one in refused.value.fields["errors"]
    ] == [
        (0, "messages[0].delay_ms", "bad_request"),
        (2, "messages[2].body", "payload_too_large"),
        (3, "messages[3].group", "bad_request"),
    ]
    assert queue.client.keys("dsq:*") == []


async def test_each_receipt_that_cannot_be_is_told(queue: Queue) -> None:
    await queue.push("x")
    await queue.named("other").push("y")
    mine, other = await queue.one(), await queue.named("other").one()
    with pytest.raises(BadRequest) as refused:
        await queue.store.nack("orders", ["rubbish", mine.receipt, other.receipt])
    assert [(one["index"], one["detail"]) for one in refused.value.fields["errors"]] == [
        (0, "receipts[0]: is not a receipt"),
        (2, "receipts[2]: is of another queue"),
    ]
    assert (await queue.stats()).in_flight == 1
