from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.options import ApiOptions
from distsync_node.errors import NoLeader, ShuttingDown
from unit.api.driver import Exchange, post
from unit.api.local_node import LocalNode
from waiting_for import eventually


async def acquire(client: httpx.AsyncClient, **body: Any) -> None:
    answer = await client.post("/lock/acquire", json={"owner": "a", **body})
    assert answer.status_code == 200


def events(exchange: Exchange) -> list[dict[str, Any]]:
    frames = exchange.body.decode().split("\n\n")
    return [
        msgspec.json.decode(frame.removeprefix("event: lock\ndata: "))
        for frame in frames
        if frame.startswith("event: lock\n")
    ]


def watch(app: Gateway, name: str) -> Exchange:
    return Exchange(app, "GET", f"/lock/{name}/watch")


# --- One and many -------------------------------------------------------------------------------


async def test_free_lock_has_nobody(client: httpx.AsyncClient) -> None:
    assert (await client.get("/lock/x")).json() == {
        "name": "x",
        "mode": None,
        "limit": None,
        "token": None,
        "holders": [],
        "waiters": [],
        "waiter_count": 0,
        "holder_count": 0,
    }


async def test_lock_shows_holders_and_waiters(
    client: httpx.AsyncClient, app: Gateway, node: LocalNode
) -> None:
    await acquire(client, name="x", ttl_ms=60_000)
    waiter = post(app, "/lock/acquire", b'{"name":"x","owner":"b","wait_ms":60000}')
    await eventually(lambda: node.waiting_count() == 1)
    lock = (await client.get("/lock/x")).json()
    assert lock["mode"] == "exclusive"
    assert lock["token"] == 1
    assert 59_000 < lock["holders"][0].pop("expires_in_ms") <= 60_000
    assert lock["holders"] == [{"owner": "a", "mode": "exclusive", "token": 1, "session": None}]
    assert 59_000 < lock["waiters"][0].pop("gives_up_in_ms") <= 60_000
    assert lock["waiters"] == [{"owner": "b", "mode": "exclusive", "position": 0, "upgrade": False}]
    assert (lock["holder_count"], lock["waiter_count"]) == (1, 1)
    waiter.disconnect()
    await waiter.done()


async def test_semaphore_shows_its_limit_and_newest_token(client: httpx.AsyncClient) -> None:
    for owner in ("a", "b"):
        await acquire(client, name="x", owner=owner, mode="shared", limit=3)
    lock = (await client.get("/lock/x")).json()
    assert (lock["mode"], lock["limit"], lock["token"]) == ("shared", 3, 2)
    assert [holder["owner"] for holder in lock["holders"]] == ["a", "b"]


async def test_reads_are_linearizable(client: httpx.AsyncClient, node: LocalNode) -> None:
    for path in ("/lock/x", "/locks"):
        before = node.barriers
        await client.get(path)
        assert node.barriers == before + 1


async def test_reads_without_a_leader_are_503(client: httpx.AsyncClient, node: LocalNode) -> None:
    node.error = NoLeader("no leader confirmed the read in time")
    for path in ("/lock/x", "/locks", "/lock/x/watch"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["code"] == "no_leader"


async def test_locks_are_listed_by_name_under_a_prefix(client: httpx.AsyncClient) -> None:
    for name in ("b/1", "a/2", "a/1", "c"):
        await acquire(client, name=name)
    everything = (await client.get("/locks")).json()
    assert [lock["name"] for lock in everything["locks"]] == ["a/1", "a/2", "b/1", "c"]
    assert everything["next"] is None
    some = (await client.get("/locks", params={"prefix": "a/"})).json()
    assert [lock["name"] for lock in some["locks"]] == ["a/1", "a/2"]


async def test_pages_join_without_gap_or_repeat(client: httpx.AsyncClient) -> None:
    names = [f"lock-{number:02d}" for number in range(7)]
    for name in names:
        await acquire(client, name=name)
    found: list[str] = []
    after = ""
    while after is not None:
        page = (await client.get("/locks", params={"limit": 3, "after": after})).json()
        found += [lock["name"] for lock in page["locks"]]
        after = page["next"]
    assert found == names


# --- Watching -----------------------------------------------------------------------------------


async def test_watch_begins_with_the_lock_as_it_is(client: httpx.AsyncClient, app: Gateway) -> None:
    await acquire(client, name="orders/42")
    exchange = watch(app, "orders%2F42")
    await exchange.until(lambda one: events(one))
    assert exchange.status == 200
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["distsync-node"] == "node-1"
    assert "content-length" not in exchange.headers
    assert events(exchange)[0]["name"] == "orders/42"
    assert events(exchange)[0]["holders"][0]["owner"] == "a"
    exchange.disconnect()
    await exchange.done()


async def test_watch_tells_changes(client: httpx.AsyncClient, app: Gateway) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: len(events(one)) == 1)
    await acquire(client, name="x")
    await exchange.until(lambda one: len(events(one)) == 2)
    await client.post("/lock/release", json={"name": "x", "owner": "a", "token": 1})
    await exchange.until(lambda one: len(events(one)) == 3)
    assert [len(event["holders"]) for event in events(exchange)] == [0, 1, 0]
    exchange.disconnect()
    await exchange.done()


async def test_watch_tells_nothing_twice(
    client: httpx.AsyncClient, app: Gateway, node: LocalNode
) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: len(events(one)) == 1)
    await acquire(client, name="other")
    node.wake_watchers("x")
    await exchange.until(lambda one: one.body.count(b": keep-alive") >= 2)
    assert len(events(exchange)) == 1
    exchange.disconnect()
    await exchange.done()


async def test_watch_is_kept_alive_by_comments(app: Gateway) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: b": keep-alive\n\n" in one.body)
    exchange.disconnect()
    await exchange.done()


async def test_watch_of_a_client_that_left_leaves_nothing_behind(
    app: Gateway, node: LocalNode
) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: events(one))
    assert node.watcher_count("x") == 1
    exchange.disconnect()
    await exchange.done()
    assert node.watcher_count("x") == 0
    assert app.in_flight == 0


async def test_close_ends_watches(app: Gateway, node: LocalNode) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: events(one))
    app.close()
    await exchange.done()
    assert exchange.is_complete
    assert node.watcher_count("x") == 0


async def test_watch_ends_when_the_node_stops(app: Gateway, node: LocalNode) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: events(one))
    node.error = ShuttingDown("stopping")
    node.wake_watchers("x")
    await exchange.done()
    assert exchange.is_complete


async def test_watch_ends_at_a_node_that_would_not_hear_of_a_change(
    app: Gateway, node: LocalNode
) -> None:
    exchange = watch(app, "x")
    await exchange.until(lambda one: b": keep-alive\n\n" in one.body)
    node.error = NoLeader("no leader confirmed the read in time")
    await exchange.done()
    assert exchange.is_complete


async def test_watches_are_limited(node: LocalNode) -> None:
    app = build_public_app(node, node_name="node-1", options=ApiOptions(max_watchers=1))
    first = watch(app, "x")
    await first.until(lambda one: events(one))
    second = watch(app, "x")
    await second.done()
    assert second.status == 429
    assert second.json()["limit"] == "watchers"
    assert second.headers["retry-after"] == "1"
    first.disconnect()
    await first.done()
    third = watch(app, "x")
    await third.until(lambda one: events(one))
    third.disconnect()
    await third.done()


async def test_watch_of_a_client_that_does_not_read_is_given_up(
    app: Gateway, node: LocalNode
) -> None:
    stuck = Exchange(app, "GET", "/lock/x/watch")
    await stuck.until(lambda one: events(one))
    stuck.block()
    await stuck.done()
    assert node.watcher_count("x") == 0


@pytest.mark.parametrize("name", ["a%00b", "%ff", "a" * 513])
async def test_watch_of_no_name_is_refused(app: Gateway, name: str) -> None:
    exchange = watch(app, name)
    await exchange.done()
    assert exchange.status == 422
    assert exchange.json()["field"] == "name"
