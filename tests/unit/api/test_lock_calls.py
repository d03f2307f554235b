from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from distsync_node.locks.commands import Acquire, KeepAlive, Release
from unit.api.local_node import LEADER_URL, LocalNode
from waiting_for import eventually


async def call(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(path, json=body)


async def granted(client: httpx.AsyncClient, **body: Any) -> int:
    answer = await call(client, "/lock/acquire", **{"owner": "a", "name": "x", **body})
    assert answer.status_code == 200, answer.text
    token: int = answer.json()["token"]
    return token


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_acquire_answers_the_grant(client: httpx.AsyncClient) -> None:
    answer = await call(client, "/lock/acquire", name="orders/42", owner="a", ttl_ms=5_000)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert 4_000 < body.pop("expires_in_ms") <= 5_000
    assert body == {"name": "orders/42", "owner": "a", "mode": "exclusive", "token": 1}


async def test_held_lock_is_refused_and_the_refusal_names_it(client: httpx.AsyncClient) -> None:
    await granted(client)
    answer = await call(client, "/lock/acquire", name="x", owner="b")
    assert code(answer) == (409, "lock_held")
    assert "'x'" in answer.json()["detail"]
    assert answer.json()["retriable"] is False


async def test_wait_times_out(client: httpx.AsyncClient) -> None:
    await granted(client)
    answer = await call(client, "/lock/acquire", name="x", owner="b", wait_ms=5)
    assert code(answer) == (409, "wait_timeout")


async def test_deadlock_lists_the_cycle(client: httpx.AsyncClient) -> None:
    await granted(client)
    answer = await call(client, "/lock/acquire", name="x", owner="a", wait_ms=1_000)
    assert code(answer) == (409, "deadlock")
    assert answer.json()["cycle"] == ["a"]


async def test_retry_after_the_grant_has_ended_is_lock_lost(client: httpx.AsyncClient) -> None:
    token = await granted(client, request_id="r-1")
    await call(client, "/lock/release", name="x", owner="a", token=token)
    answer = await call(client, "/lock/acquire", name="x", owner="a", request_id="r-1")
    assert code(answer) == (409, "lock_lost")


async def test_other_limit_is_refused(client: httpx.AsyncClient) -> None:
    await granted(client, mode="shared", limit=2)
    answer = await call(client, "/lock/acquire", name="x", owner="b", mode="shared", limit=3)
    assert code(answer) == (409, "limit_mismatch")


async def test_shared_lock_has_as_many_holders_as_its_limit(client: httpx.AsyncClient) -> None:
    for owner in ("a", "b"):
        await granted(client, owner=owner, mode="shared", limit=2)
    answer = await call(client, "/lock/acquire", name="x", owner="c", mode="shared", limit=2)
    assert code(answer) == (409, "lock_held")


async def test_acquire_many_grants_all_in_one_step(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    answer = await call(client, "/lock/acquire_many", names=["b", "a"], owner="o")
    body = answer.json()
    assert answer.status_code == 200
    assert body["owner"] == "o"
    assert body["mode"] == "exclusive"
    assert {lock["name"] for lock in body["locks"]} == {"a", "b"}
    assert len({lock["token"] for lock in body["locks"]}) == 2
    assert len(node.submitted) == 1


async def test_acquire_many_is_all_or_nothing(client: httpx.AsyncClient) -> None:
    await granted(client, name="b")
    answer = await call(client, "/lock/acquire_many", names=["a", "b"], owner="o")
    assert code(answer) == (409, "lock_held")
    assert (await client.get("/lock/a")).json()["holders"] == []


async def test_upgrade_and_downgrade(client: httpx.AsyncClient) -> None:
    token = await granted(client, mode="shared")
    upgraded = await call(client, "/lock/upgrade", name="x", owner="a", token=token)
    assert upgraded.status_code == 200
    assert upgraded.json()["mode"] == "exclusive"
    assert upgraded.json()["token"] > token
    downgraded = await call(
        client, "/lock/downgrade", name="x", owner="a", token=upgraded.json()["token"]
    )
    assert downgraded.status_code == 200
    assert downgraded.json()["mode"] == "shared"
    assert downgraded.json()["token"] == upgraded.json()["token"]


async def test_second_upgrade_is_a_deadlock(client: httpx.AsyncClient, node: LocalNode) -> None:
    first = await granted(client, owner="a", mode="shared")
    second = await granted(client, owner="b", mode="shared")
    waiting = asyncio.create_task(
        call(client, "/lock/upgrade", name="x", owner="a", token=first, wait_ms=5_000)
    )
    await eventually(lambda: node.waiting_count() == 1)
    refused = await call(client, "/lock/upgrade", name="x", owner="b", token=second, wait_ms=5_000)
    assert code(refused) == (409, "deadlock")
    await call(client, "/lock/release", name="x", owner="b", token=second)
    assert (await waiting).json()["mode"] == "exclusive"


async def test_release_ends_the_grant_once(client: httpx.AsyncClient) -> None:
    token = await granted(client)
    answer = await call(client, "/lock/release", name="x", owner="a", token=token)
    assert (answer.status_code, answer.json()) == (200, {"released": True})
    again = await call(client, "/lock/release", name="x", owner="a", token=token)
    assert code(again) == (409, "not_holder")


async def test_lost_reply_of_a_release_is_answered_again(client: httpx.AsyncClient) -> None:
    token = await granted(client)
    body = {"name": "x", "owner": "a", "token": token, "request_id": "r-9"}
    first = await call(client, "/lock/release", **body)
    again = await call(client, "/lock/release", **body)
    assert first.json() == again.json() == {"released": True}


async def test_release_with_an_old_token_changes_nothing(client: httpx.AsyncClient) -> None:
    old = await granted(client)
    await call(client, "/lock/release", name="x", owner="a", token=old)
    await granted(client)
    answer = await call(client, "/lock/release", name="x", owner="a", token=old)
    assert code(answer) == (409, "not_holder")
    assert len((await client.get("/lock/x")).json()["holders"]) == 1


async def test_renew_prolongs(client: httpx.AsyncClient) -> None:
    token = await granted(client, ttl_ms=1_000)
    answer = await call(client, "/lock/renew", name="x", owner="a", token=token, ttl_ms=60_000)
    assert answer.status_code == 200
    assert answer.json()["token"] == token
    assert 59_000 < answer.json()["expires_in_ms"] <= 60_000
    wrong = await call(client, "/lock/renew", name="x", owner="a", token=token + 1)
    assert code(wrong) == (409, "not_holder")


async def test_session_holds_locks_and_its_end_ends_them(client: httpx.AsyncClient) -> None:
    opened = (await call(client, "/session", ttl_ms=5_000)).json()
    assert 4_000 < opened["expires_in_ms"] <= 5_000
    session = opened["session"]
    await granted(client, session=session)
    holder = (await client.get("/lock/x")).json()["holders"][0]
    assert holder["session"] == session
    kept = await call(client, "/session/keepalive", session=session)
    assert kept.status_code == 200
    assert kept.json()["session"] == session
    closed = await call(client, "/session/close", session=session)
    assert closed.json() == {"closed": True}
    assert (await client.get("/lock/x")).json()["holders"] == []


async def test_session_may_be_opened_without_a_body(client: httpx.AsyncClient) -> None:
    answer = await client.post("/session")
    assert answer.status_code == 200
    assert 9_000 < answer.json()["expires_in_ms"] <= 10_000


async def test_sessions_of_different_calls_differ(client: httpx.AsyncClient) -> None:
    ids = {(await client.post("/session")).json()["session"] for _ in range(3)}
    assert len(ids) == 3


async def test_retried_open_gives_the_same_session(client: httpx.AsyncClient) -> None:
    first = await call(client, "/session", ttl_ms=5_000, request_id="s-1")
    again = await call(client, "/session", ttl_ms=5_000, request_id="s-1")
    assert first.json()["session"] == again.json()["session"]


@pytest.mark.parametrize("path", ["/session/keepalive", "/session/close"])
async def test_unknown_session_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert code(await call(client, path, session="none")) == (404, "session_not_found")


async def test_acquire_with_an_unknown_session_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await call(client, "/lock/acquire", name="x", owner="a", session="none")
    assert code(answer) == (404, "session_not_found")


async def test_with_a_session_the_ttl_plays_no_part(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    session = (await call(client, "/session", ttl_ms=60_000)).json()["session"]
    answer = await call(client, "/lock/acquire", name="x", owner="a", session=session, ttl_ms=100)
    assert 59_000 < answer.json()["expires_in_ms"] <= 60_000
    command = node.submitted[-1]
    assert isinstance(command, Acquire)
    assert command.ttl_ms == 0


async def test_keep_alive_names_its_session_only(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    session = (await client.post("/session")).json()["session"]
    await call(client, "/session/keepalive", session=session)
    assert node.submitted[-1] == KeepAlive(sessions=(session,))


async def test_every_path_has_an_alias(client: httpx.AsyncClient) -> None:
    answer = await call(client, "/v1/lock/acquire", name="orders/42", owner="a")
    assert answer.status_code == 200
    read = await client.get("/v1/lock/orders%2F42")
    assert read.json()["holders"][0]["owner"] == "a"
    for path in ("/v1/healthz", "/v1/cluster/status", "/v1/locks", "/v1/metrics"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/v1/v1/healthz")).status_code == 404


async def test_answers_say_who_answered_and_who_leads(client: httpx.AsyncClient) -> None:
    for answer in (
        await call(client, "/lock/acquire", name="x", owner="a"),
        await call(client, "/lock/acquire", name="x", owner="b"),
        await client.get("/metrics"),
        await client.get("/nothing"),
    ):
        assert answer.headers["distsync-node"] == "node-1"
        assert answer.headers["distsync-leader"] == LEADER_URL
        assert answer.headers["x-request-id"]


async def test_no_leader_header_without_a_leader(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    node.leader = None
    assert "distsync-leader" not in (await client.get("/healthz")).headers


async def test_release_is_not_forced_on_the_public_port(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    token = await granted(client)
    await call(client, "/lock/release", name="x", owner="a", token=token)
    command = node.submitted[-1]
    assert isinstance(command, Release)
    assert command.force is False
    assert (await call(client, "/lock/force_release", name="x")).status_code == 405
