"""Which requests count as the same request sent again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from distsync_node.api.call import mint_request_id
from distsync_node.locks.commands import Acquire
from unit.api.local_node import LocalNode

BODY: dict[str, Any] = {"name": "x", "owner": "a", "request_id": "r-1"}
DEFAULTS: dict[str, Any] = {
    "mode": "exclusive",
    "ttl_ms": 10_000,
    "wait_ms": 0,
    "limit": None,
    "session": None,
}


async def acquire(client: httpx.AsyncClient, *, as_client: str = "", **body: Any) -> httpx.Response:
    headers = {"distsync-client": as_client} if as_client else {}
    return await client.post("/lock/acquire", json=body, headers=headers)


def keys(node: LocalNode) -> list[tuple[str, str]]:
    commands = [command for command in node.submitted if isinstance(command, Acquire)]
    return [(command.key.client, command.key.request) for command in commands]


async def test_retry_gets_the_same_token(client: httpx.AsyncClient) -> None:
    first = await acquire(client, **BODY)
    again = await acquire(client, **BODY)
    assert first.json()["token"] == again.json()["token"]


async def test_spelling_out_defaults_is_the_same_request(client: httpx.AsyncClient) -> None:
    first = await acquire(client, **BODY)
    again = await acquire(client, **DEFAULTS, **BODY)
    assert again.status_code == 200
    assert first.json()["token"] == again.json()["token"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "y"},
        {"owner": "b"},
        {"mode": "shared"},
        {"ttl_ms": 10_001},
        {"wait_ms": 1},
        {"mode": "shared", "limit": 2},
        {"session": "s"},
    ],
)
async def test_same_id_with_another_body_is_422(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    await acquire(client, **BODY)
    answer = await acquire(client, **{**BODY, **change})
    assert answer.status_code == 422
    assert answer.json()["code"] == "request_id_reused"
    assert answer.json()["field"] == "request_id"
    assert (await client.get("/lock/y")).json()["holders"] == []


async def test_same_id_for_another_call_is_422(client: httpx.AsyncClient) -> None:
    token = (await acquire(client, **BODY)).json()["token"]
    answer = await client.post("/lock/release", json={**BODY, "token": token})
    assert answer.json()["code"] == "request_id_reused"
    many = await client.post(
        "/lock/acquire_many", json={"names": ["x"], "owner": "a", "request_id": "r-1"}
    )
    assert many.json()["code"] == "request_id_reused"


async def test_clients_do_not_share_request_ids(client: httpx.AsyncClient, node: LocalNode) -> None:
    await acquire(client, as_client="one", **BODY)
    answer = await acquire(client, as_client="two", **BODY)
    assert answer.json()["code"] == "lock_held"
    assert keys(node) == [("one", "r-1"), ("two", "r-1")]


async def test_client_id_of_128_bytes_of_utf_8_is_accepted(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    headers = [(b"distsync-client", ("é" * 64).encode())]
    answer = await client.post("/lock/acquire", json=BODY, headers=headers)
    assert answer.status_code == 200
    assert keys(node) == [("é" * 64, "r-1")]


async def test_without_an_id_each_request_is_its_own(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    body = {"name": "x", "owner": "a"}
    assert (await acquire(client, **body)).status_code == 200
    assert (await acquire(client, **body)).json()["code"] == "lock_held"
    assert len(set(keys(node))) == 2


async def test_trace_id_from_outside_does_not_make_requests_one(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    for _ in range(2):
        await client.post(
            "/lock/acquire",
            json={"name": "x", "owner": "a"},
            headers={"x-request-id": "proxy-1"},
        )
    assert len(set(keys(node))) == 2
    assert "proxy-1" not in {request for _, request in keys(node)}


async def test_problem_tells_the_id_to_retry_with(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    await acquire(client, name="x", owner="a")
    own = await acquire(client, name="x", owner="b", request_id="mine")
    assert own.json()["request_id"] == "mine"
    minted = await acquire(client, name="x", owner="b")
    assert minted.json()["request_id"] == keys(node)[-1][1]


async def test_trace_id_is_echoed_when_it_is_one(client: httpx.AsyncClient) -> None:
    given = await client.get("/healthz", headers={"x-request-id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    for strange in ("a b", "x" * 129, "<script>"):
        answer = await client.get("/healthz", headers={"x-request-id": strange})
        assert answer.headers["x-request-id"] != strange


def test_minted_ids_are_unique() -> None:
    ids = {mint_request_id() for _ in range(1_000)}
    assert len(ids) == 1_000
