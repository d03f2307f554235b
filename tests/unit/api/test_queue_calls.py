"""Queues over HTTP, on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.errors import RedisUnavailable
from distsync_node.queues.service import QueueService
from redis_server import RedisServer
from unit.api.conftest import QUICK
from unit.api.driver import post
from unit.api.local_node import LocalNode
from waiting_for import eventually


@pytest.fixture
async def queues(redis: RedisServer) -> AsyncIterator[QueueService]:
    redis.empty()
    queues = QueueService(redis.url)
    await queues.start()
    yield queues
    await queues.close()


@pytest.fixture
def app(node: LocalNode, queues: QueueService) -> Gateway:
    return build_public_app(node, node_name="node-1", queues=queues, options=QUICK)


async def call(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def push(client: httpx.AsyncClient, body: str = "hello", **fields: Any) -> str:
    (one,) = (await call(client, "/queue/push", queue="q", body=body, **fields))["ids"]
    return str(one)


async def pop(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    return list((await call(client, "/queue/pop", queue="q", **fields))["messages"])


async def test_a_message_is_pushed_claimed_and_done(client: httpx.AsyncClient) -> None:
    pushed = await push(client, "héllo")
    (message,) = await pop(client)
    assert (message["id"], message["body"], message["deliveries"]) == (pushed, "héllo", 1)
    assert await pop(client) == []
    done = await call(client, "/v1/queue/ack", queue="q", receipts=[message["receipt"]])
    assert done["count"] == 1
    stats = (await client.get("/queue/q")).json()["stats"]
    assert (stats["ready"], stats["in_flight"], stats["acked"]) == (0, 0, 1)


async def test_a_batch_keeps_its_order_and_its_options(client: httpx.AsyncClient) -> None:
    messages = [
        {"body": "low"},
        {"body": "high", "priority": 9},
        {"body": "late", "delay_ms": 60000},
    ]
    pushed = await call(client, "/queue/push", queue="q", messages=messages)
    assert len(pushed["ids"]) == 3
    assert [one["body"] for one in await pop(client, max=10)] == ["high", "low"]


async def test_a_stale_receipt_is_named_and_the_others_are_served(
    client: httpx.AsyncClient,
) -> None:
    await push(client, "a")
    await push(client, "b")
    (first,) = await pop(client)
    (second,) = await pop(client)
    await call(client, "/queue/ack", queue="q", receipts=[first["receipt"]])
    receipts = [first["receipt"], second["receipt"]]
    problem = await call(client, "/queue/ack", 409, queue="q", receipts=receipts)
    assert (problem["code"], problem["stale"]) == ("stale_receipt", [first["receipt"]])
    assert (await client.get("/queue/q")).json()["stats"]["acked"] == 2


async def test_a_pop_ends_the_claims_before_it(client: httpx.AsyncClient) -> None:
    """And names those that had ended by themselves; the same request again says the same."""
    for body in "abc":
        await push(client, body)
    first, second = await pop(client, max=2)
    await call(client, "/queue/ack", queue="q", receipts=[first["receipt"]])
    request = {
        "queue": "q",
        "ack": [first["receipt"], second["receipt"]],
        "request_id": "work-1",
    }
    answer = await call(client, "/queue/pop", **request)
    assert [one["body"] for one in answer["messages"]] == ["c"]
    assert answer["stale"] == [first["receipt"]]
    again = await call(client, "/queue/pop", **request)
    assert [one["receipt"] for one in again["messages"]] == [answer["messages"][0]["receipt"]]
    assert again["stale"] == answer["stale"]
    stats = (await client.get("/queue/q")).json()["stats"]
    assert (stats["acked"], stats["in_flight"]) == (2, 1)


async def test_a_pop_that_fails_after_it_ended_claims_did_not_do_nothing(
    client: httpx.AsyncClient, queues: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(client)
    (message,) = await pop(client)
    pop_now = queues.store.pop

    async def fail(*_: object, **__: object) -> Any:
        raise RedisUnavailable

    monkeypatch.setattr(queues.store, "pop", fail)
    request = {"queue": "q", "ack": [message["receipt"]], "request_id": "work-1"}
    assert (await call(client, "/queue/pop", 504, **request))["code"] == "outcome_unknown"
    assert (await call(client, "/queue/pop", 503, queue="q"))["code"] == "redis_unavailable"
    monkeypatch.setattr(queues.store, "pop", pop_now)
    assert (await call(client, "/queue/pop", **request))["stale"] == []


async def test_claims_end_before_a_pop_begins_to_wait(client: httpx.AsyncClient) -> None:
    """So the next of a group, which waits for the one before, is what is popped."""
    messages = [{"body": "first", "group": "g"}, {"body": "second", "group": "g"}]
    await call(client, "/queue/push", queue="q", messages=messages)
    (first,) = await pop(client)
    assert await pop(client) == []
    (second,) = await pop(client, ack=[first["receipt"]], wait_ms=30_000)
    assert second["body"] == "second"


async def test_nack_brings_back_and_dead_letters_can_be_redriven(client: httpx.AsyncClient) -> None:
    await push(client)
    (message,) = await pop(client)
    await call(client, "/queue/nack", queue="q", receipts=[message["receipt"]])
    (message,) = await pop(client)
    assert message["deliveries"] == 2
    dead = await call(client, "/queue/nack", queue="q", receipts=[message["receipt"]], dead=True)
    assert dead["dead"] == [message["id"]]
    assert (await call(client, "/queue/q/redrive"))["moved"] == 1
    assert len(await pop(client)) == 1


async def test_extend_keeps_a_claim(client: httpx.AsyncClient) -> None:
    await push(client)
    (message,) = await pop(client, visibility_ms=1_000)
    await call(
        client, "/queue/extend", queue="q", receipts=[message["receipt"]], visibility_ms=60_000
    )
    assert await pop(client, wait_ms=1_200) == []
    await call(client, "/queue/ack", queue="q", receipts=[message["receipt"]])


async def test_a_long_poll_is_woken_by_a_push(client: httpx.AsyncClient) -> None:
    polls = [asyncio.create_task(pop(client, wait_ms=30_000)) for _ in range(3)]
    await asyncio.sleep(0)
    for body in "abc":
        await push(client, body)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*polls)
    assert sorted(messages[0]["body"] for messages in found) == ["a", "b", "c"]


async def test_a_long_poll_is_woken_by_the_end_of_a_claim_and_of_a_delay(
    client: httpx.AsyncClient,
) -> None:
    await push(client, "claimed")
    await pop(client, visibility_ms=100)
    await call(client, "/queue/push", queue="q", messages=[{"body": "late", "delay_ms": 150}])
    async with asyncio.timeout(5):
        bodies = [(await pop(client, wait_ms=30_000))[0]["body"] for _ in range(2)]
    assert bodies == ["claimed", "late"]


async def test_a_long_poll_ends_empty_after_its_time(client: httpx.AsyncClient) -> None:
    assert await pop(client, wait_ms=20) == []


async def test_another_nodes_push_is_found_within_a_second(
    client: httpx.AsyncClient, redis: RedisServer, node: LocalNode
) -> None:
    other = QueueService(redis.url)
    await other.start()
    app = build_public_app(node, node_name="node-2", queues=other, options=QUICK)
    poll = asyncio.create_task(pop(client, wait_ms=30_000))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://node.test"
    ) as elsewhere:
        await push(elsewhere)
    async with asyncio.timeout(3):
        assert len(await poll) == 1
    await other.close()


async def test_a_client_that_goes_while_it_waits_takes_no_message(
    app: Gateway, client: httpx.AsyncClient, queues: QueueService
) -> None:
    exchange = post(app, "/queue/pop", b'{"queue": "q", "wait_ms": 60000}')
    await eventually(lambda: queues.waiting == 1)
    exchange.disconnect()
    await exchange.done()
    assert queues.waiting == 0
    await push(client)
    (message,) = await pop(client)
    assert message["deliveries"] == 1


async def test_a_poll_that_is_cancelled_at_any_moment_loses_no_message(
    client: httpx.AsyncClient, queues: QueueService
) -> None:
    """Cut off after each number of turns of the loop: what was claimed is there again at once."""
    for turns in range(40):
        poll = asyncio.create_task(
            queues.pop("q", count=1, wait_ms=60_000, visibility_ms=60_000, request_id=f"r{turns}")
        )
        await asyncio.sleep(0)
        await push(client, str(turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        poll.cancel()
        (outcome,) = await asyncio.gather(poll, return_exceptions=True)
        async with asyncio.timeout(5):
            if isinstance(outcome, BaseException):
                (message,) = await pop(client, wait_ms=4_000)
                assert (message["body"], message["deliveries"]) == (str(turns), 1)
                receipt = message["receipt"]
            else:
                receipt = outcome.messages[0].receipt
        await call(client, "/queue/ack", queue="q", receipts=[receipt])
    assert queues.waiting == 0


async def test_a_repeated_request_is_done_once(client: httpx.AsyncClient) -> None:
    assert await push(client, request_id="r1") == await push(client, request_id="r1")
    (first,) = await pop(client, request_id="p1")
    (again,) = await pop(client, request_id="p1")
    assert again["receipt"] == first["receipt"]
    reused = await call(client, "/queue/push", 422, queue="q", body="other", request_id="r1")
    assert (reused["code"], reused["field"]) == ("request_id_reused", "request_id")


async def test_ids_of_two_clients_do_not_meet(client: httpx.AsyncClient) -> None:
    body = {"queue": "q", "body": "x", "request_id": "1"}
    answers = [
        await client.post("/queue/push", json=body, headers={"distsync-client": name})
        for name in ("a", "b", "a")
    ]
    ids = [answer.json()["ids"][0] for answer in answers]
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]


async def test_a_fence_lets_the_holder_in_and_nobody_before_it(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    async def acquire(owner: str, **fields: Any) -> Any:
        return await call(client, "/lock/acquire", name="l", owner=owner, ttl_ms=60_000, **fields)

    old = await acquire("a")
    await push(client, fence={"lock": "l", "token": old["token"]})
    await call(client, "/lock/release", name="l", owner="a", token=old["token"])
    new = await acquire("b")
    barriers = node.barriers
    await push(client, fence={"lock": "l", "token": new["token"]})
    await push(client, fence={"lock": "l", "token": new["token"]})
    assert node.barriers == barriers + 1  # a token is looked up once
    fence = {"lock": "l", "token": old["token"]}
    refused = await call(client, "/queue/push", 409, queue="q", body="x", fence=fence)
    assert (refused["code"], refused["newest"]) == ("fenced", new["token"])
    fence = {"lock": "l", "token": new["token"] + 100}
    refused = await call(client, "/queue/push", 409, queue="q", body="x", fence=fence)
    assert refused["code"] == "fenced"
    await call(client, "/lock/release", name="l", owner="b", token=new["token"])
    shared = await acquire("c", mode="shared")
    fence = {"lock": "l", "token": shared["token"]}
    refused = await call(client, "/queue/push", 422, queue="q", body="x", fence=fence)
    assert refused["field"] == "fence.token"
    assert (await client.get("/queue/q")).json()["stats"]["pushed"] == 3


async def test_every_call_that_changes_something_takes_a_request_id(
    client: httpx.AsyncClient,
) -> None:
    schedule = {"cron": "* * * * *", "body": "x"}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/queue/q/config", {"create": True}),
        ("POST", "/queue/q/pause", {}),
        ("POST", "/queue/q/resume", {}),
        ("PUT", "/queue/q/schedules/s", schedule),
    ]
    for method, path, body in calls:
        for _ in range(2):
            answer = await client.request(method, path, json={**body, "request_id": path})
            assert answer.status_code == 200, answer.text
    answer = await client.delete("/queue/q/schedules/s", params={"request_id": "r"})
    assert answer.json() == {"deleted": True}


async def test_a_message_is_taken_out_once_under_a_request_id(client: httpx.AsyncClient) -> None:
    path = f"/queue/q/messages/{await push(client)}"
    for _ in range(2):
        assert (await client.delete(path, params={"request_id": "r"})).json() == {"cancelled": True}
    assert (await client.delete(path, params={"request_id": "another"})).status_code == 404
    assert (await client.delete(path)).status_code == 404
    another = f"/queue/q/messages/{await push(client, 'another')}"
    reused = await client.delete(another, params={"request_id": "r"})
    assert (reused.status_code, reused.json()["code"]) == (422, "request_id_reused")
    assert (await client.get("/queue/q")).json()["stats"]["cancelled"] == 1


async def test_a_queue_is_configured_paused_and_purged(client: httpx.AsyncClient) -> None:
    unknown = await client.put("/queue/q/config", json={"max_length": 1})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "queue_not_found")
    made = await client.put("/queue/q/config", json={"max_length": 1, "create": True})
    assert made.json()["max_length"] == 1
    await push(client)
    full = await call(client, "/queue/push", 429, queue="q", body="x")
    assert full["code"] == "queue_full"
    assert (await call(client, "/queue/q/pause"))["paused"]
    poll = asyncio.create_task(pop(client, wait_ms=30_000))
    assert await pop(client) == []
    assert not (await call(client, "/queue/q/resume"))["paused"]
    async with asyncio.timeout(5):
        assert len(await poll) == 1
    assert (await call(client, "/queue/q/purge"))["removed"] == 1


async def test_queues_are_listed_and_peeked_at(client: httpx.AsyncClient) -> None:
    for name in ("orders/42", "orders/é", "reports"):
        await call(client, "/queue/push", queue=name, body=name)
    page = (await client.get("/queues", params={"prefix": "orders/", "limit": 1})).json()
    assert page == {"queues": ["orders/42"], "next": "orders/42"}
    page = (await client.get("/queues", params={"prefix": "orders/", "after": "orders/42"})).json()
    assert page == {"queues": ["orders/é"], "next": None}
    peeked = (await client.get("/queue/orders%2F42/peek")).json()
    assert [one["body"] for one in peeked["messages"]] == ["orders/42"]
    unknown = await client.get("/queue/nothing")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "queue_not_found")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/queue/push", {"queue": "q"}, "messages"),
        ("/queue/push", {"queue": "q", "body": "x", "messages": [{"body": "y"}]}, "messages"),
        ("/queue/push", {"queue": "q" * 513, "body": "x"}, "queue"),
        ("/queue/push", {"queue": "é" * 300, "body": "x"}, "queue"),
        ("/queue/push", {"queue": "a\nb", "body": "x"}, "queue"),
        ("/queue/push", {"queue": "q", "messages": [{"body": "x", "delay_ms": -1}]}, "delay_ms"),
        ("/queue/push", {"queue": "q", "messages": [{"body": "x"}] * 101}, "messages"),
        ("/queue/pop", {"queue": "q", "max": 101}, "max"),
        ("/queue/pop", {"queue": "q", "wait_ms": -1}, "wait_ms"),
        ("/queue/pop", {"queue": "q", "visibility_ms": 0}, "visibility_ms"),
        ("/queue/pop", {"queue": "q", "ack": ["nonsense"]}, "ack[0]"),
        ("/queue/pop", {"queue": "q", "ack": ["x"] * 101}, "ack"),
        ("/queue/ack", {"queue": "q", "receipts": ["nonsense"]}, "receipts[0]"),
        ("/queue/ack", {"queue": "q", "receipts": []}, "receipts"),
    ],
)
async def test_bad_input_names_its_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert field in answer.json()["field"]
    assert (await client.get("/queues")).json()["queues"] == []


async def test_each_bad_message_of_a_batch_is_told_and_none_is_pushed(
    client: httpx.AsyncClient,
) -> None:
    """What the decoder refuses and what is found later, in one answer."""
    batch = [
        {"body": "x", "delay_ms": -1},
        {"body": "good"},
        {"body": "x", "colour": "red"},
        "no object",
        {"body": "x", "group": "a\nb"},
        {"body": "é" * 200_000, "priority": 9},
    ]
    refused = await call(client, "/queue/push", 422, queue="q", messages=batch)
    assert [(one["index"], one["field"], one["code"]) for one in refused["errors"]] == [
        (0, "messages[0].delay_ms", "bad_request"),
        (2, "messages[2].colour", "bad_request"),
        (3, "messages[3]", "bad_request"),
        (4, "messages[4].group", "bad_request"),
        (5, "messages[5].body", "payload_too_large"),
    ]
    assert all(one["detail"].startswith(one["field"] + ": ") for one in refused["errors"])
    assert refused["field"] == "messages[0].delay_ms"
    assert (await client.get("/queues")).json()["queues"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/queue/ack", "receipts"),
        ("/queue/nack", "receipts"),
        ("/queue/extend", "receipts"),
        ("/queue/pop", "ack"),
    ],
)
@pytest.mark.parametrize("wrong", ["nonsense", 5])
async def test_each_bad_receipt_is_told_and_nothing_is_done(
    client: httpx.AsyncClient, path: str, field: str, wrong: object
) -> None:
    await push(client)
    await call(client, "/queue/push", queue="other", body="y")
    (mine,) = await pop(client)
    (other,) = (await call(client, "/queue/pop", queue="other"))["messages"]
    batch = [wrong, mine["receipt"], other["receipt"]]
    refused = await call(client, path, 422, **{"queue": "q", field: batch})
    assert [(one["index"], one["field"]) for one in refused["errors"]] == [
        (0, f"{field}[0]"),
        (2, f"{field}[2]"),
    ]
    assert (await client.get("/queue/q")).json()["stats"]["in_flight"] == 1


async def test_what_is_told_of_a_bad_batch_is_bounded(client: httpx.AsyncClient) -> None:
    batch = [{"x" * 10_000: 1}] * 200
    refused = await call(client, "/queue/push", 422, queue="q", messages=batch)
    assert [one["index"] for one in refused["errors"]] == list(range(100))
    assert len(str(refused["errors"])) < 100 * 1_000


async def test_bad_messages_are_told_beside_what_else_is_wrong(client: httpx.AsyncClient) -> None:
    batch = [{"body": "x"}, {"body": 5}]
    refused = await call(client, "/queue/push", 422, queue="q", messages=batch, colour="red")
    assert refused["field"] == "messages[1].body"
    refused = await call(client, "/queue/push", 422, colour="red", queue="q", messages=batch)
    assert refused["field"] == "colour"
    assert [one["field"] for one in refused["errors"]] == ["messages[1].body"]


async def test_a_receipt_of_another_queue_is_refused(client: httpx.AsyncClient) -> None:
    await push(client)
    (message,) = await pop(client)
    refused = await call(client, "/queue/ack", 422, queue="other", receipts=[message["receipt"]])
    assert refused["field"] == "receipts[0]"


async def test_a_batch_of_large_messages_fits_and_an_overlong_body_does_not(
    client: httpx.AsyncClient,
) -> None:
    large = "x" * (256 * 1024)
    await call(client, "/queue/push", queue="q", messages=[{"body": large}] * 16)
    refused = await call(client, "/queue/push", 422, queue="q", body=large + "x")
    assert refused["field"] == "body"
    refused = await call(client, "/queue/push", 413, queue="q", body="é" * (128 * 1024 + 1))
    assert refused["field"] == "body"


async def test_without_redis_queues_say_so_and_locks_work(node: LocalNode) -> None:
    app = build_public_app(node, node_name="node-1", options=QUICK)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://node.test"
    ) as client:
        answer = await client.post("/queue/push", json={"queue": "q", "body": "x"})
        assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
        assert "--redis" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        await call(client, "/lock/acquire", name="l", owner="a")


async def test_a_node_that_stops_ends_its_polls(
    client: httpx.AsyncClient, queues: QueueService
) -> None:
    poll = asyncio.create_task(pop(client, wait_ms=60_000))
    await eventually(lambda: queues.waiting == 1)
    queues.end_polls()
    async with asyncio.timeout(5):
        assert await poll == []


async def test_a_message_is_found_by_its_id_wherever_it_is(client: httpx.AsyncClient) -> None:
    message_id = await push(client, "é")
    path = f"/queue/q/messages/{message_id}"
    assert (await client.get(path)).json()["phase"] == "ready"
    (message,) = await pop(client)
    found = (await client.get(path)).json()
    assert (found["phase"], found["body"], found["deliveries"]) == ("in_flight", "é", 1)
    claimed = await client.delete(path)
    assert (claimed.status_code, claimed.json()["code"]) == (409, "message_in_flight")
    await call(client, "/queue/nack", queue="q", receipts=[message["receipt"]], dead=True)
    assert (await client.get(path)).json()["phase"] == "dead"
    assert (await client.delete(path)).json() == {"cancelled": True}
    gone = await client.get(path)
    assert (gone.status_code, gone.json()["code"]) == (404, "message_not_found")
    wrong = await client.get("/queue/q/messages/NONE%20SUCH")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "id")


async def test_messages_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    bodies = [str(number) for number in range(5)]
    for body in bodies:
        await push(client, body)
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        query = {"order": "ready", "limit": 2, "cursor": cursor}
        page = (await client.get("/queue/q/messages", params=query)).json()
        found += [one["body"] for one in page["messages"]]
        cursor = page["next"]
    assert found == bodies
    wrong = await client.get("/queue/q/messages", params={"cursor": "nonsense"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "cursor")


async def test_a_delivery_that_was_not_begun_is_not_counted(client: httpx.AsyncClient) -> None:
    await push(client)
    for _ in range(3):
        (message,) = await pop(client)
        assert message["deliveries"] == 1
        await call(client, "/queue/nack", queue="q", receipts=[message["receipt"]], spend=False)


async def test_what_was_claimed_for_a_client_that_is_gone_returns_at_once(
    app: Gateway, client: httpx.AsyncClient
) -> None:
    """Gone before the answer could be written, without a wait that would have listened for it."""
    await push(client)
    exchange = post(app, "/queue/pop", b'{"queue": "q"}')
    exchange.disconnect()
    await exchange.done()
    assert exchange.status is None
    async with asyncio.timeout(5):
        (message,) = await pop(client, wait_ms=4_000)
    assert message["deliveries"] == 1


async def test_a_schedule_pushes_again_and_again(client: httpx.AsyncClient) -> None:
    wrong = await client.put("/queue/q/schedules/s", json={"cron": "never", "body": "x"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "cron")
    wrong = await client.put(
        "/queue/q/schedules/s", json={"cron": "* * * * *", "body": "x", "timezone": "Nowhere"}
    )
    assert (wrong.status_code, wrong.json()["field"]) == (422, "timezone")
    made = await client.put("/queue/q/schedules/s", json={"cron": "* * * * * *", "body": "x"})
    assert made.status_code == 200
    listed = (await client.get("/queue/q/schedules")).json()["schedules"]
    assert [(one["id"], one["cron"]) for one in listed] == [("s", "* * * * * *")]
    async with asyncio.timeout(10):
        assert [one["body"] for one in await pop(client, wait_ms=9_000)] == ["x"]
    assert (await client.delete("/queue/q/schedules/s")).json() == {"deleted": True}
    assert (await client.delete("/queue/q/schedules/s")).json() == {"deleted": False}
